"""Norm tuning: of every g * (x - mean) / deviation + b only g and b train (Zhao et al. 2024), and the head.

Trainable: 2 D a layer norm, D an RMS norm, which has no b.
"""

from __future__ import annotations

import dataclasses

from ftlib.models.model import Model
from ftlib.peft.method import Method, subset
from ftlib.peft.parts.exchange import renamed

PEFT_TYPE, COPY = 'LN_TUNING', 'ln_tuning_layers'  # PEFT trains a copy of a module, which lies in it under this name


@dataclasses.dataclass(frozen=True)
class Config:
  """`target`: pattern of the norms' parameters."""

  target: str = r'norm/(scale|bias)$'
  also: str = '^head/'


def build(config: Config, model: Model) -> Method:
  """The norms and the head."""
  return subset(model, config.target, also=config.also, field='method.target')


peft_config, config_of_peft = renamed({})  # which modules they are is all there is to say
