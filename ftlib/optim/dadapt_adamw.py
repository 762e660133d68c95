"""D-Adaptation for Adam (Defazio & Mishchenko 2023, algorithm 5): AdamW that estimates its own learning rate d.

With a = d rate Adam's bias correction sqrt(1 - b2^t) / (1 - b1^t) and b3 = sqrt(b2):

  r = b3 r + (1 - b3) a <g, s / (sqrt(v) + eps)>, of s and v before this step
  m = b1 m + (1 - b1) a g;  v = b2 v + (1 - b2) g^2;  s = b3 s + (1 - b3) a g
  w -= m / (sqrt(v) + eps);  then d = max(d, r / ((1 - b3) |s|_1))

`learning_rate` multiplies the estimate and stays 1. r, s and d are one for all parameters of a group. Own code:
optax.contrib.dadapt_adamw divides 0 by 0 where the first rate is 0, as in a warmup, and decays biases and gains as
well. Elsewhere they agree.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ftlib.base import trees
from ftlib.base.settings import setting
from ftlib.base.types import ParamInfo
from ftlib.optim.moments import kept

RATED = FINDS_RATE = True  # the rate is in the moments


@dataclasses.dataclass(frozen=True)
class Config:
  """`d0`: the first estimate, far too low on purpose; `b1`, `b2`, `eps` as in adamw."""

  learning_rate: float = setting(1.0, above=0)
  b1: float = setting(0.9, low=0, below=1)
  b2: float = setting(0.999, above=0, below=1)
  eps: float = setting(1e-8, above=0)
  d0: float = setting(1e-6, above=0)


class State(NamedTuple):
  """`mu` in `moments`; `nu` and `s` float32; `d` and `r` float32 []."""

  count: jax.Array
  d: jax.Array
  r: jax.Array
  mu: Any
  nu: Any
  s: Any


def build(
  config: Config,
  info: dict[str, ParamInfo],
  *,
  rate: optax.Schedule,
  decay: float,
  decays: Callable[[str], bool],
) -> optax.GradientTransformation:
  """The whole update. State: three numbers a parameter."""
  b3 = config.b2**0.5

  def init(params: Any) -> State:
    d, r = jnp.asarray(config.d0, jnp.float32), jnp.zeros((), jnp.float32)
    return State(jnp.zeros((), jnp.int32), d, r, *[optax.tree.zeros_like(params)] * 3)

  def update(g: Any, state: State, params: Any) -> tuple[Any, State]:
    count = optax.safe_increment(state.count)
    a = state.d * rate(state.count) * jnp.sqrt(1 - config.b2**count) / (1 - config.b1**count)
    scaled = jax.tree.map(lambda s, v: s / (jnp.sqrt(v) + config.eps), state.s, state.nu)
    r = b3 * state.r + (1 - b3) * a * optax.tree.vdot(g, scaled)
    step = optax.tree.scale(a, g)
    mu, s = (optax.tree.update_moment(step, m, b, 1) for m, b in ((state.mu, config.b1), (state.s, b3)))
    nu = optax.tree.update_moment(g, state.nu, config.b2, 2)
    size = (1 - b3) * optax.tree.sum(jax.tree.map(lambda s: jnp.abs(s).sum(), s))
    estimate = jnp.where(size > 0, r / jnp.where(size > 0, size, 1), 0)

    def move(path: Any, m: jax.Array, v: jax.Array, w: jax.Array) -> jax.Array:
      shrunk = a * decay * w if decays(trees.path_name(path)) else 0
      return -(m / (jnp.sqrt(v) + config.eps) + shrunk)

    moved = jax.tree_util.tree_map_with_path(move, mu, nu, params)
    return moved, State(count, jnp.maximum(state.d, estimate), r, mu, nu, s)

  return kept(optax.GradientTransformation(init, update), ('mu',), config.moments)
