"""Cross-entropy over a large vocabulary without ever holding the logits of a whole batch.

Positions are taken a chunk at a time. In training the gradient of a chunk is computed beside its loss, while its logits
are there, so nothing is computed twice (as in Liger Kernel: Hsu et al. 2024); it is scaled by what comes back later,
which is possible because the result is one sum. `token_nll`, which gives a number for each position, computes the
logits of a chunk again in its backward pass instead (Chen et al. 2016).

Shape letters: B batch, L tokens, S tokens of a chunk, D embed, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftlib.base.types import Outputs
from ftlib.objectives.objective import symmetric_kl

Unembed = Callable[[jax.Array], jax.Array]  # hidden states [..., D] to float32 logits [..., V]


def nll_sum(
  unembed: Unembed,
  hidden_BLD: jax.Array,
  targets_BL: jax.Array,
  weights_BL: jax.Array,
  *,
  chunk: int = 1024,
  smoothing: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
  """(sum of weight * -log p(target), sum of weight where the target is the likeliest), float32 [].

  `chunk`: about how many positions of the batch have their logits at once. Positions of weight 0 may hold any target.
  `smoothing` s: the target has the share 1 - s, and s is dealt out over the vocabulary (Szegedy et al. 2016).
  """
  pieces = _pieces((hidden_BLD, targets_BL, weights_BL.astype(jnp.float32)), chunk)
  fn, consts = jax.closure_convert(unembed, pieces[0][0])
  return _summed(fn, smoothing, pieces[0], consts, *pieces[1:])


def token_nll(unembed: Unembed, hidden_BLD: jax.Array, targets_BL: jax.Array, *, chunk: int = 1024) -> jax.Array:
  """-log p(target) of every position, float32 [B, L]."""
  pieces = _pieces((hidden_BLD, targets_BL), chunk)

  @jax.checkpoint
  def one(h_BSD: jax.Array, targets_BS: jax.Array) -> jax.Array:
    return _read(unembed(h_BSD).astype(jnp.float32), targets_BS)[0]

  _, nll_CBS = jax.lax.scan(lambda _, x: (None, one(*x)), None, pieces)
  batch, length = targets_BL.shape
  return nll_CBS.swapaxes(0, 1).reshape(batch, -1)[:, :length]


def divergence_sum(outputs: Outputs, others: Outputs, weights_BL: jax.Array, *, chunk: int = 1024) -> jax.Array:
  """The sum of weight * (KL(p||q) + KL(q||p)) / 2 of the two distributions of each position, float32 []."""
  pieces = _pieces((outputs.hidden, weights_BL.astype(jnp.float32), others.hidden), chunk)

  @jax.checkpoint
  def one(h_BSD: jax.Array, weights_BS: jax.Array, other_BSD: jax.Array) -> jax.Array:
    apart_BS = symmetric_kl(outputs.unembed(h_BSD), others.unembed(other_BSD))
    return jnp.where(weights_BS > 0, apart_BS * weights_BS, 0).sum()

  return jax.lax.scan(lambda total, x: (total + one(*x), None), jnp.zeros((), jnp.float32), pieces)[0]


def token_scores(
  unembed: Unembed, hidden_BLD: jax.Array, targets_BL: jax.Array, *, chunk: int = 1024
) -> tuple[jax.Array, jax.Array]:
  """(-log p(target), whether the target is the likeliest) of every position, float32 and bool [B, L]; no derivative."""
  pieces = _pieces((hidden_BLD, targets_BL), chunk)

  def one(_, x: tuple[jax.Array, jax.Array]):
    return None, _read(unembed(x[0]).astype(jnp.float32), x[1])[:2]

  _, scores_CBS = jax.lax.scan(one, None, pieces)
  batch, length = targets_BL.shape
  return tuple(x.swapaxes(0, 1).reshape(batch, -1)[:, :length] for x in scores_CBS)


def picked(weights_BL: jax.Array, *arrays: jax.Array, count: int = 0) -> tuple[jax.Array, ...]:
  """(`weights` float32 [B, K], each array [B, L, ...] as [B, K, ...]) at the first K positions of every row that have a
  weight, for positions that are few in a row; where a row has fewer, others of weight 0 follow.

  `count` is K, 0 for a third of L. More positions of a row than that are left out.
  """
  length = weights_BL.shape[1]
  at_BK = jnp.argsort(weights_BL == 0, axis=1, stable=True)[:, : count or -(-length // 3)]
  take = lambda x: jnp.take_along_axis(x, at_BK.reshape(*at_BK.shape, *[1] * (x.ndim - 2)), axis=1)  # noqa: E731
  return tuple(map(take, (weights_BL.astype(jnp.float32), *arrays)))


def _pieces(arrays: tuple[jax.Array, ...], chunk: int) -> tuple[jax.Array, ...]:
  """[B, L, ...] as [C, B, S, ...], padded with zeros: every device goes on holding its own rows."""
  batch, length = arrays[1].shape
  size = max(1, min(length, chunk // batch))
  count = -(-length // size)
  size = -(-length // count)  # pieces of like size: little padding
  pad = count * size - length

  def cut(x: jax.Array) -> jax.Array:
    x = jnp.pad(x, ((0, 0), (0, pad), *[(0, 0)] * (x.ndim - 2)))
    return x.reshape(batch, count, size, *x.shape[2:]).swapaxes(0, 1)

  return tuple(map(cut, arrays))


def _read(logits_BSV: jax.Array, targets_BS: jax.Array, smoothing: float = 0.0) -> tuple[jax.Array, ...]:
  """(-log p(target), whether it is the likeliest, both [B, S], p [B, S, V]) by one sum of exponentials. Of equals the
  first is the likeliest: logits of bfloat16 are often equal."""
  own_BS = jnp.take_along_axis(logits_BSV, targets_BS[..., None], axis=-1)[..., 0]
  top_BS = jax.lax.stop_gradient(logits_BSV.max(-1))  # for range alone: what it adds it takes away
  exps_BSV = jnp.exp(logits_BSV - top_BS[..., None])
  total_BS = exps_BSV.sum(-1)
  wanted_BS = (1 - smoothing) * own_BS + smoothing * logits_BSV.mean(-1) if smoothing else own_BS
  right_BS = logits_BSV.argmax(-1) == targets_BS
  return jnp.log(total_BS) + top_BS - wanted_BS, right_BS, exps_BSV / total_BS[..., None]


def _sums(nll_BS: jax.Array, right_BS: jax.Array, weights_BS: jax.Array) -> tuple[jax.Array, jax.Array]:
  return (weights_BS * nll_BS).sum(), (weights_BS * right_BS).sum()


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _summed(fn: Callable, smoothing: float, h_CBSD: jax.Array, consts: list[Any], targets_CBS, weights_CBS):
  def body(total, x):
    h, targets, weights = x
    nll, right, _ = _read(fn(h, *consts).astype(jnp.float32), targets, smoothing)
    return jax.tree.map(jnp.add, total, _sums(nll, right, weights)), None

  zero = jnp.zeros((), jnp.float32)
  return jax.lax.scan(body, (zero, zero), (h_CBSD, targets_CBS, weights_CBS))[0]


def _summed_forward(fn, smoothing, h_CBSD, consts, targets_CBS, weights_CBS):
  values, moving = [c.value for c in consts], [c.perturbed for c in consts]

  def merged(own):
    own = iter(own)
    return [next(own) if m else v for v, m in zip(values, moving, strict=True)]

  own = [v for v, m in zip(values, moving, strict=True) if m]

  def body(carry, x):
    sums, grads = carry
    h, targets, weights = x
    logits, pull = jax.vjp(lambda h, own: fn(h, *merged(own)).astype(jnp.float32), h, own)
    own_BSV = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2) == targets[..., None]
    wanted_BSV = (1 - smoothing) * own_BSV + smoothing / logits.shape[-1]
    nll, right, p_BSV = _read(logits, targets, smoothing)
    d_h, d_own = pull((p_BSV - wanted_BSV) * weights[..., None])
    sums = jax.tree.map(jnp.add, sums, _sums(nll, right, weights))
    return (sums, jax.tree.map(lambda a, b: a + b.astype(a.dtype), grads, d_own)), d_h

  zero = jnp.zeros((), jnp.float32)
  start = (zero, zero), jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), own)
  (sums, grads), d_h = jax.lax.scan(body, start, (h_CBSD.value, targets_CBS.value, weights_CBS.value))
  at = iter(grads)
  grads = [next(at) if m else None for m in moving]
  kept = d_h, [None if g is None else g.astype(v.dtype) for g, v in zip(grads, values, strict=True)]
  return sums, (*kept, targets_CBS.value, weights_CBS.value)


def _summed_backward(fn, smoothing, saved, g):
  d_h, d_consts, targets, weights = saved
  g = g[0]  # the other sum has no derivative
  g = jnp.zeros((), jnp.float32) if isinstance(g, jax.custom_derivatives.SymbolicZero) else g
  scaled = lambda x: None if x is None else (x * g).astype(x.dtype)  # noqa: E731
  return scaled(d_h), [scaled(x) for x in d_consts], np.zeros(targets.shape, jax.dtypes.float0), jnp.zeros_like(weights)


_summed.defvjp(_summed_forward, _summed_backward, symbolic_zeros=True)
