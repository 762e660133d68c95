"""A method that is no part of ftlib: every output of a site gets a gain of its own, y = (1 + d) W x + b.

It stands here to show that `method=tests.outside.odd_lora` needs no edit of ftlib, and runs through the same tests as
the methods inside. `d` starts at zero. Trainable: the outputs of each site.
"""

from __future__ import annotations

import dataclasses

import jax
from jax.nn import initializers

from ftlib.base.rng import Stream
from ftlib.models.layers import Proj, param
from ftlib.models.model import Model
from ftlib.peft.method import Adapter, Method, adapt


@dataclasses.dataclass(frozen=True)
class Config:
  """`target`: pattern of site names; `also`: pattern of base parameters to train as well."""

  target: str = r'attn/(q|v)$'
  also: str = '^head/'


class Gain(Adapter):
  """`d` [*outs]."""

  def __init__(self, site: Proj):
    self.d = param(site.outs, initializers.zeros)

  def __call__(self, site: Proj, x: jax.Array, y: jax.Array, stream: Stream | None) -> jax.Array:
    bias = 0 if site.bias is None else site.bias[...].astype(y.dtype)
    return y + (y - bias) * self.d[...].astype(y.dtype)

  def merged(self, kernel: jax.Array, bias: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
    return kernel * (1 + self.d[...]), bias


def build(config: Config, model: Model) -> Method:
  """A gain on every site that `target` matches."""
  return adapt(model, config.target, lambda site, name, salt: Gain(site), also=config.also)
