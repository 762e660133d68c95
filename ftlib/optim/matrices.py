"""A parameter as vectors or matrices, told by the names of its axes; what optimizer files share.

What a rule does to a matrix (factored moments, preconditioners, a norm a layer) must depend neither on whether layers
lie stacked nor on a dimension being written as a product: `layers/0:6/attn/q/kernel` [6, 384, 12, 32] with the axes
('layers', 'embed', 'heads', 'head_dim') is six matrices of 384 x 384.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ftlib.base import trees
from ftlib.base.types import Flat, ParamInfo

STACKS = ('layers', 'blocks', 'terms')  # leading axes whose entries are parameters of their own
TABLES = frozenset({'vocab', 'positions', 'types', 'prompt', 'prefix'})  # rows are looked up or seen one by one
PARTS = ('key_value', 'heads', 'kv_heads', 'head_dim')  # neighbours of these are one dimension of a matrix


@dataclasses.dataclass(frozen=True)
class View:
  """`stack`: sizes of the leading axes of a stack; `dims`: sizes of one entry, (rows, columns) for a matrix."""

  stack: tuple[int, ...]
  dims: tuple[int, ...]

  @property
  def is_matrix(self) -> bool:
    return len(self.dims) == 2

  @property
  def shape(self) -> tuple[int, ...]:
    """[*stack, *dims], what a leaf is reshaped to."""
    return self.stack + self.dims


def view(info: ParamInfo) -> View:
  """How a parameter is seen."""
  depth = 0
  while depth < len(info.axes) and info.axes[depth] in STACKS:
    depth += 1
  dims: list[int] = []
  for i in range(depth, len(info.axes)):
    if i > depth and info.axes[i] in PARTS and info.axes[i - 1] in PARTS:
      dims[-1] *= info.shape[i]
    else:
      dims.append(info.shape[i])
  return View(info.shape[:depth], tuple(dims))


def is_kernel(info: ParamInfo) -> bool:
  """Whether a parameter is a matrix, or a stack of them, that sums over its inputs: one that is no table of rows. (An
  output layer over the vocabulary has the axis of the embedding and counts as a table.)"""
  return view(info).is_matrix and not TABLES & set(info.axes)


def hidden(info: Mapping[str, ParamInfo], *, factors: bool = True) -> dict[str, View]:
  """{name: how it is seen} of the kernels that Muon, SOAP and GaLore take as matrices: not output layers of classes,
  which the papers leave to adamw. `factors`: whether low-rank factors, which have an axis 'rank', are among them."""
  out = {'classes'} if factors else {'classes', 'rank'}
  return {n: view(i) for n, i in info.items() if is_kernel(i) and not out & set(i.axes)}


def partition(
  rule: optax.GradientTransformation, rest: optax.GradientTransformation, names: Iterable[str]
) -> optax.GradientTransformationExtraArgs:
  """`rule` on the parameters `names` and `rest` on the others."""
  names = frozenset(names)
  label = lambda path, _: 'kernels' if trees.path_name(path) in names else 'rest'  # noqa: E731
  labels = lambda tree: jax.tree_util.tree_map_with_path(label, tree)  # noqa: E731
  return optax.partition({'kernels': rule, 'rest': rest}, labels)


def rms(x: jax.Array, info: ParamInfo) -> jax.Array:
  """Root of the mean square of each entry of a stack, float32 in the shape [*stack, 1, ...] that multiplies `x`."""
  return norm(x, info) / math.sqrt(max(1, math.prod(view(info).dims)))


def norm(x: jax.Array, info: ParamInfo) -> jax.Array:
  """2-norm of each entry of a stack, float32 in the shape [*stack, 1, ...] that multiplies `x`."""
  entry = tuple(range(len(view(info).stack), x.ndim))
  return jnp.sqrt(jnp.sum(jnp.square(x.astype(jnp.float32)), entry, keepdims=True))


def named(tree: Any) -> Flat:
  """{name: leaf} of what an update is given. Leaves of other groups (`optax.MaskedNode`) are not among them."""
  return {trees.path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def like(tree: Any, flat: Mapping[str, jax.Array]) -> Any:
  """A tree of the structure of `tree` whose leaves are looked up by name."""
  return jax.tree_util.tree_map_with_path(lambda path, _: flat[trees.path_name(path)], tree)
