"""Squared error of a score, or Huber's loss, with R-Drop (`objective.py`).

`mse` is PyTorch's `MSELoss` (what transformers trains `num_labels=1` with), (y - t)^2; `huber` its `HuberLoss`:
(y - t)^2 / 2 up to |y - t| = delta and delta (|y - t| - delta / 2) beyond (Huber 1964), which outliers move less.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ftlib.base.errors import InputError
from ftlib.base.settings import setting
from ftlib.base.types import Batch, Outputs, Sums
from ftlib.objectives.objective import Objective

ROWWISE = True  # a row's loss follows from the row alone


@dataclasses.dataclass(frozen=True)
class Config:
  """`loss`: 'mse' or 'huber', which is quadratic up to errors of `delta`, in the units of the scores. `r_drop`:
  weight of R-Drop. `prior`: whether the bias of a new head starts at the best score that is the same for all rows, the
  mean of squared errors (`constant.py`), or at 0."""

  loss: str = setting('mse', choices=('mse', 'huber'))
  delta: float = setting(1.0, above=0)
  r_drop: float = setting(0.0, low=0)
  prior: bool = True


def build(config: Config, *, labels: list, counts: np.ndarray) -> Objective:
  """The objective for one logit a row against a score; raises `InputError` for a task with a list of labels."""
  if labels:
    raise InputError('objective.name=regression is for tasks whose labels are scores; this one has a list of labels')
  delta = config.delta

  def sums(outputs: Outputs, batch: Batch) -> Sums:
    """Sums of the loss and of the absolute error over a batch with `labels` float [B] and `weights` float [B]."""
    rows_B = batch['weights']
    error_B = outputs.logits[:, 0].astype(jnp.float32) - batch['labels']
    error_B = jnp.where(rows_B > 0, error_B, 0)  # of padding it may be infinite
    size_B = jnp.abs(error_B)
    if config.loss == 'mse':
      loss_B = error_B**2
    else:
      loss_B = jnp.where(size_B <= delta, error_B**2 / 2, delta * (size_B - delta / 2))
    return {'loss': ((loss_B * rows_B).sum(), rows_B.sum()), 'mae': ((size_B * rows_B).sum(), rows_B.sum())}

  def divergence(outputs: Outputs, others: Outputs, batch: Batch) -> jax.Array:
    """The sum of the squared differences of two scores of each row."""
    rows_B = batch['weights']
    apart_B = outputs.logits[:, 0].astype(jnp.float32) - others.logits[:, 0].astype(jnp.float32)
    return (jnp.where(rows_B > 0, apart_B, 0) ** 2 * rows_B).sum()

  return Objective(sums, divergence, config.r_drop)
