"""(IA)^3: learned vectors rescale keys, values and the MLP's inner activations (Liu et al. 2022, section 3.3).

y = l * (W x + b) at the sites of `target`, y = W (l * x) + b at those of `feedforward`; l starts at one. Trainable:
the outputs of each site of the first kind, the inputs of each of the second.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

import jax
import numpy as np
from jax.nn import initializers

from ftlib.base import trees
from ftlib.base.errors import InputError, listing
from ftlib.base.rng import Stream
from ftlib.models.layers import Proj, contract, param, shape
from ftlib.models.model import Model
from ftlib.peft.method import Adapter, Method, Targets, adapt
from ftlib.peft.parts.exchange import renamed

PEFT_TYPE = 'IA3'


@dataclasses.dataclass(frozen=True)
class Config(Targets):
  """`target`: pattern of sites whose outputs are rescaled; `feedforward`: of those whose inputs are, '' for none. The
  vectors' names end in `scale`: weight decay, which would draw them to zero, leaves them out as it does those of layer
  norm."""

  target: str = r'attn/(k|v)$'
  feedforward: str = r'mlp/down$'


class Outputs(Adapter):
  """`out_scale` [*outs]."""

  def __init__(self, site: Proj):
    self.out_scale = param(site.outs, initializers.ones)

  def __call__(self, site: Proj, x: jax.Array, y: jax.Array, stream: Stream | None) -> jax.Array:
    return y * self.out_scale[...].astype(y.dtype)

  def merged(self, kernel: jax.Array, bias: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
    l = self.out_scale[...].astype(kernel.dtype)
    return kernel * l, None if bias is None else bias * l.astype(bias.dtype)


class Inputs(Adapter):
  """`in_scale` [*ins]."""

  def __init__(self, site: Proj):
    self.in_scale = param(site.ins, initializers.ones)

  def __call__(self, site: Proj, x: jax.Array, y: jax.Array, stream: Stream | None) -> jax.Array:
    y = contract(x * self.in_scale[...].astype(x.dtype), site.kernel[...], len(site.ins))
    return y if site.bias is None else y + site.bias[...].astype(y.dtype)

  def merged(self, kernel: jax.Array, bias: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
    l = self.in_scale[...].astype(kernel.dtype)
    return kernel * l.reshape(l.shape + (1,) * (kernel.ndim - l.ndim)), bias


def build(config: Config, model: Model) -> Method:
  """A vector on every site that `target` or `feedforward` matches; a site that both match is an error."""
  found = lambda name: trees.matching(getattr(config, name), model.sites(), field=f'method.{name}', what='sites')  # noqa: E731
  outputs, inputs = found('target'), found('feedforward') if config.feedforward else []
  if both := sorted(set(outputs) & set(inputs)):
    raise InputError(
      f'method.target={config.target!r} and method.feedforward={config.feedforward!r} both match\n{listing(both)}\n'
      '  a site is rescaled at its outputs or at its inputs; make the patterns exclude each other'
    )
  make = lambda site, name, salt: Inputs(site) if name in inputs else Outputs(site)  # noqa: E731
  return adapt(model, f'^({"|".join(map(re.escape, outputs + inputs))})$', make, also=config.also)


peft_config, config_of_peft = renamed({})  # what PEFT has besides are names of modules


def to_peft(config: Config, leaves: Mapping[str, np.ndarray], site: Proj) -> dict[str, np.ndarray]:
  return {'ia3_l': leaves['in_scale'].reshape(1, -1) if 'in_scale' in leaves else leaves['out_scale'].reshape(-1, 1)}


def from_peft(config: Config, tensors: Mapping[str, np.ndarray], site: Proj) -> dict[str, np.ndarray]:
  l = tensors['ia3_l']  # [1, in] where inputs are rescaled, [out, 1] where outputs are
  name, axes = ('in_scale', site.ins) if l.shape[0] == 1 else ('out_scale', site.outs)
  return {name: l.reshape(shape(axes))}
