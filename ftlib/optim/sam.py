"""SAM (Foret et al. 2021, equations 2 and 3): the gradient where the loss nearby is worst, for any rule.

The parameters go rho g / |g| uphill (the norm is of the whole group), and `inner` gets the gradient there, of the same
batch with the same dropout: a step costs two gradients. `adaptive` (ASAM: Kwon et al. 2021, equation 8) goes rho
T^2 g / |T g| with T = |w|, so that the scale of a layer's weights does not matter; its rho is about 10 times as large.

Own code: `optax.contrib.sam` has the way uphill as an optimizer to be given, of which optax has none for ASAM, and its
`normalize` makes NaN of a gradient of 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ftlib.base.settings import setting
from ftlib.base.types import ParamInfo
from ftlib.optim import inner

NEEDS = ('grad_fn',)


@dataclasses.dataclass(frozen=True)
class Config:
  """`inner`: the optimizer file that makes the step, `inner_options` its own fields, as {'b1': 0.8}."""

  rho: float = setting(0.05, above=0)
  adaptive: bool = False
  inner: str = 'adamw'
  inner_options: dict = dataclasses.field(default_factory=dict)


def build(config: Config, info: dict[str, ParamInfo]) -> optax.GradientTransformationExtraArgs:
  """The direction before decay and learning rate. State: that of `inner`. `update` is given `grad_fn`: (parameters,
  0) -> the gradient of this batch."""
  rule = inner.rule(config, info, inside='sam')

  def update(updates: Any, state: Any, params: Any, *, grad_fn: Callable[[Any, int], Any], **_: Any) -> tuple[Any, Any]:
    size = jax.tree.map(jnp.abs, params) if config.adaptive else jax.tree.map(jnp.ones_like, params)
    scaled = jax.tree.map(jnp.multiply, size, updates)
    norm = optax.tree.norm(scaled)
    length = config.rho / jnp.where(norm > 0, norm, 1)
    uphill = jax.tree.map(lambda p, t, g: p + (length * t * g).astype(p.dtype), params, size, scaled)
    return rule.update(grad_fn(uphill, 0), state, params)

  return optax.GradientTransformationExtraArgs(rule.init, update)
