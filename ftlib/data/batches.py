"""Batches of few shapes, each a pure function of (rows, seed, step).

Lengths are rounded up to a handful of buckets, so that a handful of steps is compiled. An epoch is a random permutation
of the rows, sorted by length within windows of some batches (64, or a quarter of the rows where that is less) and cut
up, and the batches shuffled again: rows of a batch are alike in length, so little is padding. Where some rows are drawn
more often than others (`sampling.py`), windows are so short that none stands twice in one. The cursor of a resumed run
is the step, nothing else.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ftlib.base.types import Batch
from ftlib.data import sampling
from ftlib.data.tokens import Tokens

_WINDOW = 64  # batches that are sorted by length together


@dataclasses.dataclass(frozen=True)
class Examples:
  """Tokenised documents with what the task adds: `extra` {name: array [N, ...]} to each (labels, weights), `per_token`
  {name: array [T]} to each token, ragged as `tokens.ids` (targets and weights of language models).

  `packs`: document numbers that stand in one row together, each row `window` tokens long, or, where that is 0, because
  they belong together (the two answers of a pair); else a document is a row.
  `rows`: the number of the data row that each document was made of, where these are not one and the same; the split
  then has a row for each document. `windows`: the same where documents are windows of rows, several of one: the split
  keeps its rows, and the task answers for these (`Task.combined`). `host`: what the task needs of documents or rows to
  judge them, never put in a batch; `spans`: where tokens stand in their rows, for `Task.combined` alone. `notes`: what
  the user should know.
  """

  tokens: Tokens
  extra: dict[str, np.ndarray]
  per_token: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
  packs: list[np.ndarray] | None = None
  window: int = 0
  rows: np.ndarray | None = None
  windows: np.ndarray | None = None
  host: dict[str, Any] = dataclasses.field(default_factory=dict)
  spans: dict[str, Any] = dataclasses.field(default_factory=dict)
  notes: list[str] = dataclasses.field(default_factory=list)

  def __len__(self) -> int:
    return len(self.tokens) if self.packs is None else len(self.packs)

  @property
  def lengths(self) -> np.ndarray:
    """Tokens of each row of a batch, int64 [len(self)]."""
    lengths = self.tokens.lengths
    return lengths if self.packs is None else np.array([lengths[p].sum() for p in self.packs])

  @property
  def unpacked(self) -> Examples:
    """A document a row, as it is judged; what belongs together (packs without a window) stays so."""
    return dataclasses.replace(self, packs=None, window=0) if self.window else self

  def documents(self, rows: Sequence[int]) -> np.ndarray:
    """The numbers of the documents in some rows of a batch, or of what belongs together."""
    rows = np.asarray(rows, np.int64)
    return np.concatenate([self.packs[r] for r in rows]) if self.window else rows


def language(
  ids: Sequence[Sequence[int]],
  supervised: Sequence[Sequence[bool]],
  *,
  rows: np.ndarray | None = None,
  truncated: int = 0,
  notes: Sequence[str] = (),
) -> Examples:
  """Documents to predict the next token of: `targets` int32 [T], the token that follows in the document (0: none), and
  `weights` float32 [T], 1 where that one is supervised."""
  offsets = np.concatenate([[0], np.cumsum([len(d) for d in ids])]).astype(np.int64)
  total, last = int(offsets[-1]), offsets[1:] - 1
  flat = np.fromiter((t for d in ids for t in d), np.int32, total)
  counts = np.fromiter((t for d in supervised for t in d), np.float32, total)
  targets, weights = np.roll(flat, -1), np.roll(counts, -1)
  targets[last] = weights[last] = 0
  tokens = Tokens(flat, np.zeros(total, np.int32), offsets, truncated)
  return Examples(tokens, {}, {'targets': targets, 'weights': weights}, rows=rows, notes=[*notes])


def buckets(lengths: np.ndarray, *, count: int, multiple: int = 8) -> tuple[int, ...]:
  """At most `count` lengths, multiples of `multiple`, that leave the least padding over rows of `lengths`.

  Exact, by dynamic programming over the histogram; the last holds the longest row.
  """
  rounded = -(-np.maximum(lengths, 1) // multiple)
  top = int(rounded.max())
  rows = np.bincount(rounded, minlength=top + 1).cumsum()  # rows[j]: rows of at most j units
  best = np.full((count + 1, top + 1), np.inf)
  best[:, 0] = 0
  back = np.zeros((count + 1, top + 1), np.int64)
  for k in range(1, count + 1):
    for j in range(1, top + 1):
      cost = best[k - 1, :j] + (rows[j] - rows[:j]) * j
      back[k, j] = int(np.argmin(cost))
      best[k, j] = cost[back[k, j]]
  edges, j = [], top
  for k in range(count, 0, -1):
    if j == 0:
      break
    edges.append(j * multiple)
    j = int(back[k, j])
  return tuple(sorted(set(edges)))


@dataclasses.dataclass(frozen=True, eq=False)
class Order:
  """Which rows stand in the batch of a step. `rates` float [N] with a mean of 1: how often a row is drawn in an epoch,
  on average; None for once."""

  lengths: np.ndarray
  batch_size: int
  seed: int
  grouped: bool = True
  rates: np.ndarray | None = None

  @property
  def steps_per_epoch(self) -> int:
    return -(-len(self.lengths) // self.batch_size)

  @property
  def most(self) -> int:
    """The rows that a batch has room for."""
    return self.batch_size

  def rows(self, step: int) -> np.ndarray:
    """Row numbers of a step's batch; the last batch of an epoch may be short. Without rates, every epoch holds each row
    once; with them it holds as many rows."""
    epoch, i = divmod(step, self.steps_per_epoch)
    return self._epoch(epoch)[i]

  @functools.lru_cache(maxsize=2)  # noqa: B019 - one Order a run
  def _epoch(self, epoch: int) -> list[np.ndarray]:
    rng = np.random.default_rng((self.seed, epoch))
    size, most = self.batch_size, 1
    if self.rates is None:
      order = rng.permutation(len(self.lengths))
    else:
      order = sampling.drawn(self.rates, rng)
      most = int(np.bincount(order).max())  # copies of a row
    if not self.grouped:
      return [order[i : i + size] for i in range(0, len(order), size)]
    batches, span = [], size * max(1, min(_WINDOW, len(order) // (max(4, most) * size)))
    for start in range(0, len(order), span):
      window = order[start : start + span]
      window = window[np.argsort(self.lengths[window], kind='stable')]
      batches += [window[i : i + size] for i in range(0, len(window), size)]
    return [batches[i] for i in rng.permutation(len(batches))]


@dataclasses.dataclass(frozen=True, eq=False)
class Poisson(Order):
  """Batches that have every row with the same probability, each by itself: `batch_size` rows on average.

  There is room for five deviations more, in multiples of `multiple`; of yet more rows a random part is left out. So the
  sampling is what the accountant of `ftlib/train/private.py` counts with, and shapes stay the same.
  """

  multiple: int = 1

  @property
  def rate(self) -> float:
    """The probability that a row is in a batch."""
    return self.batch_size / len(self.lengths)

  @property
  def most(self) -> int:
    spread = (self.batch_size * max(0.0, 1 - self.rate)) ** 0.5
    return -(-math.ceil(self.batch_size + 5 * spread) // self.multiple) * self.multiple

  def rows(self, step: int) -> np.ndarray:
    """Row numbers of a step's batch, maybe none; they follow from the seed and the step alone."""
    rng = np.random.default_rng((self.seed, step))
    drawn = np.flatnonzero(rng.random(len(self.lengths)) < self.rate)
    return drawn if len(drawn) <= self.most else np.sort(rng.permutation(drawn)[: self.most])


