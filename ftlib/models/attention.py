"""Scaled dot-product attention with a hand-written backward pass.

Probabilities are dropped by a hash of their index (`ftlib/base/rng.py`), so the backward pass draws the same mask
again instead of storing it, and softmax's row sums come from `sum(d_out * out)` (Dao et al. 2022, equation 4) instead
of a pass over [B, H, L, L].

Shape letters: B batch, H heads, Q query tokens, L key tokens, K head size.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from ftlib.base.rng import Stream
from ftlib.models.layers import float0_like

_MASKED = np.float32(-1e30)  # finite, so a row with nothing to attend to gives a mean and not a NaN
_SEEN: contextvars.ContextVar[list[jax.Array] | None] = contextvars.ContextVar('seen', default=None)


@contextlib.contextmanager
def watched() -> Iterator[list[jax.Array]]:
  """Within it, the list takes the probabilities [B, H, Q, L] of each `attention` that is computed or traced: what the
  function gives for values that are one-hot. A scan traces its layers once; for the probabilities of all, unstack."""
  token = _SEEN.set([])
  try:
    yield _SEEN.get()
  finally:
    _SEEN.reset(token)


def attention(
  q_BLHK: jax.Array,
  k_BLHK: jax.Array,
  v_BLHK: jax.Array,
  mask_B1QL: jax.Array,
  *,
  scale: float | None = None,
  cap: float = 0.0,
  bias_BHQT: jax.Array | None = None,
  rate: float | jax.Array = 0.0,
  stream: Stream | None = None,
) -> jax.Array:
  """Attention of queries [B, Q, H, K] over keys and values [B, L, G, K]: [B, Q, H, K].

  Head h reads group h // (H / G) (Ainslie et al. 2023). `mask_B1QL` (bool, broadcastable to [B, H, Q, L]) says which
  key each query may see. Scores are scaled by `scale` (1 / root of K by default) and, where
  `cap` is not 0, held within it by tanh (Gemma 2). `bias_BHQT` (float32, where G is H and without a cap) is added to
  the scaled scores of the last T keys; those before, a memory's, have none. With a stream, probabilities are dropped at
  `rate`. Softmax is in float32.
  """
  queries, heads, size = q_BLHK.shape[1:]
  groups = k_BLHK.shape[2]
  if (seen := _SEEN.get()) is not None:
    eye_BLGL = jnp.broadcast_to(jnp.eye(k_BLHK.shape[1])[:, None], (*k_BLHK.shape[:3], k_BLHK.shape[1]))
    unseen = contextvars.copy_context()
    unseen.run(_SEEN.set, None)
    again = functools.partial(attention, scale=scale, cap=cap, bias_BHQT=bias_BHQT)
    seen.append(unseen.run(again, q_BLHK, k_BLHK, eye_BLGL, mask_B1QL).swapaxes(1, 2))
  if bias_BHQT is not None:
    bias_BHQT = jnp.pad(bias_BHQT, ((0, 0), (0, 0), (0, 0), (k_BLHK.shape[1] - bias_BHQT.shape[3], 0)))
  if scale is not None:
    q_BLHK = q_BLHK * np.asarray(scale * size**0.5, q_BLHK.dtype)
  if heads != groups:  # the heads of a group are further queries of its one key-value head
    q_BLHK = (
      q_BLHK.reshape(-1, queries, groups, heads // groups, size)
      .swapaxes(2, 3)
      .reshape(-1, queries * heads // groups, groups, size)
    )
    mask_B1QL = jnp.repeat(mask_B1QL, heads // groups, axis=2) if mask_B1QL.shape[2] > 1 else mask_B1QL
  y_BLHK = (
    _capped(q_BLHK, k_BLHK, v_BLHK, mask_B1QL, cap, rate, stream)
    if cap
    else _plain(q_BLHK, k_BLHK, v_BLHK, mask_B1QL, bias_BHQT, rate, stream)
  )
  if heads != groups:
    size = y_BLHK.shape[-1]
    y_BLHK = y_BLHK.reshape(-1, queries, heads // groups, groups, size).swapaxes(2, 3).reshape(-1, queries, heads, size)
  return y_BLHK


def _capped(q, k, v, mask, cap, rate, stream):
  s_BHQL = jnp.einsum('bqhk,blhk->bhql', q, k, preferred_element_type=jnp.float32) * np.float32(q.shape[-1] ** -0.5)
  p_BHQL = jax.nn.softmax(jnp.where(mask, cap * jnp.tanh(s_BHQL / cap), _MASKED), axis=-1)
  return jnp.einsum('bhql,blhk->bqhk', _drop(p_BHQL, rate, stream).astype(v.dtype), v)


def _plain(q_BLHK, k_BLHK, v_BLHK, mask_B1QL, bias_BHQL, rate, stream):
  rate, stream = (None, None) if stream is None or (isinstance(rate, int | float) and rate == 0) else (rate, stream)
  return _attend(q_BLHK, k_BLHK, v_BLHK, mask_B1QL, bias_BHQL, None if rate is None else jnp.float32(rate), stream)


@jax.custom_vjp
def _attend(q, k, v, mask, bias, rate, stream):
  return _forward(q, k, v, mask, bias, rate, stream)[0]


def _forward(q, k, v, mask, bias, rate, stream):
  scale = np.float32(q.shape[-1] ** -0.5)
  s_BHQL = jnp.einsum('bqhk,blhk->bhql', q, k, preferred_element_type=jnp.float32)
  s_BHQL = jnp.where(mask, s_BHQL * scale if bias is None else s_BHQL * scale + bias, _MASKED)
  p_BHQL = jax.nn.softmax(s_BHQL, axis=-1)
  out = jnp.einsum('bhql,blhk->bqhk', _drop(p_BHQL, rate, stream).astype(v.dtype), v)
  return out, (q, k, v, mask, None if bias is None else (), p_BHQL, out, rate, stream)


def _backward(saved, d_out):
  q, k, v, mask, biased, p_BHQL, out, rate, stream = saved
  scale = np.float32(q.shape[-1] ** -0.5)
  d_v = jnp.einsum('bhql,bqhk->blhk', _drop(p_BHQL, rate, stream).astype(v.dtype), d_out)
  d_p = jnp.einsum('bqhk,blhk->bhql', d_out, v, preferred_element_type=jnp.float32)
  rows_BHQ1 = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1).swapaxes(1, 2)[..., None]
  d_bias = p_BHQL * (_drop(d_p, rate, stream) - rows_BHQ1)
  d_s = (d_bias * scale).astype(q.dtype)
  d_q = jnp.einsum('bhql,blhk->bqhk', d_s, k)
  d_k = jnp.einsum('bhql,bqhk->blhk', d_s, q)
  d_bias, no_rate = None if biased is None else d_bias, None if rate is None else jnp.zeros_like(rate)
  return d_q, d_k, d_v, float0_like(mask), d_bias, no_rate, jax.tree.map(float0_like, stream)


_attend.defvjp(_forward, _backward)


def _drop(x_BHQL, rate, stream):
  if stream is None:
    return x_BHQL
  return jnp.where(stream.keep(x_BHQL.shape, rate), x_BHQL * (1.0 / (1.0 - rate)), 0.0)


def relative(x_BLHK: jax.Array, table_MHK: jax.Array) -> jax.Array:
  """The scores float32 [B, H, L, L] of a row's tokens with what stands for their distances: of tokens i and j, x[i] by
  `table[L - i + j]`.

  `table_MHK` [2 L, H, K] holds the distances i - j from L down to 1 - L (the first is read by none). Every row of
  [L, 2 L] is moved by one place more than the one above, by reading it as [2 L, L] (Dai et al. 2019, appendix B), so
  nothing is gathered by index. A document's tokens must stand side by side.
  """
  batch, length, heads = x_BLHK.shape[:3]
  s_BHLM = jnp.einsum('blhk,mhk->bhlm', x_BLHK, table_MHK, preferred_element_type=jnp.float32)
  moved = s_BHLM.reshape(batch, heads, 2 * length, length)[:, :, 1:]
  return moved.reshape(batch, heads, length, 2 * length - 1)[..., :length]


def same_segment(segments_BL: jax.Array) -> jax.Array:
  """The mask [B, 1, L, L] by which tokens see those of their own document; padding is segment 0."""
  return segments_BL[:, None, :, None] == segments_BL[:, None, None, :]


def causal(
  positions_BQ: jax.Array,
  segments_BQ: jax.Array,
  key_positions_BT: jax.Array,
  key_segments_BT: jax.Array,
  *,
  window: int = 0,
) -> jax.Array:
  """The mask [B, 1, Q, T] by which a token sees those of its own document up to itself; `window` of them, if not 0."""
  back_BQT = positions_BQ[:, :, None] - key_positions_BT[:, None, :]
  seen_BQT = (segments_BQ[:, :, None] == key_segments_BT[:, None, :]) & (back_BQT >= 0)
  return (seen_BQT & (back_BQT < window) if window else seen_BQT)[:, None]
