"""Bootstrap intervals of metrics: rows drawn with replacement, so many times (Efron & Tibshirani 1993, chapter 13).

A resample is `counts`, int [N], how often each of N rows was drawn; `Counted` gives the metrics of one. Counts of 0 and
1 are a part of the rows, so slices and exchanges between two models are of the same kind (`ftlib/evals/paired.py`).
Intervals are those of percentiles.

Shapes: N rows, S samples.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

Counted = Callable[[np.ndarray], Mapping[str, float | None]]  # counts [N] -> metrics, None where one is not defined

SAMPLES, LEVEL = 1000, 0.95
FEWEST = 100  # samples; of fewer, the percentiles of a 95 % interval are two or three rows' chance
_DEFINED = 0.9  # share of the samples in which a metric must be defined


class Intervals(NamedTuple):
  """`bounds` {metric: (low, high)} and how they were found: `samples` resamples, a share of `level` between the
  bounds."""

  bounds: dict[str, tuple[float, float]]
  samples: int
  level: float


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

  A metric that is the same in all samples (an accuracy of 1) has none: the rows say nothing of how far it may be off.
  Nor has one that is not defined in a tenth of them. `samples` None: `SAMPLES`, or as many as `seconds` allow, and none
  at all where that is fewer than `FEWEST`.
  """
  drawn = draws(n, samples=SAMPLES if samples is None else samples, seed=seed, within=within)
  found = [counted(counts) for counts in affordable(drawn, seconds=seconds if samples is None else None)]
  if samples is None and len(found) < FEWEST:
    return Intervals({}, 0, level)
  bounds = {}
  for name in found[0] if found else ():
    values = np.array([f[name] for f in found if f.get(name) is not None], np.float64)
    if len(values) >= _DEFINED * len(found) and values.min() < values.max():
      low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
      bounds[name] = (float(low), float(high))
  return Intervals(bounds, len(found), level)
