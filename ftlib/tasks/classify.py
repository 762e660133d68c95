"""One of several classes for a text or a pair of texts: sentiment, topic, entailment, paraphrase, acceptability."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ftlib.base.errors import InputError, did_you_mean, listing
from ftlib.base.settings import setting
from ftlib.base.types import Batch, Head, Outputs
from ftlib.data import tokens
from ftlib.data.batches import Examples
from ftlib.data.labels import Columns
from ftlib.data.preparation import label_values
from ftlib.evals import metrics

OBJECTIVE = 'classification'


@dataclasses.dataclass(frozen=True)
class Config:
  """`text`, `pair` (or ''), `label`: names of columns. `pooling`: what the head sees of a row, the first
  token, the mean or the last; '' is the first of an encoder's and the last of a decoder's."""

  text: str = 'text'
  pair: str = ''
  label: str = 'label'
  pooling: str = setting('', choices=('', 'cls', 'mean', 'last'))


def columns(config: Config) -> Columns:
  """What is read of the data."""
  return Columns([config.text] + ([config.pair] if config.pair else []), config.label, 'class')


def build(config: Config, *, train: Sequence[Mapping[str, Any]] | None, known: list | None) -> Classify:
  """The task over a label list: `known` (of a stored run, or of the data's own schema), else the training rows'.

  Raises `InputError` where only one class is left.
  """
  labels = list(known) if known else label_values(train, config.label)
  if len(labels) < 2:
    only = f'only one class, {labels[0]!r}' if labels else 'no label at all'
    raise InputError(f'task.label={config.label!r}: the training rows have {only}; classification needs two or more')
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
    index = {v: i for i, v in enumerate(self.labels)}
    unknown = [i for i, r in enumerate(rows) if r[c.label] not in index]
    if unknown:
      raise InputError(self._unknown(rows, unknown))
    pairs = [r[c.pair] for r in rows] if c.pair else None
    extra = {
      'labels': np.asarray([index[r[c.label]] for r in rows], np.int32),
      'weights': np.ones(len(rows), np.float32),
    }
    return Examples(tokens.encode(tokenizer, [r[c.text] for r in rows], pairs, limit=limit), extra)

  def _unknown(self, rows: Any, unknown: list[int]) -> str:
    values = sorted({str(rows[i][self.config.label]) for i in unknown})
    names = [str(l) for l in self.labels]
    where = rows.where(unknown[0])
    hint = ''
    if any(v in names for v in values):
      kinds = type(self.labels[0]).__name__, type(rows[unknown[0]][self.config.label]).__name__
      hint = f'\n  the same labels as {kinds[0]} in the training data are {kinds[1]} here'
    return (
      f"{where}: label {values[0]!r} is not in the run's label list{did_you_mean(values[0], names)} "
      f'({len(unknown)} such rows){hint}\n  labels here that are unknown:\n{listing(values, limit=5)}\n'
      f'  label list: {", ".join(names[:20])}'
    )

  def predict(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
    return {'probabilities': jax.nn.softmax(outputs.logits.astype(np.float32))}

  def metrics(self, examples: Examples, predictions: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return metrics.classification(examples.extra['labels'], predictions['probabilities'], names=self.labels)

  def records(self, rows: Sequence[Mapping[str, Any]], predictions: Mapping[str, np.ndarray]) -> Iterator[dict]:
    c = self.config
    for i, (row, p) in enumerate(zip(rows, predictions['probabilities'], strict=True)):
      yield {
        'id': row.get('id', i),
        'label': row[c.label],
        'prediction': self.labels[int(p.argmax())],
        'probabilities': [round(float(x), 6) for x in p],
        'text': row[c.text],
        **({'pair': row[c.pair]} if c.pair else {}),
      }
