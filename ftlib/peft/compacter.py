"""Compacter (Karimi Mahabadi et al. 2021): Houlsby's adapters of sums of Kronecker products.

Each matrix of y + up(f(down(y))) is W = sum_i A_i (x) (s_i t_i) over i < n: the n x n matrices A_i are the
same in every matrix of the model, s_i t_i is of rank 1 and its own. The norms of the layers train too. `up`'s t
starts at zero, so the adapted model starts as the pretrained one.

Trainable, with m = D / reduction rounded up to a multiple of n: 2 rank (D + m) + m + D an adapter, two a layer (one
with target=mlp/out$: Compacter++); 4 D a layer in the norms; n^3 in all.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jax.nn import initializers

from ftlib.base.errors import InputError
from ftlib.base.rng import Stream, dropout
from ftlib.base.settings import setting
from ftlib.models.layers import ACTIVATIONS, Axis, Hidden, Shared, param
from ftlib.models.model import Model
from ftlib.peft import houlsby
from ftlib.peft.method import Adapter, Method, adapt, adapt_more
from ftlib.peft.parts.kronecker import GLOROT, Kronecker


@dataclasses.dataclass(frozen=True)
class Config(houlsby.Config):
  """`n`: terms of a sum, and the size of each A; `rank`: that of each B = s t (the paper: 1)."""

  reduction: int = setting(32, low=1)
  n: int = setting(4, low=1)
  rank: int = setting(1, low=1)
  activation: str = setting('gelu_new', choices=tuple(ACTIVATIONS))


class Rules(Adapter):
  """`a` [n, n, n]: the matrices A_i that all layers share."""

  def __init__(self, n: int):
    self.a = param((Axis('terms', n), Axis('rows', n), Axis('columns', n)), initializers.normal(1e-2))

  def __call__(self, site: Shared, stream: Stream | None) -> jax.Array:
    return self.a[...]


class Compact(Adapter):
  """`down` and `up`, both Kronecker; the A of the context between them."""

  def __init__(self, site: Hidden, salt: int, config: Config):
    if site.axis.size % config.n:
      raise InputError(f'method.n={config.n} does not divide the {site.axis.size} values of {site.axis.name}')
    middle = houlsby.bottleneck(site, config.reduction, multiple=config.n)
    self.down = Kronecker(site.axis, middle, config, init=GLOROT)
    self.up = Kronecker(middle, site.axis, config, init=initializers.zeros)
    self.activation, self.rate, self.salt = config.activation, config.dropout, salt

  def __call__(self, site: Hidden, x: jax.Array, y: jax.Array, context: Any, stream: Stream | None) -> jax.Array:
    noise = None if stream is None else stream.at(f'compacter/{self.salt}')
    h_BLM = ACTIVATIONS[self.activation](self.down(y, context.shared))
    return y + self.up(dropout(h_BLM, self.rate, noise), context.shared)


def build(config: Config, model: Model) -> Method:
  """Kronecker adapters on every site that `target` matches, and their shared matrices."""
  also = houlsby.with_norms(model, config.also, config.norms)
  method = adapt(model, config.target, lambda site, name, salt: Compact(site, salt, config), also=also, kind=Hidden)
  return adapt_more(method, '^shared$', lambda site, name, salt: Rules(config.n), kind=Shared)
