"""Freezing from below: the last `layers` layers train, with the pooler and the head (Lee et al. 2019).

The backward pass ends at the lowest of them.
"""

from __future__ import annotations

import dataclasses

from ftlib.base.errors import InputError
from ftlib.base.settings import setting
from ftlib.models.model import Model
from ftlib.peft.method import Method, subset


@dataclasses.dataclass(frozen=True)
class Config:
  """`layers`: how many, counted from the top."""

  layers: int = setting(2, low=1)
  also: str = '^(pooler|head)/'


def build(config: Config, model: Model) -> Method:
  """The top layers and the head."""
  total = len(model.blocks)
  if config.layers > total:
    raise InputError(f'method.layers={config.layers}: the model has {total} layers')
  numbers = '|'.join(str(i) for i in range(total - config.layers, total))
  return subset(model, f'^layers/({numbers})/', also=config.also, field='method.layers')
