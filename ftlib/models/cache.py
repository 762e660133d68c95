"""Keys and values of what a decoder has read, so that a further token costs one token's work.

Which slot a query sees follows from the positions and segments kept beside them, by the same rule as without a cache:
rows of different length may be padded (segment 0) and go on at their own positions.

Shape letters: B batch, Q new tokens, T slots, G key-value heads, K head size, N layers of a stack.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ftlib.base.types import Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
  """`layers` {stack: {'k', 'v': [N, B, T, G, K]}}; `positions`, `segments` int32 [B, T]; `used`: slots taken."""

  layers: Params
  positions: jax.Array
  segments: jax.Array
  used: jax.Array

  def with_tokens(self, positions_BQ: jax.Array, segments_BQ: jax.Array) -> Cache:
    """With Q further tokens in its slots; `used` is raised when all layers have taken them in."""
    write = lambda old, new: jax.lax.dynamic_update_slice(old, new.astype(old.dtype), (0, self.used))  # noqa: E731
    return dataclasses.replace(
      self, positions=write(self.positions, positions_BQ), segments=write(self.segments, segments_BQ)
    )


@dataclasses.dataclass(frozen=True)
class Layer:
  """One layer's part: `keys`, `values` [N, B, T, G, K] of its stack, in which it is layer `index`."""

  keys: jax.Array
  values: jax.Array
  index: Any
  used: jax.Array

  def extended(self, k_BQGK: jax.Array, v_BQGK: jax.Array) -> Layer:
    """With the keys and values of Q further tokens."""
    start = (self.index, 0, self.used, 0, 0)
    write = lambda old, new: jax.lax.dynamic_update_slice(old, new[None].astype(old.dtype), start)  # noqa: E731
    return dataclasses.replace(self, keys=write(self.keys, k_BQGK), values=write(self.values, v_BQGK))

  def seen(self) -> tuple[jax.Array, jax.Array]:
    """(keys, values) [B, T, G, K] of all slots."""
    pick = lambda x: jax.lax.dynamic_index_in_dim(x, self.index, keepdims=False)  # noqa: E731
    return pick(self.keys), pick(self.values)


def empty(stacks: dict[str, int], *, rows: int, slots: int, groups: int, size: int, dtype: Any) -> Cache:
  """A cache without tokens. `stacks` {name: number of layers}, as the layers' parameters are laid."""
  zeros = lambda n: jnp.zeros((n, rows, slots, groups, size), dtype)  # noqa: E731
  layers = {name: {'k': zeros(n), 'v': zeros(n)} for name, n in stacks.items()}
  nothing = jnp.zeros((rows, slots), jnp.int32)
  return Cache(layers, nothing, nothing, jnp.zeros((), jnp.int32))
