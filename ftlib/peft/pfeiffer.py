"""One adapter a layer, after the MLP (Pfeiffer et al. 2021): half of Houlsby's, and no norms train.

y + up(relu(down(y))) of the MLP's output y, as in `houlsby.py`. (AdapterHub's code has `down` read y after the
residual and the norm instead; what is added goes to the same place.)

Trainable, with m = D / reduction: 2 D m + m + D a layer.
"""

from __future__ import annotations

import dataclasses

from ftlib.models.layers import Hidden
from ftlib.models.model import Model
from ftlib.peft.houlsby import Bottleneck, Common
from ftlib.peft.method import Method, adapt


@dataclasses.dataclass(frozen=True)
class Config(Common):
  """The paper tried `reduction` 2, 16 and 64."""


def build(config: Config, model: Model) -> Method:
  """A bottleneck on every site that `target` matches."""
  make = lambda site, name, salt: Bottleneck(site, salt, config)  # noqa: E731
  return adapt(model, config.target, make, also=config.also, kind=Hidden)
