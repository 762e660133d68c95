"""Adafactor (Shazeer & Stern 2018, algorithms 4 and 5): Adam's second moment of a matrix from its row and column means.

With s = g^2 + eps and decay 1 - t^-decay_rate, R and C are the averages of the row and column means of s; the estimate
is R C / mean(R), the direction u = g / sqrt(estimate), clipped to u / max(1, RMS(u) / clip_threshold). What is no
matrix, or has a side below `min_dim`, keeps the whole moment. `scale_parameter` multiplies by max(1e-3, RMS(w)) and
`relative_step` by min(1e-2, 1 / sqrt(t)): both with learning_rate=1 and schedule='constant' are the paper's algorithm.
They are off by default, since a factor that starts at zero, as LoRA's second does, hardly moves with them.

Own code: optax's pieces take the two largest dimensions of a leaf for the matrix and a whole stack for one block, so a
stack of layers, or heads written as two axes, would train otherwise than the same weights apart. On plain matrices they
agree.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ftlib.base import trees
from ftlib.base.settings import setting
from ftlib.base.types import ParamInfo
from ftlib.optim import matrices
from ftlib.optim.moments import kept


@dataclasses.dataclass(frozen=True)
class Config:
  """`clip_threshold` of the RMS of an update; `eps` under the squares; `momentum` 0 keeps no average of updates."""

  decay_rate: float = setting(0.8, above=0, high=1)
  clip_threshold: float = setting(1.0, above=0)
  eps: float = setting(1e-30, above=0)
  min_dim: int = setting(128, low=1)
  momentum: float = setting(0.0, low=0, below=1)
  scale_parameter: bool = False
  relative_step: bool = False


class State(NamedTuple):
  """`rows` [*stack, rows] and `columns` [*stack, columns] of the factored, `whole` of the other parameters."""

  count: jax.Array
  rows: Any
  columns: Any
  whole: Any


def build(config: Config, info: dict[str, ParamInfo]) -> optax.GradientTransformation:
  """The direction before decay and learning rate. State, float32: rows + columns numbers a matrix, which lie whole on
  every device; a number each of what is not factored; and the average of updates, if any, in `moments`."""
  rule = kept(_scale(config, info))
  average = optax.ema(config.momentum, debias=False)
  return optax.chain(rule, kept(average, ('ema',), config.moments)) if config.momentum else rule


def _scale(config: Config, info: dict[str, ParamInfo]) -> optax.GradientTransformation:
  views = {n: matrices.view(i) for n, i in info.items()}
  factored = {n: v.shape for n, v in views.items() if v.is_matrix and min(v.dims) >= config.min_dim}

  def init(params: Any) -> State:
    names = matrices.named(params)
    rows = {n: jnp.zeros(s[:-1]) for n, s in factored.items() if n in names}
    columns = {n: jnp.zeros((*s[:-2], s[-1])) for n, s in factored.items() if n in names}
    whole = {n: jnp.zeros_like(x) for n, x in names.items() if n not in factored}
    return State(jnp.zeros((), jnp.int32), *map(trees.unflatten, (rows, columns, whole)))

  def update(updates: Any, state: State, params: Any = None) -> tuple[Any, State]:
    count, weights = optax.safe_increment(state.count), matrices.named(params)
    decay = 1 - count.astype(jnp.float32) ** -config.decay_rate
    rows, columns, whole = ({n: decay * x for n, x in matrices.named(tree).items()} for tree in state[1:])
    out = {}
    for name, g in matrices.named(updates).items():
      s = jnp.square(g) + config.eps
      if name in factored:
        s = s.reshape(factored[name])
        rows[name] += (1 - decay) * s.mean(-1)
        columns[name] += (1 - decay) * s.mean(-2)
        share = rows[name] / rows[name].mean(-1, keepdims=True)
        s = (share[..., :, None] * columns[name][..., None, :]).reshape(g.shape)
      else:
        s = whole[name] = whole[name] + (1 - decay) * s
      u = g * jax.lax.rsqrt(s)
      u = u / jnp.maximum(1, matrices.rms(u, info[name]) / config.clip_threshold)
      if config.scale_parameter:
        u = u * jnp.maximum(1e-3, matrices.rms(weights[name], info[name]))
      out[name] = u * jnp.minimum(1e-2, count**-0.5) if config.relative_step else u
    return matrices.like(updates, out), State(count, *map(trees.unflatten, (rows, columns, whole)))

  return optax.GradientTransformation(init, update)
