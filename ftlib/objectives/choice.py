"""Cross-entropy over the options of a question, which may be fewer in one row than in another, with label smoothing and
R-Drop.

An option is a document of the row. Its score is the logit of a head over it (`ftlib/tasks/multiple_choice.py`) or, of
a language model without one, the log-probability of its tokens, maybe by token or character (`ftlib/tasks/score.py`).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ftlib.base.errors import InputError
from ftlib.base.settings import setting
from ftlib.base.types import Batch, Outputs, Sums
from ftlib.objectives.objective import Objective, symmetric_kl
from ftlib.objectives.preference import log_probs

ROWWISE = True  # a row's loss follows from the row alone
_NEVER = -1e30  # the score of an option that a row has not


@dataclasses.dataclass(frozen=True)
class Config:
  """`label_smoothing`: the share of the target that is dealt out over a row's options. `r_drop`: weight of R-Drop.
  `chunk`: of a language model, positions whose logits are held at once."""

  label_smoothing: float = setting(0.0, low=0, below=1)
  r_drop: float = setting(0.0, low=0)
  chunk: int = setting(1024, low=1)


def build(config: Config, *, labels: list, counts: np.ndarray) -> Objective:
  """The objective; labels and their counts are of no use to it."""
  smoothing = config.label_smoothing

  def sums(outputs: Outputs, batch: Batch) -> Sums:
    """Sums over rows: `labels` int [B], the number of the right option, and `asked` float [B] (0: padding)."""
    scores_BK, there_BK = scores(outputs, batch, chunk=config.chunk)
    logp_BK = jax.nn.log_softmax(scores_BK)
    nll_B = -jnp.take_along_axis(logp_BK, batch['labels'][:, None], axis=1)[:, 0]
    mean_B = -jnp.where(there_BK, logp_BK, 0).sum(1) / jnp.maximum(there_BK.sum(1), 1)
    loss_B = (1 - smoothing) * nll_B + smoothing * mean_B
    right_B = scores_BK.argmax(1) == batch['labels']
    rows_B = batch['asked']
    total = rows_B.sum()
    return {
      'loss': (jnp.where(rows_B > 0, loss_B * rows_B, 0).sum(), total),
      'accuracy': ((right_B * rows_B).sum(), total),
    }

  def divergence(outputs: Outputs, others: Outputs, batch: Batch) -> jax.Array:
    """The sum of the mean divergence of each row's two distributions over its options."""
    ours, theirs = (scores(o, batch, chunk=config.chunk)[0] for o in (outputs, others))
    rows_B = batch['asked']
    return jnp.where(rows_B > 0, symmetric_kl(ours, theirs) * rows_B, 0).sum()

  return Objective(sums, divergence, config.r_drop)


def scores(outputs: Outputs, batch: Batch, *, chunk: int = 1024) -> tuple[jax.Array, jax.Array]:
  """(scores of the options, float32 [B, K], -1e30 of those that a row lacks; which it has, bool [B, K]).

  `batch['options']` float [B, K] is above 0 where there is an option: 1, or what the sum of its log-probabilities is
  divided by. Raises `InputError` for batches of other tasks.
  """
  if 'options' not in batch:
    raise InputError('objective.name=choice is for options: task.name=multiple_choice or score makes them')
  divisors_BK = batch['options']
  there_BK = divisors_BK > 0
  if outputs.logits is None:
    sums_BK, _ = log_probs(outputs, batch, documents=divisors_BK.shape[1], chunk=chunk)
  else:
    sums_BK = outputs.logits[..., 0].astype(jnp.float32)
  return jnp.where(there_BK, sums_BK / jnp.where(there_BK, divisors_BK, 1), _NEVER), there_BK
