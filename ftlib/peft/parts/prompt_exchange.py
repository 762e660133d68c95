"""A prompt in PEFT's format: one tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ftlib.base.types import ParamInfo
from ftlib.peft.parts.virtual_tokens import TENSOR, virtual_tokens, whole

PEFT_TYPE = 'PROMPT_TUNING'
NAME = 'embed/prompt/adapter/vectors'


def peft_config(config: Any) -> dict[str, Any]:
  """Where the vectors started is no matter of a trained adapter."""
  return {'num_virtual_tokens': config.length, 'prompt_tuning_init': 'RANDOM'}


def config_of_peft(values: Mapping[str, Any]) -> dict[str, Any]:
  """The fields that follow from an adapter_config.json."""
  return {'length': virtual_tokens(values)}


def to_peft_whole(config: Any, flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The one tensor of PEFT's file, [P, D]."""
  return {TENSOR: np.asarray(flat[NAME], np.float32)}


def from_peft_whole(
  config: Any, tensors: Mapping[str, np.ndarray], info: Mapping[str, ParamInfo]
) -> dict[str, np.ndarray]:
  """The inverse of `to_peft_whole`."""
  return {NAME: whole(tensors, info[NAME].shape)}
