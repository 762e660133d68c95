"""Bootstrap intervals of metrics: rows drawn with replacement, so many times (Efron & Tibshirani 1993, chapter 13).

A resample is `counts`, int [N], how often each of N rows was drawn; `Counted` gives the metrics of one. Counts of 0 and
1 are a part of the rows, so slices and exchanges between two models are of the same kind (`ftlib/evals/paired.py`).
Intervals are those of percentiles.

Shapes: N rows, S samples.
"""

from __future__ import annotations

import array
import collections
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from ftlib.evals.metrics import SHARES

# counts [N] -> metrics, None where one is not defined, and, where there are classes, `per_class` as in `Task.metrics`
Counted = Callable[[np.ndarray], Mapping[str, Any]]

SAMPLES, LEVEL = 1000, 0.95
FEWEST = 100  # samples; of fewer, the percentiles of a 95 % interval are two or three rows' chance
_DEFINED = 0.9  # share of the samples in which a metric must be defined


class Intervals(NamedTuple):
  """`bounds` {metric: (low, high)}, with `per_class` {class: {precision, recall, f1: (low, high)}} where there are
  classes, and how they were found: `samples` resamples, a share of `level` between the bounds. `without`: metrics that
  have a value and no interval."""

  bounds: dict[str, Any]
  samples: int
  level: float
  without: list[str]


def draws(n: int, *, samples: int, seed: int, within: np.ndarray | None = None) -> Iterator[np.ndarray]:
  """Counts int64 [n] of each resample, of all rows or of those `within` (bool [n]): as many rows as there are.

  Sample s is the same however many there are, and whatever else is asked.
  """
  rows = np.arange(n) if within is None else np.flatnonzero(within)
  for s in range(samples):
    drawn = np.random.default_rng((seed, s)).integers(0, len(rows), len(rows))
    yield np.bincount(rows[drawn], minlength=n)


def affordable(items: Iterable[Any], *, seconds: float | None) -> Iterator[Any]:
  """The items for as long as `seconds` last (None: all), given up early where they will not last for `FEWEST`."""
  began = time.perf_counter()
  for i, item in enumerate(items):
    spent = time.perf_counter() - began
    if seconds is not None and (spent > seconds or (i in (1, 5, 20) and spent / i * FEWEST > seconds)):
      return
    yield item


def intervals(
  counted: Counted,
  n: int,
  *,
  samples: int | None = None,
  seed: int = 0,
  level: float = LEVEL,
  within: np.ndarray | None = None,
  seconds: float = 10.0,
) -> Intervals:
  """Percentile intervals of every metric over `n` rows, or those `within`.

  A metric that is the same in all samples (an accuracy of 1) or between the bounds has none: the rows say nothing of
  how far it may be off. Nor has one that is not defined in a tenth of them, or whose own value is outside the bounds,
  as that of a mean over classes some of which every sample lacks. `samples` None: `SAMPLES`, or as many as `seconds`
  allow, and none at all where that is fewer than `FEWEST`.
  """
  drawn = draws(n, samples=SAMPLES if samples is None else samples, seed=seed, within=within)
  values: dict[Any, array.array] = collections.defaultdict(lambda: array.array('d'))
  count = 0
  for counts in affordable(drawn, seconds=seconds if samples is None else None):
    count += 1
    for name, value in _numbers(counted(counts)):
      values[name].append(value)
  if samples is None and count < FEWEST:
    return Intervals({}, 0, level, [])
  seen = dict(_numbers(counted(np.ones(n, np.int64) if within is None else within.astype(np.int64))))
  bounds: dict[str, Any] = {}
  for name, of_samples in values.items():
    low, high = np.quantile(of_samples, [(1 - level) / 2, (1 + level) / 2])
    if len(of_samples) >= _DEFINED * count and low < high and low <= seen.get(name, np.nan) <= high:
      place = bounds
      if isinstance(name, tuple):
        of_class, name = name
        place = bounds.setdefault('per_class', {}).setdefault(of_class, {})
      place[name] = (float(low), float(high))
  without = [n for n in seen if count and isinstance(n, str) and n not in bounds]
  return Intervals(bounds, count, level, without)


def _numbers(found: Mapping[str, Any]) -> Iterator[tuple[Any, float]]:
  """(name, value) of each metric that is defined; of those of classes the name is (class, measure)."""
  yield from ((name, value) for name, value in found.items() if name != 'per_class' and value is not None)
  for of_class, one in found.get('per_class', {}).items():
    yield from (((of_class, name), one[name]) for name in SHARES)
