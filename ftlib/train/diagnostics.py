"""What is seen of a step besides its loss: gradient norms by layer of one that was skipped, and norms by group.

Numbers come off the device as one small array each: `squares` [n] has a number for each trainable leaf, or for each
layer of a stacked one; `table` [G, 7] has a row for each group of the optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftlib.base import trees
from ftlib.base.types import Params

KINDS = ('none', 'norms', 'all')  # of train.diagnostics
QUANTITIES = ('grad_norm', 'update_norm', 'param_norm', 'update_ratio', 'effective_rate', 'sign_agreement', 'zeros')


def width(shapes: Params, stacked: Callable[[str], bool]) -> int:
  """How many numbers `squares` gives of a tree of arrays or shapes."""
  return sum(x.shape[0] if stacked(n) else 1 for n, x in trees.flatten(shapes).items())


def squares(grads: Params, waiting: Params, stacked: Callable[[str], bool]) -> jax.Array:
  """Sums of squares float32 [n] of a gradient, by leaf in the order of `trees.flatten`; 0 for what is `waiting`."""

  def of(name: str, g: jax.Array) -> jax.Array:
    axes = tuple(range(1, g.ndim)) if stacked(name) else None
    return jnp.sum(jnp.square(g.astype(jnp.float32)), axis=axes).reshape(-1)

  flat = {n: of(n, g) for n, g in trees.flatten(grads).items()}
  flat |= {n: jnp.zeros(x.shape[0] if stacked(n) else 1, jnp.float32) for n, x in trees.flatten(waiting).items()}
  return jnp.concatenate([*trees.flatten(trees.unflatten(flat)).values()])


def by_layer(squares_n: Sequence[float], names: Sequence[str], groups: Mapping[str, str]) -> dict[str, dict[str, Any]]:
  """{'layers': {'layers/0': norm, ..., 'head': norm}, 'groups': {group: norm}, 'parameters': {name: norm}}.

  `names` are those of the numbers of `squares`, and `groups` gives each name its group. A norm that is not finite is
  written 'nan' or 'inf'.
  """
  totals: dict[str, dict[str, float]] = {'layers': {}, 'groups': {}, 'parameters': {}}
  for name, value in zip(names, squares_n, strict=True):
    layer = '/'.join(name.split('/')[: 2 if name.startswith('layers/') else 1])
    for kind, key in (('layers', layer), ('groups', groups[name]), ('parameters', name)):
      totals[kind][key] = totals[kind].get(key, 0.0) + float(value)
  return {k: {n: plain(v**0.5) for n, v in found.items()} for k, found in totals.items()}


def plain(value: float) -> float | str:
  """A number as JSON can hold it: one that is not finite as the text 'nan', 'inf' or '-inf'."""
  return value if math.isfinite(value) else str(value)


def table(grads: Params, updates: Params, params: Params, groups: Mapping[str, Sequence[str]]) -> jax.Array:
  """float32 [G, 7] of each group: sums of squares of gradient, update and parameters (after the update); how many
  entries of the gradient are not 0, and against how many of these the update goes; exact zeros of the parameters, and
  parameters."""
  flat = [trees.flatten(x) for x in (grads, updates, params)]

  def row(names: Sequence[str]) -> jax.Array:
    sums = jnp.zeros(7, jnp.float32)
    for g, u, p in zip(*([f[n] for n in names] for f in flat), strict=True):
      against = (jnp.sign(g) == -jnp.sign(u)) & (g != 0)
      counted = (g * g, u * u, p * p, g != 0, against, p == 0, jnp.ones_like(p))
      sums += jnp.stack([jnp.sum(x.astype(jnp.float32)) for x in counted])
    return sums

  return jnp.stack([row(names) for names in groups.values()])


def named(table_G7: np.ndarray, groups: Sequence[str]) -> dict[str, float]:
  """{'update_ratio/default': ...} of what `table` gave: `QUANTITIES` of each group.

  `update_ratio` is the update's norm over the parameters', `effective_rate` over the gradient's; `sign_agreement` is
  the share of the gradient's entries against which the update goes, and `zeros` that of parameters that are exactly 0.
  """
  out = {}
  for group, (g, u, p, moved, against, zeros, size) in zip(groups, np.asarray(table_G7, np.float64), strict=True):
    g, u, p = np.sqrt((g, u, p))
    over = lambda x, y: float(x / y) if y else 0.0  # noqa: E731
    values = (g, u, p, over(u, p), over(u, g), over(against, moved), over(zeros, size))
    out |= {f'{name}/{group}': float(x) for name, x in zip(QUANTITIES, values, strict=True)}
  return out
