"""LoHa: the product, entry by entry, of two low-rank updates (Hyeon-Woo et al. 2022; as in LyCORIS).

y = (W + (alpha / rank) (B1 A1) * (B2 A2)) x, of a rank up to rank^2. The start is PEFT's: Kaiming uniform with a = sqrt
5 but for `a2`, which is zero. Trainable: 2 * rank * (inputs + outputs) a site.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import initializers

from ftlib.base.rng import Stream
from ftlib.base.settings import setting
from ftlib.models.layers import Axis, Proj, contract, param, size, uniform
from ftlib.models.model import Model
from ftlib.peft.method import Adapter, Method, Targets, adapt, check_rank
from ftlib.peft.parts.exchange import pair_from_peft, pair_to_peft, renamed

PEFT_TYPE = 'LOHA'


@dataclasses.dataclass(frozen=True)
class Config(Targets):
  """`rank` of each of the two; alpha / rank scales their product."""

  rank: int = setting(8, low=1)
  alpha: float = setting(8.0, above=0)


class Loha(Adapter):
  """`a1`, `a2` [*ins, R] and `b1`, `b2` [R, *outs]."""

  def __init__(self, site: Proj, config: Config):
    check_rank(config.rank, size(site.ins), size(site.outs))
    rank = Axis('rank', config.rank)
    self.a1 = param((*site.ins, rank), uniform(size(site.ins)))
    self.a2 = param((*site.ins, rank), initializers.zeros)
    self.b1, self.b2 = (param((rank, *site.outs), uniform(config.rank)) for _ in range(2))
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


peft_config, config_of_peft = renamed({'rank': 'r', 'alpha': 'alpha'})


def to_peft(config: Config, leaves: Mapping[str, np.ndarray], site: Proj) -> dict[str, np.ndarray]:
  out = {}
  for i in '12':
    a_RI, b_OR = pair_to_peft(leaves[f'a{i}'], leaves[f'b{i}'])
    out |= {f'hada_w{i}_a': b_OR, f'hada_w{i}_b': a_RI}
  return out


def from_peft(config: Config, tensors: Mapping[str, np.ndarray], site: Proj) -> dict[str, np.ndarray]:
  out = {}
  for i in '12':
    a, b = pair_from_peft(tensors[f'hada_w{i}_b'], tensors[f'hada_w{i}_a'], site.ins, site.outs)
    out |= {f'a{i}': a, f'b{i}': b}
  return out
