"""A Hugging Face folder as a model with its parameters, the way `ftlib/run.py` loads one, for the tests beside it."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ftlib.base import lookup, trees
from ftlib.base.types import Batch, Head, Outputs, Params
from ftlib.io import hf
from ftlib.models.model import Model


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A folder's config.json, family module, model, parameters, and how they were matched."""

  values: dict[str, Any]
  family: Any
  model: Model
  params: Params
  match: hf.Match

  def run(self, inputs: Mapping[str, Any]) -> Outputs:
    """`apply` operation by operation: compiling each of these models would take longer than all their tests."""
    return self.model.apply(self.params, inputs)

  def tensors(self, params: Params | None = None) -> dict[str, np.ndarray]:
    """Parameters (or gradients) by Hugging Face name, in its layout."""
    return self.model.tensors(trees.flatten(self.params if params is None else params))


def load(folder: pathlib.Path, head: Head, **options: Any) -> Loaded:
  """The model of a folder with a head; what the folder lacks has its starting value."""
  values = hf.read_config(folder)
  families = [lookup.component('models', n, field='') for n in lookup.names('models')]
  family = next(f for f in families if values['model_type'] in f.MODEL_TYPES)
  weights = hf.Weights(folder)
  model = family.build(family.from_hf(values), head=head, **options)
  match = hf.match(weights, model.hf_names(), model.hf_shapes(), prefix=family.PREFIX, tied=model.tied)
  flat = trees.flatten(model.initial(jax.random.key(0), [n for n in model.info() if n not in match.pairs]))
  flat |= {ours: np.asarray(model.from_hf(ours, weights.read(key))) for ours, key in match.pairs.items()}
  return Loaded(values, family, model, trees.unflatten(flat), match)


def head_of(kind: str, *, classes: int, pooling: str = 'cls') -> Head:
  """The head of a kind; only 'classify' has classes."""
  return Head(kind, classes if kind == 'classify' else 0, pooling)


def batch_of(inputs: Mapping[str, np.ndarray]) -> Batch:
  """transformers' `input_ids`, `attention_mask` and `token_type_ids` as a Batch."""
  ids = np.asarray(inputs['input_ids'], np.int32)
  return {
    'tokens': ids,
    'segments': np.asarray(inputs['attention_mask'], np.int32),
    'types': np.asarray(inputs.get('token_type_ids', np.zeros_like(ids)), np.int32),
    'positions': np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape).copy(),
    'rows': np.arange(len(ids), dtype=np.int32),
  }


def longer(batch: Batch, by: int, pad_id: int) -> Batch:
  """The batch with `by` more tokens of padding at the end of every row."""
  fill = {'tokens': pad_id, 'segments': 0, 'types': 0}
  wide = {k: np.pad(batch[k], ((0, 0), (0, by)), constant_values=v) for k, v in fill.items()}
  length = wide['tokens'].shape[1]
  positions = np.broadcast_to(np.arange(length, dtype=np.int32), wide['tokens'].shape).copy()
  return {**batch, **wide, 'positions': positions}
