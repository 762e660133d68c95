"""Scaled dot-product attention with a hand-written backward pass.

Probabilities are dropped by a hash of their index (`ftlib/base/rng.py`), so the backward pass draws the same mask
again instead of storing it, and softmax's row sums come from `sum(d_out * out)` (Dao et al. 2022, equation 4) instead
of a pass over [B, H, L, L].

Shape letters: B batch, H heads, Q query tokens, L key tokens, K head size.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from ftlib.base.rng import Stream
from ftlib.models.layers import float0_like

_MASKED = np.float32(-1e30)  # finite, so a row with nothing to attend to gives a mean and not a NaN


def attention(
  q_BLHK: jax.Array,
  k_BLHK: jax.Array,
  v_BLHK: jax.Array,
  mask_B1QL: jax.Array,
  *,
  rate: float | jax.Array = 0.0,
  stream: Stream | None = None,
) -> jax.Array:
  """Bidirectional attention: [B, L, H, K] in and out.

  `mask_B1QL` (bool, broadcastable to [B, H, Q, L]) says which key each query may see. With a stream, probabilities are
  dropped at `rate`. Softmax is in float32.
  """
  plain = stream is None or (isinstance(rate, int | float) and rate == 0)
  return _attend(q_BLHK, k_BLHK, v_BLHK, mask_B1QL, None if plain else jnp.float32(rate), None if plain else stream)


@jax.custom_vjp
def _attend(q, k, v, mask, rate, stream):
  return _forward(q, k, v, mask, rate, stream)[0]


def _forward(q, k, v, mask, rate, stream):
  scale = np.float32(q.shape[-1] ** -0.5)
  s_BHQL = jnp.einsum('bqhk,blhk->bhql', q, k, preferred_element_type=jnp.float32)
  s_BHQL = jnp.where(mask, s_BHQL * scale, _MASKED)
  p_BHQL = jax.nn.softmax(s_BHQL, axis=-1)
  out = jnp.einsum('bhql,blhk->bqhk', _drop(p_BHQL, rate, stream).astype(v.dtype), v)
  return out, (q, k, v, mask, p_BHQL, out, rate, stream)


def _backward(saved, d_out):
  q, k, v, mask, p_BHQL, out, rate, stream = saved
  scale = np.float32(q.shape[-1] ** -0.5)
  d_v = jnp.einsum('bhql,bqhk->blhk', _drop(p_BHQL, rate, stream).astype(v.dtype), d_out)
  d_p = jnp.einsum('bqhk,blhk->bhql', d_out, v, preferred_element_type=jnp.float32)
  rows_BHQ1 = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1).swapaxes(1, 2)[..., None]
  d_s = (p_BHQL * (_drop(d_p, rate, stream) - rows_BHQ1) * scale).astype(q.dtype)
  d_q = jnp.einsum('bhql,blhk->bqhk', d_s, k)
  d_k = jnp.einsum('bhql,bqhk->blhk', d_s, q)
  no_rate = None if rate is None else jnp.zeros_like(rate)
  return d_q, d_k, d_v, float0_like(mask), no_rate, jax.tree.map(float0_like, stream)


_attend.defvjp(_forward, _backward)


def _drop(x_BHQL, rate, stream):
  if stream is None:
    return x_BHQL
  return jnp.where(stream.keep(x_BHQL.shape, rate), x_BHQL * (1.0 / (1.0 - rate)), 0.0)


def same_segment(segments_BL: jax.Array) -> jax.Array:
  """The mask [B, 1, L, L] by which tokens see those of their own document; padding is segment 0."""
  return segments_BL[:, None, :, None] == segments_BL[:, None, None, :]
