"""Lookahead (Zhang et al. 2019, algorithm 1): every k steps of any rule, go back part of the way.

The fast weights are the parameters of training. After step k, 2 k, ...: slow += alpha (fast - slow), fast = slow; the
state of `inner` goes on. Evaluation, prediction and export use the slow weights. optax.lookahead wants pairs of
parameters in the place of parameters, so this is own code.
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
from ftlib.optim import inner
from ftlib.optim.moments import kept

RATED = True  # the way back to the slow weights is no direction


@dataclasses.dataclass(frozen=True)
class Config:
  """`sync_period` k, in steps; `alpha`: share of the way; `inner`: the optimizer file of the fast weights, and
  `inner_options` its own fields, as {'b1': 0.8}."""

  sync_period: int = setting(5, low=1)
  alpha: float = setting(0.5, above=0, high=1)
  inner: str = 'adamw'
  inner_options: dict = dataclasses.field(default_factory=dict)


class State(NamedTuple):
  """`slow`: weights, float32; `rule`: state of `inner`."""

  count: jax.Array
  slow: Any
  rule: Any


def build(
  config: Config,
  info: dict[str, ParamInfo],
  *,
  rate: optax.Schedule,
  decay: float,
  decays: Callable[[str], bool],
) -> optax.GradientTransformation:
  """The whole update of the fast weights. State: a number a parameter, and that of `inner`."""
  rule = inner.rule(config, info, inside='lookahead')

  def init(params: Any) -> State:
    return State(jnp.zeros((), jnp.int32), params, rule.init(params))

  def update(updates: Any, state: State, params: Any) -> tuple[Any, State]:
    count, now = optax.safe_increment(state.count), rate(state.count)
    updates, rule_state = rule.update(updates, state.rule, params)
    sync = count % config.sync_period == 0

    def fast(path: Any, u: jax.Array, p: jax.Array) -> jax.Array:
      return -now * (u + (decay * p if decays(trees.path_name(path)) else 0))

    moves = jax.tree_util.tree_map_with_path(fast, updates, params)
    nearer = jax.tree.map(lambda s, p, u: s + config.alpha * (p + u - s), state.slow, params, moves)
    slow = jax.tree.map(lambda new, s: jnp.where(sync, new, s), nearer, state.slow)
    moves = jax.tree.map(lambda new, p, u: jnp.where(sync, new - p, u), nearer, params, moves)
    return moves, State(count, slow, rule_state)

  return kept(optax.GradientTransformation(init, update))


def averaged(opt_state: State, params: Any) -> Any:
  """The slow weights, to evaluate, predict and export with."""
  return jax.tree.map(lambda s, p: s.astype(p.dtype), opt_state.slow, params)