def collate(examples: Examples, rows: Sequence[int], *, size: int, edges: tuple[int, ...], pad_id: int) -> Batch:
  """The Batch of some rows: int32 `tokens, positions, segments, types` [size, L], `rows` [size], and the extras.

  L is the smallest bucket that holds them, or the window of packed ones, whose documents are segments from 1 with
  positions from 0. Short of `size` rows, the rest is padding of `weights` 0.
  """
  tokens = examples.tokens
  packs = [[r] for r in rows] if examples.packs is None else [examples.packs[r] for r in rows]
  longest = max((int(tokens.lengths[p].sum()) for p in packs), default=0)
  length = examples.window or next(e for e in edges if e >= longest)
  batch: Batch = {
    'tokens': np.full((size, length), pad_id, np.int32),
    'types': np.zeros((size, length), np.int32),
    'segments': np.zeros((size, length), np.int32),
    'positions': np.broadcast_to(np.arange(length, dtype=np.int32), (size, length)).copy(),
    'rows': np.arange(size, dtype=np.int32),
    **{n: np.zeros((size, length), x.dtype) for n, x in examples.per_token.items()},
  }
  ragged = {'tokens': tokens.ids, 'types': tokens.types, **examples.per_token}
  for i, pack in enumerate(packs):
    at = 0
    for segment, d in enumerate(pack, 1):
      start, stop = int(tokens.offsets[d]), int(tokens.offsets[d + 1])
      here = slice(at, at := at + stop - start)
      for name, values in ragged.items():
        batch[name][i, here] = values[start:stop]
      batch['segments'][i, here] = segment
      batch['positions'][i, here] = np.arange(stop - start)
  for name, values in examples.extra.items():
    batch[name] = np.zeros((size, *values.shape[1:]), values.dtype)
    batch[name][: len(rows)] = values[np.asarray(rows, np.int64)]
  return batch


def feed(make: Callable[[int], Any], start: int, stop: int) -> Iterator[Any]:
  """`make(step)` for each step, computed ahead in a thread (Grain); closing the iterator stops it."""
  import grain

  if stop <= start:
    return
  dataset = grain.MapDataset.range(start, stop).map(make)
  yield from dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))
