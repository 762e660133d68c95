"""Adan (Xie et al. 2022, algorithm 1): Nesterov's look ahead from the difference of gradients.

With d = g - g_before (0 at the first step), m and v the averages of g and d, n that of (g + b2 d)^2, each without bias
as in the authors' code, the direction is (m + b2 v) / (sqrt(n) + eps). Betas are decays here, 1 minus the paper's. Own
code: `optax.scale_by_adan` (0.2.8) weighs d by 1 - b2 where paper and authors have b2. Decay is decoupled, (1 - rate *
decay) w; the paper's division by 1 + rate * decay is the same to first order.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ftlib.base.settings import setting
from ftlib.base.types import ParamInfo
from ftlib.optim.moments import kept


@dataclasses.dataclass(frozen=True)
class Config:
  """`b1`, `b2`, `b3`: decay of the averages of gradient, difference and square; `eps` outside the root."""

  b1: float = setting(0.98, low=0, below=1)
  b2: float = setting(0.92, low=0, below=1)
  b3: float = setting(0.99, low=0, below=1)
  eps: float = setting(1e-8, above=0)


class State(NamedTuple):
  """Averages `m`, `v` (in `moments`) and `n`, and the gradient of the step before."""

  count: jax.Array
  m: Any
  v: Any
  n: Any
  before: Any


def build(config: Config, info: dict[str, ParamInfo]) -> optax.GradientTransformation:
  """The direction before decay and learning rate. State: four numbers a parameter."""

  def init(params: Any) -> State:
    return State(jnp.zeros((), jnp.int32), *(optax.tree.zeros_like(params) for _ in range(4)))

  def update(g: Any, state: State, params: Any = None) -> tuple[Any, State]:
    count = optax.safe_increment(state.count)
    d = jax.tree.map(lambda x, y: jnp.where(state.count == 0, 0, x - y), g, state.before)
    m = optax.tree.update_moment(g, state.m, config.b1, 1)
    v = optax.tree.update_moment(d, state.v, config.b2, 1)
    n = optax.tree.update_moment(optax.tree.add_scale(g, config.b2, d), state.n, config.b3, 2)
    free = [1 - beta**count for beta in (config.b1, config.b2, config.b3)]
    step = lambda m, v, n: (m / free[0] + config.b2 * v / free[1]) / (jnp.sqrt(n / free[2]) + config.eps)  # noqa: E731
    return jax.tree.map(step, m, v, n), State(count, m, v, n, g)

  return kept(optax.GradientTransformation(init, update), ('m', 'v'), config.moments)
