"""Which training rows count, how often and how much: few a class, more of rare classes, and weights from a column.

N rows or documents, C labels. Labels are int [N], one a row, or [N, C], 0 or 1.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ftlib.base import label_weights
from ftlib.base.errors import InputError, did_you_mean, listing

_POWERS = {'balanced': -1.0, 'sqrt': -0.5}


def rates(text: str, labels: np.ndarray, names: Sequence) -> np.ndarray:
  """How often rows are drawn, as `data.sampling` says, float64 [N] with a mean of 1.

  'balanced': every label as often as another; 'sqrt': in proportion to the square root of its rows; 'label=weight,...':
  its rows so many times as often as those of labels that are not named. A row of several labels is drawn as often as
  these are on average, one of none as if that were a label. Raises `InputError` where rows have no such labels.
  """
  labels = np.asarray(labels)
  if not len(names) or labels.dtype.kind != 'i' or labels.ndim > 2:
    raise InputError(f'data.sampling={text} is by labels of rows, and the rows of this task have none from a list')
  if labels.ndim == 1:
    labels = np.eye(len(names) + 1, dtype=bool)[labels]
  else:
    labels = np.concatenate([labels > 0, ~labels.any(1)[:, None]], axis=1)
  if text in _POWERS:
    weights = np.maximum(labels.sum(0), 1.0) ** _POWERS[text]
  elif '=' in text:
    weights = np.append(label_weights.given(text, names, field='data.sampling'), 1.0)
  else:
    raise InputError(
      f'data.sampling={text!r} is none of {", ".join(_POWERS)} and label=weight,label=weight'
      f'{did_you_mean(text, _POWERS)}'
    )
  found = labels @ weights / labels.sum(1)
  if not found.any():
    raise InputError(f'data.sampling={text!r}: no training row would be drawn')
  return found / found.mean()


def drawn(rates_N: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """N row numbers in random order, row i `rates_N[i]` times: that number rounded down or up, and on average exact
  (systematic sampling, Madow 1949). So no row is drawn again before its share is up, and copies of a row are spread
  evenly over the epoch.
  """
  times = np.floor(rates_N + 1e-9).astype(np.int64)
  rest = np.maximum(rates_N - times, 0.0)
  some = rng.permutation(len(rates_N))
  short = len(rates_N) - int(times.sum())
  if short > 0:
    edges = np.concatenate([[0.0], np.cumsum(rest[some])])
    edges *= short / edges[-1]
    marks = np.arange(short) + rng.random()
    times[some[np.searchsorted(edges, marks, side='right') - 1]] += 1
  rows = np.repeat(np.arange(len(rates_N)), times)
  first = np.cumsum(times) - times
  turn = np.arange(len(rows)) - first[rows]  # the how manieth copy of its row
  return rows[np.argsort((turn + rng.random(len(rates_N))[rows]) / times[rows], kind='stable')]


def few(labels: Sequence, count: int, seed: int) -> list[int]:
  """The numbers, in order, of rows of which every label has `count`; labels of rows are one each or a list.

  Labels of few rows choose first; of several labels, rows that others have chosen count, so that there may be more.
  Raises `InputError` where a label has fewer.
  """
  sets = [label if isinstance(label, list) else [label] for label in labels]
  totals = Counter(label for found in sets for label in found)
  if lacking := [f'{label}: {n} rows' for label, n in sorted(totals.items(), key=str) if n < count]:
    raise InputError(
      f'data.shots={count}: {len(lacking)} labels have fewer training rows\n{listing(lacking)}\n'
      'Lower --config.data.shots=, or leave these labels out with --config.data.keep=.'
    )
  order = np.random.RandomState(seed).permutation(len(sets)).tolist()
  taken: set[int] = set()
  have: Counter = Counter()
  for label in sorted(totals, key=lambda v: (totals[v], str(v))):
    for i in order:
      if have[label] >= count:
        break
      if i not in taken and label in sets[i]:
        taken.add(i)
        have.update(sets[i])
  return sorted(taken)


def weighed(column: str) -> Callable[[dict], dict]:
  """What makes `column` of a row a float; raises `ValueError` where it is none, negative or not finite."""

  def row(given: dict) -> dict:
    if column not in given:
      return given
    value = given[column]
    try:
      number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
      number = math.nan
    if not 0 <= number < 3e38:
      raise ValueError(f'"{column}" is {repr(value)[:60]}, but a weight is a finite number, not negative')
    return {**given, column: number}

  return row


def check_weights(rows: Sequence[Mapping[str, Any]], column: str) -> None:
  """Raises `InputError` where no row has a weight above 0 in `column`, or, with its place, where one lacks it."""
  names = list(dict.fromkeys(name for row in rows for name in row))
  if column not in names:
    raise InputError(
      f'task.weight={column}: the training rows have no such column{did_you_mean(column, names)}\n{listing(names)}'
    )
  if lacking := [i for i, row in enumerate(rows) if column not in row]:
    where = getattr(rows, 'where', lambda i: f'row {i + 1}')
    raise InputError(
      f'{where(lacking[0])}: there is no "{column}" (task.weight); {len(lacking)} of {len(rows)} training rows have '
      'none; give them 1, or 0'
    )
  if not any(row[column] for row in rows):
    raise InputError(f'task.weight={column}: all training rows have the weight 0')


def weights(rows: Sequence[Mapping[str, Any]], column: str) -> np.ndarray:
  """How much the rows count in the loss, float32 [N]: what `column` says, 1 without one."""
  return np.asarray([row.get(column, 1.0) if column else 1.0 for row in rows], np.float32)
