"""LoRA-FA: LoRA whose A stays as it was drawn (Zhang et al. 2023, equation 3), y = W x + s B A0 x; B alone trains.

Of each site's input the backward pass needs A0 x, rank numbers a token, instead of x. Patterns, scaling and layers to
act on are as in `lora.py`. Trainable: rank * outputs a site.
"""

from __future__ import annotations

import dataclasses

from ftlib.base.settings import setting
from ftlib.models.model import Model
from ftlib.peft.lora import Lora
from ftlib.peft.method import Method
from ftlib.peft.parts.lora_exchange import PEFT_TYPE, config_of_peft, from_peft, peft_config, to_peft  # noqa: F401
from ftlib.peft.parts.lora_patterns import patterns_of_peft, peft_patterns  # noqa: F401
from ftlib.peft.parts.lora_sites import Common, fill


@dataclasses.dataclass(frozen=True)
class Config(Common):
  """`lora.py`'s fields, and the distribution of A."""

  init: str = setting('kaiming', choices=('kaiming', 'gaussian'))


class LoraFa(Lora):
  """`a` [*ins, R], saved but not trained, and `b` [R, *outs]."""

  KEPT = (*Lora.KEPT, 'a')


def build(config: Config, model: Model) -> Method:
  """LoRA-FA on every site that `target` matches."""
  return fill(config, model, LoraFa)
