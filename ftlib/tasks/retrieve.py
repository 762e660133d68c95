"""Which text belongs to another, found by their vectors (bi-encoder): trained on pairs alone, against all other texts
of the batch (`ftlib/objectives/contrastive.py`), and judged by where the right one stands among all of the split."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ftlib.base.settings import setting
from ftlib.base.types import Batch, Head, Outputs
from ftlib.data.batches import Examples
from ftlib.data.labels import Columns
from ftlib.evals import counted
from ftlib.objectives.cosine import unit
from ftlib.tasks.embed import Pairs

OBJECTIVE = 'contrastive'
HEADLESS = True
RECALL_AT = (1, 5, 10)
_BLOCK = 512  # texts that are compared with all candidates at once


@dataclasses.dataclass(frozen=True)
class Config:
  """`text`, `pair`: the columns of what is asked and of what belongs to it. `negative`: that of a text which does not
  although it seems so, '' for none. `pooling`: a text's vector is that of its first token, mean, max or last."""

  text: str = 'text_a'
  pair: str = 'text_b'
  negative: str = ''
  pooling: str = setting('mean', choices=('cls', 'mean', 'max', 'last'))

  @property
  def documents(self) -> list[str]:
    """The columns of a row's texts."""
    return [self.text, self.pair] + ([self.negative] if self.negative else [])


def columns(config: Config) -> Columns:
  """What is read of the data."""
  return Columns(config.documents, fields=('text', 'pair', 'negative', 'label'))


def build(config: Config, *, train: Sequence[Mapping[str, Any]] | None, known: list | None) -> Retrieve:
  """The task; there are no labels, and nothing of the rows is looked at."""
  head = Head('embed', 0, config.pooling, documents=len(config.documents))
  return Retrieve(config, metric='mrr', head=head)


@dataclasses.dataclass(frozen=True)
class Retrieve(Pairs):
  """The task; see `ftlib/tasks/task.py`."""

  @property
  def about(self) -> str:
    return 'the text that belongs to another, among all'

  @property
  def metric_names(self) -> dict[str, bool]:
    return {**{f'recall_at_{k}': True for k in RECALL_AT}, 'mrr': True}

  def examples(self, rows: Sequence[Mapping[str, Any]], tokenizer: Any, *, limit: int) -> Examples:
    """With `texts` int32 [N, S], a number for each text, the same for the same text. `limit` is that of each."""
    names = self.config.documents
    found = self._documents(rows, names, tokenizer, limit)
    return dataclasses.replace(found, extra={**found.extra, 'texts': self._numbers(rows, names)})

  def _numbers(self, rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> np.ndarray:
    numbers: dict[str, int] = {}
    flat = [numbers.setdefault(row[n], len(numbers)) for row in rows for n in names]
    return np.array(flat, np.int32).reshape(len(rows), len(names))

  def predict(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
    """The vectors of what is asked and of what belongs to it, of length 1, float32 [B, D]."""
    unit_BSD = unit(outputs.pooled)
    return {'asked': unit_BSD[:, 0], 'answer': unit_BSD[:, 1]}

  def metrics(self, examples: Examples, predictions: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The share of rows whose answer is among the first k of all different ones of the split, and the mean of 1 / its
    place. Other right answers to the same text stand in nobody's way."""
    return self.resampled(examples, predictions)(np.ones(len(examples), np.int64))

  def ruled(self, examples: Examples, predictions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`places` [N] alone, each among this run's own vectors."""
    return {'places': ranked(predictions['asked'], predictions['answer'], examples.extra['texts'])[0]}

  def resampled(self, examples: Examples, predictions: Mapping[str, np.ndarray]) -> counted.Counted:
    """The scalars of `metrics` over rows that stand there so many times; candidates are those of the whole split."""
    places_N = predictions['places'] if 'places' in predictions else self.ruled(examples, predictions)['places']
    stats = [np.ones(len(places_N)), *(places_N <= k for k in RECALL_AT), 1 / places_N]
    names = [*self.metric_names]
    return counted.sums(np.stack(stats, 1), lambda s: {n: float(x / s[0]) for n, x in zip(names, s[1:])})

  def records(self, rows: Sequence[Mapping[str, Any]], predictions: Mapping[str, np.ndarray]) -> Iterator[dict]:
    c = self.config
    asked, answer = predictions['asked'], predictions['answer']
    places, first = ranked(asked, answer, self._numbers(rows, (c.text, c.pair)))
    for i, row in enumerate(rows):
      yield {
        'id': row.get('id', i),
        'label': row[c.pair],
        'prediction': rows[int(first[i])][c.pair],
        'place': int(places[i]),
        'cosine': round(float(asked[i] @ answer[i]), 6),
        'text': row[c.text],
      }


def ranked(asked_ND: np.ndarray, answer_ND: np.ndarray, texts_NS: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(the place of each row's answer, 1 the first; the row whose answer is first), int64 [N].

  Candidates are the different answers of all rows. What else answers the same text takes no place before a row's own;
  any other that is as near does, so that vectors which are all alike find nothing.
  """
  _, at, column = np.unique(texts_NS[:, 1], return_index=True, return_inverse=True)
  candidates_DP, column = answer_ND[at].T, column.reshape(-1)
  also: dict[int, list[int]] = {}  # the columns that answer a text
  for text, k in zip(texts_NS[:, 0].tolist(), column.tolist(), strict=True):
    also.setdefault(text, []).append(k)
  places, first = np.empty(len(asked_ND), np.int64), np.empty(len(asked_ND), np.int64)
  for start in range(0, len(asked_ND), _BLOCK):
    here = np.arange(start, min(start + _BLOCK, len(asked_ND)))
    cosine_BP = asked_ND[here] @ candidates_DP
    own_B = cosine_BP[np.arange(len(here)), column[here]]
    first[here] = at[cosine_BP.argmax(1)]
    for i, row in enumerate(here):
      cosine_BP[i, also[int(texts_NS[row, 0])]] = -np.inf
    places[here] = 1 + (~(cosine_BP < own_B[:, None])).sum(1)
  return places, first
