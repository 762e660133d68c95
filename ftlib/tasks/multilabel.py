"""Any number of labels for a text or a pair of texts, or none: emotions, topics, tags. Every label has a probability of
its own, by a sigmoid, and is predicted from its threshold on."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ftlib.base.errors import InputError
from ftlib.base.settings import setting
from ftlib.base.types import Batch, Head, Outputs
from ftlib.data import sampling, windows
from ftlib.data.batches import Examples
from ftlib.data.columns import Kind
from ftlib.data.labels import Columns, unknown_label
from ftlib.evals import counted, multilabel_metrics, thresholds

OBJECTIVE = 'multilabel'
_VOTE = 0.5  # the probability from which on a window votes for a label


@dataclasses.dataclass(frozen=True)
class Config(windows.Cut):
  """`text`, `pair` (or ''), `label`, `weight` (or ''): names of columns, the last of how much a row counts in the loss.
  In `label` stands a list of labels, maybe empty, or, with a `separator`, a text such as 'joy|love' ('' is none).
  `pooling`: what the head sees of a row, first token, mean, max or last; '' is what the model's folder says of
  itself (Sentence-Transformers), else the first of an encoder's and the last of a decoder's. `truncate`, `head_share`,
  `stride`, `window_pooling`: long texts, see `ftlib/data/windows.py`.

  `threshold`: from which probability on a label is predicted: a number, or 'tuned', for each label where its F1 or MCC
  (`tune`) is best on the validation split."""

  text: str = 'text'
  pair: str = ''
  label: str = 'labels'
  separator: str = ''
  weight: str = ''
  pooling: str = setting('', choices=('', 'cls', 'mean', 'max', 'last'))
  threshold: str = '0.5'
  tune: str = setting('f1', choices=thresholds.MEASURES)


def columns(config: Config) -> Columns:
  """What is read of the data."""
  texts = [config.text] + ([config.pair] if config.pair else [])
  weighed = sampling.weighed(config.weight) if config.weight else lambda row: row

  def row(given: dict) -> dict:
    value = given[config.label]
    if isinstance(value, str) and config.separator:
      value = [part.strip() for part in value.split(config.separator)] if value.strip() else []
      given = {**given, config.label: value}
    if any(isinstance(label, str) and not label.strip() for label in value):
      raise ValueError(f'"{config.label}" holds an empty label')
    return weighed(given)

  if config.separator:
    kind = Kind((list, str), f'labels are a list, or a text with {config.separator!r} between them')
  else:
    kind = Kind((list,), 'labels are a list (a text with a character between them is read with task.separator)')
  return Columns(texts, config.label, 'labels', kinds={config.label: kind}, row=row)


def build(config: Config, *, train: Sequence[Mapping[str, Any]] | None, known: list | None) -> Multilabel:
  """The task over a label list: `known` (of a stored run, or of the data's own schema), else the training rows'.

  Raises `InputError` where there are less than two labels, or the threshold or the weights are not as they should be.
  """
  rows = [row[config.label] for row in train or ()]
  there = Counter(label for labels in rows for label in labels)
  labels = list(known) if known else sorted(there, key=lambda v: (isinstance(v, str), v))
  if len(labels) < 2:
    only = f'only one label, {labels[0]!r}' if labels else 'no label at all'
    raise InputError(f'task.label={config.label!r}: the training rows have {only}; multilabel needs two or more')
  thresholds.read(config.threshold)
  if config.weight and train:
    sampling.check_weights(train, config.weight)
  counts = np.array([[len(rows) - there[label], there[label]] for label in labels], np.int64)
  return Multilabel(config, labels, counts)


@dataclasses.dataclass(frozen=True)
class Multilabel:
  """The task; see `ftlib/tasks/task.py`. `counts` int [C, 2]: training rows without and with each label."""

  config: Config
  labels: list
  counts: np.ndarray
  metric: str = 'f1_macro'
  metric_names: Mapping[str, bool] = dataclasses.field(default_factory=lambda: dict(multilabel_metrics.NAMES))
  thresholds: np.ndarray | None = None
  problem_type: str = 'multi_label_classification'  # as transformers calls it

  @property
  def head(self) -> Head:
    return Head('classify', len(self.labels), self.config.pooling)

  @property
  def about(self) -> str:
    names = [str(l) for l in self.labels]
    more = f', ... ({len(names)})' if len(names) > 10 else ''
    each = f'; {self.counts[:, 1].sum() / rows:.2f} a row' if (rows := self.counts[0].sum()) else ''
    return f'any of {len(names)} labels: {", ".join(names[:10])}{more}{each}'

  def examples(self, rows: Sequence[Mapping[str, Any]], tokenizer: Any, *, limit: int) -> Examples:
    c = self.config
    index = {v: i for i, v in enumerate(self.labels)}
    labels = np.zeros((len(rows), len(index)), np.int32)
    for i, row in enumerate(rows):
      if unknown := [v for v in row[c.label] if v not in index]:
        raise InputError(self._unknown(rows, i, unknown[0]))
      labels[i, [index[v] for v in row[c.label]]] = 1
    pairs = [r[c.pair] for r in rows] if c.pair else None
    extra = {'labels': labels, 'weights': sampling.weights(rows, c.weight)}
    return windows.examples(tokenizer, [r[c.text] for r in rows], pairs, extra, limit=limit, cut=c)

  def placeholder(self, row: Mapping[str, Any]) -> list:
    """The labels of a row that has none to be judged by."""
    return []

  def _unknown(self, rows: Any, first: int, label: Any) -> str:
    names, known = [str(l) for l in self.labels], set(self.labels)
    count = sum(not known.issuperset(row[self.config.label]) for row in rows)
    values = sorted({str(v) for row in rows for v in row[self.config.label] if v not in known})
    return unknown_label(label, values, names, where=rows.where(first), rest=f'({count} rows have such)')

  def predict(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
    return {'probabilities': jax.nn.sigmoid(outputs.logits.astype(np.float32))}

  def combined(self, examples: Examples, predictions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The probabilities of rows from those of their windows; a window votes for the labels from 0.5 on."""
    found, how = predictions['probabilities'], self.config.window_pooling
    pooled = windows.pooled(examples.windows, found, 'mean' if how == 'vote' else how)
    if how == 'vote':
      pooled = windows.ballot(examples.windows, (found >= _VOTE).astype(np.float64), pooled)
    return {'probabilities': pooled}

  def tuned(self, examples: Examples, predictions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The predictions of the validation split with the thresholds that are best on it, where the config asks for it."""
    if self.config.threshold != thresholds.TUNED:
      return dict(predictions)
    found = thresholds.best(windows.of_rows(examples, 'labels'), predictions['probabilities'], self.config.tune)
    return thresholds.attached(dict(predictions), found)

  def ruled(self, examples: Examples, predictions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The predictions with this run's thresholds, by which any other's task then judges them."""
    found = np.broadcast_to(self._thresholds(predictions), predictions['probabilities'].shape)
    return {**predictions, 'thresholds': found}

  def _thresholds(self, predictions: Mapping[str, np.ndarray]) -> np.ndarray | float:
    return thresholds.of(self.config.threshold, self.thresholds, predictions)

  def metrics(self, examples: Examples, predictions: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return multilabel_metrics.multilabel(
      windows.of_rows(examples, 'labels'),
      predictions['probabilities'],
      thresholds=self._thresholds(predictions),
      names=self.labels,
    )

  def resampled(self, examples: Examples, predictions: Mapping[str, np.ndarray]) -> counted.Counted:
    """The scalars of `metrics` and `per_class` over rows that stand there so many times."""
    labels_NC, at = windows.of_rows(examples, 'labels'), self._thresholds(predictions)
    return multilabel_metrics.resampled(labels_NC, predictions['probabilities'], thresholds=at, names=self.labels)

  def records(self, rows: Sequence[Mapping[str, Any]], predictions: Mapping[str, np.ndarray]) -> Iterator[dict]:
    c = self.config
    predicted_NC = np.asarray(predictions['probabilities'], np.float64) >= self._thresholds(predictions)
    for i, (row, p) in enumerate(zip(rows, predictions['probabilities'], strict=True)):
      yield {
        'id': row.get('id', i),
        'label': [l for l in self.labels if l in row[c.label]],
        'prediction': [self.labels[k] for k in np.flatnonzero(predicted_NC[i])],
        'probabilities': [round(float(x), 6) for x in p],
        'text': row[c.text],
        **({'pair': row[c.pair]} if c.pair else {}),
      }
