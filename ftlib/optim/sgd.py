"""Stochastic gradient descent with (Nesterov) momentum (Sutskever et al. 2013)."""

from __future__ import annotations

import dataclasses

import optax

from ftlib.base.settings import setting
from ftlib.base.types import ParamInfo
from ftlib.optim.moments import kept


@dataclasses.dataclass(frozen=True)
class Config:
  """`momentum` 0 keeps no state. `nesterov` looks one step ahead."""

  learning_rate: float = setting(1e-2, above=0)
  momentum: float = setting(0.9, low=0, below=1)
  nesterov: bool = False


def build(config: Config, info: dict[str, ParamInfo]) -> optax.GradientTransformation:
  """The direction before decay and learning rate, which `chain.py` adds. State: the momentum, in `moments`."""
  if config.momentum == 0:
    return optax.identity()
  return kept(optax.trace(decay=config.momentum, nesterov=config.nesterov), ('trace',), config.moments)
