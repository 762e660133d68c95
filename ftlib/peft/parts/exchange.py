"""What methods' forms in PEFT have in common: settings that only have another name, and pairs of thin matrices.

Settings that ftlib does not compute need no code here or in a method's file: `ftlib/peft_config.py` refuses whatever
is set and was not read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ftlib.models.layers import Axis, shape


def renamed(names: Mapping[str, str], **fixed: Any) -> tuple[Callable, Callable]:
  """`peft_config` and `config_of_peft` of a method, by {field of its Config: PEFT's name}, and what is always so."""

  def peft_config(config: Any) -> dict[str, Any]:
    """What adapter_config.json says of a Config."""
    return {theirs: getattr(config, ours) for ours, theirs in names.items()} | fixed

  def config_of_peft(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of Config that adapter_config.json gives."""
    return {ours: values[theirs] for ours, theirs in names.items() if values.get(theirs) is not None}

  return peft_config, config_of_peft


def pair_to_peft(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """PEFT's A [R, inputs] and B [outputs, R] of `a` [*ins, R] and `b` [R, *outs]."""
  rank = b.shape[0]
  return a.reshape(-1, rank).T, b.reshape(rank, -1).T


def pair_from_peft(
  a_RI: np.ndarray, b_OR: np.ndarray, ins: tuple[Axis, ...], outs: tuple[Axis, ...]
) -> tuple[np.ndarray, np.ndarray]:
  """The inverse of `pair_to_peft`."""
  return a_RI.T.reshape(*shape(ins), -1), b_OR.T.reshape(-1, *shape(outs))
