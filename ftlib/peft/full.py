"""Full fine-tuning: every parameter trains, or those whose names `target` is found in."""

from __future__ import annotations

import dataclasses

from ftlib.models.model import Model
from ftlib.peft.method import Method, subset


@dataclasses.dataclass(frozen=True)
class Config:
  """`target`: pattern of parameters, '' for all of them; `also`: of further ones where it is not."""

  target: str = ''
  also: str = '^head/'


def build(config: Config, model: Model) -> Method:
  """What matches of the model."""
  return subset(model, config.target, also=config.also, field='method.target')
