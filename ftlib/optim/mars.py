"""MARS-AdamW (Yuan et al. 2024, algorithm 2, approximate): adamw on gradients whose variance is reduced.

c = g + gamma b1 / (1 - b1) (g - g_last), scaled down to norm 1 where it is above; Adam's moments and direction are of
c. The paper's g_last is the gradient of the last parameters on this batch; the approximate version takes the last
step's own, which costs no second gradient. In the first step g_last is g (the paper's x_1 = x_0). Norms are of one
parameter, of one layer where layers are stacked. The authors' code keeps vectors to adamw by default; here it does not.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ftlib.base import trees
from ftlib.base.settings import setting
from ftlib.base.types import ParamInfo
from ftlib.optim import matrices
from ftlib.optim.moments import kept


@dataclasses.dataclass(frozen=True)
class Config:
  """`gamma`: strength of the correction; `b1`, `b2`, `eps` as in adamw."""

  b1: float = setting(0.95, low=0, below=1)
  b2: float = setting(0.99, low=0, below=1)
  eps: float = setting(1e-8, above=0)
  gamma: float = setting(0.025, low=0)


class MarsState(NamedTuple):
  """`last`: the last gradient; `adam`: count and moments of the corrected ones."""

  last: Any
  adam: Any


def build(config: Config, info: dict[str, ParamInfo]) -> optax.GradientTransformation:
  """The direction before decay and learning rate, which `chain.py` adds. State: two moments and a gradient a parameter.

  The last gradient is kept in `moments`, as the first moment.
  """
  adam = kept(optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps), ('mu',), config.moments)
  factor = config.gamma * config.b1 / (1 - config.b1)

  def corrected(path, g, last, first):
    c = g + jnp.where(first, 0.0, factor) * (g - last)
    return c / jnp.maximum(matrices.norm(c, info[trees.path_name(path)]), 1.0)

  def init(params: Any) -> MarsState:
    return MarsState(jax.tree.map(jnp.zeros_like, params), adam.init(params))

  def update(updates: Any, state: MarsState, params: Any = None) -> tuple[Any, MarsState]:
    first = state.adam.count == 0
    tree = jax.tree_util.tree_map_with_path(lambda *x: corrected(*x, first), updates, state.last)
    tree, adam_state = adam.update(tree, state.adam, params)
    return tree, MarsState(updates, adam_state)

  return kept(optax.GradientTransformation(init, update), ('last',), config.moments)
