"""Rectified Adam (Liu et al. 2020, algorithm 2): the warmup that the variance of the second moment asks for, built in.

With rho_inf = 2 / (1 - b2) - 1 and rho_t = rho_inf - 2 t b2^t / (1 - b2^t), the step is Adam's times r_t = sqrt((rho_t
- 4) (rho_t - 2) rho_inf / ((rho_inf - 4) (rho_inf - 2) rho_t)) once rho_t is at least `threshold`, and the first moment
alone before that (5 steps with b2 = 0.999): plain momentum, whose size is the gradient's.
"""

from __future__ import annotations

import dataclasses

import optax

from ftlib.base.settings import setting
from ftlib.base.types import ParamInfo
from ftlib.optim.moments import kept


@dataclasses.dataclass(frozen=True)
class Config:
  """`b1`, `b2`: decay of the moments; `eps` is added outside the square root. `threshold` above 4; the authors take
  5."""

  b1: float = setting(0.9, low=0, below=1)
  b2: float = setting(0.999, low=0, below=1)
  eps: float = setting(1e-8, above=0)
  threshold: float = setting(5.0, above=4)

  def __post_init__(self):
    if 2 / (1 - self.b2) - 1 <= self.threshold:
      raise ValueError(
        f'with b2={self.b2} the second moment would never be used: 2 / (1 - b2) - 1 stays below threshold='
        f'{self.threshold}; raise b2 above {1 - 2 / (self.threshold + 1):.3g}'
      )


def build(config: Config, info: dict[str, ParamInfo]) -> optax.GradientTransformation:
  """The direction before decay and learning rate. State: two moments a parameter, the first in `moments`."""
  rule = optax.scale_by_radam(b1=config.b1, b2=config.b2, eps=config.eps, threshold=config.threshold)
  return kept(rule, ('mu',), config.moments)
