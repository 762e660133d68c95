"""Lion (Chen et al. 2023, algorithm 2): the sign of an average of gradients, sign(b1 m + (1 - b1) g); then m follows g
with b2. Every number moves by the learning rate, so the authors take 3 to 10 times less than AdamW's and as much more
decay."""

from __future__ import annotations

import dataclasses

import optax

from ftlib.base.settings import setting
from ftlib.base.types import ParamInfo
from ftlib.optim.moments import kept


@dataclasses.dataclass(frozen=True)
class Config:
  """`b1` weighs the average against the gradient in the step; `b2` is the average's decay."""

  learning_rate: float = setting(1e-4, above=0)
  b1: float = setting(0.9, low=0, below=1)
  b2: float = setting(0.99, low=0, below=1)


def build(config: Config, info: dict[str, ParamInfo]) -> optax.GradientTransformation:
  """The direction before decay and learning rate. State: one average a parameter, in `moments`."""
  return kept(optax.scale_by_lion(b1=config.b1, b2=config.b2), ('mu',), config.moments)
