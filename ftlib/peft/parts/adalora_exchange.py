"""AdaLoRA in PEFT's format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ftlib.models.layers import Proj
from ftlib.peft.parts.adalora_budget import MEANS
from ftlib.peft.parts.exchange import pair_from_peft, pair_to_peft, renamed

PEFT_TYPE = 'ADALORA'

_SAME = ('tinit', 'tfinal', 'beta1', 'beta2')
peft_config, config_of_peft = renamed(  # PEFT's `rank_pattern` is not needed: it says which rows the tensors lack
  {'init_rank': 'init_r', 'target_rank': 'target_r', 'alpha': 'lora_alpha', 'dropout': 'lora_dropout'}
  | {'total_steps': 'total_step', 'interval': 'deltaT', 'orthogonal': 'orth_reg_weight'}
  | dict(zip(_SAME, _SAME))
)


def to_peft(config: Any, leaves: Mapping[str, np.ndarray], site: Proj) -> dict[str, np.ndarray]:
  a_RI, b_OR = pair_to_peft(leaves['a'], leaves['b'])
  return {'lora_A': a_RI, 'lora_E': leaves['e'][:, None], 'lora_B': b_OR}


def from_peft(config: Any, tensors: Mapping[str, np.ndarray], site: Proj) -> dict[str, np.ndarray]:
  """PEFT saves the rows alone that its mask left; they come first, zeros follow, and the means begin anew."""
  left = tensors['lora_E'].shape[0]
  lacking = [(0, config.init_rank - left), (0, 0)]
  a_RI, e_R1, b_RO = (np.pad(x, lacking) for x in (tensors['lora_A'], tensors['lora_E'], tensors['lora_B'].T))
  a, b = pair_from_peft(a_RI, b_RO.T, site.ins, site.outs)
  out = {'a': a, 'e': e_R1[:, 0], 'b': b, 'mask': (np.arange(config.init_rank) < left).astype(np.float32)}
  return out | {n: np.zeros_like(out[n[0]]) for n in MEANS}
