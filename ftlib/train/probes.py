"""What is measured of the loss around the parameters: its curvature, and how it lies along the last update.

On one validation batch, without dropout, at the parameters that are trained. Nothing here touches the training.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftlib.base import trees
from ftlib.base.types import Batch, Params
from ftlib.train.state import TrainState

Loss = Callable[[Params, Params, Batch], jax.Array]  # (trainable, all the rest, batch) -> mean loss []

POINTS, REACH = 11, 0.05  # of the landscape: points, and how far it goes, in norms of the trainable parameters


def hessian_trace(loss: Callable[[Params], jax.Array], params: Params, key: jax.Array) -> jax.Array:
  """z' H z with the Hessian H of a loss and z of random signs: an unbiased estimate of H's trace (Hutchinson 1989).

  One product of the Hessian and a vector, reverse over reverse, as hand-written backward passes need not be forward
  differentiable: about four gradients.
  """
  flat, tree = jax.tree.flatten(params)
  keys = jax.random.split(key, len(flat))
  z = tree.unflatten([jax.random.rademacher(k, x.shape, x.dtype) for k, x in zip(keys, flat, strict=True)])
  along = lambda tree: sum(jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (z, tree)), strict=True))  # noqa: E731
  return along(jax.grad(lambda p: along(jax.grad(loss)(p)))(params))


class Probe:
  """The probes of a run. `loss` is pure; `batch()` gives the Batch they look at."""

  def __init__(self, loss: Loss, batch: Callable[[], Batch]):
    self._loss, self._batch, self._made = loss, batch, None
    self._before: Params | None = None
    self._trace = jax.jit(
      lambda trainable, rest, batch, key: hessian_trace(lambda t: loss(t, rest, batch), trainable, key)
    )
    self._along = jax.jit(self._losses)
    self._copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))

  def before(self, state: TrainState) -> None:
    """Keeps the parameters before an update."""
    self._before = self._copy(state.trainable)

  def measure(self, state: TrainState, frozen: Params) -> dict[str, float]:
    """`hessian_trace`, and `mean_curvature`, its share of a parameter; the random signs follow key and step."""
    key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), 1)
    trace = float(self._trace(state.trainable, trees.join(frozen, state.kept), self._looked_at(), key))
    return {'hessian_trace': trace, 'mean_curvature': trace / max(trees.size(state.trainable), 1)}

  def landscape(self, state: TrainState, frozen: Params) -> dict[str, Any] | None:
    """The loss at `POINTS` places on the line through the state's parameters along the update that was the last.

    `distance` is in norms of the trainable parameters, from -`REACH` (back) to `REACH` (on); `update` is how far the
    update itself went. The last update of a schedule that ends at 0 is tiny: only its direction is taken. None where
    there was no update, or one of nothing.
    """
    if self._before is None:
      return None
    args = state.trainable, self._before, trees.join(frozen, state.kept), self._looked_at()
    at = np.linspace(-REACH, REACH, POINTS, dtype=np.float32)
    losses, length = jax.device_get(self._along(jnp.asarray(at), *args))
    if not length > 0:
      return None
    return {'update': float(length), 'distance': [float(x) for x in at], 'loss': [float(x) for x in losses]}

  def _losses(self, at_P: jax.Array, now: Params, before: Params, rest: Params, batch: Batch) -> Any:
    direction = jax.tree.map(jnp.subtract, now, before)
    norm = lambda tree: jnp.sqrt(sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(tree)))  # noqa: E731
    step, whole = norm(direction), norm(now)
    unit = whole / jnp.maximum(step, jnp.finfo(jnp.float32).tiny)

    def one(x: jax.Array) -> jax.Array:
      return self._loss(jax.tree.map(lambda p, d: p + x * unit * d, now, direction), rest, batch)

    return jax.lax.map(one, at_P), step / jnp.maximum(whole, jnp.finfo(jnp.float32).tiny)

  def _looked_at(self) -> Batch:
    if self._made is None:
      self._made = self._batch()
    return self._made
