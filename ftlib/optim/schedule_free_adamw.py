"""Schedule-free AdamW (Defazio et al. 2024, algorithm 1): no decay of the learning rate, an average in its place.

The direction is g / (sqrt(v / (1 - b2^t)) + eps) with g taken between the steps' sequence z and its average x
(equations: `schedule_free.py`); the bias of v is corrected there and not in the rate, as in the authors' code.
Evaluation, prediction and export use the average. Warmup counts, a schedule that falls is not needed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import optax

from ftlib.base.settings import setting
from ftlib.base.types import ParamInfo
from ftlib.optim import schedules
from ftlib.optim.schedule_free import averaged, schedule_free

__all__ = ['Config', 'averaged', 'build']
RATED = True  # the weight of a step in the average is its rate's


@dataclasses.dataclass(frozen=True)
class Config:
  """`b1`: how near the average gradients are taken; `b2`, `eps`: Adam's; `weight_power` of the rate, in the mean.

  The paper's learning rates are 1 to 10 times those of adamw with a schedule.
  """

  learning_rate: float = setting(2.5e-3, above=0)
  schedule: str = setting('constant', choices=schedules.NAMES)
  b1: float = setting(0.9, above=0, below=1)
  b2: float = setting(0.999, low=0, below=1)
  eps: float = setting(1e-8, above=0)
  weight_power: float = setting(2.0, low=0)


def build(
  config: Config,
  info: dict[str, ParamInfo],
  *,
  rate: optax.Schedule,
  decay: float,
  decays: Callable[[str], bool],
) -> optax.GradientTransformation:
  """The whole update. State: the sequence z and a second moment a parameter, both float32."""
  rule = optax.scale_by_rms(config.b2, config.eps, eps_in_sqrt=False, bias_correction=True)
  return schedule_free(rule, rate=rate, decay=decay, decays=decays, b1=config.b1, power=config.weight_power)
