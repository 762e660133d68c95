"""A linear map whose matrix is a sum of Kronecker products, the matrices of Compacter (`compacter.py`)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers

from ftlib.base.errors import InputError
from ftlib.models.layers import Axis, Init, contract, param

GLOROT = initializers.glorot_uniform(batch_axis=0)  # of each factor by itself


class Kronecker(nnx.Module):
  """A linear map by `s` [n, ins / n, R], `t` [n, R, outs / n], `bias` [outs] and the shared A."""

  def __init__(self, ins: Axis, outs: Axis, config: Any, *, init: Init):
    terms, rank = Axis('terms', config.n), Axis('rank', config.rank)
    rows, columns = (Axis('block', a.size // config.n) for a in (ins, outs))
    if config.rank > min(rows.size, columns.size):
      raise InputError(f'method.rank={config.rank} is larger than a block of {rows.size} x {columns.size}')
    self.s = param((terms, rows, rank), GLOROT)
    self.t = param((terms, rank, columns), init)
    self.bias = param((outs,), initializers.zeros)

  def kernel(self, a_NPQ: jax.Array) -> jax.Array:
    """W [ins, outs]."""
    b_NIO = self.s[...] @ self.t[...]
    w_PIQO = jnp.einsum('npq,nio->piqo', a_NPQ, b_NIO)
    return w_PIQO.reshape(w_PIQO.shape[0] * w_PIQO.shape[1], -1)

  def __call__(self, x: jax.Array, a_NPQ: jax.Array) -> jax.Array:
    return contract(x, self.kernel(a_NPQ), 1) + self.bias[...].astype(x.dtype)
