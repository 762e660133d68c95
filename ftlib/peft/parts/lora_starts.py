"""Where LoRA's A and B start (`init` of `lora.py`): drawn, or taken from the pretrained matrix.

`kaiming` is PEFT's own, uniform within 1 / sqrt(inputs), and `gaussian` a normal A of deviation 1 / rank; both with
B = 0. `orthogonal` draws A and B so that B A = 0 (but for rounding). `pissa` (Meng et al. 2024, equations 2-4) takes A0
and B0 from the first singular vectors of W, `olora` (Büyükakyüz 2024) from its QR; where the papers then train on
W - s B0 A0, the frozen W stays here and y = W x + s (B A - B0 A0) x: the same function, identity at the start, and it
leaves as a LoRA of twice the rank.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import initializers

from ftlib.base.errors import InputError
from ftlib.models.layers import Init, uniform

FROM_KERNEL = ('pissa', 'olora')  # starts whose first product is taken off again


def drawn(init: str, rank: int, inputs: int, salt: int) -> tuple[Init, Init]:
  """The initialisers of `a` and `b`; where they come from the kernel, of what `of_kernel` takes the place of."""
  if init == 'gaussian':
    return initializers.normal(1 / rank), initializers.zeros
  if init != 'orthogonal':
    return uniform(inputs), initializers.zeros
  if rank % 2:
    raise InputError(f"method.init='orthogonal' needs an even rank, not {rank}")
  return _half(rank, salt, 0), _half(rank, salt, 1)


def of_kernel(init: str, kernel: jax.Array, ins: int, rank: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
  """(`a` [*ins, R], `b` [R, *outs]) by a pretrained kernel [*ins, *outs], of whose axes the first `ins` are inputs."""
  w_OI = np.asarray(kernel, np.float32).reshape(math.prod(kernel.shape[:ins]), -1).T
  if init == 'pissa':
    u, sizes, vt = np.linalg.svd(w_OI, full_matrices=False)
    roots = np.sqrt(sizes[:rank] / np.float32(scale))
    b_OR, a_RI = u[:, :rank] * roots, roots[:, None] * vt[:rank]
  else:
    b_OR, a_RI = (x.astype(np.float32) for x in np.linalg.qr(w_OI))
    b_OR, a_RI = b_OR[:, :rank], a_RI[:rank]
  return a_RI.T.reshape(*kernel.shape[:ins], rank), b_OR.T.reshape(rank, *kernel.shape[ins:])


def _half(rank: int, salt: int, which: int) -> Init:
  """Normal values in one half of an orthogonal basis of the ranks: `a` has every other of its rows, `b` the rest."""

  def init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    square = jax.random.normal(jax.random.key(np.uint32(salt)), (rank, rank))
    basis = jnp.linalg.qr(square)[0][which::2] / 10
    if which == 0:
      return (jax.random.normal(key, (*shape[:-1], rank // 2)) @ basis).astype(dtype)
    return jnp.tensordot(basis.T, jax.random.normal(key, (rank // 2, *shape[1:])), axes=1).astype(dtype)

  return init
