"""AdaDelta (Zeiler 2012, algorithm 1): g RMS[earlier updates] / RMS[g], in the units of the parameter.

The running updates are those of the rule itself, before learning rate and decay, so a rate of 1 is the paper's.
"""

from __future__ import annotations

import dataclasses

import optax

from ftlib.base.settings import setting
from ftlib.base.types import ParamInfo
from ftlib.optim.moments import kept


@dataclasses.dataclass(frozen=True)
class Config:
  """`rho`: decay of both averages of squares; `eps` stands in both roots, and alone sets the size of the first
  steps."""

  learning_rate: float = setting(1.0, above=0)
  rho: float = setting(0.9, low=0, below=1)
  eps: float = setting(1e-6, above=0)


def build(config: Config, info: dict[str, ParamInfo]) -> optax.GradientTransformation:
  """The direction before decay and learning rate. State: two averages of squares a parameter, float32 whatever
  `moments` says."""
  return kept(optax.scale_by_adadelta(rho=config.rho, eps=config.eps))
