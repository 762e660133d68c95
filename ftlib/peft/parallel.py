"""Scaled parallel adapters (He et al. 2022, table 1): a bottleneck beside the MLP, on what the MLP reads.

y + s up(relu(down(x))), of the MLP's input x and output y. `down` starts as LoRA's `a` does (uniform within
1 / sqrt(D)), `up` at zero, so the adapted model starts as the pretrained one.

Trainable, with m = D / reduction: 2 D m + m + D a layer, and 1 if the scale is learnt.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jax.nn import initializers

from ftlib.base.rng import Stream
from ftlib.base.settings import setting
from ftlib.models.layers import ACTIVATIONS, Hidden, param
from ftlib.models.model import Model
from ftlib.peft.houlsby import Bottleneck
from ftlib.peft.method import Method, adapt

UNIFORM = initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')  # within 1 / sqrt(inputs)


@dataclasses.dataclass(frozen=True)
class Config:
  """`scale`: s; `learn_scale`: whether it trains, one for each site. `target` with `attn/out$` is beside attention."""

  reduction: int = setting(16, low=1)
  activation: str = setting('relu', choices=tuple(ACTIVATIONS))
  dropout: float = setting(0.0, low=0, below=1)
  scale: float = setting(4.0, above=0)
  learn_scale: bool = False
  target: str = r'mlp/out$'
  also: str = '^head/'


class Parallel(Bottleneck):
  """A bottleneck on the part's input, and `scale` [] where it is learnt."""

  def __init__(self, site: Hidden, salt: int, config: Config):
    super().__init__(site, salt, config, init=UNIFORM)
    self.scale = param((), initializers.constant(config.scale)) if config.learn_scale else config.scale

  def __call__(self, site: Hidden, x: jax.Array, y: jax.Array, context: Any, stream: Stream | None) -> jax.Array:
    scale = self.scale if isinstance(self.scale, float) else self.scale[...].astype(y.dtype)
    return y + scale * self.change(x, stream)


def build(config: Config, model: Model) -> Method:
  """A parallel adapter on every site that `target` matches."""
  make = lambda site, name, salt: Parallel(site, salt, config)  # noqa: E731
  return adapt(model, config.target, make, also=config.also, kind=Hidden)
