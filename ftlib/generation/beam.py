"""Beam search: of each row the `beams` likeliest beginnings, and of those that have ended the best by mean score.

The score of an ended beam is its log-probability over its length to the power of `length_penalty` (Wu et al. 2016,
without their constant). What is kept, and when a row may stop, follows Hugging Face's rules, of which there are three:
`early_stopping` True, as soon as `beams` of them have ended; False, when the best running beam, at its present length,
is worse than the worst ended one; 'never', the same at the length most to its favour.

Shape letters: B rows, K beams, J candidates, N tokens to come, P slots of prompts, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ftlib.base.types import Params
from ftlib.generation import sampling
from ftlib.generation.decode import ends, prompts, read, seen, step
from ftlib.models.cache import Cache
from ftlib.models.model import Model

_NEVER = -1e9  # the score of what is not there


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Running:
  """Beams that go on, best first: tokens [B, K, N], sums of log-probabilities [B, K], tokens held [B, K, V]."""

  tokens_BKN: jax.Array
  score_BK: jax.Array
  seen_BKV: jax.Array | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Ended:
  """Beams that have ended, best first: tokens, scores over length, lengths; `there_BK` is false where there is none."""

  tokens_BKN: jax.Array
  score_BK: jax.Array
  length_BK: jax.Array
  there_BK: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
  """`open_B`: rows that can become better; `step`: the tokens that running beams have."""

  cache: Cache
  running: Running
  ended: Ended
  length_B: jax.Array
  open_B: jax.Array
  step: jax.Array


@dataclasses.dataclass(frozen=True)
class Beams:
  """The search, compiled once for a shape. `penalty` is of repetition; the rest as in `settings.py` here."""

  model: Model
  beams: int
  new: int
  eos: tuple[int, ...]
  length_penalty: float = 1.0
  early_stopping: bool | str = False
  penalty: float = 1.0
  virtual: int = 0
  fill: int = 0

  def search(self, params: Params, tokens_BP: jax.Array, length_B: jax.Array) -> Ended:
    """The ended beams of every row. A row of length 0 is padding."""
    rows, beams = len(tokens_BP), self.beams
    hidden_BD, unembed, cache = read(self.model, params, tokens_BP, length_B, slots=self.new - 1 + self.virtual)
    logits_BV = unembed(hidden_BD)
    wide = lambda x: jnp.repeat(x, beams, axis=0)  # noqa: E731
    held = None
    if self.penalty != 1:
      held_BV = seen(tokens_BP, prompts(tokens_BP, length_B)['segments'] > 0, logits_BV.shape[-1])
      held = jnp.broadcast_to(held_BV[:, None], (rows, beams, held_BV.shape[1]))
    empty_BKN = jnp.full((rows, beams, self.new), self.fill, jnp.int32)
    first_BK = jnp.broadcast_to(jnp.where(jnp.arange(beams) == 0, 0.0, _NEVER), (rows, beams))  # they are all alike yet
    none_BK = jnp.zeros((rows, beams), bool)
    state = State(
      cache=_each(wide, cache),
      running=Running(empty_BKN, first_BK, held),
      ended=Ended(empty_BKN, jnp.full((rows, beams), _NEVER), none_BK.astype(jnp.int32), none_BK),
      length_B=length_B,
      open_B=length_B > 0,
      step=jnp.zeros((), jnp.int32),
    )
    state = self._grown(state, jnp.broadcast_to(logits_BV[:, None], (rows, beams, logits_BV.shape[1])))

    def one(s: State) -> State:
      last_C = jax.lax.dynamic_index_in_dim(s.running.tokens_BKN, s.step - 1, axis=2, keepdims=False).reshape(-1)
      hidden_CD, unembed, cache = step(self.model, params, last_C, wide(s.length_B) + s.step - 1, s.cache)
      return self._grown(dataclasses.replace(s, cache=cache), unembed(hidden_CD).reshape(rows, beams, -1))

    def goes_on(s: State) -> jax.Array:
      full_B = s.ended.there_BK.all(1) if self.early_stopping is True else False
      return (s.step < self.new) & (s.open_B & ~jnp.asarray(full_B)).any()

    return jax.lax.while_loop(goes_on, one, state).ended

  def _grown(self, s: State, logits_BKV: jax.Array) -> State:
    """The state with the best candidates for the next token."""
    rows, beams, vocab = logits_BKV.shape
    scores_BKV = jax.nn.log_softmax(logits_BKV, axis=-1)
    if s.running.seen_BKV is not None:
      scores_BKV = sampling.penalised(scores_BKV, s.running.seen_BKV, self.penalty)
    scores_BKV += s.running.score_BK[..., None]
    many = min(max(2, 1 + len(self.eos)) * beams, beams * vocab)  # so that `beams` are left where others end
    score_BJ, index_BJ = jax.lax.top_k(scores_BKV.reshape(rows, -1), many)
    parent_BJ, token_BJ = index_BJ // vocab, (index_BJ % vocab).astype(jnp.int32)
    tokens_BJN = jax.lax.dynamic_update_slice(
      _pick(s.running.tokens_BKN, parent_BJ), token_BJ[..., None], (0, 0, s.step)
    )
    over_BJ = ends(token_BJ, self.eos) | (s.step + 1 >= self.new)

    score_BK, best_BK = jax.lax.top_k(score_BJ + jnp.where(over_BJ, _NEVER, 0.0), beams)
    parent_BK, token_BK = _pick(parent_BJ, best_BK), _pick(token_BJ, best_BK)
    flat_C = (parent_BK + jnp.arange(rows)[:, None] * beams).reshape(-1)
    held = s.running.seen_BKV
    if held is not None:
      at = jnp.arange(rows)[:, None], jnp.arange(beams)[None], token_BK
      held = _pick(held, parent_BK).at[at].set(True)
    running = Running(_pick(tokens_BJN, best_BK), score_BK, held)

    ended = self._ended(s, tokens_BJN, score_BJ, over_BJ)
    s = dataclasses.replace(s, running=running, ended=ended, step=s.step + 1, cache=_each(lambda x: x[flat_C], s.cache))
    return dataclasses.replace(s, open_B=s.open_B & self._may_improve(s))

  def _ended(self, s: State, tokens_BJN: jax.Array, score_BJ: jax.Array, over_BJ: jax.Array) -> Ended:
    """The best of the beams that had ended and those that end now, among the first `beams` candidates."""
    over_BJ &= (jnp.arange(over_BJ.shape[1]) < self.beams) & s.open_B[:, None]
    if self.early_stopping is True:
      over_BJ &= ~s.ended.there_BK.all(1, keepdims=True)
    length = s.step + 1
    score_BJ = jnp.where(over_BJ, score_BJ / length.astype(jnp.float32) ** self.length_penalty, 2 * _NEVER)
    both = lambda old, new: jnp.concatenate([old, new], axis=1)  # noqa: E731
    score_BK, best_BK = jax.lax.top_k(both(s.ended.score_BK, score_BJ), self.beams)
    return Ended(
      _pick(both(s.ended.tokens_BKN, tokens_BJN), best_BK),
      score_BK,
      _pick(both(s.ended.length_BK, jnp.full(over_BJ.shape, length)), best_BK),
      _pick(both(s.ended.there_BK, over_BJ), best_BK),
    )

  def _may_improve(self, s: State) -> jax.Array:
    """Whether the best running beam may yet beat the worst that has ended, bool [B]."""
    favour = self.early_stopping == 'never' and self.length_penalty > 0
    length = jnp.float32(self.new) if favour else s.step.astype(jnp.float32)
    best_B = s.running.score_BK[:, 0] / length**self.length_penalty
    worst_B = jnp.where(s.ended.there_BK.all(1), s.ended.score_BK.min(1), _NEVER)
    return best_B > worst_B


def _pick(x_BJ: jax.Array, index_BK: jax.Array) -> jax.Array:
  """Entries of axis 1, of arrays with whatever axes behind."""
  return jax.vmap(lambda x, i: x[i])(x_BJ, index_BK)


def _each(fn: Any, cache: Cache) -> Cache:
  """A function of rows on axis 0 applied to all that a cache holds by row."""
  layers = jax.tree.map(lambda x: fn(x.swapaxes(0, 1)).swapaxes(0, 1), cache.layers)
  return dataclasses.replace(cache, layers=layers, positions=fn(cache.positions), segments=fn(cache.segments))
