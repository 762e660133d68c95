"""Rows that grow by a token at a time: prompts read at once, then a compiled loop until every row has ended.

Prompts are padded on the right. The slots of a cache that hold padding are of segment 0, which no token sees, and a
row's own tokens go on at its own positions, so a row's text does not depend on those beside it.

Shape letters: B rows, P slots of prompts, N tokens to come, V vocabulary, D embed.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ftlib.base.types import Params
from ftlib.generation import sampling
from ftlib.generation.sampling import Sampling
from ftlib.models.cache import Cache
from ftlib.models.model import Model


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
  """`tokens_BN` int32: what has been generated, `count_B` of each row; `last_B` is the newest, `length_B` its position
  (virtual tokens not counted). `rows_B`: the numbers that draws follow from. `seen_BV` bool: tokens that a row holds,
  where repetition is penalised."""

  cache: Cache
  tokens_BN: jax.Array
  last_B: jax.Array
  length_B: jax.Array
  count_B: jax.Array
  done_B: jax.Array
  rows_B: jax.Array
  seen_BV: jax.Array | None
  step: jax.Array
  key: jax.Array


@dataclasses.dataclass(frozen=True)
class Decoder:
  """The two functions that are compiled. `new`: the most tokens that a row gets; `eos`: ids that end it; `virtual`:
  tokens that the method puts before a row; `fill`: what stands behind the end."""

  model: Model
  sampling: Sampling
  new: int
  eos: tuple[int, ...]
  virtual: int = 0
  fill: int = 0

  def start(
    self, params: Params, tokens_BP: jax.Array, length_B: jax.Array, rows_B: jax.Array, key: jax.Array
  ) -> State:
    """The state after the prompts and one token. A row of length 0 is padding, and done."""
    real_BP = prompts(tokens_BP, length_B)['segments'] > 0
    last_BD, unembed, cache = read(self.model, params, tokens_BP, length_B, slots=self.new - 1 + self.virtual)
    rows, zero = tokens_BP.shape[0], jnp.zeros((), jnp.int32)
    logits_BV = unembed(last_BD)
    seen_BV = seen(tokens_BP, real_BP, logits_BV.shape[-1]) if self.sampling.repetition_penalty != 1 else None
    state = State(
      cache=cache,
      tokens_BN=jnp.full((rows, self.new), self.fill, jnp.int32),
      last_B=jnp.zeros(rows, jnp.int32),
      length_B=length_B - 1,
      count_B=jnp.zeros(rows, jnp.int32),
      done_B=length_B == 0,
      rows_B=rows_B,
      seen_BV=seen_BV,
      step=zero,
      key=key,
    )
    return self._grown(state, logits_BV)

  def advance(self, params: Params, state: State, limit: jax.Array) -> State:
    """The state after further tokens: until there are `limit` of them, or every row is done."""

    def one(s: State) -> State:
      hidden_BD, unembed, cache = step(self.model, params, s.last_B, s.length_B, s.cache)
      return self._grown(dataclasses.replace(s, cache=cache), unembed(hidden_BD))

    return jax.lax.while_loop(lambda s: (s.step < limit) & ~s.done_B.all(), one, state)

  def _grown(self, s: State, logits_BV: jax.Array) -> State:
    if s.seen_BV is not None:
      logits_BV = sampling.penalised(logits_BV, s.seen_BV, self.sampling.repetition_penalty)
    token_B = sampling.choose(logits_BV, self.sampling, s.key, s.rows_B, s.step)
    token_B = jnp.where(s.done_B, self.fill, token_B)
    count_B = s.count_B + ~s.done_B
    return dataclasses.replace(
      s,
      tokens_BN=jax.lax.dynamic_update_slice(s.tokens_BN, token_B[:, None], (0, s.step)),
      last_B=token_B,
      length_B=s.length_B + 1,
      count_B=count_B,
      done_B=s.done_B | ends(token_B, self.eos) | (count_B >= self.new),
      seen_BV=None if s.seen_BV is None else s.seen_BV.at[jnp.arange(len(token_B)), token_B].set(True),
      step=s.step + 1,
    )


def prompts(tokens_BP: jax.Array, length_B: jax.Array) -> dict[str, jax.Array]:
  """The model's inputs of prompts padded on the right."""
  positions_BP = jnp.broadcast_to(jnp.arange(tokens_BP.shape[1], dtype=jnp.int32), tokens_BP.shape)
  segments_BP = (positions_BP < length_B[:, None]).astype(jnp.int32)
  return {'tokens': tokens_BP, 'positions': positions_BP, 'segments': segments_BP}


def read(model: Model, params: Params, tokens_BP: jax.Array, length_B: jax.Array, *, slots: int) -> tuple[Any, ...]:
  """(hidden state of each prompt's last token [B, D], what makes logits of it, the cache with `slots` left)."""
  cache = model.cache(params, rows=tokens_BP.shape[0], slots=tokens_BP.shape[1] + slots)
  outputs, cache = model.decode(params, prompts(tokens_BP, length_B), cache, first=True)
  last_B11 = jnp.maximum(length_B - 1, 0)[:, None, None]
  return jnp.take_along_axis(outputs.hidden, last_B11, axis=1)[:, 0], outputs.unembed, cache


def step(model: Model, params: Params, token_B: jax.Array, position_B: jax.Array, cache: Cache) -> tuple[Any, ...]:
  """(hidden state of a further token of each row [B, D], what makes logits of it, the cache with it)."""
  inputs = {'tokens': token_B[:, None], 'positions': position_B[:, None]}
  inputs['segments'] = jnp.ones_like(inputs['tokens'])
  outputs, cache = model.decode(params, inputs, cache, first=False)
  return outputs.hidden[:, 0], outputs.unembed, cache


def seen(tokens_BP: jax.Array, real_BP: jax.Array, vocab: int) -> jax.Array:
  """Which tokens the prompts hold, bool [B, V]."""
  rows_B1 = jnp.arange(len(tokens_BP))[:, None]
  return jnp.zeros((len(tokens_BP), vocab), bool).at[rows_B1, tokens_BP].max(real_BP)


def ends(token: jax.Array, eos: tuple[int, ...]) -> jax.Array:
  """Whether tokens (of any shape) end their rows."""
  return jnp.isin(token, jnp.asarray(eos, jnp.int32)) if eos else jnp.zeros(token.shape, bool)
