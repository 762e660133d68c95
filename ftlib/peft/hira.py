"""HiRA: the kernel changes in proportion to itself (Huang et al. 2025), y = (W + W * (B A)) x.

The product with W is entry by entry, so the update has W's rank. There is no scaling, as in PEFT. `a` starts Kaiming
uniform with a = sqrt 5 (within 1 / sqrt(inputs)), `b` at zero. Trainable: rank * (inputs + outputs) a site.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import initializers

from ftlib.base.errors import InputError
from ftlib.base.rng import Stream, dropout
from ftlib.base.settings import setting
from ftlib.models.layers import Axis, Proj, contract, param
from ftlib.models.model import Model
from ftlib.peft.method import Adapter, Method, adapt


@dataclasses.dataclass(frozen=True)
class Config:
  """`target`: pattern of site names; `also`: pattern of base parameters to train as well, such as the head."""

  rank: int = setting(32, low=1)
  dropout: float = setting(0.0, low=0, below=1)
  target: str = r'attn/(q|v)$'
  also: str = '^head/'


class Hira(Adapter):
  """`a` [*ins, R] and `b` [R, *outs]."""

  def __init__(self, site: Proj, salt: int, config: Config):
    inputs, outputs = (math.prod(a.size for a in axes) for axes in (site.ins, site.outs))
    if config.rank > min(inputs, outputs):
      raise InputError(f'method.rank={config.rank} is larger than a matrix of {inputs} x {outputs} it acts on')
    rank, bound = Axis('rank', config.rank), inputs**-0.5
    uniform = lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)  # noqa: E731
    self.a = param((*site.ins, rank), uniform)
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


PEFT_TYPE = 'HIRA'


def peft_config(config: Config) -> dict[str, Any]:
  """What adapter_config.json says of a Config."""
  return {'r': config.rank, 'hira_dropout': config.dropout, 'fan_in_fan_out': False}


def config_of_peft(values: Mapping[str, Any]) -> dict[str, Any]:
  """The fields of Config that adapter_config.json gives."""
  if odd := [f'{n}={values[n]!r}' for n in ('rank_pattern', 'fan_in_fan_out') if values.get(n)]:
    raise InputError(f'adapter_config.json: not supported for HIRA: {", ".join(odd)}')
  return {'rank': values.get('r', 32), 'dropout': values.get('hira_dropout', 0.0)}


def to_peft(config: Config, leaves: Mapping[str, np.ndarray], site: Proj) -> dict[str, np.ndarray]:
  return {'hira_A': leaves['a'].reshape(-1, config.rank).T, 'hira_B': leaves['b'].reshape(config.rank, -1).T}


def from_peft(config: Config, tensors: Mapping[str, np.ndarray], site: Proj) -> dict[str, np.ndarray]:
  ins, outs = ([a.size for a in axes] for axes in (site.ins, site.outs))
  return {'a': tensors['hira_A'].T.reshape(*ins, -1), 'b': tensors['hira_B'].T.reshape(-1, *outs)}
