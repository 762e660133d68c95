"""How alike two texts are, by the angle between their vectors (bi-encoder): each text is read by itself, so vectors can
be stored and searched. The cosine is trained toward the score; `similarity.py` reads both texts together instead.

The two texts stand in one row of a batch, as its documents 1 and 2, which do not see each other. Scores of two values
(the same or not) are judged as classes too: the higher one's ROC AUC and average precision by the cosine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ftlib.base.errors import InputError
from ftlib.base.settings import setting
from ftlib.base.types import Batch, Head, Outputs
from ftlib.data import tokens
from ftlib.data.batches import Examples
from ftlib.data.labels import Columns
from ftlib.evals import counted, metrics
from ftlib.objectives.cosine import cosine

OBJECTIVE = 'cosine'
HEADLESS = True


@dataclasses.dataclass(frozen=True)
class Config:
  """`text`, `pair`, `label`: names of columns. `pooling`: a text's vector is that of its first token, the mean, the
  largest of each feature or that of the last token. `lowest`, `highest`: the scores that stand for the cosines 0
  and 1 (with `opposites`, -1 and 1); none for the lowest and the highest of the training rows."""

  text: str = 'text_a'
  pair: str = 'text_b'
  label: str = 'score'
  pooling: str = setting('mean', choices=('cls', 'mean', 'max', 'last'))
  lowest: float | None = None
  highest: float | None = None
  opposites: bool = False


def columns(config: Config) -> Columns:
  """What is read of the data."""
  return Columns([config.text, config.pair], config.label, 'score')


def build(config: Config, *, train: Sequence[Mapping[str, Any]] | None, known: list | None) -> Embed:
  """The task; there is no label list, and without rows (a stored run's) no range of scores: that is `learnt`. Raises
  `InputError` where scores have no range."""
  head = Head('embed', 0, config.pooling, documents=2)
  scores = [row[config.label] for row in train or ()]
  if not scores:
    return Embed(config, head=head)
  low = min(scores) if config.lowest is None else config.lowest
  high = max(scores) if config.highest is None else config.highest
  if not low < high:
    raise InputError(
      f'task.lowest={low:g} and task.highest={high:g}: there is nothing between them to tell apart; by default they '
      f'are the lowest and the highest "{config.label}" of the training rows'
    )
  between = sum(set(scores)) / 2 if len(set(scores)) == 2 else None
  metric = 'spearman' if between is None else 'average_precision'
  return Embed(config, (low, high), metric=metric, head=head, between=between)


@dataclasses.dataclass(frozen=True)
class Pairs:
  """What the tasks of texts with vectors of their own have in common."""

  config: Any
  span: tuple[float, float] = (0.0, 1.0)
  labels: list = dataclasses.field(default_factory=list)
  counts: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
  metric: str = 'spearman'
  head: Head = dataclasses.field(default_factory=lambda: Head('embed', documents=2))

  def _documents(self, rows: Sequence[Mapping[str, Any]], names: Sequence[str], tokenizer: Any, limit: int) -> Examples:
    """The texts of some columns, one document behind another: those of row i are its documents S i to S i + S - 1."""
    count = len(names)
    texts = [row[n] for row in rows for n in names]
    found = tokens.encode(tokenizer, texts, None, limit=limit, together=count)
    packs = [np.arange(count * i, count * i + count) for i in range(len(rows))]
    return Examples(found, {'weights': np.ones(len(rows), np.float32)}, packs=packs)


@dataclasses.dataclass(frozen=True)
class Embed(Pairs):
  """The task; see `ftlib/tasks/task.py`. `span`: the scores that stand for the least and the greatest cosine.
  `between`: the middle of the two scores that training has, None where it has more."""

  between: float | None = None

  @property
  def learnt(self) -> dict[str, Any]:
    """What is of the training rows, for a stored run without them."""
    return {'span': list(self.span), 'between': self.between, 'metric': self.metric}

  @property
  def about(self) -> str:
    least = -1 if self.config.opposites else 0
    return f'cosines from {least} to 1 for scores from {self.span[0]:g} to {self.span[1]:g}'

  @property
  def metric_names(self) -> dict[str, bool]:
    return metrics.REGRESSION | ({} if self.between is None else metrics.RANKING)

  def examples(self, rows: Sequence[Mapping[str, Any]], tokenizer: Any, *, limit: int) -> Examples:
    """With `labels`, the scores, and `cosines` that stand for them, float32 [N]. `limit` is that of each text."""
    c, (low, high) = self.config, self.span
    found = self._documents(rows, (c.text, c.pair), tokenizer, limit)
    labels = np.asarray([r[c.label] for r in rows], np.float32)
    share = np.clip((labels - low) / (high - low), 0, 1)
    extra = {**found.extra, 'labels': labels, 'cosines': (2 * share - 1 if c.opposites else share).astype(np.float32)}
    return dataclasses.replace(found, extra=extra)

  def predict(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
    return {'cosine': cosine(outputs.pooled)}

  def metrics(self, examples: Examples, predictions: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Of the cosines as scores; correlations and ranks do not depend on the span."""
    labels, scores = examples.extra['labels'], self._scores(predictions['cosine'])
    ranking = {} if self.between is None else metrics.ranking(labels > self.between, scores)
    return metrics.regression(labels, scores) | ranking

  def resampled(self, examples: Examples, predictions: Mapping[str, np.ndarray]) -> counted.Counted:
    """The scalars of `metrics` over rows that stand there so many times."""
    labels, scores = examples.extra['labels'], self._scores(predictions['cosine'])
    parts = [counted.regression(labels, scores)]
    parts += [] if self.between is None else [counted.ranking(labels > self.between, scores)]
    return lambda counts: {name: value for part in parts for name, value in part(counts).items()}

  def records(self, rows: Sequence[Mapping[str, Any]], predictions: Mapping[str, np.ndarray]) -> Iterator[dict]:
    c, cosines = self.config, predictions['cosine']
    for i, (row, score) in enumerate(zip(rows, self._scores(cosines), strict=True)):
      yield {
        'id': row.get('id', i),
        'label': row[c.label],
        'prediction': round(float(score), 6),
        'cosine': round(float(cosines[i]), 6),
        'text': row[c.text],
        'pair': row[c.pair],
      }

  def _scores(self, cosines: np.ndarray) -> np.ndarray:
    """Cosines as scores."""
    low, high = self.span
    share = (cosines.astype(np.float64) + 1) / 2 if self.config.opposites else cosines.astype(np.float64)
    return low + share * (high - low)
