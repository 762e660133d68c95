"""Cross-entropy of masked tokens (Devlin et al. 2019), which are drawn anew in every step.

What a step masks follows from its key, the row's number in the batch and the position (`ftlib/base/rng.py`): epochs
differ, and a resumed run, micro-batches, more padding and any mesh do not. Without a key (in evaluation) the masks are
those that the batch came with, the same for ever. Logits are computed at masked positions alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ftlib.base import masking, rng
from ftlib.base.errors import InputError
from ftlib.base.settings import setting
from ftlib.base.types import Batch, Sums
from ftlib.objectives.vocabulary import nll_sum, picked

ROWWISE = True  # a row's loss follows from the row alone


@dataclasses.dataclass(frozen=True)
class Config:
  """`rate`: the share of words that is masked in training. Of their tokens the share `keep` is shown as it is, `random`
  as any other, the rest as the mask token. `chunk`: about how many masked positions have their logits over the
  vocabulary in memory at once."""

  rate: float = setting(0.15, above=0, below=1)
  keep: float = setting(0.1, low=0, high=1)
  random: float = setting(0.1, low=0, high=1)
  chunk: int = setting(1024, low=1)

  def __post_init__(self):
    if self.keep + self.random > 1:
      raise ValueError(
        f'keep={self.keep} and random={self.random} are shares of the same tokens; they sum to 1 at most'
      )


def build(config: Config, *, labels: list, counts: np.ndarray) -> Callable[..., Sums]:
  """The objective; raises `InputError` for a task with labels."""
  if labels:
    raise InputError('objective.name=masked is for plain text (task.name=mask); this task has labels')

  def objective(apply, batch: Batch, key: jax.Array | None) -> Sums:
    """Sums over the masked tokens of a batch as `ftlib/tasks/mask.py` makes it."""
    if 'words' not in batch:
      raise InputError('objective.name=masked needs to know which tokens are words: task.name=mask tells it')
    count = 0
    if key is not None:
      batch, count = drawn(batch, rng.key_for(key, 'masks'), config), room(batch['words'].shape[1], config.rate)
    outputs = apply(batch, key)
    weights_BK, hidden_BKD, targets_BK = picked(batch['weights'], outputs.hidden, batch['targets'], count=count)
    loss, correct = nll_sum(outputs.unembed, hidden_BKD, targets_BK, weights_BK, chunk=config.chunk)
    total = weights_BK.sum()
    return {'loss': (loss, total), 'accuracy': (correct, total)}

  return objective


def drawn(batch: Batch, key: jax.Array, config: Config) -> Batch:
  """The batch with masks drawn by a key: other `tokens`, and `weights` that are 1 at masked ones.

  `words` [B, L] as `ftlib/base/masking.py` has them, `targets` [B, L] the tokens as they were, `mask_token` and
  `vocabulary` [B].
  """
  words_BL, text_BL = batch['words'], batch['targets']
  stream = rng.Stream.start(key, batch['rows'])
  hidden_BL = masking.chosen(words_BL, stream.at('words').bits(words_BL.shape), config.rate)
  hidden_BL &= jnp.cumsum(hidden_BL, axis=1) <= room(words_BL.shape[1], config.rate)
  bits_BL = stream.at('tokens').bits(words_BL.shape)
  mask_B1, vocabulary_B1 = batch['mask_token'][:, None], batch['vocabulary'][:, None].astype(jnp.uint32)
  shares = {'keep': config.keep, 'random': config.random}
  seen_BL = masking.replaced(
    text_BL, hidden_BL, bits_BL, mask=mask_B1, vocabulary=jnp.maximum(vocabulary_B1, 1), **shares
  )
  tokens_BL = jnp.where(words_BL == masking.SPECIAL, batch['tokens'], seen_BL)
  return {**batch, 'tokens': tokens_BL, 'weights': hidden_BL.astype(jnp.float32)}


def room(length: int, rate: float) -> int:
  """How many tokens of a row are masked at most: four deviations more than on average, and some for long words."""
  return min(length, math.ceil(rate * length + 4 * math.sqrt(rate * length) + 4))
