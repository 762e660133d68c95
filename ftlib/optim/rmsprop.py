"""RMSProp (Hinton, Srivastava & Swersky 2012, lecture 6e), with momentum; centred: Graves 2013, equations 38 to 41.

v = decay v + (1 - decay) g^2 and the direction is g / (sqrt(v) + eps). Centred divides by the standard deviation in the
place of the root of v. Its variance v - m^2 is kept as itself, decay (var + (1 - decay) (g - m)^2) with the mean m
before the step, so that rounding cannot make it negative. Momentum sums directions. eps stands outside the root, as in
PyTorch.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ftlib.base.settings import setting
from ftlib.base.types import ParamInfo
from ftlib.optim.moments import kept


@dataclasses.dataclass(frozen=True)
class Config:
  """`decay` of the second moment; `momentum` 0 keeps none, `nesterov` looks one step ahead."""

  decay: float = setting(0.99, low=0, below=1)
  eps: float = setting(1e-8, above=0)
  momentum: float = setting(0.0, low=0, below=1)
  nesterov: bool = False
  centered: bool = False


class Centered(NamedTuple):
  """Mean and variance of the gradient."""

  mu: Any
  variance: Any


def build(config: Config, info: dict[str, ParamInfo]) -> optax.GradientTransformation:
  """The direction before decay and learning rate. State: one second moment a parameter, a mean more if centred, and the
  momentum, if any, in `moments`."""
  scale = optax.scale_by_rms(config.decay, config.eps, eps_in_sqrt=False)
  rule = kept(_centered(config.decay, config.eps) if config.centered else scale)
  if config.momentum == 0:
    return rule
  return optax.chain(rule, kept(optax.trace(config.momentum, config.nesterov), ('trace',), config.moments))


def _centered(decay: float, eps: float) -> optax.GradientTransformation:
  def update(updates: Any, state: Centered, params: Any = None) -> tuple[Any, Centered]:
    var = lambda v, m, g: decay * (v + (1 - decay) * jnp.square(g - m))  # noqa: E731
    variance = jax.tree.map(var, state.variance, state.mu, updates)
    mu = optax.tree.update_moment(updates, state.mu, decay, 1)
    return jax.tree.map(lambda g, v: g / (jnp.sqrt(v) + eps), updates, variance), Centered(mu, variance)

  return optax.GradientTransformation(lambda p: Centered(optax.tree.zeros_like(p), optax.tree.zeros_like(p)), update)
