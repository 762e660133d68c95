"""Adam (Kingma & Ba 2015, algorithm 1) as published: no weight decay beside the loss.

The direction is that of `adamw`. What differs is what decays: an L2 penalty, which is what weight decay means for Adam,
is in the loss, so its gradient goes through the moments (`optim.l2`); `optim.weight_decay`, 0 here, would be added
after them and make this AdamW (Loshchilov & Hutter 2019, algorithm 2).
"""

from __future__ import annotations

import dataclasses

from ftlib.base.settings import setting
from ftlib.optim import adamw
from ftlib.optim.adamw import build

__all__ = ['Config', 'build']


@dataclasses.dataclass(frozen=True)
class Config(adamw.Config):
  """The fields of `adamw`."""

  weight_decay: float = setting(0.0, low=0)
