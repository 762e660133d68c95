"""LoRA: low-rank updates of frozen matrices (Hu et al. 2022, equation 3), y = W x + (alpha / rank) B A x.

`a` starts as PEFT's does (Kaiming uniform with a = sqrt 5: uniform within 1 / sqrt(inputs)), `b` at zero, so the
adapted model starts as the pretrained one. Trainable: rank * (inputs + outputs) a site.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
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

  rank: int = setting(8, low=1)
  alpha: float = setting(16.0, above=0)
  dropout: float = setting(0.1, low=0, below=1)
  target: str = r'attn/(q|v)$'
  also: str = '^head/'


class Lora(Adapter):
  """`a` [*ins, R] and `b` [R, *outs]."""

  def __init__(self, site: Proj, salt: int, config: Config):
    inputs, outputs = (math.prod(a.size for a in axes) for axes in (site.ins, site.outs))
    if config.rank > min(inputs, outputs):
      raise InputError(f'method.rank={config.rank} is larger than a matrix of {inputs} x {outputs} it acts on')
    rank, bound = Axis('rank', config.rank), inputs**-0.5
    uniform = lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)  # noqa: E731
    self.a = param((*site.ins, rank), uniform)
    self.b = param((rank, *site.outs), initializers.zeros)
    self.scale, self.rate, self.salt, self.ins = config.alpha / config.rank, config.dropout, salt, len(site.ins)

  def __call__(self, site: Proj, x: jax.Array, y: jax.Array, stream: Stream | None) -> jax.Array:
    noise = None if stream is None else stream.at(f'lora/{self.salt}')
    low_BLR = contract(dropout(x, self.rate, noise), self.a[...], self.ins) * jnp.asarray(self.scale, x.dtype)
    return y + contract(low_BLR, self.b[...], 1)

  def delta(self) -> jax.Array:
    return jnp.tensordot(self.a[...], self.b[...], axes=1) * self.scale


def build(config: Config, model: Model) -> Method:
  """LoRA on every site that `target` matches."""
  return adapt(model, config.target, lambda site, name, salt: Lora(site, salt, config), also=config.also)
