"""Schedule-free SGD (Defazio et al. 2024, equations 3 to 5): no decay of the learning rate, an average in its place.

The direction is the gradient, taken between the steps' sequence z and its average x (`schedule_free.py`).
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
  """`b1`: how near the average gradients are taken; `weight_power` of the rate in the average's weights.

  The paper's learning rates are 10 to 50 times those of sgd with momentum.
  """

  learning_rate: float = setting(1.0, above=0)
  schedule: str = setting('constant', choices=schedules.NAMES)
  b1: float = setting(0.9, above=0, below=1)
  weight_power: float = setting(2.0, low=0)


def build(
  config: Config,
  info: dict[str, ParamInfo],
  *,
  rate: optax.Schedule,
  decay: float,
  decays: Callable[[str], bool],
) -> optax.GradientTransformation:
  """The whole update. State: the sequence z, float32."""
  return schedule_free(optax.identity(), rate=rate, decay=decay, decays=decays, b1=config.b1, power=config.weight_power)
