"""Adversarial training: what is minimised must hold for embeddings a little off as well.

A perturbation d [B, L, D] is added to what the first block reads (`inputs['embedding_noise']`), and chosen for each
row by itself within |d| <= epsilon, the Euclidean norm over the row's real tokens; padding and virtual tokens get none.
With u(g) = g / |g|, L the loss and g its gradient by d:

  fgm     L(0) + weight * L(epsilon u(g at 0))  (Miyato et al. 2017, equations 5 and 6)
  pgd     L(0) + weight * L(d), d from `steps` steps d <- P(d + step_size u(g)), where P scales back into the ball, from
          a random start (Madry et al. 2018; they minimise L(d) alone)
  freelb  the mean of L(d) over the d that these steps come by, the random start first; the gradients by the parameters
          come out of the same backward passes as those by d (Zhu et al. 2020, algorithm 1)
  smart   L(0) + weight * divergence(f(0), f(d)), d by the steps of pgd, which here raise the divergence (the
          smoothness of Jiang et al. 2020, equation 2; their second part, the proximal point, is left out: it is a pass
          with a mean of earlier parameters, and an objective is given those that train)

All passes of a step have the same dropout. The divergence is that of R-Drop (`objective.py`), half of the paper's sum.
Beside the pass forward and backward of a plain step there are 2 with fgm, `steps` + 1 with pgd and smart (all but the
last by the perturbation alone), and `steps` - 1 with freelb.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftlib.base import rng
from ftlib.base.errors import InputError
from ftlib.base.settings import setting
from ftlib.base.types import Batch, Outputs, Sums
from ftlib.objectives.objective import Apply

NAMES = ('none', 'fgm', 'pgd', 'freelb', 'smart')


@dataclasses.dataclass(frozen=True)
class Config:
  """`name`: one of `NAMES`. `epsilon`: the largest norm of a row's perturbation. `steps`, each of norm `step_size`: of
  all but fgm, whose one step goes to `epsilon`. `weight`: of the second term, of all but freelb."""

  name: str = setting('none', choices=NAMES)
  epsilon: float = setting(1.0, above=0)
  steps: int = setting(3, low=1)
  step_size: float = setting(0.5, above=0)
  weight: float = setting(1.0, above=0)


def wrap(objective: Callable[..., Sums], config: Config, *, width: int | None = None) -> Callable[..., Sums]:
  """An objective that trains adversarially and, without a key (in evaluation), is as it was.

  `width` D of what the first block reads; None: that of the last hidden states. Raises `InputError` where `smart` has
  to compare outputs that the objective cannot.
  """
  if config.name == 'none':
    return objective
  if config.name == 'smart' and getattr(objective, 'divergence', None) is None:
    raise InputError(
      'adversarial.name=smart compares the outputs of two passes, and this objective does not say how (`divergence` of '
      'ftlib/objectives/objective.py); take fgm, pgd or freelb'
    )

  def wrapped(apply: Apply, batch: Batch, key: jax.Array | None) -> Sums:
    if key is None:
      return objective(apply, batch, None)
    real_BL1 = (batch['segments'] > 0)[..., None].astype(jnp.float32)
    size = width or jax.eval_shape(apply, batch, key).hidden.shape[-1]

    def moved(d_BLD: jax.Array, batch: Batch, key: jax.Array) -> Sums:
      return objective(lambda inputs, k: apply({**inputs, 'embedding_noise': d_BLD}, k), batch, key)

    start_BLD = start(key, batch['rows'], real_BL1, size, config.epsilon)
    if config.name == 'freelb':
      fn, consts = jax.closure_convert(moved, start_BLD, batch, key)
      return _free(fn, config, consts, start_BLD, real_BL1, batch, key)
    if config.name == 'smart':
      return _smooth(objective, config, apply, batch, key, start_BLD, real_BL1)
    slope = _held(jax.grad(lambda d: moved(d, batch, key)['loss'][0]), start_BLD)
    if config.name == 'fgm':
      d_BLD = config.epsilon * unit(slope(jnp.zeros_like(start_BLD)), real_BL1)
    else:
      d_BLD = _ascended(slope, config, start_BLD, real_BL1)
    sums, (hard, weight) = objective(apply, batch, key), moved(d_BLD, batch, key)['loss']
    return {**sums, 'loss': (sums['loss'][0] + config.weight * hard, weight), 'adversarial_loss': (hard, weight)}

  return wrapped


def _smooth(objective, config: Config, apply: Apply, batch: Batch, key, start_BLD, real_BL1) -> Sums:
  passes = []

  def watched(inputs: Batch, key: jax.Array | None) -> Outputs:
    passes.append(apply(inputs, key))
    return passes[-1]

  sums = objective(watched, batch, key)
  plain = passes[0]  # the objective may take another for itself (R-Drop)

  def apart(d_BLD: jax.Array) -> jax.Array:
    return objective.divergence(plain, apply({**batch, 'embedding_noise': d_BLD}, key), batch)

  far = apart(_ascended(_held(jax.grad(apart), start_BLD), config, start_BLD, real_BL1))
  total, weight = sums['loss']
  return {**sums, 'loss': (total + config.weight * far, weight), 'smoothness': (far, weight)}


def unit(g_BLD: jax.Array, real_BL1: jax.Array) -> jax.Array:
  """`g` of each row's real tokens over its norm, 0 for a row without any; exactly 0 at padding."""
  g_BLD = jnp.where(real_BL1 > 0, g_BLD, 0)
  largest_B11 = jnp.abs(g_BLD).max((1, 2), keepdims=True)  # squares of small numbers could vanish
  g_BLD /= jnp.where(largest_B11 > 0, largest_B11, 1)
  return g_BLD / jnp.maximum(_norm(g_BLD), 1)


