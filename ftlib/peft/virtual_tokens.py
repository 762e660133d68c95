"""What methods of virtual tokens share (prompt, P-tuning, prefix): room for them, and PEFT's one tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ftlib.base.errors import InputError
from ftlib.models.model import Model

TENSOR = 'prompt_embeddings'


def check_length(length: int, model: Model) -> None:
  """Raises `InputError` for virtual tokens that leave no position to a real one."""
  if length >= model.config.max_length:
    raise InputError(
      f'method.length={length}: virtual tokens take positions too, and the model has {model.config.max_length}; '
      'lower it below that'
    )


def virtual_tokens(values: Mapping[str, Any]) -> int:
  """P of PEFT's file of a prompt-learning method for a model of one stack."""
  if values.get('num_transformer_submodules') not in (None, 1):
    raise InputError(
      f'adapter_config.json: num_transformer_submodules={values["num_transformer_submodules"]} is for models of an '
      'encoder and a decoder, which ftlib does not have'
    )
  length = values.get('num_virtual_tokens')
  if not isinstance(length, int) or length < 1:
    raise InputError(f'adapter_config.json: num_virtual_tokens={length!r}; wanted a whole number above 0')
  return length


def whole(tensors: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
  """`prompt_embeddings`, or an `InputError` where it is missing or of another shape."""
  if TENSOR not in tensors:
    raise InputError(f'the adapter has no tensor {TENSOR}; it has {", ".join(sorted(tensors)) or "none"}')
  if tensors[TENSOR].shape != shape:
    raise InputError(f'{TENSOR} is of shape {tensors[TENSOR].shape}, but the model wants {shape}')
  return np.asarray(tensors[TENSOR], np.float32)
