"""LoRA, LoRA-FA and DoRA in PEFT's format (`adapter_config.json`, `adapter_model.safetensors`), both ways.

A site's tensors: `lora_A.weight` [R, inputs], `lora_B.weight` [outputs, R] and for DoRA `lora_magnitude_vector`
[outputs]; a table's `lora_embedding_A` [R, rows] and `lora_embedding_B` [size, R]. PiSSA and OLoRA leave as PEFT
converts its own: [A; A0] and [B, -B0], a LoRA of twice the rank and the same scale on the unchanged base. Patterns of
ranks and alphas are in `lora_patterns.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ftlib.base.errors import InputError, listing
from ftlib.models.layers import shape
from ftlib.peft.parts.exchange import pair_from_peft, pair_to_peft
from ftlib.peft.parts.lora_patterns import doubled
from ftlib.peft.parts.lora_starts import FROM_KERNEL

PEFT_TYPE = 'LORA'
INITS = {True: 'kaiming', False: 'kaiming', 'gaussian': 'gaussian', 'eva': 'kaiming', 'orthogonal': 'orthogonal'}
READ = ('r', 'lora_alpha', 'lora_dropout', 'use_rslora', 'use_dora', 'init_lora_weights')
ELSEWHERE = (  # which modules there are, patterns, and what changes no number
  *('peft_type', 'task_type', 'peft_version', 'auto_mapping', 'base_model_name_or_path', 'revision', 'inference_mode'),
  *('target_modules', 'exclude_modules', 'modules_to_save', 'layers_to_transform', 'layers_pattern', 'rank_pattern'),
  *('alpha_pattern', 'megatron_core', 'qalora_group_size', 'eva_config'),
)


def peft_config(config: Any, *, dora: bool = False) -> dict[str, Any]:
  """The fields of `adapter_config.json` that follow from the config."""
  rank, alpha = doubled(config, config.rank, config.alpha)
  return {
    'r': rank,
    'lora_alpha': alpha,
    'lora_dropout': config.dropout,
    'use_rslora': config.scaling == 'rsqrt',
    'use_dora': dora,
    'bias': 'none',
    'fan_in_fan_out': False,
    'init_lora_weights': next((k for k, v in INITS.items() if v == config.init), True),
  }


def config_of_peft(values: Mapping[str, Any], *, dora: bool = False) -> dict[str, Any]:
  """Fields of a method's config from an `adapter_config.json`, without those that name modules.

  Raises `InputError` for settings that change the numbers and are unknown here.
  """
  odd = [k for k, v in values.items() if k not in READ + ELSEWHERE and v and v != 'none']
  init = values.get('init_lora_weights', True)
  odd += ['init_lora_weights'] if init not in INITS else []
  odd += ['use_dora'] if bool(values.get('use_dora')) != dora else []
  if odd:
    also = '\n  convert it with path_initial_model_for_weight_conversion' if init not in INITS else ''
    raise InputError(
      f'adapter_config.json has settings that method.name={"dora" if dora else "lora"} lacks:\n'
      + listing(f'{k} = {values.get(k)!r}' for k in odd)
      + also
    )
  return {
    'rank': int(values.get('r', 8)),
    'alpha': float(values.get('lora_alpha', 8)),
    'dropout': float(values.get('lora_dropout', 0.0)),
    'scaling': 'rsqrt' if values.get('use_rslora') else 'alpha/rank',
    'init': INITS[init],
  }


def to_peft(config: Any, leaves: Mapping[str, np.ndarray], site: Any) -> dict[str, np.ndarray]:
  """A site's adapter in PEFT's layout, by what follows the module's name in the file."""
  a_RI, b_OR = pair_to_peft(leaves['a'], leaves['b'])
  if config.init in FROM_KERNEL:
    a0_RI, b0_OR = np.zeros_like(a_RI), np.zeros_like(b_OR)  # of a table, whose start is another
    if 'a0' in leaves:
      a0_RI, b0_OR = pair_to_peft(leaves['a0'], leaves['b0'])
    a_RI, b_OR = np.concatenate([a_RI, a0_RI], 0), np.concatenate([b_OR, -b0_OR], 1)
  names = ('lora_embedding_A', 'lora_embedding_B') if hasattr(site, 'table') else ('lora_A.weight', 'lora_B.weight')
  out = dict(zip(names, map(np.ascontiguousarray, (a_RI, b_OR)), strict=True))
  return out | ({'lora_magnitude_vector': leaves['m'].reshape(-1)} if 'm' in leaves else {})


def from_peft(config: Any, tensors: Mapping[str, np.ndarray], site: Any) -> dict[str, np.ndarray]:
  """The inverse of `to_peft`."""
  table = hasattr(site, 'table')
  names = ('lora_embedding_A', 'lora_embedding_B') if table else ('lora_A.weight', 'lora_B.weight')
  ins, outs = ((site.rows,), (site.axis,)) if table else (site.ins, site.outs)
  a_RI, b_OR = (tensors[n] for n in names)
  known = config.init in FROM_KERNEL
  rank = a_RI.shape[0] // (2 if known else 1)
  out = dict(zip('ab', pair_from_peft(a_RI[:rank], b_OR[:, :rank], ins, outs)))
  if known and not table:
    out |= dict(zip(('a0', 'b0'), pair_from_peft(a_RI[rank:], -b_OR[:, rank:], ins, outs)))
  if 'lora_magnitude_vector' in tensors:
    out['m'] = tensors['lora_magnitude_vector'].reshape(shape(outs))
  return out