def within(d_BLD: jax.Array, epsilon: float) -> jax.Array:
  """`d` with each row's norm at most `epsilon`."""
  return d_BLD * (epsilon / jnp.maximum(_norm(d_BLD), epsilon))


def start(key: jax.Array, rows_B: jax.Array, real_BL1: jax.Array, width: int, epsilon: float) -> jax.Array:
  """Uniform numbers of -1 to 1 times epsilon / root of how many a row has (Zhu et al. 2020), by the rows' numbers in
  the global batch: float32 [B, L, width]."""
  stream = rng.Stream.start(rng.key_for(key, 'adversarial'), rows_B)
  bits_BLD = stream.bits((*real_BL1.shape[:2], width))
  uniform_BLD = (bits_BLD >> 8).astype(jnp.float32) / np.float32(2**23) - 1
  count_B11 = jnp.maximum(real_BL1.sum((1, 2), keepdims=True) * width, 1)
  return jnp.where(real_BL1 > 0, uniform_BLD * epsilon / jnp.sqrt(count_B11), 0)


def _norm(x_BLD: jax.Array) -> jax.Array:
  return jnp.sqrt(jnp.square(x_BLD).sum((1, 2), keepdims=True))


def _step(config: Config, d_BLD: jax.Array, g_BLD: jax.Array, real_BL1: jax.Array) -> jax.Array:
  return within(d_BLD + config.step_size * unit(g_BLD, real_BL1), config.epsilon)


def _ascended(slope: Callable, config: Config, d_BLD: jax.Array, real_BL1: jax.Array) -> jax.Array:
  return jax.lax.fori_loop(0, config.steps, lambda _, d: _step(config, d, slope(d), real_BL1), d_BLD)


def _held(fn: Callable, d_BLD: jax.Array) -> Callable:
  """`fn` of a perturbation, whose result is not differentiated by the parameters that it closes over."""
  converted, consts = jax.closure_convert(fn, d_BLD)
  return lambda d: converted(d, *map(jax.lax.stop_gradient, consts))


# FreeLB. `fn(d, batch, key, *consts)` gives the sums; of the consts only those that train are differentiated.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _free(fn: Callable, config: Config, consts: list[Any], d_BLD, real_BL1, batch: Batch, key) -> Sums:
  def body(carry, _):
    total, d = carry
    g, sums = jax.grad(lambda d: _loss(fn(d, batch, key, *consts)), has_aux=True)(d)
    return (_added(total, sums, config), _step(config, d, g, real_BL1)), None

  zero = _zeros(jax.eval_shape(fn, d_BLD, batch, key, *consts))
  return jax.lax.scan(body, (zero, d_BLD), None, length=config.steps)[0][0]


def _free_forward(fn, config, consts, d_BLD, real_BL1, batch, key):
  values, moving = [c.value for c in consts], [c.perturbed for c in consts]
  own = [v for v, m in zip(values, moving, strict=True) if m]
  d_BLD, real_BL1, key = d_BLD.value, real_BL1.value, key.value
  batch = {n: x.value for n, x in batch.items()}

  def loss(d, own):
    own = iter(own)
    return _loss(fn(d, batch, key, *(next(own) if m else v for v, m in zip(values, moving, strict=True))))

  def body(carry, _):
    total, grads, d = carry
    (g, g_own), sums = jax.grad(loss, argnums=(0, 1), has_aux=True)(d, own)
    grads = jax.tree.map(lambda t, x: t + x / config.steps, grads, g_own)
    return (_added(total, sums, config), grads, _step(config, d, g, real_BL1)), None

  zero = _zeros(jax.eval_shape(fn, d_BLD, batch, key, *values))
  (sums, grads, _), _ = jax.lax.scan(body, (zero, _zeros(own), d_BLD), None, length=config.steps)
  at = iter(grads)
  return sums, [next(at) if m else None for m in moving]


def _free_backward(fn, config, grads, g):
  g = g['loss'][0]  # the other sums have no derivative
  g = jnp.zeros((), jnp.float32) if isinstance(g, jax.custom_derivatives.SymbolicZero) else g
  return [None if x is None else (x * g).astype(x.dtype) for x in grads], None, None, None, None


_free.defvjp(_free_forward, _free_backward, symbolic_zeros=True)


def _loss(sums: Sums) -> tuple[jax.Array, Sums]:
  return sums['loss'][0], sums


def _added(total: Sums, sums: Sums, config: Config) -> Sums:
  return jax.tree.map(lambda t, x: t + x / config.steps, total, sums)


def _zeros(shapes: Any) -> Any:
  return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
