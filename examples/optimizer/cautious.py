"""Lion that steps only where the gradient agrees (Liang et al. 2024, "Cautious Optimizers", algorithm 1).

u = sign(b1 m + (1 - b1) g) and m = b2 m + (1 - b2) g, as in Lion (Chen et al. 2023, algorithm 2). A number of u whose
sign is not that of its gradient becomes 0; the others are multiplied by size / (count + 1), where `count` of the `size`
numbers of the matrix agree, so that the step keeps its length.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ftlib.base import trees
from ftlib.base.settings import setting
from ftlib.base.types import Params


@dataclasses.dataclass(frozen=True)
class Config:
  """`b1`: share of the old average in a step; `b2`: its decay."""

  learning_rate: float = setting(1e-4, above=0)
  b1: float = setting(0.9, low=0, below=1)
  b2: float = setting(0.99, low=0, below=1)


class State(NamedTuple):
  """`mu`: the average of gradients, one number a parameter, stored in `optim.moments`."""

  mu: Params


def build(config, info):
  """The direction before decay and learning rate, which ftlib adds. State: one moment a parameter."""
  mixed = lambda b: lambda m, g: b * m.astype(g.dtype) + (1 - b) * g  # noqa: E731

  def init(params):
    return State(jax.tree.map(lambda p: jnp.zeros(p.shape, config.moments), params))

  def careful(name, u, g):
    return cautious(u, g, stacked=info[name].axes[:1] == ('layers',))

  def update(gradients, state, params=None):
    direction = jax.tree.map(lambda m, g: jnp.sign(mixed(config.b1)(m, g)), state.mu, gradients)
    mu = jax.tree.map(lambda m, g: mixed(config.b2)(m, g).astype(m.dtype), state.mu, gradients)
    return trees.map_named(careful, direction, gradients), State(mu)

  return optax.GradientTransformation(init, update)


def cautious(u, g, *, stacked):
  """`u` where its sign is that of `g`, lengthened; each layer of a `stacked` parameter is a matrix of its own."""
  agrees = u * g > 0
  axes = tuple(range(int(stacked), u.ndim))
  size = math.prod(u.shape[i] for i in axes)
  return jnp.where(agrees, u * size / (agrees.sum(axes, keepdims=True) + 1), 0)
