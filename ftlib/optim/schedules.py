"""Learning-rate schedules: a pure function of the step, vectorised over steps.

Of T steps the first W are warmup, in which the factor of the learning rate is t / W at step t (from 0). What follows
is a function f of s = t - W, n = T - W and p = s / n, which `final` lifts to final + (1 - final) f:

- constant: 1.
- plateau: 1, times what the training loop has lowered the rate by as the validation metric stood still.
- linear: 1 - p. cosine: (1 + cos(pi p)) / 2 (Loshchilov & Hutter 2017). polynomial: (1 - p)^power.
- exponential: decay_factor^(s / decay_steps). step: decay_factor^floor(s / decay_steps).
- inverse_sqrt: sqrt(timescale / (s + timescale)) (Vaswani et al. 2017, section 5.3, as transformers shifts it).
- wsd (warmup, stable, decay: Hu et al. 2024): 1, but over the last decay_share of the T steps 1 - q, or 1 - sqrt(q)
  (Hägele et al. 2024), with q from 0 to 1.
- cosine_restarts: cosine over each of `cycles` cycles, each `cycle_growth` times as long as the one before (SGDR:
  Loshchilov & Hutter 2017, equation 5).

Three rise by themselves, so that `warmup` does not matter to them. With C = cut_frac T, they go from one value up to 1
at step C and down over the rest:

- slanted: linearly from 1 / ratio and back (slanted triangular: Howard & Ruder 2018, equation 3); `final` is not used.
- one_cycle: by half a cosine from 1 / ratio, and down to `final` (Smith & Topin 2018), as in optax; PyTorch's has the
  peak at step C - 1 and `final` at T - 1, the last step, each one earlier.
- cyclical: linearly from `final` and back in each of `cycles` cycles, the peak in the middle (Smith 2017, triangular).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ftlib.base.errors import InputError, did_you_mean
from ftlib.base.settings import setting

DECAYS = (
  *('linear', 'cosine', 'constant', 'polynomial', 'exponential', 'step', 'inverse_sqrt', 'wsd', 'cosine_restarts'),
  'plateau',
)
RISING = ('slanted', 'one_cycle', 'cyclical')
NAMES = DECAYS + RISING


@dataclasses.dataclass(frozen=True)
class Schedule:
  """The schedule and what it reads; `warmup` is a share of the run and `warmup_steps`, where given, a number of steps.

  `decay_steps` none is a third of what follows warmup; `timescale` none the steps of warmup, or 10,000 without.
  """

  schedule: str = setting('linear', choices=NAMES)
  warmup: float = setting(0.06, low=0, below=1)
  warmup_steps: int | None = setting(None, low=0)
  final: float = setting(0.0, low=0, high=1)
  power: float = setting(1.0, above=0)
  decay_factor: float = setting(0.1, above=0, below=1)
  decay_steps: int | None = setting(None, low=1)
  timescale: int | None = setting(None, low=1)
  decay_share: float = setting(0.1, above=0, high=1)
  decay_shape: str = setting('linear', choices=('linear', '1-sqrt'))
  cycles: int = setting(3, low=1)
  cycle_growth: float = setting(1.0, low=1)
  cut_frac: float = setting(0.1, above=0, below=1)
  ratio: float = setting(32.0, low=1)


def build(fields: Schedule, *, peak: float, total: int, where: str = 'optim') -> optax.Schedule:
  """The learning rate at a step, or at an array of steps, of a run of `total`: float32 of the same shape.

  Raises `InputError`, naming fields of `where`, for a schedule that does not exist and for one that is longer than the
  run: its warmup, its warmup and decay, or its cycles.
  """
  if fields.schedule not in NAMES:
    known = f'{did_you_mean(fields.schedule, NAMES)}\n  known: {", ".join(NAMES)}'
    raise InputError(f'{where}.schedule={fields.schedule!r} is no schedule{known}')
  if fields.schedule in RISING:  # from its own beginning, whatever the warmup
    factor = _rising(fields, total, where)
  else:
    warmup = _warmup(fields, total, where)
    decay = _decay(fields, warmup, total, where)
    decay = decay if fields.final == 0 else _above(decay, fields.final)
    factor = optax.join_schedules([optax.linear_schedule(0.0, 1.0, warmup), decay], [warmup]) if warmup else decay
  return lambda step: peak * factor(jnp.asarray(step, jnp.float32))


def _warmup(fields: Schedule, total: int, where: str) -> int:
  """Steps of warmup: `warmup_steps`, or `warmup` of `total`."""
  count = round(fields.warmup * total) if fields.warmup_steps is None else fields.warmup_steps
  if count >= total and count > 0:
    raise InputError(
      f'{where}: {count} warmup steps, but the run has {total}; lower {where}.warmup_steps or {where}.warmup'
    )
  return count


def _above(decay: optax.Schedule, final: float) -> optax.Schedule:
  return lambda s: final + (1 - final) * decay(s)


def _decay(fields: Schedule, warmup: int, total: int, where: str) -> optax.Schedule:
  """From 1 downwards; a function of the steps since the end of warmup."""
  n = max(1, total - warmup)
  every = fields.decay_steps or max(1, round(n / 3))
  timescale = fields.timescale or warmup or 10_000
  by_power = lambda stairs: optax.exponential_decay(1.0, every, fields.decay_factor, staircase=stairs)  # noqa: E731
  made: dict[str, Callable[[], optax.Schedule]] = {
    'constant': lambda: jnp.ones_like,
    'plateau': lambda: jnp.ones_like,
    'linear': lambda: optax.linear_schedule(1.0, 0.0, n),
    'cosine': lambda: optax.cosine_decay_schedule(1.0, n),
    'polynomial': lambda: optax.polynomial_schedule(1.0, 0.0, fields.power, n),
    'exponential': lambda: by_power(False),
    'step': lambda: by_power(True),
    'inverse_sqrt': lambda: lambda s: jnp.sqrt(timescale / (jnp.maximum(s, 0.0) + timescale)),
    'wsd': lambda: _stable_decay(fields, n, total, where),
    'cosine_restarts': lambda: _restarts(fields, n, where),
  }
  return made[fields.schedule]()


def _stable_decay(fields: Schedule, n: int, total: int, where: str) -> optax.Schedule:
  last = max(1, round(fields.decay_share * total))
  if last > n:
    raise InputError(
      f'{where}: {total - n} warmup steps and {last} of decay, but the run has {total}; '
      f'lower {where}.decay_share or {where}.warmup'
    )

  def decay(s: jax.Array) -> jax.Array:
    q = jnp.clip((s - (n - last)) / last, 0.0, 1.0)
    return 1 - (jnp.sqrt(q) if fields.decay_shape == '1-sqrt' else q)

  return decay


def _restarts(fields: Schedule, n: int, where: str) -> optax.Schedule:
  inside = _cycles(fields, n, where)
  return lambda s: 0.5 * (1 + jnp.cos(jnp.pi * inside(s)))


def _rising(fields: Schedule, total: int, where: str) -> optax.Schedule:
  """From a low value up to 1 and down again; a function of the run's step."""
  if fields.schedule == 'cyclical':
    inside = _cycles(fields, total, where)
    return _above(lambda t: 1 - jnp.abs(1 - 2 * inside(t)), fields.final)
  cut = int(fields.cut_frac * total)
  low = 1 / fields.ratio

  def factor(t: jax.Array) -> jax.Array:
    p = jnp.where(t < cut, t / max(1, cut), jnp.clip((total - t) / max(1, total - cut), 0.0, 1.0))
    if fields.schedule == 'slanted':
      return low + (1 - low) * p
    base = jnp.where(t < cut, low, fields.final)
    return base + (1 - base) * 0.5 * (1 - jnp.cos(jnp.pi * p))

  return factor


def _cycles(fields: Schedule, n: int, where: str) -> optax.Schedule:
  """How much of its cycle a step is past, in [0, 1): the cycles fill `n` steps; 1 after the last."""
  shares = fields.cycle_growth ** np.arange(fields.cycles, dtype=np.float64)
  ends = np.round(np.cumsum(shares) / shares.sum() * n).astype(np.int32)
  starts = np.concatenate([[0], ends[:-1]])
  if (ends <= starts).any():
    raise InputError(f'{where}.cycles={fields.cycles} do not fit in {n} steps; lower it or {where}.cycle_growth')

  def inside(s: jax.Array) -> jax.Array:
    k = jnp.clip(jnp.searchsorted(jnp.asarray(starts), s, side='right') - 1, 0, fields.cycles - 1)
    return jnp.clip((s - starts[k]) / (ends - starts)[k], 0.0, 1.0)

  return inside
