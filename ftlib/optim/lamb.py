"""LAMB (You et al. 2020, algorithm 2): Adam's direction and the weight decay, scaled by layer to the weights' own size.

The update is rate * phi(|w|) / |r + decay w| * (r + decay w) with Adam's r and phi(z) = clip(z, min_norm, max_norm).
Norms are taken a layer, stacked or not. As in the authors' code, what `no_decay` names (biases, gains) gets Adam's
step, and a ratio with a norm of 0 is 1.

`min_norm` is 1 and not 0: LoRA's second factor starts at zero, and with 0 it would stay near it, each step being its
tiny norm times the rate. Kernels of trained models have norms far above 1, where it changes nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ftlib.base import trees
from ftlib.base.settings import setting
from ftlib.base.types import ParamInfo
from ftlib.optim import matrices
from ftlib.optim.moments import kept

RATED = True  # the decay is inside the norm


@dataclasses.dataclass(frozen=True)
class Config:
  """`b1`, `b2`, `eps`: Adam's; `min_norm`, `max_norm`: bounds of phi, the latter none by default."""

  b1: float = setting(0.9, low=0, below=1)
  b2: float = setting(0.999, low=0, below=1)
  eps: float = setting(1e-6, above=0)
  min_norm: float = setting(1.0, low=0)
  max_norm: float | None = setting(None, above=0)

  def __post_init__(self):
    if self.max_norm is not None and self.max_norm < self.min_norm:
      raise ValueError(f'max_norm={self.max_norm} is below min_norm={self.min_norm}')


def build(
  config: Config,
  info: dict[str, ParamInfo],
  *,
  rate: optax.Schedule,
  decay: float,
  decays: Callable[[str], bool],
) -> optax.GradientTransformation:
  """The whole update. State: two moments a parameter, the first in `moments`."""

  def trusted(path: Any, u: jax.Array, w: jax.Array) -> jax.Array:
    name = trees.path_name(path)
    if not decays(name):
      return u
    u = u + decay * w.astype(jnp.float32)
    size, length = matrices.norm(w, info[name]), matrices.norm(u, info[name])
    size = jnp.clip(size, config.min_norm, config.max_norm)
    return jnp.where((size > 0) & (length > 0), size / jnp.where(length > 0, length, 1), 1) * u

  adam = kept(optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps), ('mu',), config.moments)
  trust = optax.stateless(lambda updates, params: jax.tree_util.tree_map_with_path(trusted, updates, params))
  return optax.chain(adam, trust, optax.scale_by_learning_rate(rate))
