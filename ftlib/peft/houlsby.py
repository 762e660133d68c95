"""Adapters (Houlsby et al. 2019, figure 2): a bottleneck after the attention and after the MLP of every layer.

y + up(f(down(y))) of the sub-layer's output y, after its projection back to the model's size and before its dropout
and residual; the layers' norms train too. `down` starts as in the paper; `up` starts at zero instead of 10^-2, so the
adapted model starts as the pretrained one exactly.

Trainable, with m = D / reduction: 2 D m + m + D an adapter, two a layer, and 4 D a layer in the norms.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jax.nn import initializers

from ftlib.base import trees
from ftlib.base.errors import InputError
from ftlib.base.rng import Stream, dropout
from ftlib.base.settings import setting
from ftlib.models.layers import ACTIVATIONS, Axis, Hidden, Init, Proj
from ftlib.models.model import Model
from ftlib.peft.method import Adapter, Method, Targets, adapt, added, besides

SMALL = initializers.truncated_normal(1e-2)  # cut at two standard deviations
NORMS = r'^layers/.*norm/'


@dataclasses.dataclass(frozen=True)
class Common(Targets):
  """What bottlenecks share. `reduction`: the model's size over the bottleneck's."""

  target: str = r'mlp/out$'
  reduction: int = setting(16, low=1)
  activation: str = setting('relu', choices=tuple(ACTIVATIONS))
  dropout: float = setting(0.0, low=0, below=1)


@dataclasses.dataclass(frozen=True)
class Config(Common):
  """The paper's `reduction` is of 1024 to 64. `norms`: pattern of the layer norms that train besides; '' for none."""

  target: str = r'(attn|mlp)/out$'
  activation: str = setting('gelu', choices=tuple(ACTIVATIONS))
  norms: str = NORMS


class Bottleneck(Adapter):
  """`down` [D, m] and `up` [m, D], each with a bias. Dropout, if any, acts in the bottleneck."""

  def __init__(self, site: Hidden, salt: int, config: Any, *, init: Init = SMALL):
    middle = bottleneck(site, config.reduction)
    self.down = Proj((site.axis,), (middle,), init=init)
    self.up = Proj((middle,), (site.axis,), init=initializers.zeros)
    self.activation, self.rate, self.salt = config.activation, config.dropout, salt

  def change(self, h_BLD: jax.Array, stream: Stream | None) -> jax.Array:
    """up(f(down(h)))."""
    noise = None if stream is None else stream.at(f'bottleneck/{self.salt}')
    return self.up(dropout(ACTIVATIONS[self.activation](self.down(h_BLD)), self.rate, noise))

  def __call__(self, site: Hidden, x: jax.Array, y: jax.Array, context: Any, stream: Stream | None) -> jax.Array:
    return y + self.change(y, stream)


def bottleneck(site: Hidden, reduction: int, *, multiple: int = 1) -> Axis:
  """The axis of a bottleneck: D / reduction units, rounded up to a multiple. An `InputError` where none are left."""
  if reduction > site.axis.size:
    raise InputError(
      f'method.reduction={reduction} leaves nothing of the {site.axis.size} values it divides; lower it (16: a '
      'bottleneck of a sixteenth)'
    )
  return Axis('bottleneck', -(-(site.axis.size // reduction) // multiple) * multiple)


def with_norms(model: Model, also: str, norms: str) -> str:
  """One pattern of both, of which '' counts for nothing. Raises `InputError` for one that matches nothing."""
  base = [n for n in model.info() if not added(n)]
  besides(also, base)
  if norms:
    trees.matching(norms, base, field='method.norms')
  return f'(?:{also})|(?:{norms})' if also and norms else also or norms


def build(config: Config, model: Model) -> Method:
  """A bottleneck on every site that `target` matches."""
  also = with_norms(model, config.also, config.norms)
  return adapt(model, config.target, lambda site, name, salt: Bottleneck(site, salt, config), also=also, kind=Hidden)
