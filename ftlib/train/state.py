"""What a checkpoint holds, and where on the mesh it lies."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
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
  adds to the base without training it by gradients (random factors, masks, indices).

  `rate_scale` float32 [] is what of its rates a schedule 'plateau' has left; `skipped` and `streak` int32 []
  are the steps without an update because loss or gradient was not finite, in all and in a row; `averages` holds the
  trainable tree once more for each of 'ema' and 'swa' that the run keeps (`ftlib/train/averages.py`).
  """

  step: jax.Array
  trainable: Params
  opt: Any
  key: jax.Array
  kept: Params = dataclasses.field(default_factory=dict)
  rate_scale: jax.Array = dataclasses.field(default_factory=lambda: jnp.ones((), jnp.float32))
  skipped: jax.Array = dataclasses.field(default_factory=lambda: jnp.zeros((), jnp.int32))
  streak: jax.Array = dataclasses.field(default_factory=lambda: jnp.zeros((), jnp.int32))
  averages: dict[str, Params] = dataclasses.field(default_factory=dict)

  @property
  def own(self) -> Params:
    """All parameters of the state as they are trained: with the frozen base, those of the model."""
    return trees.join(self.trainable, self.kept)

  def evaluated(self, weights: str, averaged: Callable[[Any, Params], Params] | None = None) -> Params:
    """All parameters to evaluate, predict and export with.

    `weights` is 'raw' or one of `averages`; `averaged` is the optimizer's own (`Optimizer.averaged`): what it evaluates
    with where that is not what it trains (schedule-free), and then 'raw' means.
    """
    if weights != 'raw':
      return trees.join(self.averages[weights], self.kept)
    if averaged is None:
      return self.own
    return trees.join(averaged(self.opt, self.trainable), self.kept)


def create(
  trainable: Params, kept: Params, *, tx: optax.GradientTransformation, seed: int, averages: Collection[str] = ()
) -> TrainState:
  """The state at step 0; every one of `averages` begins as the parameters."""
  return TrainState(
    jnp.zeros((), jnp.int32),
    trainable,
    tx.init(trainable),
    jax.random.key(seed),
    kept,
    averages={n: jax.tree.map(jnp.copy, trainable) for n in averages},  # buffers of their own: the state is donated
  )


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
