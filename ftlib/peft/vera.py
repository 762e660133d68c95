"""VeRA: vectors between random matrices that all sites share (Kopiczko et al. 2024, equation 2).

y = W x + b * (B (d * (A x))). `A` and `B` never train and are not parameters: they are drawn from `seed` when the
forward pass is traced, once for the largest site, of which every other takes a corner. They are PEFT's own numbers for
that `projection_prng_key`. `d` starts at `d_initial`, `b` at zero. Trainable: rank + outputs a site.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import initializers

from ftlib.base import trees
from ftlib.base.rng import Stream, dropout
from ftlib.base.settings import setting
from ftlib.models.layers import Axis, Proj, contract, param, shape, size
from ftlib.models.model import Model
from ftlib.peft.method import Adapter, Method, Targets, adapt
from ftlib.peft.parts.exchange import renamed
from ftlib.peft.parts.vera_matrices import projections, shared_from_peft, shared_to_peft  # noqa: F401

PEFT_TYPE = 'VERA'


@dataclasses.dataclass(frozen=True)
class Config(Targets):
  """`seed` gives the matrices."""

  rank: int = setting(256, low=1)
  seed: int = setting(0, low=0, high=2**32 - 1)
  d_initial: float = setting(0.1)
  dropout: float = setting(0.0, low=0, below=1)


class Vera(Adapter):
  """`d` [R] and `b` [*outs]; `widest` are the inputs and outputs of the largest sites."""

  def __init__(self, site: Proj, salt: int, widest: tuple[int, int], config: Config):
    self.d = param((Axis('rank', config.rank),), initializers.constant(config.d_initial))
    self.b = param(site.outs, initializers.zeros)
    self.ins, self.outs = shape(site.ins), shape(site.outs)
    self.drawn, self.rate, self.salt = (config.seed, config.rank, *widest), config.dropout, salt

  def frozen(self) -> tuple[np.ndarray, np.ndarray]:
    """This site's `A` [*ins, R] and `B` [R, *outs]."""
    a, b = projections(*self.drawn)
    return a[: math.prod(self.ins)].reshape(*self.ins, -1), b[:, : math.prod(self.outs)].reshape(-1, *self.outs)

  def __call__(self, site: Proj, x: jax.Array, y: jax.Array, stream: Stream | None) -> jax.Array:
    noise = None if stream is None else stream.at(f'vera/{self.salt}')
    a, b = (jnp.asarray(m, x.dtype) for m in self.frozen())
    low_BLR = contract(dropout(x, self.rate, noise), a, len(self.ins)) * self.d[...].astype(x.dtype)
    return y + contract(low_BLR, b, 1) * self.b[...].astype(x.dtype)

  def delta(self) -> jax.Array:
    a, b = self.frozen()
    return jnp.tensordot(a * self.d[...], b * self.b[...], axes=1)


def build(config: Config, model: Model) -> Method:
  """VeRA on every site that `target` matches."""
  sites = model.sites()
  chosen = [sites[n] for n in trees.matching(config.target, sites, field='method.target', what='sites')]
  widest = max(size(s.ins) for s in chosen), max(size(s.outs) for s in chosen)
  return adapt(model, config.target, lambda site, name, salt: Vera(site, salt, widest, config), also=config.also)


peft_config, config_of_peft = renamed(
  {'rank': 'r', 'seed': 'projection_prng_key', 'd_initial': 'd_initial', 'dropout': 'vera_dropout'},
  save_projection=True,
)


def to_peft(config: Config, leaves: Mapping[str, np.ndarray], site: Proj) -> dict[str, np.ndarray]:
  return {'vera_lambda_d': leaves['d'], 'vera_lambda_b': leaves['b'].reshape(-1)}


def from_peft(config: Config, tensors: Mapping[str, np.ndarray], site: Proj) -> dict[str, np.ndarray]:
  return {'d': tensors['vera_lambda_d'], 'b': tensors['vera_lambda_b'].reshape(shape(site.outs))}
