"""What a model makes of a row on the way: its embedded tokens, and who attends to whom. Training computes none of
it."""

from __future__ import annotations

import dataclasses

import jax
from flax import nnx

from ftlib.base.errors import InputError
from ftlib.base.types import Batch, Outputs, Params
from ftlib.models.attention import watched
from ftlib.models.model import Model


def embedded(model: Model, params: Params, inputs: Batch) -> jax.Array:
  """What the first block reads of the tokens of a row, [B, L, D]: what `inputs['embedding_noise']` is added to."""
  trunk = nnx.merge(nnx.graphdef(model.trunk), {k: v for k, v in params.items() if k != 'layers'})
  h_BLD, context = trunk.start(inputs, None)
  return h_BLD[:, context.prompt :]


def attended(model: Model, params: Params, inputs: Batch) -> tuple[Outputs, list[jax.Array]]:
  """(the forward pass, the attention [B, H, Q, K] of each layer). Tokens that a method puts in front of a row are
  queries and keys, those of a prefix are keys alone; both come first. Raises `InputError` for families that compute
  their attention otherwise."""
  plain, params = dataclasses.replace(model, remat='none').unshared(params)
  with watched() as seen:
    outputs = plain.apply(params, inputs, None)
  if len(seen) != len(plain.blocks):
    raise InputError(
      f'{len(seen)} of the {len(plain.blocks)} layers tell their attention (ftlib/models/attention.py); this family '
      'computes it otherwise, or has none: take --method=integrated_gradients'
    )
  return outputs, seen
