"""Adam (Kingma & Ba 2015, algorithm 1) with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2)."""

from __future__ import annotations

import dataclasses

import optax

from ftlib.base.settings import setting
from ftlib.base.types import ParamInfo
from ftlib.optim.moments import kept


@dataclasses.dataclass(frozen=True)
class Config:
  """`b1`, `b2`: decay of the moments; `eps` is added outside the square root."""

  b1: float = setting(0.9, low=0, below=1)
  b2: float = setting(0.999, low=0, below=1)
  eps: float = setting(1e-8, above=0)


def build(config: Config, info: dict[str, ParamInfo]) -> optax.GradientTransformation:
  """The direction before decay and learning rate, which `chain.py` adds. State: two moments a parameter,
  the first in `moments`."""
  return kept(optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps), ('mu',), config.moments)
