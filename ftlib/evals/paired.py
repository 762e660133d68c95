"""Two models on the same rows: is the difference more than the chance of which rows these are?

The metrics of both come from one `Counted` over 2N rows, first those of one model, then those of the other: counts that
stand in one half are a resample of that model's rows, and counts of 0 and 1 spread over both halves are an exchange.

Shapes: N rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ftlib.evals.bootstrap import FEWEST, LEVEL, SAMPLES, Counted, affordable, draws
from ftlib.evals.metrics import flat


def compared(
  counted: Counted, n: int, *, samples: int | None = None, seed: int = 0, level: float = LEVEL, seconds: float = 20.0
) -> dict[str, Any]:
  """{'samples', 'level', 'metrics': {name: {'here', 'there', 'difference', 'interval', 'p_bootstrap',
  'p_randomization'}}}, the difference being here minus there, of metrics that both have.

  `interval` and `p_bootstrap` are of a paired bootstrap (Efron & Tibshirani 1993; Koehn 2004): the same rows drawn for
  both, twice the share of samples on the other side of 0. `p_randomization` is of approximate randomization (Noreen
  1989; Riezler & Maxwell 2005): row by row, the answers of the two exchanged by the toss of a coin, the share of
  exchanges with a difference as large. Both are two-sided and count what was seen as one sample more, so that none is
  0. `samples` None: as in `bootstrap.intervals`; without enough of them, no interval and no p.
  """
  ones, zeros = np.ones(n, np.int64), np.zeros(n, np.int64)
  halves = lambda a, b: (counted(np.concatenate([a, zeros])), counted(np.concatenate([zeros, b])))  # noqa: E731
  here, there = halves(ones, ones)
  names = [k for k in flat(here) if there.get(k) is not None]
  wanted = draws(n, samples=SAMPLES if samples is None else samples, seed=seed)
  drawn: list[dict] = []
  exchanged: list[dict] = []
  for s, counts in enumerate(affordable(wanted, seconds=seconds if samples is None else None)):
    drawn.append(_apart(*halves(counts, counts), names))
    own = np.random.default_rng((seed, s, 1)).integers(0, 2, n)  # 1: the row's answer stays where it is
    mixed = (counted(np.concatenate(pair)) for pair in ((own, 1 - own), (1 - own, own)))
    exchanged.append(_apart(*mixed, names))
  enough = len(drawn) >= (FEWEST if samples is None else 1)
  out: dict[str, Any] = {'samples': len(drawn) if enough else 0, 'level': level, 'metrics': {}}
  for name in names:
    seen = here[name] - there[name]
    found: dict[str, Any] = {'here': here[name], 'there': there[name], 'difference': seen}
    boot, random = (np.array([d[name] for d in x if d[name] is not None]) for x in (drawn, exchanged))
    if enough and len(boot) and len(random):
      low, high = np.quantile(boot, [(1 - level) / 2, (1 + level) / 2])
      beyond = min((boot <= 0).sum(), (boot >= 0).sum())
      found['interval'] = [float(low), float(high)]
      found['p_bootstrap'] = min(1.0, float(2 * (beyond + 1) / (len(boot) + 1)))
      as_large = (np.abs(random) >= abs(seen) - 1e-12).sum()
      found['p_randomization'] = float((as_large + 1) / (len(random) + 1))
    out['metrics'][name] = found
  return out


def mcnemar(right_here_N: np.ndarray, right_there_N: np.ndarray) -> dict[str, float]:
  """The exact test of McNemar (1947) of two accuracies on the same rows: `only_here` and `only_there` rows are right in
  one alone, and `p` is two-sided, of as uneven a split of those by a fair coin."""
  from scipy.stats import binomtest

  a_N, b_N = np.asarray(right_here_N, bool), np.asarray(right_there_N, bool)
  here, there = int((a_N & ~b_N).sum()), int((b_N & ~a_N).sum())
  p = float(binomtest(here, here + there, 0.5).pvalue) if here + there else 1.0
  return {'only_here': here, 'only_there': there, 'p': p}


def _apart(a: Any, b: Any, names: list[str]) -> dict[str, float | None]:
  return {n: None if a[n] is None or b[n] is None else a[n] - b[n] for n in names}
