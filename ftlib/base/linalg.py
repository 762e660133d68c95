"""Decompositions of stacks of matrices, inside compiled steps.

On CPUs jaxlib 0.10 gives the matrices of a stack to the threads that the step's devices run on, and waits for them
there: with as many devices as threads nobody is left to work, and the program stands still. One matrix is computed in
place, so on CPUs stacks go one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax


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
