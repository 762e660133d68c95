"""Texts that belong together against all others of the batch (in-batch negatives): InfoNCE over cosines.

With u for a row's text and v for the one that belongs to it, as vectors of length 1, the loss of row i is
-log(exp(u_i v_i / t) / (sum_j exp(u_i v_j / t) + sum_j exp(u_i n_j / t))) over all rows j of the batch (van den Oord et
al. 2018, equation 4; Henderson et al. 2017 for sentences), n_j being hard negatives where rows have them (Gao et al.
2021, equation 5). `symmetric` is the mean of that and of the same from v to u, without hard negatives (CLIP: Radford et
al. 2021). A text that stands in several rows of the batch is no negative of what it belongs to.

The rows of a batch are compared with each other, over all devices; a step in micro-batches would compare fewer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ftlib.base.errors import InputError
from ftlib.base.settings import setting
from ftlib.base.types import Batch, Sums
from ftlib.objectives.cosine import unit

COUPLED = True  # the loss of a row depends on the others of its batch
_NEVER = -1e9  # the logit of what is no candidate


@dataclasses.dataclass(frozen=True)
class Config:
  """`temperature`: t; smaller ones look at the nearest negatives alone. `symmetric`: both directions count."""

  temperature: float = setting(0.05, above=0)
  symmetric: bool = True


def build(config: Config, *, labels: list, counts: np.ndarray) -> Callable[..., Sums]:
  """The objective; raises `InputError` for a task with labels."""
  if labels:
    raise InputError(
      'objective.name=contrastive is for pairs that belong together (task.name=retrieve), not for labels'
    )

  def objective(apply, batch: Batch, key: jax.Array | None) -> Sums:
    """Sums over a batch of rows of two documents, or three, with `texts` int [B, S], the same number for the same text,
    and `weights` [B] (0: padding, which is no candidate)."""
    if 'texts' not in batch:
      raise InputError('objective.name=contrastive is for texts that belong together: task.name=retrieve makes them')
    unit_BSD, texts_BS, rows_B = unit(apply(batch, key).pooled), batch['texts'], batch['weights']
    logits = [_logits(unit_BSD, texts_BS, d) / config.temperature for d in range(1, texts_BS.shape[1])]
    real_B = rows_B > 0
    nll_B, correct_B = _guessed(jnp.where(jnp.tile(real_B, len(logits)), jnp.concatenate(logits, axis=1), _NEVER))
    if config.symmetric:
      nll_B = (nll_B + _guessed(jnp.where(real_B, logits[0].T, _NEVER))[0]) / 2
    total = rows_B.sum()
    return {
      'loss': (jnp.where(real_B, nll_B * rows_B, 0).sum(), total),
      'batch_accuracy': ((correct_B * rows_B).sum(), total),
    }

  return objective


def _logits(unit_BSD: jax.Array, texts_BS: jax.Array, d: int) -> jax.Array:
  """The cosines [B, B] of every row's text with every row's document d; far below for right answers of other rows."""
  cosine_BB = jnp.einsum('id,jd->ij', unit_BSD[:, 0], unit_BSD[:, d], precision='highest')
  right_BB = texts_BS[:, 1, None] == texts_BS[:, d]
  if d == 1:
    right_BB |= texts_BS[:, 0, None] == texts_BS[:, 0]  # what belongs to a text belongs to the same text elsewhere
    right_BB &= ~jnp.eye(len(texts_BS), dtype=bool)
  return jnp.where(right_BB, _NEVER, cosine_BB)


def _guessed(logits_BC: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(-log p, whether it is the likeliest) of column i in row i, float32 [B]."""
  own_B = jnp.diagonal(logits_BC)
  right_B = logits_BC.argmax(-1) == jnp.arange(len(logits_BC))
  return jax.nn.logsumexp(logits_BC, axis=-1) - own_B, right_B.astype(jnp.float32)
