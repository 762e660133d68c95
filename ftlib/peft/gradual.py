"""Gradual unfreezing with discriminative rates: what is trained grows from the top (ULMFiT, Howard & Ruder 2018).

Stage 0 trains the head, stage k the top k * `layers` layers as well (section 3.3), and the last stage the embeddings
too. The backward pass ends at the lowest layer that trains; what waits is bit for bit as it was, and Adam counts its
steps from its own start. Layer l learns at the rate of layer l + 1 over `decay` (section 3.2), the head at the
optimizer's; the paper's 2.6 is for 4 layers, and for 12 about 1.05 (Sun et al. 2019, who name its inverse) is used.
`optim.schedule=slanted` is the paper's schedule. Trainable: every parameter.
"""

from __future__ import annotations

import dataclasses
import re

from ftlib.base import trees
from ftlib.base.settings import setting
from ftlib.models.model import Model
from ftlib.peft.method import Method, Stages, subset


@dataclasses.dataclass(frozen=True)
class Config:
  """`layers` that a stage adds; `steps` a stage but for the last, or none: stages begin evenly within the first `share`
  of the run. `also`: pattern of what trains from the start."""

  layers: int = setting(1, low=1)
  steps: int | None = setting(None, low=1)
  share: float = setting(1.0, above=0, high=1)
  decay: float = setting(2.6, low=1)
  also: str = '^(pooler|head|mlm)/'


def build(config: Config, model: Model) -> Method:
  """All of the model, stage by stage."""
  total = len(model.blocks)
  count = 2 + (total - 1) // config.layers  # the head, and the groups of layers
  each = config.share / count if config.steps is None else config.steps
  first = set(trees.matching(config.also, model.info(), field='method.also')) if config.also else set()

  def depth(name: str) -> int:
    """0 for the head, 1 for the top layer, one more for each layer below, and for the embeddings."""
    layer = re.match(r'layers/(\d+)/', name)
    return 0 if name in first else total - int(layer[1]) if layer else total + 1

  return dataclasses.replace(
    subset(model, '', field='method'),
    stages=Stages(tuple(k * each for k in range(count)), lambda name: min(-(-depth(name) // config.layers), count - 1)),
    rates=lambda name: config.decay ** -depth(name),
  )
