"""A score for a pair of texts or for one, such as how alike two sentences are, by a head of one output over both
together (cross-encoder): the raw score, trained by squared error."""

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
from ftlib.data.labels import Columns
from ftlib.evals import counted, metrics

OBJECTIVE = 'regression'


@dataclasses.dataclass(frozen=True)
class Config(windows.Cut):
  """`text`, `pair` (or ''), `label`, `weight` (or ''): names of columns, the last of how much a row counts in the loss.
  `pooling`: what the head sees of a row, first token, mean, max or last; '' is what the model's folder says of
  itself (Sentence-Transformers), else the first of an encoder's and the last of a decoder's. `truncate`, `head_share`,
  `stride`, `window_pooling`: long texts, see `ftlib/data/windows.py`."""

  text: str = 'text_a'
  pair: str = 'text_b'
  label: str = 'score'
  weight: str = ''
  pooling: str = setting('', choices=('', 'cls', 'mean', 'max', 'last'))
  window_pooling: str = setting('mean', choices=('mean', 'max'))


def columns(config: Config) -> Columns:
  """What is read of the data."""
  row = sampling.weighed(config.weight) if config.weight else None
  return Columns([config.text] + ([config.pair] if config.pair else []), config.label, 'score', row=row)


def build(config: Config, *, train: Sequence[Mapping[str, Any]] | None, known: list | None) -> Similarity:
  """The task; there is no label list, and `known` is not used. Raises `InputError` where all scores are the same."""
  scores = [row[config.label] for row in train or ()]
  if scores and min(scores) == max(scores):
    only = f'only the score {scores[0]:g}'
    raise InputError(f'task.label={config.label!r}: the training rows have {only}; there is nothing to tell apart')
  if config.weight and train:
    sampling.check_weights(train, config.weight)
  return Similarity(config, (min(scores), max(scores)) if scores else (0.0, 0.0))


@dataclasses.dataclass(frozen=True)
class Similarity:
  """The task; see `ftlib/tasks/task.py`. `span`: the least and the greatest score of the training rows."""

  config: Config
  span: tuple[float, float]
  labels: list = dataclasses.field(default_factory=list)
  counts: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
  metric: str = 'pearson'

  @property
  def head(self) -> Head:
    return Head('classify', 1, self.config.pooling)

  @property
  def about(self) -> str:
    return f'scores from {self.span[0]:g} to {self.span[1]:g}'

  @property
  def metric_names(self) -> dict[str, bool]:
    return metrics.REGRESSION

  def examples(self, rows: Sequence[Mapping[str, Any]], tokenizer: Any, *, limit: int) -> Examples:
    c = self.config
    pairs = [r[c.pair] for r in rows] if c.pair else None
    extra = {
      'labels': np.asarray([r[c.label] for r in rows], np.float32),
      'weights': sampling.weights(rows, c.weight),
    }
    return windows.examples(tokenizer, [r[c.text] for r in rows], pairs, extra, limit=limit, cut=c)

  def predict(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
    return {'scores': outputs.logits[:, 0].astype(np.float32)}

  def combined(self, examples: Examples, predictions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The scores of rows from those of their windows."""
    found = windows.pooled(examples.windows, predictions['scores'][:, None], self.config.window_pooling)
    return {'scores': found[:, 0]}

  def metrics(self, examples: Examples, predictions: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return metrics.regression(windows.of_rows(examples, 'labels'), predictions['scores'])

  def resampled(self, examples: Examples, predictions: Mapping[str, np.ndarray]) -> counted.Counted:
    """The scalars of `metrics` over rows that stand there so many times."""
    return counted.regression(windows.of_rows(examples, 'labels'), predictions['scores'])

  def records(self, rows: Sequence[Mapping[str, Any]], predictions: Mapping[str, np.ndarray]) -> Iterator[dict]:
    c = self.config
    for i, (row, score) in enumerate(zip(rows, predictions['scores'], strict=True)):
      yield {
        'id': row.get('id', i),
        'label': row[c.label],
        'prediction': round(float(score), 6),
        'text': row[c.text],
        **({'pair': row[c.pair]} if c.pair else {}),
      }
