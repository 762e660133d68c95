"""LoHa: the product, entry by entry, of two low-rank updates (Hyeon-Woo et al. 2022; as in LyCORIS).

y = (W + (alpha / rank) (B1 A1) * (B2 A2)) x, of a rank up to rank^2. The start is PEFT's: Kaiming uniform with a = sqrt
5 but for `a2`, which is zero. Trainable: 2 * rank * (inputs + outputs) a site.
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
from ftlib.base.rng import Stream
from ftlib.base.settings import setting
from ftlib.models.layers import Axis, Proj, contract, param
from ftlib.models.model import Model
from ftlib.peft.method import Adapter, Method, adapt


@dataclasses.dataclass(frozen=True)
class Config:
  """`target`: pattern of site names; `also`: pattern of base parameters to train as well, such as the head."""

  rank: int = setting(8, low=1)
  alpha: float = setting(8.0, above=0)
  target: str = r'attn/(q|v)$'
  also: str = '^head/'


class Loha(Adapter):
  """`a1`, `a2` [*ins, R] and `b1`, `b2` [R, *outs]."""

  def __init__(self, site: Proj, config: Config):
    inputs, outputs = (math.prod(a.size for a in axes) for axes in (site.ins, site.outs))
    if config.rank > min(inputs, outputs):
      raise InputError(f'method.rank={config.rank} is larger than a matrix of {inputs} x {outputs} it acts on')
    rank = Axis('rank', config.rank)
    within = lambda fan: lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -(fan**-0.5), fan**-0.5)  # noqa: E731
    self.a1 = param((*site.ins, rank), within(inputs))
    self.a2 = param((*site.ins, rank), initializers.zeros)
    self.b1, self.b2 = (param((rank, *site.outs), within(config.rank)) for _ in range(2))
    self.scale, self.ins = config.alpha / config.rank, len(site.ins)

  def __call__(self, site: Proj, x: jax.Array, y: jax.Array, stream: Stream | None) -> jax.Array:
    delta = self.delta(x.dtype)
    if x.dtype != jnp.float32:  # where the sum with the kernel would round small changes away
      return y + contract(x, delta, self.ins)
    y = contract(x, site.kernel[...] + delta, self.ins)  # one product of that size instead of two
    return y if site.bias is None else y + site.bias[...].astype(x.dtype)

  def delta(self, dtype: Any = jnp.float32) -> jax.Array:
    a1, b1, a2, b2 = (p[...].astype(dtype) for p in (self.a1, self.b1, self.a2, self.b2))
    return jnp.tensordot(a1, b1, axes=1) * jnp.tensordot(a2, b2, axes=1) * jnp.asarray(self.scale, dtype)


def build(config: Config, model: Model) -> Method:
  """LoHa on every site that `target` matches."""
  return adapt(model, config.target, lambda site, name, salt: Loha(site, config), also=config.also)


PEFT_TYPE = 'LOHA'


def peft_config(config: Config) -> dict[str, Any]:
  """What adapter_config.json says of a Config."""
  return {'r': config.rank, 'alpha': config.alpha}


def config_of_peft(values: Mapping[str, Any]) -> dict[str, Any]:
  """The fields of Config that adapter_config.json gives."""
  if odd := [f'{n}={values[n]!r}' for n in ('rank_pattern', 'alpha_pattern') if values.get(n)]:
    raise InputError(f'adapter_config.json: not supported for LOHA: {", ".join(odd)}')
  return {'rank': values.get('r', 8), 'alpha': float(values.get('alpha', 8))}


def to_peft(config: Config, leaves: Mapping[str, np.ndarray], site: Proj) -> dict[str, np.ndarray]:
  out = {}
  for i in '12':
    out[f'hada_w{i}_a'] = leaves[f'b{i}'].reshape(config.rank, -1).T
    out[f'hada_w{i}_b'] = leaves[f'a{i}'].reshape(-1, config.rank).T
  return out


def from_peft(config: Config, tensors: Mapping[str, np.ndarray], site: Proj) -> dict[str, np.ndarray]:
  ins, outs = ([a.size for a in axes] for axes in (site.ins, site.outs))
  out = {}
  for i in '12':
    out[f'a{i}'] = tensors[f'hada_w{i}_b'].T.reshape(*ins, -1)
    out[f'b{i}'] = tensors[f'hada_w{i}_a'].T.reshape(-1, *outs)
  return out
