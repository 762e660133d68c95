"""BitFit: of every y = W x + b only b trains, the norms' too (Ben Zaken et al. 2022, section 3), and the head.

Trainable: the outputs of each projection with a bias, and D a norm.
"""

from __future__ import annotations

import dataclasses

from ftlib.models.model import Model
from ftlib.peft.method import Method, subset


@dataclasses.dataclass(frozen=True)
class Config:
  """`target`: pattern of the biases, all by default (the paper's smaller variant: `(attn/q|mlp/up)/bias$`)."""

  target: str = r'/bias$'
  also: str = '^head/'


def build(config: Config, model: Model) -> Method:
  """The biases and the head."""
  return subset(model, config.target, also=config.also, field='method.target')
