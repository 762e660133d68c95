"""NAdam (Dozat 2016, algorithm 2) with decoupled weight decay: Adam whose first moment is looked at one step ahead.

b1 m / (1 - b1^(t+1)) + (1 - b1) g / (1 - b1^t) in the place of m / (1 - b1^t). b1 is constant; PyTorch's NAdam warms it
up by default (the paper's section on the momentum schedule). The factor b2 that the algorithm as printed has over the
second moment is left out, as everywhere.
"""

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
  """The direction before decay and learning rate. State: two moments a parameter, the first in `moments`."""
  rule = optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps, nesterov=True)
  return kept(rule, ('mu',), config.moments)
