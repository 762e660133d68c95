"""What the schedule-free optimizers share (Defazio et al. 2024, equations 3 to 5).

Gradients are taken at y = b1 x + (1 - b1) z, which are the parameters of training; z takes the steps, and x, the
average of z weighted by the largest rate so far to a power, is what one evaluates and exports:

  z' = z - rate (direction(y) + decay y);  x' = (1 - c) x + c z';  c = w / sum of w,  w = (largest rate)^power

Only y and z are kept, and x = (y - (1 - b1) z) / b1. This is optax.contrib.schedule_free, with y' - y written as
c (b1 z' + (1 - b1) z - y) + (1 - b1) (z' - z): no difference of nearly equal parameters, and no move
while rates are 0 from the first step on. (At a later rate of 0 y still goes toward z.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ftlib.base import trees
from ftlib.optim.moments import kept


class ScheduleFreeState(NamedTuple):
  """`rule`: state of the direction; `b1` and `z` as above, the scalars float32 [] and int32 []."""

  count: jax.Array
  b1: jax.Array
  weights: jax.Array
  largest: jax.Array
  z: Any
  rule: Any


def schedule_free(
  rule: optax.GradientTransformation,
  *,
  rate: optax.Schedule,
  decay: float,
  decays: Callable[[str], bool],
  b1: float,
  power: float,
) -> optax.GradientTransformation:
  """The whole update of y for the direction `rule`."""

  def init(params: Any) -> ScheduleFreeState:
    zero = jnp.zeros((), jnp.float32)
    near = jnp.asarray(b1, jnp.float32)
    return ScheduleFreeState(jnp.zeros((), jnp.int32), near, zero, zero, params, rule.init(params))

  def update(updates: Any, state: ScheduleFreeState, params: Any) -> tuple[Any, ScheduleFreeState]:
    updates, rule_state = rule.update(updates, state.rule, params)
    now = jnp.asarray(rate(state.count), jnp.float32)
    largest = jnp.maximum(state.largest, now)
    weights = state.weights + largest**power
    c = jnp.where(weights > 0, largest**power / jnp.where(weights > 0, weights, 1.0), 0.0)

    def step(path, u, y):
      return -now * (u + (decay * y if decays(trees.path_name(path)) else 0.0))

    steps = jax.tree_util.tree_map_with_path(step, updates, params)
    move = lambda d, y, z: c * (b1 * d + (z - y)) + (1 - b1) * d  # noqa: E731
    moved = jax.tree.map(move, steps, params, state.z)
    z = jax.tree.map(jnp.add, state.z, steps)
    return moved, ScheduleFreeState(optax.safe_increment(state.count), state.b1, weights, largest, z, rule_state)

  return kept(optax.GradientTransformation(init, update))


def averaged(opt_state: ScheduleFreeState, params: Any) -> Any:
  """The average x, to evaluate, predict and export with, of the trained parameters y."""
  return jax.tree.map(lambda y, z: ((y - (1 - opt_state.b1) * z) / opt_state.b1).astype(y.dtype), params, opt_state.z)
