"""Decompositions and an inverse of stacks of matrices, inside compiled steps.

On CPUs jaxlib 0.10 gives the matrices of a stack to the threads that the step's devices run on, and waits for them
there: with as many devices as threads nobody is left to work, and the program stands still. One matrix is computed in
place, so on CPUs stacks go one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

_HIGHEST = jax.lax.Precision.HIGHEST


def each(decompose: Callable[..., Any], *stacks_NXY: jax.Array) -> Any:
  """`decompose(*matrices)`, such as `jnp.linalg.qr`, of each of the matrices [..., X, Y], results [..., *] in order."""
  lead = stacks_NXY[0].shape[:-2]
  if not lead:
    return decompose(*stacks_NXY)

  def by_one(*stacks: jax.Array) -> Any:
    flat = [x.reshape(math.prod(lead), *x.shape[-2:]) for x in stacks]
    found = jax.lax.map(lambda matrices: decompose(*matrices), flat)
    return jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), found)

  return jax.lax.platform_dependent(*stacks_NXY, cpu=by_one, default=decompose)


@jax.custom_jvp
def skew_inverse(q: jax.Array) -> jax.Array:
  """(I + Q)^-1 of skew-symmetric Q [..., S, S] by Newton's iteration, X <- X (2 I - (I + Q) X) (Schulz 1933).

  With the start 2 (I - Q) / (2 + s), s = ||Q||_F^2 / 2 being at least the largest eigenvalue of Q^T Q (they come in
  pairs), I - (I + Q) X has a norm of at most s / (2 + s), whose square follows, and so on: a few products, where a
  decomposition would go through the columns one by one. It is exact for Q = 0.
  """
  one = jnp.eye(q.shape[-1])
  s = jnp.square(q).sum((-2, -1), keepdims=True) / 2

  def refined(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    x, apart = carry
    left = jnp.matmul(one + q, x, precision=_HIGHEST)
    return jnp.matmul(x, 2 * one - left, precision=_HIGHEST), apart**2

  start = 2 * (one - q) / (2 + s), (s / (2 + s)).max()
  return jax.lax.while_loop(lambda carry: carry[1] > 1e-8, refined, start)[0]


@skew_inverse.defjvp
def _(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
  x = skew_inverse(*primals)
  return x, -jnp.matmul(jnp.matmul(x, tangents[0], precision=_HIGHEST), x, precision=_HIGHEST)
