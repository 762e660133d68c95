"""Sparse fine-tuning as PEFT's SHiRA, whose indices are (output, input) pairs in the order of [outputs, inputs]."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ftlib.base.errors import InputError
from ftlib.models.layers import Proj, size

PEFT_TYPE = 'SHIRA'


def peft_config(config: Any) -> dict[str, Any]:
  """Raises `InputError` without a rank, by which PEFT counts the entries."""
  if not config.rank:
    raise InputError(
      f'method.density={config.density}: PEFT counts the entries of SHiRA by a rank; train with method.rank above 0'
    )
  return {'r': config.rank, 'mask_type': 'random'}


def config_of_peft(values: Mapping[str, Any]) -> dict[str, Any]:
  """Which mask it was does not matter: its indices are in the file."""
  return {'choose': 'random', 'rank': values['r']}


def to_peft(config: Any, leaves: Mapping[str, np.ndarray], site: Proj) -> dict[str, np.ndarray]:
  """One site's `shira_weight` [N] and `shira_indices` int32 [2, N]."""
  i, o = np.divmod(np.asarray(leaves['indices']), size(site.outs))
  order = np.lexsort((i, o))
  return {
    'shira_weight': np.asarray(leaves['values'])[order],
    'shira_indices': np.stack([o[order], i[order]]).astype(np.int32),
  }


def from_peft(config: Any, tensors: Mapping[str, np.ndarray], site: Proj) -> dict[str, np.ndarray]:
  """The inverse. Raises `InputError` for an entry outside the matrix or named twice."""
  (o, i), inputs, outputs = np.asarray(tensors['shira_indices']).astype(np.int64), size(site.ins), size(site.outs)
  flat = i * outputs + o
  inside = (i >= 0) & (i < inputs) & (o >= 0) & (o < outputs)
  if not inside.all() or len(np.unique(flat)) != len(flat):
    raise InputError(f'shira_indices names entries outside a matrix of {inputs} x {outputs}, or some of them twice')
  order = np.argsort(flat)
  return {'values': np.asarray(tensors['shira_weight'])[order], 'indices': flat[order].astype(np.int32)}
