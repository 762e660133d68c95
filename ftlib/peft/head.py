"""Linear probing: only the task's head trains, on features of the pretrained model as it is."""

from __future__ import annotations

import dataclasses

from ftlib.models.model import Model
from ftlib.peft.method import Method, subset


@dataclasses.dataclass(frozen=True)
class Config:
  """`also`: pattern of further names to train."""

  also: str = ''


def build(config: Config, model: Model) -> Method:
  """The parameters under `head/` (`mlm/` for a masked language model)."""
  return subset(model, '^(head|mlm)/', also=config.also, field='method')
