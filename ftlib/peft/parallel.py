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
from ftlib.models.layers import Hidden, param, uniform
from ftlib.models.model import Model
from ftlib.peft.houlsby import Bottleneck, Common
from ftlib.peft.method import Method, adapt


@dataclasses.dataclass(frozen=True)
class Config(Common):
  """`scale`: s; `learn_scale`: whether it trains, one for each site. `target` with `attn/out$` is beside attention."""

  scale: float = setting(4.0, above=0)
  learn_scale: bool = False


class Parallel(Bottleneck):
  """A bottleneck on the part's input, and `scale` [] where it is learnt."""

  def __init__(self, site: Hidden, salt: int, config: Config):
    super().__init__(site, salt, config, init=uniform(site.axis.size))
    self.scale = param((), initializers.constant(config.scale)) if config.learn_scale else config.scale

  def __call__(self, site: Hidden, x: jax.Array, y: jax.Array, context: Any, stream: Stream | None) -> jax.Array:
    scale = self.scale if isinstance(self.scale, float) else self.scale[...].astype(y.dtype)
    return y + scale * self.change(x, stream)


def build(config: Config, model: Model) -> Method:
  """A parallel adapter on every site that `target` matches."""
  make = lambda site, name, salt: Parallel(site, salt, config)  # noqa: E731
  return adapt(model, config.target, make, also=config.also, kind=Hidden)
