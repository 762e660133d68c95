"""Mixout (Lee et al. 2020): a step computes with some entries of the trained matrices at their pretrained values.

With a mask M, 1 with probability 1 - p for each entry by itself, the model of a step has in place of W

  (M W + (1 - M) U - p U) / (1 - p),   U the pretrained values,

whose mean over M is W (equation 5 of the paper; with U = 0 it is dropout of parameters). The mask is the same for all
rows and micro-batches of a step. It is a hash of the step's key, the parameter's name and the entry's place
(`ftlib/base/rng.py`): so it depends neither on the mesh nor on how layers are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftlib.base import rng, trees
from ftlib.base.types import Batch, Params

START = 'pretrained'  # the pretrained values stand under it, beside the frozen parameters


def mixing(rate: float, members: Callable[[str], Sequence[str]]) -> Callable[[Params, Params, jax.Array], Params]:
  """`(trainable, frozen, key) -> parameters` of the model, for `make_train_step`.

  `frozen` holds what is mixed in under `START`; `rate` is p. `members(name)` are the names of the layers' parameters
  that lie in a leaf: of more than one on a leading axis, else the leaf is the parameter.
  """

  def joined(trainable: Params, frozen: Params, key: jax.Array) -> Params:
    rest = {n: x for n, x in frozen.items() if n != START}
    start, flat = trees.flatten(frozen[START]), trees.flatten(trainable)
    key = rng.key_for(key, 'mixout')
    for name in flat.keys() & start.keys():  # what waits for a later stage is not here, and is at its start
      flat[name] = mixed(flat[name], start[name], mask(key, members(name), flat[name].shape, rate), rate)
    return trees.join(trees.unflatten(flat), rest)

  return joined


def mixed(value: jax.Array, start: jax.Array, keep: jax.Array, rate: float) -> jax.Array:
  """`value` where `keep`, else `start`, moved and scaled so that the mean over masks is `value`."""
  return (jnp.where(keep, value, start.astype(value.dtype)) - rate * start) / (1 - rate)


def mask(key: jax.Array, names: Sequence[str], shape: Sequence[int], rate: float) -> jax.Array:
  """Booleans of a leaf's `shape`, True with probability 1 - rate, for the parameters `names` that lie in it."""
  stream = rng.Stream.start(key, np.array([rng.salt(n) for n in names]))
  if len(names) > 1:
    return stream.keep(tuple(shape), rate)
  return stream.keep((1, *shape), rate)[0]


class Anchored:
  """A compiled step whose `frozen` holds `start` besides, under `START`."""

  def __init__(self, step: Any, start: Params):
    self.step, self._start = step, start

  @property
  def seconds(self) -> float:
    return self.step.seconds

  @property
  def shapes(self) -> list[tuple[int, ...]]:
    return self.step.shapes

  def __call__(self, state: Any, frozen: Params, batch: Batch) -> Any:
    return self.step(state, {**frozen, START: self._start}, batch)
