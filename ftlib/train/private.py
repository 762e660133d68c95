"""Differentially private training: DP-SGD (Abadi et al. 2016, algorithm 1), whatever the optimizer.

Every row's gradient is scaled down to a norm of at most C, the sum gets Gaussian noise of deviation sigma C in every
entry, once a step, and is divided by the expected number of rows. What an optimizer makes of that is as private as it.

What `epsilon` says: neighbouring data sets differ in one row, which is there or not; each step has every row with
probability q by itself, and of more rows than a batch can hold a random subset (truncated Poisson sampling:
`ftlib/data/batches.py: Poisson` draws so). Then all trained parameters of all steps together are (epsilon, delta)-
private; it is computed by numerical composition of the privacy loss of this very mechanism (dp-accounting's PLD
accountant, Ganesh et al. 2025 for the truncation). It does not cover what else is looked at: logged losses, metrics,
which checkpoint or setting was best. The noise follows from the seed, which is to be kept secret.

Clipping and noise are own code and not jax-privacy's (which leaves its accounting to dp-accounting too): they stand in
the step in place of `accumulate`, where a row's gradient is that of its mean loss, padding counts as no row, and noise
follows from the run's key and the names, so that a restart or another mesh draws the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ftlib.base import rng, trees
from ftlib.base.errors import InputError
from ftlib.base.settings import setting
from ftlib.base.types import Batch, Params, Sums

_NONE = 1e-20  # the weight of a batch without rows: it gets its noise too, and 0 times that would be none


@dataclasses.dataclass(frozen=True)
class Config:
  """`noise_multiplier`: the noise's deviation in units of `clip_norm`, the norm that a row's gradient is cut to; 0 is
  training without privacy. `delta`: of (epsilon, delta), less than 1 / rows. `microbatch`: rows whose gradients are
  held at once."""

  noise_multiplier: float = setting(0.0, low=0)
  clip_norm: float = setting(1.0, above=0)
  delta: float = setting(1e-5, above=0, below=1)
  microbatch: int = setting(8, low=1)


def private_gradient(config: Config, *, expected: float) -> Callable[..., tuple[Params, Sums]]:
  """`(grad, trainable, frozen, batch, key, *, micro) -> (gradient, sums)` in place of `step.accumulate`.

  A row's gradient is that of its mean loss, its loss's sum over its weight. `expected`: rows of a batch on average.
  The step divides the gradient by the weight of `sums['loss']`; that is multiplied in here, so that what it gets is the
  noisy sum over `expected`. `sums` gets 'clipped': (rows that were cut, rows). `micro` is not used: `config.microbatch`
  rows are taken at once, and have to divide the batch.
  """

  def one(grad: Callable, trainable: Params, frozen: Params, row: Batch, key: jax.Array) -> tuple[Params, Sums]:
    got, sums = grad(trainable, frozen, jax.tree.map(lambda x: x[None], row), key)
    weight = sums['loss'][1]
    real = weight > 0
    got = jax.tree.map(lambda g: g.astype(jnp.float32) / jnp.where(real, weight, 1), got)
    norm = optax.tree.norm(got)
    got = jax.tree.map(lambda g: g * (config.clip_norm / jnp.maximum(norm, config.clip_norm)), got)
    clipped = (norm > config.clip_norm) & real
    return got, {**sums, 'clipped': (clipped.astype(jnp.float32), real.astype(jnp.float32))}

  def private(grad: Callable, trainable: Params, frozen: Params, batch: Batch, key: jax.Array, *, micro: int):
    count = len(batch['rows']) // config.microbatch
    pieces = jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), batch)
    rows = jax.vmap(lambda row: one(grad, trainable, frozen, row, key))

    def body(total: Any, piece: Batch) -> tuple[Any, None]:
      return jax.tree.map(lambda t, x: t + x.sum(0), total, rows(piece)), None

    shapes = jax.eval_shape(rows, jax.tree.map(lambda x: x[0], pieces))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape[1:], s.dtype), shapes)
    (total, sums), _ = jax.lax.scan(body, zeros, pieces)
    noisy = noised(total, key, config.noise_multiplier * config.clip_norm)
    weight = jnp.maximum(sums['loss'][1], _NONE)
    scale = weight / expected
    return jax.tree.map(lambda x: x * scale, noisy), {**sums, 'loss': (sums['loss'][0], weight)}

  return private


def noised(total: Params, key: jax.Array, deviation: float) -> Params:
  """`total` plus Gaussian noise, for every leaf from the step's key folded with its name."""
  key = rng.key_for(key, 'privacy')
  draw = lambda name, x: x + deviation * jax.random.normal(rng.key_for(key, name), x.shape, x.dtype)  # noqa: E731
  return trees.map_named(draw, total)


def epsilon(config: Config, *, rows: int, rate: float, most: int, steps: int) -> float:
  """Epsilon after `steps` steps, each of which has every one of `rows` with probability `rate`, at most `most` of them.

  Raises `InputError` where dp-accounting is not installed.
  """
  dp_accounting, pld = accounting()
  if most < rows:
    event = dp_accounting.TruncatedSubsampledGaussianDpEvent(rows, rate, most, config.noise_multiplier)
  else:
    event = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(config.noise_multiplier))
  accountant = pld.PLDAccountant()
  if steps:
    accountant.compose(event, steps)
  return float(accountant.get_epsilon(config.delta))


def accounting() -> tuple[Any, Any]:
  """(dp_accounting, dp_accounting.pld), which are not loaded before they are needed."""
  try:
    import dp_accounting
    from dp_accounting import pld
  except ImportError as e:
    raise InputError(
      f'privacy.noise_multiplier: the accountant, dp-accounting, cannot be imported ({e})\n'
      "  pip install 'ftlib[privacy]'"
    ) from e
  return dp_accounting, pld
