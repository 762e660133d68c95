"""An optimizer that is no part of ftlib: the sign of a momentum (Bernstein et al. 2018, algorithm 2)."""

from __future__ import annotations

import dataclasses

import optax

from ftlib.base.settings import setting
from ftlib.base.types import ParamInfo


@dataclasses.dataclass(frozen=True)
class Config:
  """`momentum`: decay of the sum of gradients whose sign is taken."""

  momentum: float = setting(0.9, low=0, below=1)


def build(config: Config, info: dict[str, ParamInfo]) -> optax.GradientTransformation:
  """The direction before decay and learning rate. State: one momentum a parameter."""
  return optax.chain(optax.trace(decay=config.momentum), optax.scale_by_sign())
