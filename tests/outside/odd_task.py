"""A task from outside the package whose data have no label column: how many words a text has, in tens."""

from __future__ import annotations

import dataclasses

import numpy as np

from ftlib.base.types import Head
from ftlib.data import tokens
from ftlib.data.batches import Examples
from ftlib.data.labels import Columns
from ftlib.evals import metrics

OBJECTIVE = 'regression'


@dataclasses.dataclass(frozen=True)
class Config:
  """`text`: the column."""

  text: str = 'text'


def columns(config):
  return Columns([config.text])


def build(config, *, train, known):
  """The task; nothing of the rows is looked at."""
  return Length(config)


@dataclasses.dataclass(frozen=True)
class Length:
  """The number of words, by regression."""

  config: Config
  labels = ()
  counts = np.zeros(0, np.int64)
  head = Head('classify', 1, 'mean')
  metric = 'mae'
  metric_names = metrics.REGRESSION
  about = 'numbers of words, in tens'

  def words(self, row):
    return len(row[self.config.text].split()) / 10

  def examples(self, rows, tokenizer, *, limit):
    labels = np.asarray([self.words(r) for r in rows], np.float32)
    extra = {'labels': labels, 'weights': np.ones_like(labels)}
    return Examples(tokens.encode(tokenizer, [r[self.config.text] for r in rows], None, limit=limit), extra)

  def predict(self, outputs, batch):
    return {'length': outputs.logits[:, 0]}

  def metrics(self, examples, predictions):
    return metrics.regression(examples.extra['labels'], predictions['length'])

  def records(self, rows, predictions):
    for i, (row, p) in enumerate(zip(rows, predictions['length'], strict=True)):
      yield {'id': i, 'label': self.words(row), 'prediction': round(float(p), 6), 'text': row[self.config.text]}
