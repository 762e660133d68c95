"""Gradual unfreezing with discriminative rates: what is trained grows from the top (ULMFiT, Howard & Ruder 2018).

Stage 0 trains the head, stage k the top k * `layers` layers as well (section 3.3), and the last stage the embeddings
too; a task without a head begins with the layers. The backward pass ends at the lowest layer that trains; what waits is
bit for bit as it was, and Adam counts its steps from its own start. Layer l learns at the rate of layer l + 1 over
`decay` (section 3.2), the head at the optimizer's; the paper's 2.6 is for 4 layers, and for 12 about 1.05 (Sun et al.
2019, who name its inverse) is used.
`optim.schedule=slanted` is the paper's schedule. Trainable: every parameter.
"""

from __future__ import annotations

import dataclasses
import re

from ftlib.base.settings import setting
from ftlib.models.model import Model
from ftlib.peft.method import Method, Stages, besides, subset


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
  first = besides(config.also, model.info())
  top = 1 if first else 0  # without a head the first stage is that of the top layers
  count = top + -(-total // config.layers)  # the head, and the groups of layers
  each = config.share / count if config.steps is None else config.steps

  def depth(name: str) -> int:
    """0 for the head, 1 for the top layer (0 without a head), one more for each layer below, and for the embeddings."""
    layer = re.match(r'layers/(\d+)/', name)
    return 0 if name in first else top + (total - 1 - int(layer[1]) if layer else total)

  def stage(name: str) -> int:
    return min(-(-(depth(name) + 1 - top) // config.layers) - 1 + top, count - 1)

  return dataclasses.replace(
    subset(model, '', field='method'),
    stages=Stages(tuple(k * each for k in range(count)), stage),
    rates=lambda name: config.decay ** -depth(name),
  )
