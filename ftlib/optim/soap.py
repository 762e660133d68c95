"""SOAP (Vyas et al. 2024, algorithm 3): Adam in the eigenbasis of Shampoo's preconditioner.

For the gradient G [rows, columns] of each matrix, L = b2 L + (1 - b2) G G^T and R = b2 R + (1 - b2) G^T G, with bases
Q_L and Q_R of their eigenvectors. The first moment M is kept as G is, the second V of the rotated Q_L^T G Q_R; the
direction is Q_L (Q_L^T M Q_R / (sqrt(V) + eps)) Q_R^T, both moments without bias. After the first step the bases come
from an eigendecomposition, then every `interval` steps from one power iteration, Q = qr(L Q) (algorithm 4). The first
step itself is Adam's, in the basis of the parameters, and leaves L and R alone behind: in the basis of its own gradient
all the rest is noise, and both moments begin with the second (in the authors' code the first step is none at all).

Matrices are told by axis names, each layer of a stack for itself; a side above `max_dim` is not rotated. Embeddings,
output layers, biases and gains get Adam. eps is added outside the root, as in the authors' code, and with it 1e-6 of
the matrix's largest root: below that a rotated number is rounding, which the division would blow up to a whole step.

Eigenvectors of small eigenvalues follow from rounding too, and the next gradients are taken along them at full length:
sums that are added up in another order (on more devices, in micro-batches) would end 45 % elsewhere after four steps.
So where the first gradient has next to nothing, the basis is a fixed one, and the power iteration is that of L + s I,
of the same eigenvectors, where s is 1e-5 of L's norm: what L has not seen keeps its basis. optax has no SOAP.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ftlib.base import linalg, trees
from ftlib.base.settings import setting
from ftlib.base.types import Flat, ParamInfo
from ftlib.optim import matrices
from ftlib.optim.moments import kept

_ROUNDING = 1e-6
_UNSEEN = 1e-3  # of the largest eigenvalue: eigenvectors of less follow from rounding
_SHIFT = 1e-5  # of the norm
_product = functools.partial(jnp.matmul, precision='highest')  # accelerators' default is less than float32


@dataclasses.dataclass(frozen=True)
class Config:
  """`b1`, `b2`: decay of the moments, the latter of L and R too; `interval` in steps."""

  b1: float = setting(0.95, low=0, below=1)
  b2: float = setting(0.95, low=0, below=1)
  eps: float = setting(1e-8, above=0)
  interval: int = setting(10, low=1)
  max_dim: int = setting(10000, low=1)


class State(NamedTuple):
  """`mu` and `nu` as the parameters; L and R (`factors`) and their eigenvectors (`bases`), each a pair of trees over
  the matrices whose side is rotated, [*stack, side, side]."""

  count: jax.Array
  mu: Any
  nu: Any
  factors: tuple[Any, Any]
  bases: tuple[Any, Any]


def build(config: Config, info: dict[str, ParamInfo]) -> optax.GradientTransformation:
  """The direction before decay and learning rate. State, float32: two moments a parameter and twice the square of each
  rotated side of a matrix, which lies whole on every device (with LoRA at rank 8 of width 384 that is 96 times the
  parameters; a `max_dim` below the width spares it). The first moment of what is not rotated is in `moments`; that of
  what is stays exact, since its rounding, rotated, would drown the directions of small gradients."""
  views = {n: view for n, view in matrices.hidden(info).items() if min(view.dims) <= config.max_dim}
  adam = optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)
  return matrices.partition(kept(_rotated_adam(config, views)), kept(adam, ('mu',), config.moments), views)


def _rotated_adam(config: Config, views: dict[str, matrices.View]) -> optax.GradientTransformation:
  def init(params: Any) -> State:
    own = {n: views[n] for n in matrices.named(params)}

    def squares(scale: float) -> tuple[Any, Any]:
      sides = [
        {n: (*v.stack, v.dims[i], v.dims[i]) for n, v in own.items() if v.dims[i] <= config.max_dim} for i in (0, 1)
      ]
      made = [{n: jnp.broadcast_to(scale * jnp.eye(s[-1]), s) for n, s in side.items()} for side in sides]
      return trees.unflatten(made[0]), trees.unflatten(made[1])

    moments = [optax.tree.zeros_like(params) for _ in range(2)]
    return State(jnp.zeros((), jnp.int32), *moments, squares(0.0), squares(1.0))

  def update(updates: Any, state: State, params: Any = None) -> tuple[Any, State]:
    count, first = optax.safe_increment(state.count), state.count == 0
    mu = optax.tree.update_moment(updates, state.mu, config.b1, 1)
    known = jnp.maximum(1, state.count)  # gradients in the moments: all but the first
    bases, out = tuple(map(matrices.named, state.bases)), {}
    seen = lambda tree: {n: x.reshape(views[n].shape) for n, x in matrices.named(tree).items()}  # noqa: E731
    g, nu = seen(updates), seen(state.nu)
    for name, m in seen(mu).items():
      turn = functools.partial(_turn, left=bases[0].get(name), right=bases[1].get(name))
      v = config.b2 * nu[name] + (1 - config.b2) * jnp.square(turn(g[name]))
      root = jnp.sqrt(v / (1 - config.b2**known))
      root += config.eps + _ROUNDING * root.max((-2, -1), keepdims=True)
      u = turn(m / (1 - config.b1**known)) / root
      out[name], nu[name] = turn(u, back=True), v
    factors = tuple(_accumulated(f, g, config.b2, side) for side, f in enumerate(state.factors))
    choice = jnp.where(first, 2, (count % config.interval == 0).astype(jnp.int32))
    new = jax.lax.switch(choice, (lambda f, q: q, _iterated, _decomposed), factors, state.bases)
    shape = lambda tree: jax.tree.map(lambda x, y: x.reshape(y.shape), tree, updates)  # noqa: E731
    u, v = (shape(matrices.like(updates, flat)) for flat in (out, nu))
    moments = jax.tree.map(lambda x: jnp.where(first, 0, x), (mu, v))
    return u, State(count, *moments, factors, new)

  return optax.GradientTransformation(init, update)


def _turn(x: jax.Array, *, left: jax.Array | None, right: jax.Array | None, back: bool = False) -> jax.Array:
  """Q_L^T x Q_R, or Q_L x Q_R^T, of each matrix of `x` [..., rows, columns]; a side without a basis stays."""
  if left is not None:
    x = _product(left if back else left.mT, x)
  return x if right is None else _product(x, right.mT if back else right)


def _accumulated(factors: Any, gradients: Flat, decay: float, side: int) -> Any:
  """L (side 0) or R one step on."""

  def step(path: Any, factor: jax.Array) -> jax.Array:
    g = gradients[trees.path_name(path)]
    return decay * factor + (1 - decay) * (_product(g.mT, g) if side else _product(g, g.mT))

  return jax.tree_util.tree_map_with_path(step, factors)


def _iterated(factors: Any, bases: Any) -> Any:
  """One power iteration (algorithm 4), shifted."""

  def one(factor: jax.Array, basis: jax.Array) -> jax.Array:
    shift = _SHIFT * jnp.linalg.norm(factor, axis=(-2, -1), keepdims=True)
    return linalg.each(jnp.linalg.qr, _product(factor, basis) + shift * basis)[0]

  return jax.tree.map(one, factors, bases)


def _decomposed(factors: Any, bases: Any) -> Any:
  """Eigenvectors, those of the largest eigenvalue first; the space of the small ones is turned to the eigenvectors
  in it of a diagonal matrix that is always the same, numbers from 1 to 2."""

  def one(factor: jax.Array) -> jax.Array:
    values, basis = linalg.each(jnp.linalg.eigh, factor)
    seen, fixed = values > _UNSEEN * values[..., -1:], jnp.linspace(1, 2, values.shape[-1])
    unseen = jnp.where(seen[..., None, :], 0, basis)
    inner = _product(unseen.mT, fixed[:, None] * unseen)  # what is seen stays, in front by numbers from -2 to -1
    inner += jnp.eye(values.shape[-1]) * jnp.where(seen, -fixed, 0)[..., None, :]
    return _product(basis, linalg.each(jnp.linalg.eigh, inner)[1])

  return jax.tree.map(one, factors)
