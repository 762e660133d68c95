"""AdaGrad, diagonal (Duchi, Hazan & Singer 2011, figure 1): g / sqrt(sum of g^2 over all steps so far).

The sum only grows, so the steps only shrink: it has no decay to set and it suits sparse gradients. The paper's delta,
which it adds to the root, is 0 here; `initial` stands inside the root, as in most implementations. A gradient that was
always 0 gives no update.
"""

from __future__ import annotations

import dataclasses

import optax

from ftlib.base.settings import setting
from ftlib.base.types import ParamInfo
from ftlib.optim.moments import kept


@dataclasses.dataclass(frozen=True)
class Config:
  """`initial`: what the sums start at. 0.1, usual elsewhere, is far above the squared gradients of fine-tuning: it
  makes this plain gradient descent."""

  learning_rate: float = setting(1e-2, above=0)
  initial: float = setting(0.0, low=0)


def build(config: Config, info: dict[str, ParamInfo]) -> optax.GradientTransformation:
  """The direction before decay and learning rate. State: one sum a parameter, float32 whatever `moments` says: in
  bfloat16 a sum stops growing."""
  return kept(optax.scale_by_rss(initial_accumulator_value=config.initial, eps=0.0))
