"""A linear-chain conditional random field over the tags of a row (Lafferty et al. 2001): its likelihood, its best
sequence, and how likely each tag is.

The score of a sequence is the sum of its emissions (a model's logits) and of its transitions: a table [C + 1, C + 1] of
how well a tag follows another, whose row C is the beginning of a row and column C its end. What is tagged are the
tokens where `mask` is true, wherever they stand in the row; the others are passed over, and a row without any has
likelihood 1. So sub-words and padding change no number. Where `segments` are given, documents of a row are sequences
each by itself, and the row has the product of their likelihoods.

Shapes: B rows, L tokens, C tags.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

FORBIDDEN = -1e4  # the score of what may not be: beyond any other, and still finite in float32


def log_partition(
  logits_BLC: jax.Array, mask_BL: jax.Array, table_SS: jax.Array, segments_BL: jax.Array | None = None
) -> jax.Array:
  """The logarithm of the sum of exp(score) over all sequences, float32 [B] (forward algorithm)."""
  logits_BLC, start_C, inner_CC, end_C = _parts(logits_BLC, table_SS)

  def step(carry: tuple, xs: tuple) -> tuple:
    alpha_BC, begun_B = carry
    logits_BC, mask_B, first_B = xs
    after_BC = jax.nn.logsumexp(alpha_BC[:, :, None] + inner_CC, axis=1)
    ended_B = jnp.where(begun_B, jax.nn.logsumexp(alpha_BC + end_C, axis=1), 0)
    new_BC = logits_BC + jnp.where(first_B[:, None], ended_B[:, None] + start_C, after_BC)
    return (jnp.where(mask_B[:, None], new_BC, alpha_BC), begun_B | mask_B), None

  xs = _by_token(logits_BLC, mask_BL, _first(mask_BL, segments_BL))
  (alpha_BC, begun_B), _ = jax.lax.scan(step, _begin(logits_BLC), xs)
  return jnp.where(begun_B, jax.nn.logsumexp(alpha_BC + end_C, axis=1), 0)


def score(
  logits_BLC: jax.Array,
  tags_BL: jax.Array,
  mask_BL: jax.Array,
  table_SS: jax.Array,
  segments_BL: jax.Array | None = None,
) -> jax.Array:
  """The score of a sequence of tags, float32 [B]."""
  logits_BLC, table_SS = logits_BLC.astype(jnp.float32), jnp.asarray(table_SS, jnp.float32)
  classes = logits_BLC.shape[2]
  own_BL = jnp.take_along_axis(logits_BLC, tags_BL[..., None], axis=2)[..., 0]

  def step(before_B: jax.Array, xs: tuple) -> tuple:
    tags_B, mask_B = xs
    return jnp.where(mask_B, tags_B, before_B), before_B

  nothing_B = jnp.full(len(tags_BL), classes, tags_BL.dtype)
  last_B, before_LB = jax.lax.scan(step, nothing_B, _by_token(tags_BL, mask_BL))
  before_BL, ends_S = before_LB.T, table_SS[:, classes].at[classes].set(0)  # an empty row has no end
  anew_BL = ends_S[before_BL] + table_SS[classes, tags_BL]
  moves_BL = jnp.where(_first(mask_BL, segments_BL), anew_BL, table_SS[before_BL, tags_BL])
  return jnp.where(mask_BL, own_BL + moves_BL, 0).sum(1) + ends_S[last_B]


def nll(
  logits_BLC: jax.Array,
  tags_BL: jax.Array,
  mask_BL: jax.Array,
  table_SS: jax.Array,
  segments_BL: jax.Array | None = None,
) -> jax.Array:
  """Minus the log-likelihood of a sequence of tags, float32 [B]."""
  total_B = log_partition(logits_BLC, mask_BL, table_SS, segments_BL)
  return total_B - score(logits_BLC, tags_BL, mask_BL, table_SS, segments_BL)


def marginals(logits_BLC: jax.Array, mask_BL: jax.Array, table_SS: jax.Array) -> jax.Array:
  """How likely each tag is at each place over all sequences, float32 [B, L, C]: the derivative of the logarithm of the
  partition function by the emissions; 0 where `mask` is false."""
  return jax.grad(lambda x: log_partition(x, mask_BL, table_SS).sum())(logits_BLC.astype(jnp.float32))


def best(logits_BLC: jax.Array, mask_BL: jax.Array, table_SS: jax.Array) -> jax.Array:
  """The sequence with the highest score, int32 [B, L] (Viterbi algorithm); 0 where `mask` is false."""
  logits_BLC, start_C, inner_CC, end_C = _parts(logits_BLC, table_SS)
  same_C = jnp.arange(logits_BLC.shape[2])

  def forward(carry: tuple, xs: tuple) -> tuple:
    delta_BC, begun_B = carry
    logits_BC, mask_B = xs
    paths_BCC = delta_BC[:, :, None] + inner_CC
    new_BC = logits_BC + jnp.where(begun_B[:, None], paths_BCC.max(1), start_C)
    moved_B1 = (mask_B & begun_B)[:, None]
    from_BC = jnp.where(moved_B1, paths_BCC.argmax(1), same_C)  # passed over, a tag is its own predecessor
    return (jnp.where(mask_B[:, None], new_BC, delta_BC), begun_B | mask_B), from_BC

  (delta_BC, _), from_LBC = jax.lax.scan(forward, _begin(logits_BLC), _by_token(logits_BLC, mask_BL))

  def back(tag_B: jax.Array, from_BC: jax.Array) -> tuple:
    return jnp.take_along_axis(from_BC, tag_B[:, None], axis=1)[:, 0], tag_B

  _, tags_LB = jax.lax.scan(back, (delta_BC + end_C).argmax(1), from_LBC, reverse=True)
  return jnp.where(mask_BL, tags_LB.T, 0).astype(jnp.int32)


def _parts(logits_BLC: jax.Array, table_SS: jax.Array) -> tuple:
  """Emissions, and the transitions from the beginning, between tags and to the end, in float32."""
  table_SS = table_SS.astype(jnp.float32)
  return logits_BLC.astype(jnp.float32), table_SS[-1, :-1], table_SS[:-1, :-1], table_SS[:-1, -1]


def _begin(logits_BLC: jax.Array) -> tuple:
  """The state in front of a row, made of the emissions so that it is sharded as they are."""
  return jnp.zeros_like(logits_BLC[:, 0]), jnp.zeros_like(logits_BLC[:, 0, 0], bool)


def _by_token(*arrays: jax.Array) -> tuple:
  """Arrays [B, L, ...] as [L, B, ...]."""
  return tuple(jnp.moveaxis(x, 1, 0) for x in arrays)


def _first(mask_BL: jax.Array, segments_BL: jax.Array | None) -> jax.Array:
  """Where a sequence begins: at the first tagged token of a row or, with segments, which rise along it, of each."""
  own_BL = jnp.where(mask_BL, 1 if segments_BL is None else segments_BL, 0)
  seen_BL = jax.lax.cummax(own_BL, axis=1)
  return mask_BL & (own_BL > jnp.pad(seen_BL[:, :-1], ((0, 0), (1, 0))))
