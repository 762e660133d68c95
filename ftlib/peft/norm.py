"""Norm tuning: only the gains and biases of the normalisation layers train (Zhao et al. 2024), and the head."""

from __future__ import annotations

import dataclasses

from ftlib.models.model import Model
from ftlib.peft.method import Method, subset


@dataclasses.dataclass(frozen=True)
class Config:
  """`target`: pattern of the norms' parameters."""

  target: str = r'norm/(scale|bias)$'
  also: str = '^head/'


def build(config: Config, model: Model) -> Method:
  """The norms and the head."""
  return subset(model, config.target, also=config.also, field='method.target')
