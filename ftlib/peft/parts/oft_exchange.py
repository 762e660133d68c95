"""OFT in PEFT's format, whose rotations are the same numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ftlib.base.errors import InputError
from ftlib.models.layers import Proj

PEFT_TYPE = 'OFT'


def peft_config(config: Any) -> dict[str, Any]:
  return {
    'r': config.blocks,
    'oft_block_size': 0 if config.blocks else config.block_size,
    'use_cayley_neumann': config.neumann_terms > 0,
    'num_cayley_neumann_terms': config.neumann_terms or 5,
  }


def config_of_peft(values: Mapping[str, Any]) -> dict[str, Any]:
  """Fields of `Config` from PEFT's. Raises `InputError` for the series of an old PEFT."""
  series = values.get('use_cayley_neumann', True)
  version = str(values.get('peft_version') or '0.0').split('.')[:2]
  if series and tuple(int(n) for n in version) < (0, 18):
    raise InputError(
      f'adapter_config.json: ftlib has no OFT with use_cayley_neumann=True of PEFT {".".join(version)}, before 0.18, '
      'whose series was another'
    )
  got = {'blocks': values.get('r') or 0, 'neumann_terms': values.get('num_cayley_neumann_terms', 5) if series else 0}
  return got if got['blocks'] else {**got, 'block_size': values.get('oft_block_size', 32)}


def to_peft(config: Any, leaves: Mapping[str, np.ndarray], site: Proj) -> dict[str, np.ndarray]:
  return {'oft_R.weight': leaves['skew']}


def from_peft(config: Any, tensors: Mapping[str, np.ndarray], site: Proj) -> dict[str, np.ndarray]:
  return {'skew': tensors['oft_R.weight']}
