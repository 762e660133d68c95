"""ADOPT (Taniguchi et al. 2024, algorithm 2): Adam that divides by the last step's second moment, before averaging.

m = b1 m + (1 - b1) clip(g / max(sqrt(v), eps), t^(1/4)), then v = b2 v + (1 - b2) g^2: converges for every b2. Step 0
only sets v = g^2 and moves nothing. The direction is m.
"""

from __future__ import annotations

import dataclasses

import optax
from optax import contrib

from ftlib.base.settings import setting
from ftlib.base.types import ParamInfo
from ftlib.optim.moments import kept


@dataclasses.dataclass(frozen=True)
class Config:
  """`b1`, `b2`: decay of the moments; `eps` bounds the root from below; `clipping` holds the ratio within t^(1/4)."""

  b1: float = setting(0.9, low=0, below=1)
  b2: float = setting(0.9999, low=0, below=1)
  eps: float = setting(1e-6, above=0)
  clipping: bool = True


def build(config: Config, info: dict[str, ParamInfo]) -> optax.GradientTransformation:
  """The direction before decay and learning rate, which `chain.py` adds. State: two moments a parameter."""
  rule = contrib.scale_by_adopt(b1=config.b1, b2=config.b2, eps=config.eps, use_clipping=config.clipping)
  return kept(rule, ('mu',), config.moments)
