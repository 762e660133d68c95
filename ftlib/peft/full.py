"""Full fine-tuning: every parameter trains."""

from __future__ import annotations

import dataclasses

from ftlib.models.model import Model
from ftlib.peft.method import Method, subset


@dataclasses.dataclass(frozen=True)
class Config:
  """Nothing to set."""


def build(config: Config, model: Model) -> Method:
  """All of the model."""
  return subset(model, '', field='method')
