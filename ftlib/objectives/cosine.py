"""Two texts whose vectors make an angle that says how alike they are: the squared error of its cosine, with R-Drop
(`objective.py`); what Sentence-BERT is fine-tuned with (Reimers & Gurevych 2019, section 3)."""

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
  """`r_drop`: weight of R-Drop."""

  r_drop: float = setting(0.0, low=0)


def build(config: Config, *, labels: list, counts: np.ndarray) -> Objective:
  """The objective; raises `InputError` for a task with a list of labels."""
  if labels:
    raise InputError(
      'objective.name=cosine is for pairs with a score (task.name=embed); this task has a list of labels'
    )

  def sums(outputs: Outputs, batch: Batch) -> Sums:
    """Sums of the squared and of the absolute error over a batch with `cosines` float [B] and `weights` float [B]."""
    if 'cosines' not in batch:
      raise InputError('objective.name=cosine is for two texts of a row and their score: task.name=embed makes them')
    rows_B = batch['weights']
    error_B = jnp.where(rows_B > 0, cosine(outputs.pooled) - batch['cosines'], 0)
    total = rows_B.sum()
    return {'loss': ((error_B**2 * rows_B).sum(), total), 'mae': ((jnp.abs(error_B) * rows_B).sum(), total)}

  def divergence(outputs: Outputs, others: Outputs, batch: Batch) -> jax.Array:
    """The sum of the squared differences of two cosines of each row."""
    rows_B = batch['weights']
    apart_B = jnp.where(rows_B > 0, cosine(outputs.pooled) - cosine(others.pooled), 0)
    return (apart_B**2 * rows_B).sum()

  return Objective(sums, divergence, config.r_drop)


def cosine(pooled_BSD: jax.Array) -> jax.Array:
  """The cosine of the angle between the first two vectors of each row, float32 [B]; 0 where one of them is 0."""
  unit_BSD = unit(pooled_BSD)
  return (unit_BSD[:, 0] * unit_BSD[:, 1]).sum(-1)


def unit(x_D: jax.Array) -> jax.Array:
  """Vectors [..., D] over their Euclidean norm, float32; 0 for 0, with a derivative of 0."""
  x_D = x_D.astype(jnp.float32)
  square = (x_D**2).sum(-1, keepdims=True)
  return jnp.where(square > 0, x_D * jax.lax.rsqrt(jnp.where(square > 0, square, 1)), 0)
