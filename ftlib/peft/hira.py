"""HiRA: the kernel changes in proportion to itself (Huang et al. 2025), y = (W + W * (B A)) x.

The product with W is entry by entry, so the update has W's rank. There is no scaling, as in PEFT. `a` starts Kaiming
uniform with a = sqrt 5 (within 1 / sqrt(inputs)), `b` at zero. Trainable: rank * (inputs + outputs) a site.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import initializers

from ftlib.base.rng import Stream, dropout
from ftlib.base.settings import setting
from ftlib.models.layers import Axis, Proj, contract, param, size, uniform
from ftlib.models.model import Model
from ftlib.peft.method import Adapter, Method, Targets, adapt, check_rank
from ftlib.peft.parts.exchange import pair_from_peft, pair_to_peft, renamed

PEFT_TYPE = 'HIRA'


@dataclasses.dataclass(frozen=True)
class Config(Targets):
  """`rank` of B A; `dropout` of what the change reads."""

  rank: int = setting(32, low=1)
  dropout: float = setting(0.0, low=0, below=1)


class Hira(Adapter):
  """`a` [*ins, R] and `b` [R, *outs]."""

  def __init__(self, site: Proj, salt: int, config: Config):
    check_rank(config.rank, size(site.ins), size(site.outs))
    rank = Axis('rank', config.rank)
    self.a = param((*site.ins, rank), uniform(size(site.ins)))
    self.b = param((rank, *site.outs), initializers.zeros)
    self.rate, self.salt, self.ins = config.dropout, salt, len(site.ins)

  def __call__(self, site: Proj, x: jax.Array, y: jax.Array, stream: Stream | None) -> jax.Array:
    noisy = dropout(x, self.rate, None if stream is None else stream.at(f'hira/{self.salt}'))
    gain = jnp.tensordot(self.a[...].astype(x.dtype), self.b[...].astype(x.dtype), axes=1)
    kernel = site.kernel[...].astype(x.dtype)
    if noisy is not x or x.dtype != jnp.float32:  # where the sum with the kernel would round small changes away
      return y + contract(noisy, kernel * gain, self.ins)
    y = contract(x, kernel + kernel * gain, self.ins)  # one product of that size instead of two
    return y if site.bias is None else y + site.bias[...].astype(x.dtype)

  def merged(self, kernel: jax.Array, bias: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
    return kernel + (kernel * jnp.tensordot(self.a[...], self.b[...], axes=1)).astype(kernel.dtype), bias


def build(config: Config, model: Model) -> Method:
  """HiRA on every site that `target` matches."""
  return adapt(model, config.target, lambda site, name, salt: Hira(site, salt, config), also=config.also)


peft_config, config_of_peft = renamed({'rank': 'r', 'dropout': 'hira_dropout'})


def to_peft(config: Config, leaves: Mapping[str, np.ndarray], site: Proj) -> dict[str, np.ndarray]:
  return dict(zip(('hira_A', 'hira_B'), pair_to_peft(leaves['a'], leaves['b'])))


def from_peft(config: Config, tensors: Mapping[str, np.ndarray], site: Proj) -> dict[str, np.ndarray]:
  return dict(zip('ab', pair_from_peft(tensors['hira_A'], tensors['hira_B'], site.ins, site.outs)))
