"""Cross-entropy of where an answer starts and ends, over the tokens that may be its own; label smoothing and R-Drop.

A window's loss is the mean of `-log p_start[s]` and `-log p_end[e]` (Devlin et al. 2019, section 4.2), each a softmax
over the tokens of the context and the one that stands for "no answer here", to which windows without the answer point.
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

ROWWISE = True  # a window's loss follows from the window alone
_NEVER = -1e30  # the logit of a token that is no candidate


@dataclasses.dataclass(frozen=True)
class Config:
  """`label_smoothing`: the share of the target that is dealt out over all candidates. `r_drop`: weight of R-Drop."""

  label_smoothing: float = setting(0.0, low=0, below=1)
  r_drop: float = setting(0.0, low=0)


def build(config: Config, *, labels: list, counts: np.ndarray) -> Objective:
  """The objective; raises `InputError` for a task with labels."""
  if labels:
    raise InputError('objective.name=span is for answers in a text (task.name=extract); this task has labels')
  smoothing = config.label_smoothing

  def sums(outputs: Outputs, batch: Batch) -> Sums:
    """Sums over windows of the loss, and of those with both ends right, over `starts, ends` int [B], `candidates`
    [B, L] (0: no candidate) and `weights` float [B]."""
    logits_B2L = masked(outputs, batch)
    logp_B2L = jax.nn.log_softmax(logits_B2L)
    targets_B2 = jnp.stack([batch['starts'], batch['ends']], axis=1)
    nll_B2 = -jnp.take_along_axis(logp_B2L, targets_B2[..., None], axis=2)[..., 0]
    if smoothing:
      own_B1L = (batch['candidates'] > 0)[:, None]
      mean_B2 = -jnp.where(own_B1L, logp_B2L, 0).sum(2) / jnp.maximum(own_B1L.sum(2), 1)
      nll_B2 = (1 - smoothing) * nll_B2 + smoothing * mean_B2
    right_B = (logits_B2L.argmax(2) == targets_B2).all(1)
    weights_B = batch['weights']
    total = weights_B.sum()
    return {
      'loss': (jnp.where(weights_B > 0, nll_B2.mean(1) * weights_B, 0).sum(), total),
      'window_accuracy': ((right_B * weights_B).sum(), total),
    }

  def divergence(outputs: Outputs, others: Outputs, batch: Batch) -> jax.Array:
    """The sum over windows of the mean divergence of both pairs of distributions."""
    apart_B2 = symmetric_kl(masked(outputs, batch), masked(others, batch))
    return jnp.where(batch['weights'] > 0, apart_B2.mean(1) * batch['weights'], 0).sum()

  return Objective(sums, divergence, config.r_drop)


def masked(outputs: Outputs, batch: Batch) -> jax.Array:
  """Logits of start and end, float32 [B, 2, L], of candidates alone."""
  logits_B2L = outputs.logits.astype(jnp.float32).swapaxes(1, 2)
  return jnp.where((batch['candidates'] > 0)[:, None], logits_B2L, _NEVER)
