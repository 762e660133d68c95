"""Learning-rate schedules: a pure function of the step, with linear warmup in front.

With W warmup steps of T in all, step t (from 0) has factor t / W in warmup, then a decay of progress
p = (t - W) / (T - W): linear 1 - p, cosine (1 + cos(pi p)) / 2 (Loshchilov & Hutter 2017), polynomial (1 - p)^power,
constant 1; each between 1 and `final`. This is the convention of transformers' schedules.
"""

from __future__ import annotations

import jax.numpy as jnp
import optax

from ftlib.base.errors import InputError

NAMES = ('linear', 'cosine', 'constant', 'polynomial')


def warmup_steps(*, ratio: float, steps: int | None, total: int) -> int:
  """Steps of warmup: `steps`, or `ratio` of `total`. Raises `InputError` where they fill the run."""
  count = round(ratio * total) if steps is None else steps
  if count >= total and count > 0:
    raise InputError(f'optim: {count} warmup steps, but the run has {total}; lower optim.warmup_steps or optim.warmup')
  return count


def build(name: str, *, peak: float, warmup: int, total: int, final: float = 0.0, power: float = 1.0) -> optax.Schedule:
  """The learning rate at a step: `peak` times the factor above."""

  def schedule(step):
    step = jnp.asarray(step, jnp.float32)
    p = jnp.clip((step - warmup) / max(1, total - warmup), 0.0, 1.0)
    factor = {
      'linear': lambda: 1 - p,
      'cosine': lambda: 0.5 * (1 + jnp.cos(jnp.pi * p)),
      'constant': lambda: jnp.ones_like(p),
      'polynomial': lambda: (1 - p) ** power,
    }[name]()
    decayed = final + (1 - final) * factor
    return peak * jnp.where(step < warmup, step / max(1, warmup), decayed)

  return schedule
