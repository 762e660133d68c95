"""8-bit Adam (Dettmers et al. 2022): AdamW whose moments are stored in 8 bits (`blockwise.py`).

Moments are computed in float32. The new ones are used before they are stored, and the second one is stored without a
sign. As a second moment of 0 beside a first one above 0 would make a step of m / eps, one above 0 is stored as the
least value of its block, and not as 0. A parameter of fewer than `min_size` numbers (a layer) keeps float32 moments:
biases and gains cost little, and in one block of very different numbers they would suffer.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ftlib.base import trees
from ftlib.base.settings import setting
from ftlib.base.types import Flat, ParamInfo
from ftlib.optim import blockwise, matrices
from ftlib.optim.moments import kept


@dataclasses.dataclass(frozen=True)
class Config:
  """`b1`, `b2`, `eps`: as in adamw; `table`: the values that 8 bits stand for."""

  b1: float = setting(0.9, low=0, below=1)
  b2: float = setting(0.999, low=0, below=1)
  eps: float = setting(1e-8, above=0)
  table: str = setting('dynamic', choices=('dynamic', 'linear'))
  min_size: int = setting(4096, low=0)


class State(NamedTuple):
  """`mu`, `nu`: codes uint8 in the shape of the parameter, or float32 moments of the small; `scales` of each: float32
  [layers, blocks] of those with codes."""

  count: jax.Array
  mu: Any
  nu: Any
  mu_scales: Any
  nu_scales: Any


def build(config: Config, info: dict[str, ParamInfo]) -> optax.GradientTransformation:
  """The direction before decay and learning rate. State: 2 + 8 / 256 bytes a parameter, of which the scales, 8 / 256,
  lie whole on every device. `moments` does not matter here."""
  rows = {n: math.prod(matrices.view(i).stack) for n, i in info.items()}
  packed = {n for n, i in info.items() if i.size // rows[n] >= config.min_size}
  tables = {'mu': blockwise.table(config.table, signed=True), 'nu': blockwise.table(config.table, signed=False)}

  def store(moment: str, x: Flat) -> tuple[Flat, Flat]:
    """(codes, scales) by name; a small moment as it is."""
    made = {n: blockwise.encode(x[n].reshape(rows[n], -1), tables[moment]) for n in x if n in packed}
    codes = {n: made[n][0].reshape(v.shape) if n in made else v for n, v in x.items()}
    return codes, {n: scales for n, (_, scales) in made.items()}

  def load(moment: str, codes: Flat, scales: Flat) -> Flat:
    wide = lambda n: blockwise.decode(codes[n].reshape(rows[n], -1), scales[n], tables[moment])  # noqa: E731
    return {n: wide(n).reshape(c.shape) if n in scales else c for n, c in codes.items()}

  def packed_state(tree: Any, count: jax.Array, mu: Flat, nu: Flat) -> State:
    (mu, mu_scales), (nu, nu_scales) = store('mu', mu), store('nu', nu)
    return State(
      count, matrices.like(tree, mu), matrices.like(tree, nu), trees.unflatten(mu_scales), trees.unflatten(nu_scales)
    )

  def init(params: Any) -> State:
    zeros = {n: jnp.zeros(p.shape, jnp.float32) for n, p in matrices.named(params).items()}
    return packed_state(params, jnp.zeros((), jnp.int32), zeros, dict(zeros))

  def update(updates: Any, state: State, params: Any = None) -> tuple[Any, State]:
    count, g = optax.safe_increment(state.count), matrices.named(updates)
    mu = load('mu', matrices.named(state.mu), matrices.named(state.mu_scales))
    nu = load('nu', matrices.named(state.nu), matrices.named(state.nu_scales))
    mu = optax.tree.update_moment(g, mu, config.b1, 1)
    nu = optax.tree.update_moment(g, nu, config.b2, 2)
    free1, free2 = 1 - config.b1**count, 1 - config.b2**count
    out = {n: mu[n] / free1 / (jnp.sqrt(nu[n] / free2) + config.eps) for n in g}
    return matrices.like(updates, out), packed_state(updates, count, mu, nu)

  return kept(optax.GradientTransformation(init, update))
