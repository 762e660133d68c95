"""What a checkpoint holds, and where on the mesh it lies."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ftlib.base import trees
from ftlib.base.layout import Layout
from ftlib.base.types import ParamInfo, Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """`step` int32 []; the trainable tree; the optimizer's state over it; the run's typed key; and `kept`, what a method
  adds to the base without training it by gradients (random factors, masks, indices)."""

  step: jax.Array
  trainable: Params
  opt: Any
  key: jax.Array
  kept: Params = dataclasses.field(default_factory=dict)

  @property
  def own(self) -> Params:
    """All parameters of the state: with the frozen base, those of the model."""
    return trees.join(self.trainable, self.kept)


def create(trainable: Params, kept: Params, *, tx: optax.GradientTransformation, seed: int) -> TrainState:
  """The state at step 0."""
  return TrainState(jnp.zeros((), jnp.int32), trainable, tx.init(trainable), jax.random.key(seed), kept)


def shardings(state: TrainState, info: Mapping[str, ParamInfo], layout: Layout) -> TrainState:
  """The sharding of every leaf of an (abstract) state: parameters by their axes, and optimizer state as the parameter
  it belongs to, which is the one whose name its path ends in and whose shape it has."""

  def place(path, leaf):
    name = trees.path_name(path)
    parts = name.split('/')
    for i in range(len(parts)):
      own = info.get('/'.join(parts[i:]))
      if own is not None and own.shape == leaf.shape:
        return layout.param(own)
    return layout.replicated

  return jax.tree_util.tree_map_with_path(place, state)


def storable(state: TrainState) -> TrainState:
  """The state with its key as plain words, for a checkpoint (of arrays, or of shapes)."""
  if isinstance(state.key, jax.ShapeDtypeStruct):
    words = jax.eval_shape(jax.random.key_data, state.key)
    return dataclasses.replace(state, key=jax.ShapeDtypeStruct(words.shape, words.dtype, sharding=state.key.sharding))
  return dataclasses.replace(state, key=jax.random.key_data(state.key))


def restored(state: TrainState) -> TrainState:
  """The inverse of `storable`."""
  return dataclasses.replace(state, key=jax.random.wrap_key_data(state.key))
