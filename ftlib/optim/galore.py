"""GaLore (Zhao et al. 2024, algorithm 2): Adam on gradients projected to a low rank, all parameters trained.

For the gradient G [m, n] of each matrix, P [m, r] holds the first r left singular vectors of G where m <= n, else P
[n, r] the right ones, found anew every `update_proj_gap` steps. Adam's moments are those of R = P^T G (or G P), and the
direction is `scale` P Adam(R) (or Adam(R) P^T). Moments go on in the new subspace, as in the paper.

Matrices are told by axis names, each layer of a stack for itself; embeddings, output layers, low-rank factors and what
has a side of at most r get Adam itself. A step with a projection costs a singular value decomposition of each matrix.
Own code: optax.contrib.galore projects the longer side, and knows no stacks.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ftlib.base import linalg
from ftlib.base.settings import setting
from ftlib.base.types import Flat, ParamInfo
from ftlib.optim import matrices
from ftlib.optim.moments import kept


@dataclasses.dataclass(frozen=True)
class Config:
  """`rank` r; `b1`, `b2`, `eps`: Adam's. The defaults are near those of the paper's GLUE runs at rank 8."""

  learning_rate: float = setting(3e-5, above=0)
  rank: int = setting(8, low=1)
  update_proj_gap: int = setting(200, low=1)
  scale: float = setting(2.0, above=0)
  b1: float = setting(0.9, low=0, below=1)
  b2: float = setting(0.999, low=0, below=1)
  eps: float = setting(1e-8, above=0)


class State(NamedTuple):
  """`projector` [*stack, m, r]; Adam's moments are [*stack, r, n], or [*stack, n, r] where P is on the right."""

  count: jax.Array
  projector: Any
  adam: Any


def build(config: Config, info: dict[str, ParamInfo]) -> optax.GradientTransformation:
  """The direction before decay and learning rate. State: r (m + 2 n) numbers a matrix of m <= n, which lie whole on
  every device, two moments a parameter of the rest; the first moment is in `moments`."""
  views = {n: v for n, v in matrices.hidden(info, factors=False).items() if min(v.dims) > config.rank}
  adam = kept(optax.scale_by_adam(config.b1, config.b2, config.eps), ('mu',), config.moments)

  def left(name: str) -> bool:
    return views[name].dims[0] <= views[name].dims[1]

  def basis(name: str, g: jax.Array) -> jax.Array:
    u, _, vt = linalg.each(functools.partial(jnp.linalg.svd, full_matrices=False), g)
    return u[..., : config.rank] if left(name) else vt[..., : config.rank, :].mT

  def project(name: str, g: jax.Array, p: jax.Array) -> jax.Array:
    return p.mT @ g if left(name) else g @ p

  def back(name: str, r: jax.Array, p: jax.Array) -> jax.Array:
    return p @ r if left(name) else r @ p.mT

  def stacks(tree: Any) -> Flat:
    return {n: x.reshape(views[n].shape) for n, x in matrices.named(tree).items()}

  def init(params: Any) -> State:
    g = stacks(params)
    bases = {n: jnp.zeros((*views[n].stack, min(views[n].dims), config.rank), jnp.float32) for n in g}
    low = {n: jnp.zeros_like(project(n, x, bases[n])) for n, x in g.items()}
    return State(jnp.zeros((), jnp.int32), matrices.like(params, bases), adam.init(matrices.like(params, low)))

  def update(updates: Any, state: State, params: Any = None) -> tuple[Any, State]:
    g = stacks(updates)
    new = lambda old: {n: basis(n, g[n]) for n in old}  # noqa: E731
    due = state.count % config.update_proj_gap == 0
    bases = jax.lax.cond(due, new, lambda old: old, matrices.named(state.projector))
    low = matrices.like(updates, {n: project(n, g[n], bases[n]) for n in g})
    low, adam_state = adam.update(low, state.adam)
    full = {n: config.scale * back(n, r, bases[n]) for n, r in matrices.named(low).items()}
    full = {n: x.reshape(info[n].shape) for n, x in full.items()}
    count = optax.safe_increment(state.count)
    return matrices.like(updates, full), State(count, matrices.like(updates, bases), adam_state)

  return matrices.partition(kept(optax.GradientTransformation(init, update)), adam, views)
