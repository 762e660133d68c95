"""Prodigy (Mishchenko & Defazio 2024, algorithm 4): Adam that estimates its own learning rate d.

With a = rate Adam's bias correction sqrt(1 - b2^t) / (1 - b1^t), b3 = sqrt(b2) and w_0 the parameters at the start:

  m = b1 m + (1 - b1) d g;  v = b2 v + (1 - b2) d^2 g^2;  r = b3 r + (1 - b3) a d^2 <g, w_0 - w>
  s = b3 s + (1 - b3) a d^2 g;  w -= a d m / (sqrt(v) + d eps);  then d = max(d, d_coef r / |s|_1)

`learning_rate` multiplies the estimate and stays 1. `safeguard_warmup` leaves a out of s, so that the small rates of a
warmup do not inflate d. r, s and d are one for all parameters of a group. Own code: optax.contrib.prodigy divides 0 by
0 where the first rates are 0 without the safeguard, and decays biases and gains as well. Elsewhere they agree, but for
eps, which it multiplies by the next d.
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

RATED = FINDS_RATE = True  # the rate is in the estimate


@dataclasses.dataclass(frozen=True)
class Config:
  """`d0`: the first estimate, far too low on purpose; `d_coef` multiplies later ones; `b1`, `b2`, `eps` as in adamw."""

  learning_rate: float = setting(1.0, above=0)
  b1: float = setting(0.9, low=0, below=1)
  b2: float = setting(0.999, above=0, below=1)
  eps: float = setting(1e-8, above=0)
  d0: float = setting(1e-6, above=0)
  d_coef: float = setting(1.0, above=0)
  safeguard_warmup: bool = True


class State(NamedTuple):
  """`mu` in `moments`; `nu`, `s` and the parameters at the start float32; `d` and `r` float32 []."""

  count: jax.Array
  d: jax.Array
  r: jax.Array
  mu: Any
  nu: Any
  s: Any
  start: Any


def build(
  config: Config,
  info: dict[str, ParamInfo],
  *,
  rate: optax.Schedule,
  decay: float,
  decays: Callable[[str], bool],
) -> optax.GradientTransformation:
  """The whole update. State: four numbers a parameter."""
  b3 = config.b2**0.5

  def init(params: Any) -> State:
    d, r = jnp.asarray(config.d0, jnp.float32), jnp.zeros((), jnp.float32)
    return State(jnp.zeros((), jnp.int32), d, r, *[optax.tree.zeros_like(params)] * 3, params)

  def update(g: Any, state: State, params: Any) -> tuple[Any, State]:
    count, d = optax.safe_increment(state.count), state.d
    a = rate(state.count) * jnp.sqrt(1 - config.b2**count) / (1 - config.b1**count)
    # r and s are kept divided by d0 (1 - b3), far from underflow; their ratio does not see it.
    weight = d * d / config.d0
    r = b3 * state.r + weight * a * optax.tree.vdot(g, optax.tree.sub(state.start, params))
    share = weight if config.safeguard_warmup else weight * a
    s = jax.tree.map(lambda s, g: b3 * s + share * g, state.s, g)
    mu = optax.tree.update_moment(optax.tree.scale(d, g), state.mu, config.b1, 1)
    nu = optax.tree.update_moment(optax.tree.scale(d, g), state.nu, config.b2, 2)
    size = optax.tree.sum(jax.tree.map(lambda s: jnp.abs(s).sum(), s))
    estimate = jnp.where(size > 0, config.d_coef * r / jnp.where(size > 0, size, 1), 0)

    def step(path: Any, m: jax.Array, v: jax.Array, w: jax.Array) -> jax.Array:
      shrunk = decay * w if decays(trees.path_name(path)) else 0
      return -a * d * (m / (jnp.sqrt(v) + d * config.eps) + shrunk)

    moved = jax.tree_util.tree_map_with_path(step, mu, nu, params)
    return moved, State(count, jnp.maximum(d, estimate), r, mu, nu, s, state.start)

  return kept(optax.GradientTransformation(init, update), ('mu',), config.moments)
