"""Learning-rate schedules: a pure function of the step, with linear warmup in front.

With W warmup steps of T in all, step t (from 0) has factor t / W in warmup, then a decay of progress
p = (t - W) / (T - W): linear 1 - p, cosine (1 + cos(pi p)) / 2 (Loshchilov & Hutter 2017), polynomial (1 - p)^power,
constant 1; each between 1 and `final`. This is the convention of transformers' schedules.

'slanted' has no warmup and no `final` but a cut at C = cut_frac T: p goes from 0 to 1 over C steps and back to 0 over
the rest, and the factor is (1 + p (ratio - 1)) / ratio (slanted triangular: Howard & Ruder 2018, equation 3).
"""

from __future__ import annotations

import jax.numpy as jnp
import optax

from ftlib.base.errors import InputError

NAMES = ('linear', 'cosine', 'constant', 'polynomial', 'slanted')


def warmup_steps(*, ratio: float, steps: int | None, total: int) -> int:
  """Steps of warmup: `steps`, or `ratio` of `total`. Raises `InputError` where they fill the run."""
  count = round(ratio * total) if steps is None else steps
  if count >= total and count > 0:
    raise InputError(f'optim: {count} warmup steps, but the run has {total}; lower optim.warmup_steps or optim.warmup')
  return count


def build(
  name: str,
  *,
  peak: float,
  warmup: int,
  total: int,
  final: float = 0.0,
  power: float = 1.0,
  cut_frac: float = 0.1,
  ratio: float = 32.0,
) -> optax.Schedule:
  """The learning rate at a step: `peak` times the factor above."""
  cut = int(cut_frac * total)

  def slanted(step):
    step = jnp.asarray(step, jnp.float32)
    p = jnp.where(step < cut, step / max(1, cut), jnp.clip((total - step) / max(1, total - cut), 0.0, 1.0))
    return peak * (1 + p * (ratio - 1)) / ratio

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

  return slanted if name == 'slanted' else schedule
