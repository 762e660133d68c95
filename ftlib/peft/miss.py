"""MiSS: one small matrix serves every shard of a site's inputs (Kang & Yin 2024, equation 5), y = W x + D^T S x + b.

S x [R] adds up x's consecutive shards of R inputs each, the last one padded with zeros; so the kernel's row i gets
D's row i mod R. D [R, outputs] starts at zero. Trainable: rank * outputs a site.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import initializers

from ftlib.base.errors import InputError
from ftlib.base.rng import Stream, dropout
from ftlib.base.settings import setting
from ftlib.models.layers import Axis, Proj, contract, param, shape, size
from ftlib.models.model import Model
from ftlib.peft.method import Adapter, Method, Targets, adapt
from ftlib.peft.parts.exchange import renamed

PEFT_TYPE = 'MISS'


@dataclasses.dataclass(frozen=True)
class Config(Targets):
  """`rank`: inputs of a shard; `dropout` of what the change reads."""

  rank: int = setting(16, low=1)
  dropout: float = setting(0.0, low=0, below=1)


class Miss(Adapter):
  """`d` [R, *outs]."""

  def __init__(self, site: Proj, name: str, salt: int, config: Config):
    self.ins, self.inputs = shape(site.ins), size(site.ins)
    if config.rank > self.inputs:
      raise InputError(f'method.rank={config.rank} is larger than the {self.inputs} inputs of {name}; lower it')
    self.d = param((Axis('rank', config.rank), *site.outs), initializers.zeros)
    self.rank, self.rate, self.salt = config.rank, config.dropout, salt

  def __call__(self, site: Proj, x: jax.Array, y: jax.Array, stream: Stream | None) -> jax.Array:
    x = dropout(x, self.rate, None if stream is None else stream.at(f'miss/{self.salt}'))
    lead = x.shape[: x.ndim - len(self.ins)]
    x = jnp.pad(x.reshape(*lead, self.inputs), [(0, 0)] * len(lead) + [(0, -self.inputs % self.rank)])
    return y + contract(x.reshape(*lead, -1, self.rank).sum(-2), self.d[...], 1)

  def delta(self) -> jax.Array:
    d = self.d[...]
    return d[np.arange(self.inputs) % self.rank].reshape(*self.ins, *d.shape[1:])


def build(config: Config, model: Model) -> Method:
  """A shared shard on every site that `target` matches."""
  return adapt(model, config.target, lambda site, name, salt: Miss(site, name, salt, config), also=config.also)


peft_config, config_of_peft = renamed({'rank': 'r', 'dropout': 'miss_dropout'})


def to_peft(config: Config, leaves: Mapping[str, np.ndarray], site: Proj) -> dict[str, np.ndarray]:
  return {'miss_block': leaves['d'].reshape(config.rank, -1)}


def from_peft(config: Config, tensors: Mapping[str, np.ndarray], site: Proj) -> dict[str, np.ndarray]:
  return {'d': tensors['miss_block'].reshape(config.rank, *shape(site.outs))}
