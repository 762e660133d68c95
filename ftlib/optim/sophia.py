"""Sophia-H (Liu et al. 2024, algorithm 3): momentum over the curvature, each number clipped to 1.

m = b1 m + (1 - b1) g; every `interval` steps h = b2 h + (1 - b2) u * Hu, with u of random signs (Hutchinson's estimate
of the diagonal of the Hessian H of this batch's loss); the direction is clip(m / max(gamma h, eps), 1), the sign of m
where the curvature is small or negative. A step with an estimate costs about three more.

The signs are of a layer, so stacked layers train as they would apart. Own code: `optax.contrib.scale_by_sophia` uses h
one step late and m without bias, and its estimate is a derivative in forward mode, which functions with a backward pass
of their own may not have. Here Hu is the gradient of <gradient, u>.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ftlib.base.settings import setting
from ftlib.base.types import ParamInfo
from ftlib.optim import around, matrices
from ftlib.optim.moments import kept

NEEDS = ('obj_fn',)
SEEDED = True


@dataclasses.dataclass(frozen=True)
class Config:
  """`b1`, `b2`: decay of gradient and curvature; `gamma` so that 10 to 50 % of the numbers are not clipped; `interval`
  in steps."""

  learning_rate: float = setting(3e-4, above=0)
  b1: float = setting(0.96, low=0, below=1)
  b2: float = setting(0.99, low=0, below=1)
  gamma: float = setting(0.01, above=0)
  eps: float = setting(1e-12, above=0)
  interval: int = setting(10, low=1)


class State(NamedTuple):
  """The signs follow from the run's seed and `count`."""

  count: jax.Array
  mu: Any
  curvature: Any


def build(config: Config, info: dict[str, ParamInfo], *, seed: int = 0) -> optax.GradientTransformationExtraArgs:
  """The direction before decay and learning rate. `update` is given `obj_fn`: parameters -> loss of this batch. State:
  two moments a parameter, the first in `moments`."""

  def init(params: Any) -> State:
    return State(jnp.zeros((), jnp.int32), *(optax.tree.zeros_like(params) for _ in range(2)))

  def update(
    updates: Any, state: State, params: Any = None, *, obj_fn: Callable[[Any], jax.Array], **_: Any
  ) -> tuple[Any, State]:
    def looked(curvature: Any) -> Any:
      draw = functools.partial(around.noise, seed=seed, step=state.count, drawn=_signs)
      signs = matrices.like(params, {n: draw(f'{n}/sign', info[n]) for n in matrices.named(params)})
      product = jax.grad(lambda p: optax.tree.vdot(jax.grad(obj_fn)(p), signs))(params)
      return optax.tree.update_moment(optax.tree.mul(signs, product), curvature, config.b2, 1)

    due = state.count % config.interval == 0
    curvature = jax.lax.cond(due, looked, lambda h: h, state.curvature)
    mu = optax.tree.update_moment(updates, state.mu, config.b1, 1)
    step = lambda m, h: jnp.clip(m / jnp.maximum(config.gamma * h, config.eps), -1, 1)  # noqa: E731
    return jax.tree.map(step, mu, curvature), State(optax.safe_increment(state.count), mu, curvature)

  return kept(optax.GradientTransformationExtraArgs(init, update), ('mu',), config.moments)


def _signs(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  return jax.random.rademacher(key, shape, jnp.float32)
