"""Which split a row stands in, so that labels have their shares in every split: rows of one label each, of several, or
whole groups of rows.

Shapes: N rows, S splits; `shares` [S] sum to 1. RandomState, as its numbers are the same in every release of numpy: who
stands in the test split must not change with an update.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from ftlib.base.errors import InputError

_ALL = object()  # stands for all labels together


def dealt(labels: Sequence, shares: np.ndarray, seed: int) -> np.ndarray:
  """The split of each row, int [N]; labels are one a row, or a list of them."""
  several = any(isinstance(label, list) for label in labels)
  return by_labels(labels, shares, seed) if several else by_label(labels, shares, seed)


def by_label(labels: Sequence, shares: np.ndarray, seed: int) -> np.ndarray:
  """The split of each row, int [N]: of each label, every split has its share to within one row.

  scikit-learn's splitters refuse labels of one row and round twice for three splits.
  """
  rng = np.random.RandomState(seed)
  members: dict[Any, list[int]] = {}
  for i, value in enumerate(labels):
    members.setdefault(value, []).append(i)
  split_of = np.zeros(len(labels), np.int64)
  owed = np.zeros(len(shares))  # rows that each split is behind by, over the labels so far
  for value in sorted(members):
    ideal = len(members[value]) * shares
    counts = np.floor(ideal + 1e-9)
    counts[0] = max(counts[0], 1)  # what is never trained on cannot be predicted
    owed += ideal - counts
    for _ in range(len(members[value]) - int(counts.sum())):
      s = int(np.argmax(np.where(counts < ideal - 1e-9, owed, -np.inf)))
      counts[s] += 1
      owed[s] -= 1
    split_of[rng.permutation(members[value])] = np.repeat(np.arange(len(shares)), counts.astype(int))
  return split_of


def by_labels(labels: Sequence[Sequence], shares: np.ndarray, seed: int) -> np.ndarray:
  """The split of each row, int [N], of rows with any number of labels: iterative stratification (Sechidis et al. 2011,
  algorithm 1). The label with fewest rows left is dealt first, each of its rows to the split that lacks most of it.

  Unlike there, splits have their share of rows exactly, and the first wants every label at least once.
  """
  rng = np.random.RandomState(seed)
  order = rng.permutation(len(labels)).tolist()
  room = _rounded(len(labels), shares)
  sets = [{*row} for row in labels]
  members: dict[Any, list[int]] = {}
  for i in order:
    for value in sets[i]:
      members.setdefault(value, []).append(i)
  lacking = {value: [len(rows) * share for share in shares.tolist()] for value, rows in members.items()}
  for wanted in lacking.values():
    wanted[0] = max(wanted[0], 1.0)
  left = {value: len(rows) for value, rows in members.items()}
  next_ones = [(count, str(value), value) for value, count in left.items()]  # also of counts that are no more
  heapq.heapify(next_ones)
  split_of = np.full(len(labels), -1)
  while left:
    count, _, value = heapq.heappop(next_ones)
    if left.get(value) != count:
      continue
    for i in members[value]:
      if split_of[i] < 0:
        open_ones = [s for s in range(len(shares)) if room[s]]
        s = max(open_ones, key=lambda s: (lacking[value][s], room[s]))
        split_of[i] = s
        room[s] -= 1
        for other in sets[i]:
          lacking[other][s] -= 1
          if other in left:
            left[other] -= 1
            heapq.heappush(next_ones, (left[other], str(other), other))
    del left[value]
  bare = [i for i in order if split_of[i] < 0]
  split_of[bare] = np.repeat(np.arange(len(shares)), room)
  return split_of


def by_group(groups: Sequence, labels: Sequence, shares: np.ndarray, seed: int, *, column: str) -> np.ndarray:
  """The split of each row, int [N], groups whole: each goes where it brings rows and labels nearest to their shares.

  Raises `InputError`, which names the `column`, where there are fewer groups than splits.
  """
  members: dict[Any, list[int]] = {}
  for i, value in enumerate(groups):
    members.setdefault(value, []).append(i)
  names = list(members)
  if len(names) < len(shares):
    raise InputError(
      f'data.group: "{column}" has {len(names)} values, too few for {len(shares)} splits\n'
      'Name another column by --config.data.group=, or fewer splits by --config.data.split=.'
    )
  sets = [label if isinstance(label, list) else [label] for label in labels]
  order = np.random.RandomState(seed).permutation(len(names))
  order = sorted(order, key=lambda g: -len(members[names[g]]).bit_length())  # large ones while there is room for them
  totals = {**Counter(label for row in sets for label in row), _ALL: len(sets)}
  short = [{value: count * share for value, count in totals.items()} for share in shares.tolist()]
  weight = [{value: 1 / wanted for value, wanted in s.items()} for s in short]
  split_of = np.full(len(sets), -1)
  empty = set(range(len(shares)))
  for left, g in zip(range(len(order), 0, -1), order):
    rows = members[names[g]]
    counts = {_ALL: len(rows)}
    for label in (label for i in rows for label in sets[i]):
      counts[label] = counts.get(label, 0) + 1
    growth = {  # of the squared distances from the shares, each in units of its share
      s: sum([n * (n - 2 * short[s][value]) * weight[s][value] for value, n in counts.items()])
      for s in (sorted(empty) if left <= len(empty) else range(len(shares)))
    }
    best = min(growth, key=growth.get)
    split_of[rows] = best
    empty.discard(best)
    for value, n in counts.items():
      short[best][value] -= n
  return split_of


def some(labels: Sequence, count: int, seed: int) -> list[int]:
  """The numbers, in order, of `count` of more rows, labels by their shares."""
  shares = np.array([count, len(labels) - count]) / len(labels)
  taken = set(np.flatnonzero(dealt(labels, shares, seed) == 0).tolist())
  if len(taken) == count:
    return sorted(taken)
  left = Counter(labels[i] for i in taken)
  # the row that every label gets may have been one too many: then common labels give way, and in the end any
  for least in (1, 0):
    for i in np.random.RandomState(seed).permutation(sorted(taken)).tolist():
      if len(taken) > count and left[labels[i]] > least:
        taken.discard(i)
        left[labels[i]] -= 1
  return sorted(taken)


def _rounded(count: int, shares: np.ndarray) -> list[int]:
  """`count` in whole parts by their shares, the largest remainders rounded up."""
  ideal = count * shares
  sizes = np.floor(ideal + 1e-9).astype(int)
  for s in np.argsort(sizes - ideal, kind='stable')[: count - int(sizes.sum())]:
    sizes[s] += 1
  return sizes.tolist()
