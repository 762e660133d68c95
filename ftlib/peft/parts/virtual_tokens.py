"""What methods of virtual tokens share (prompt, P-tuning, prefix): their place, and PEFT's one tensor of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftlib.base.errors import InputError
from ftlib.base.rng import Stream
from ftlib.models.layers import Embed, Positions, Prompt
from ftlib.models.model import Model
from ftlib.peft.method import Adapter, Method, adapt

TENSOR = 'prompt_embeddings'


def in_front(config: Any, model: Model, make: Callable[[Prompt], Adapter], **options: Any) -> Method:
  """A method of `config.length` vectors in front of every row, which `make(site)` gives; `options` are of `Method`."""
  check_length(config.length, model)
  options |= {'also': config.also, 'tokens': config.length, 'packs': False, 'identity': False}
  return adapt(model, '^embed/prompt$', lambda site, *_: make(site), kind=Prompt, **options)


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


class After(Adapter):
  """Positions that follow those of the prefix, in a table; it has no parameters."""

  def __init__(self, length: int):
    self.length = length

  def __call__(self, site: Embed, ids: jax.Array, y: jax.Array, stream: Stream | None) -> jax.Array:
    return jnp.take(site.table[...], ids + self.length, axis=0, mode='clip')


class Turned(Adapter):
  """The same for queries and keys that are turned by their positions; the prefix's own keys are not."""

  def __init__(self, length: int):
    self.length = length

  def __call__(self, site: Positions, positions_BL: jax.Array) -> jax.Array:
    return positions_BL + self.length


def ids_range(text: str, vocab: int) -> tuple[int, int]:
  """The ids of `method.init_vocab`, 'first:stop'. Raises `InputError` for what is no range of the vocabulary."""
  first, _, stop = text.partition(':')
  if not (first.isdecimal() and stop.isdecimal() and int(first) < int(stop) <= vocab):
    raise InputError(f"method.init_vocab={text!r} is not a range 'first:stop' of the token ids 0 to {vocab}")
  return int(first), int(stop)
