"""L-BFGS (Liu & Nocedal 1989) with a line search (Nocedal & Wright 2006, algorithms 3.5 and 3.6), both of optax.

For a convex loss and the whole data in each batch: a linear head on frozen features, method=head with dropout off and
train.batch_size the number of rows; there it takes tens of steps. With changing batches or dropout the curvature it
remembers is noise. A step costs as many losses and gradients as the line search tries, `linesearch_steps` at most.

Each step is the line search's times the learning rate, which stays 1 without warmup; weight decay is decoupled, past
the line search. Where the remembered curvature does not lead downhill (a step moved nothing, or noise), the direction
is the gradient.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ftlib.base import trees
from ftlib.base.settings import setting
from ftlib.base.types import ParamInfo
from ftlib.optim import schedules
from ftlib.optim.moments import kept

RATED = FINDS_RATE = True  # the line search finds the length of a step
NEEDS = ('value', 'grad', 'value_fn')


@dataclasses.dataclass(frozen=True)
class Config:
  """`memory`: pairs of steps and differences of gradients that are remembered."""

  learning_rate: float = setting(1.0, above=0)
  schedule: str = setting('constant', choices=schedules.NAMES)
  warmup: float = setting(0.0, low=0, below=1)
  clip_norm: float = setting(0.0, low=0)
  memory: int = setting(10, low=1)
  linesearch_steps: int = setting(20, low=1)


class State(NamedTuple):
  """`rule`: the pairs, [memory, ...] each; `search`: the last line search."""

  count: jax.Array
  rule: Any
  search: Any


def build(
  config: Config,
  info: dict[str, ParamInfo],
  *,
  rate: optax.Schedule,
  decay: float,
  decays: Callable[[str], bool],
) -> optax.GradientTransformationExtraArgs:
  """The whole update. State: 2 `memory` + 3 numbers a parameter, of which the pairs lie whole on every device."""
  rule = optax.scale_by_lbfgs(memory_size=config.memory)
  search = optax.scale_by_zoom_linesearch(config.linesearch_steps, initial_guess_strategy='one')

  def init(params: Any) -> State:
    return State(jnp.zeros((), jnp.int32), rule.init(params), search.init(params))

  def update(
    updates: Any, state: State, params: Any, *, value: jax.Array, grad: Any, value_fn: Callable, **_: Any
  ) -> tuple[Any, State]:
    now, grad = rate(state.count), optax.tree.cast(grad, jnp.float32)
    direction, pairs = rule.update(updates, state.rule, params)
    downhill = optax.tree.vdot(direction, grad) > 0
    steepest = optax.tree.scale(1 / jnp.maximum(1.0, optax.tree.norm(updates)), updates)
    downwards = jax.tree.map(lambda d, g: -jnp.where(downhill, d, g), direction, steepest)
    step, searched = search.update(downwards, state.search, params, value=value, grad=grad, value_fn=value_fn)

    def move(path: Any, s: jax.Array, p: jax.Array) -> jax.Array:
      return now * (s - (decay * p if decays(trees.path_name(path)) else 0))

    moved = jax.tree_util.tree_map_with_path(move, step, params)
    return moved, State(optax.safe_increment(state.count), pairs, searched)

  return kept(optax.GradientTransformationExtraArgs(init, update))
