"""Which tokens a masked language model has to guess, and what it sees in their place.

As BERT was pretrained (Devlin et al. 2019, section 3.1): a share of the words is chosen, each of their tokens becomes
the mask token, or a random one, or stays. Words are masked whole (Cui et al. 2021; the later BERT models): all tokens
of a word are chosen or none. What is random comes in as bits, so masks are a function of whatever these are made of.

Shape letters: any axes, the last of which are tokens in their order.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from ftlib.base.rng import mix

SPECIAL, FIRST, LATER = 0, 1, 2  # of a token: never masked; begins a word; goes on with one


def chosen(words: jax.Array, bits: jax.Array, rate: float | np.ndarray) -> jax.Array:
  """Booleans: the tokens of words chosen with probability `rate`, each by the uint32 `bits` of its first token.

  `words`: SPECIAL, FIRST or LATER of every token; before the first LATER of a document stands a FIRST.
  `rate` may be of each token, the same in a word.
  """
  axis = words.ndim - 1
  at = jax.lax.broadcasted_iota(jnp.int32, words.shape, axis)
  first = jax.lax.cummax(jnp.where(words == FIRST, at, 0), axis=axis)
  return jnp.take_along_axis(share(bits) <= rate, first, axis=axis) & (words != SPECIAL)


def replaced(
  tokens: jax.Array,
  hidden: jax.Array,
  bits: jax.Array,
  *,
  mask: jax.Array,
  vocabulary: jax.Array,
  keep: float,
  random: float,
) -> jax.Array:
  """The tokens with those that are `hidden` changed: `keep` of them stay, `random` become any of the ids from 0 to
  `vocabulary` - 1, the rest `mask`; by uint32 `bits` of each token."""
  part = share(bits)
  other = (mix(mix(bits)) % vocabulary).astype(jnp.int32)
  seen = jnp.where(part < keep, tokens, jnp.where(part < keep + random, other, mask))
  return jnp.where(hidden, seen, tokens)


def share(bits: jax.Array) -> jax.Array:
  """uint32 bits as float32 numbers from 0 up to 1."""
  return (bits >> 8).astype(jnp.float32) * np.float32(2**-24)
