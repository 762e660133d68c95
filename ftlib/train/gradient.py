"""Gradients taken before the first step, for methods that choose by them what trains."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp

from ftlib.base import trees
from ftlib.base.types import Batch, Outputs, Params, Sums


def mean_gradient(
  apply: Callable[[Params, Batch, jax.Array | None], Outputs],
  objective: Callable[..., Sums],
  params: Params,
  names: Sequence[str],
  batches: Iterable[Batch],
  *,
  squared: bool = False,
) -> dict[str, jax.Array]:
  """{name: mean over the batches of the gradient of their mean loss}, in float32, without dropout.

  `squared` gives the mean of the squares; of batches of one row that is the diagonal of the empirical Fisher
  information (Sung et al. 2021, equation 4).
  """
  chosen, rest = trees.split(params, set(names).__contains__)
  chosen = jax.tree.map(lambda x: x.astype(jnp.float32), chosen)  # sums of bfloat16 would lose their last terms

  def loss(chosen: Params, rest: Params, batch: Batch) -> jax.Array:
    model = functools.partial(apply, trees.join(chosen, rest))
    total, weight = objective(lambda inputs, _: model(inputs, None), batch, None)['loss']
    return total / jnp.maximum(weight, 1e-30)

  def add(total: Params, chosen: Params, rest: Params, batch: Batch) -> Params:
    got = jax.grad(loss)(chosen, rest, batch)
    return jax.tree.map(lambda t, g: t + (jnp.square(g) if squared else g), total, got)

  step = jax.jit(add, donate_argnums=0)
  total, count = jax.tree.map(jnp.zeros_like, chosen), 0
  for batch in batches:  # one at a time: several under way at once can wait for each other's threads (CPU devices)
    total, count = jax.block_until_ready(step(total, chosen, rest, batch)), count + 1
  return trees.flatten(jax.tree.map(lambda x: x / max(count, 1), total))
