"""Next-token cross-entropy over the tokens that are supervised (`weights`), logits never held whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from ftlib.base.settings import setting
from ftlib.base.types import Batch, Sums
from ftlib.objectives.vocabulary import nll_sum


@dataclasses.dataclass(frozen=True)
class Config:
  """`chunk`: about how many positions of the batch have their logits over the vocabulary in memory at once."""

  chunk: int = setting(1024, low=1)
  label_smoothing: float = setting(0.0, low=0, below=1)


def build(config: Config, *, labels: list, counts: np.ndarray) -> Callable:
  """The objective; labels and their counts are of no use to it."""

  def objective(apply, batch: Batch, key: jax.Array | None) -> Sums:
    """Sums of the loss and of correct tokens over `targets` int [B, L] and `weights` [B, L]."""
    outputs = apply(batch, key)
    weights_BL = batch['weights']
    options = {'chunk': config.chunk, 'smoothing': config.label_smoothing}
    loss, correct = nll_sum(outputs.unembed, outputs.hidden, batch['targets'], weights_BL, **options)
    total = weights_BL.sum()
    return {'loss': (loss, total), 'accuracy': (correct, total)}

  return objective
