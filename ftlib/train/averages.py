"""Averages of the trainable parameters that go along with the training: exponential, and equal over its last part.

They are functions of (average, parameters, number of updates so far), so that a resumed run goes on with them exactly;
a step without an update does not count. What equals its average leaves it as it is, to the bit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ftlib.base.types import Params

Rule = Callable[[Params, Params, jax.Array], Params]  # (average, parameters after update t, t from 1) -> average


def rules(*, ema: float, swa_start: float | None, steps: int) -> dict[str, Rule]:
  """{'ema': ..., 'swa': ...} of those that a run of `steps` steps keeps: `ema` 0 and `swa_start` None keep none."""
  kept: dict[str, Rule] = {'ema': functools.partial(exponential, decay=ema)} if ema else {}
  if swa_start is not None:
    kept['swa'] = functools.partial(equal, start=first(swa_start, steps))
  return kept


def first(swa_start: float, steps: int) -> int:
  """The number of the first update whose parameters the equal mean holds: after a share `swa_start` of the run."""
  return int(swa_start * steps) + 1


def exponential(average: Params, params: Params, t: jax.Array, *, decay: float) -> Params:
  """d average + (1 - d) params with d = min(decay, (1 + t) / (10 + t)): Polyak & Juditsky 1992, and its warmup.

  Without the warmup, 1000 steps of a decay of 0.999 would still hold a third of what training began with.
  """
  t = t.astype(jnp.float32)
  rest = 1 - jnp.minimum(decay, (1 + t) / (10 + t))
  return jax.tree.map(lambda a, p: a + rest.astype(a.dtype) * (p - a), average, params)


def equal(average: Params, params: Params, t: jax.Array, *, start: int) -> Params:
  """The mean of the parameters after updates `start`, ..., t (Izmailov et al. 2018); before those, the parameters."""
  count = jnp.maximum(t - start + 1, 1)
  return jax.tree.map(lambda a, p: jnp.where(count == 1, p, a + (p - a) / count.astype(a.dtype)), average, params)
