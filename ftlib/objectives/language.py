"""Next-token cross-entropy over the tokens that are supervised (`weights`), logits never held whole; with
label smoothing and R-Drop (`objective.py`)."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from ftlib.base.settings import setting
from ftlib.base.types import Batch, Outputs, Sums
from ftlib.objectives.objective import Objective
from ftlib.objectives.vocabulary import divergence_sum, nll_sum

ROWWISE = True  # a row's loss follows from the row alone


@dataclasses.dataclass(frozen=True)
class Config:
  """`chunk`: about how many positions of the batch have their logits over the vocabulary in memory at once.
  `r_drop`: weight of R-Drop."""

  chunk: int = setting(1024, low=1)
  label_smoothing: float = setting(0.0, low=0, below=1)
  r_drop: float = setting(0.0, low=0)


def build(config: Config, *, labels: list, counts: np.ndarray) -> Objective:
  """The objective; labels and their counts are of no use to it."""

  def sums(outputs: Outputs, batch: Batch) -> Sums:
    """Sums of the loss and of correct tokens over `targets` int [B, L] and `weights` [B, L]."""
    weights_BL = batch['weights']
    options = {'chunk': config.chunk, 'smoothing': config.label_smoothing}
    loss, correct = nll_sum(outputs.unembed, outputs.hidden, batch['targets'], weights_BL, **options)
    total = weights_BL.sum()
    return {'loss': (loss, total), 'accuracy': (correct, total)}

  def divergence(outputs: Outputs, others: Outputs, batch: Batch) -> jax.Array:
    """The sum of the mean divergence of the two distributions of each token that is supervised."""
    return divergence_sum(outputs, others, batch['weights'], chunk=config.chunk)

  return Objective(sums, divergence, config.r_drop)
