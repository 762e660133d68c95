"""One of several classes for a text or a pair of texts: sentiment, topic, entailment, paraphrase, acceptability."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ftlib.base.errors import InputError
from ftlib.base.settings import setting
from ftlib.base.types import Batch, Head, Outputs
from ftlib.data import sampling, windows
from ftlib.data.batches import Examples
from ftlib.data.labels import Columns, unknown_label
from ftlib.data.preparation import label_values
from ftlib.evals import counted, metrics, thresholds

OBJECTIVE = 'classification'
_WORDS = ('argmax', thresholds.TUNED)


@dataclasses.dataclass(frozen=True)
class Config(windows.Cut):
  """`text`, `pair` (or ''), `label`, `weight` (or ''): names of columns, the last of how much a row counts in the loss.
  `pooling`: what the head sees of a row, first token, mean, max or last; '' is what the model's folder says of
  itself (Sentence-Transformers), else the first of an encoder's and the last of a decoder's. `truncate`, `head_share`,
  `stride`, `window_pooling`: long texts, see `ftlib/data/windows.py`.

  `threshold`: of two classes, from which probability on the second is predicted: 'argmax' (0.5), a number, or 'tuned',
  where F1 or MCC (`tune`) is best on the validation split."""

  text: str = 'text'
  pair: str = ''
  label: str = 'label'
  weight: str = ''
  pooling: str = setting('', choices=('', 'cls', 'mean', 'max', 'last'))
  threshold: str = 'argmax'
  tune: str = setting('f1', choices=thresholds.MEASURES)


def columns(config: Config) -> Columns:
  """What is read of the data."""
  row = sampling.weighed(config.weight) if config.weight else None
  return Columns([config.text] + ([config.pair] if config.pair else []), config.label, 'class', row=row)


def build(config: Config, *, train: Sequence[Mapping[str, Any]] | None, known: list | None) -> Classify:
  """The task over a label list: `known` (of a stored run, or of the data's own schema), else the training rows'.

  Raises `InputError` where only one class is left, or where the threshold or the weights are not as they should be.
  """
  labels = list(known) if known else label_values(train, config.label)
  if len(labels) < 2:
    only = f'only one class, {labels[0]!r}' if labels else 'no label at all'
    raise InputError(f'task.label={config.label!r}: the training rows have {only}; classification needs two or more')
  thresholds.read(config.threshold, words=_WORDS)
  if config.threshold != 'argmax' and len(labels) > 2:
    raise InputError(
      f'task.threshold={config.threshold} is for two classes, and there are {len(labels)}; the most probable one is '
      'predicted with --config.task.threshold=argmax'
    )
  if config.weight and train:
    sampling.check_weights(train, config.weight)
  index = {v: i for i, v in enumerate(labels)}
  counts = np.zeros(len(labels), np.int64)
  for row in train or ():
    if row[config.label] in index:
      counts[index[row[config.label]]] += 1
  return Classify(config, labels, counts)


@dataclasses.dataclass(frozen=True)
class Classify:
  """The task; see `ftlib/tasks/task.py`."""

  config: Config
  labels: list
  counts: np.ndarray
  metric: str = 'accuracy'
  thresholds: np.ndarray | None = None

  @property
  def head(self) -> Head:
    return Head('classify', len(self.labels), self.config.pooling)

  @property
  def about(self) -> str:
    names = [str(l) for l in self.labels]
    return f'{len(names)} labels: {", ".join(names[:10])}' + (f', ... ({len(names)})' if len(names) > 10 else '')

  @property
  def metric_names(self) -> dict[str, bool]:
    return metrics.classification_names(len(self.labels))

  def examples(self, rows: Sequence[Mapping[str, Any]], tokenizer: Any, *, limit: int) -> Examples:
    c = self.config
    pairs = [r[c.pair] for r in rows] if c.pair else None
    return windows.examples(tokenizer, [r[c.text] for r in rows], pairs, self.labelled(rows), limit=limit, cut=c)

  def labelled(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """`labels` int32 [N] and `weights` float32 [N]. Raises `InputError` for labels that the list does not have."""
    c = self.config
    index = {v: i for i, v in enumerate(self.labels)}
    unknown = [i for i, r in enumerate(rows) if r[c.label] not in index]
    if unknown:
      raise InputError(self._unknown(rows, unknown))
    labels = np.asarray([index[r[c.label]] for r in rows], np.int32)
    return {'labels': labels, 'weights': sampling.weights(rows, c.weight)}

  def _unknown(self, rows: Any, unknown: list[int]) -> str:
    values = sorted({str(rows[i][self.config.label]) for i in unknown})
    names = [str(l) for l in self.labels]
    hint = ''
    if any(v in names for v in values):
      kinds = type(self.labels[0]).__name__, type(rows[unknown[0]][self.config.label]).__name__
      hint = f'\n  the same labels as {kinds[0]} in the training data are {kinds[1]} here'
    return unknown_label(
      values[0], values, names, where=rows.where(unknown[0]), rest=f'({len(unknown)} such rows){hint}'
    )

  def predict(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
    return {'probabilities': jax.nn.softmax(outputs.logits.astype(np.float32))}

  def combined(self, examples: Examples, predictions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The probabilities of rows from those of their windows, scaled to sum to 1."""
    found = windows.pooled(examples.windows, predictions['probabilities'], self.config.window_pooling)
    return {'probabilities': found / found.sum(1, keepdims=True)}

  def tuned(self, examples: Examples, predictions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The predictions of the validation split with the threshold that is best on it, where the config asks for it."""
    if self.config.threshold != thresholds.TUNED:
      return dict(predictions)
    positives_N1 = windows.of_rows(examples, 'labels')[:, None] == 1
    found = thresholds.best(positives_N1, predictions['probabilities'][:, 1:], self.config.tune)
    return thresholds.attached(dict(predictions), found)

  def ruled(self, examples: Examples, predictions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The predictions with the classes that this run predicts, which any other's task then goes by."""
    return {'probabilities': predictions['probabilities'], 'predicted': self._predicted(predictions)}

  def _predicted(self, predictions: Mapping[str, np.ndarray]) -> np.ndarray:
    """The predicted classes, int [N]: as `ruled`, the first of equally probable ones, or by the threshold."""
    if 'predicted' in predictions:
      return predictions['predicted']
    probabilities_NC = predictions['probabilities']
    if self.config.threshold == 'argmax':
      return probabilities_NC.argmax(1)
    return (np.asarray(probabilities_NC[:, 1], np.float64) >= self._threshold(predictions)).astype(np.int64)

  def _threshold(self, predictions: Mapping[str, np.ndarray]) -> np.ndarray:
    """From which probability on the second class is predicted, [N]."""
    found = thresholds.of(self.config.threshold, self.thresholds, predictions, words=_WORDS)
    return np.broadcast_to(found, (len(predictions['probabilities']), 1))[:, 0]

  def metrics(self, examples: Examples, predictions: Mapping[str, np.ndarray]) -> dict[str, Any]:
    labels_N, found_N = windows.of_rows(examples, 'labels'), self._predicted(predictions)
    found = metrics.classification(labels_N, predictions['probabilities'], names=self.labels, predictions_N=found_N)
    at = {} if self.config.threshold == 'argmax' else {str(self.labels[1]): float(self._threshold(predictions)[0])}
    return {**found, 'thresholds': at} if at else found

  def resampled(self, examples: Examples, predictions: Mapping[str, np.ndarray]) -> counted.Counted:
    """The scalars of `metrics` and `per_class` over rows that stand there so many times."""
    labels_N, found_N = windows.of_rows(examples, 'labels'), self._predicted(predictions)
    return counted.classification(labels_N, predictions['probabilities'], names=self.labels, predictions_N=found_N)

  def records(self, rows: Sequence[Mapping[str, Any]], predictions: Mapping[str, np.ndarray]) -> Iterator[dict]:
    c, found_N = self.config, self._predicted(predictions)
    for i, (row, p) in enumerate(zip(rows, predictions['probabilities'], strict=True)):
      yield {
        'id': row.get('id', i),
        'label': row[c.label],
        'prediction': self.labels[int(found_N[i])],
        'probabilities': [round(float(x), 6) for x in p],
        'text': row[c.text],
        **({'pair': row[c.pair]} if c.pair else {}),
      }
