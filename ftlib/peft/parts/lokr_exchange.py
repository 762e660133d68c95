"""LoKr in PEFT's format, whose matrices are these transposed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ftlib.models.layers import Proj
from ftlib.peft.parts.exchange import renamed

PEFT_TYPE = 'LOKR'

_NAMES = {'w1': 'lokr_w1', 'b1': 'lokr_w1_a', 'a1': 'lokr_w1_b', 'w2': 'lokr_w2', 'b2': 'lokr_w2_a', 'a2': 'lokr_w2_b'}


peft_config, config_of_peft = renamed(
  {'rank': 'r', 'alpha': 'alpha', 'factor': 'decompose_factor', 'decompose_both': 'decompose_both'}
)


def to_peft(config: Any, leaves: Mapping[str, np.ndarray], site: Proj) -> dict[str, np.ndarray]:
  return {_NAMES[name]: value.T for name, value in leaves.items()}


def from_peft(config: Any, tensors: Mapping[str, np.ndarray], site: Proj) -> dict[str, np.ndarray]:
  return {name: tensors[theirs].T for name, theirs in _NAMES.items() if theirs in tensors}
