"""The losses of several tasks over one row of logits, of which each task has its own stretch: cross-entropy over its
classes, or the squared error of its score. A row counts for its own task alone; all rows weigh the same, but for
`weights` of tasks (Liu et al. 2019, MT-DNN, with tasks mixed within a batch)."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ftlib.base import label_weights
from ftlib.base.errors import InputError
from ftlib.base.types import Batch, Sums

ROWWISE = True  # a row's loss follows from the row alone


@dataclasses.dataclass(frozen=True)
class Config:
  """`weights`: how much the rows of a part count, 'part=weight,part=weight', 1 for those that are not named."""

  weights: str = ''


class Part(NamedTuple):
  """Which of all logits are a part's, and whether they are classes (or one score)."""

  name: str
  start: int
  stop: int
  classes: bool


def parts(labels: list[str]) -> list[Part]:
  """The parts that a label list is of: 'part/class', one behind another, or 'part' alone for a score."""
  out, at = [], 0
  for name, members in itertools.groupby(labels, lambda label: label.partition('/')[0]):
    own = [*members]
    out.append(Part(name, at, at + len(own), '/' in own[0]))
    at += len(own)
  return out


def build(config: Config, *, labels: list, counts: np.ndarray) -> Callable[..., Sums]:
  """The objective. Raises `InputError` for a task without parts, and weights of unknown ones."""
  if not labels:
    raise InputError(
      'objective.name=several is for several tasks at once (task.name=several), and this one has no parts'
    )
  found = parts(labels)
  weights_P = jnp.asarray(label_weights.given(config.weights, [p.name for p in found], field='objective.weights'))

  def objective(apply, batch: Batch, key: jax.Array | None) -> Sums:
    """Sums over a batch with `part` int [B], `answers` float [B, C], of a part's classes 1 for the right one, and
    `weights` float [B]."""
    logits_BC, rows_B = apply(batch, key).logits.astype(jnp.float32), batch['weights']
    loss_B = jnp.zeros_like(rows_B)
    for k, part in enumerate(found):
      own_BC, right_BC = (x[:, part.start : part.stop] for x in (logits_BC, batch['answers']))
      if part.classes:
        of_part_B = -(right_BC * jax.nn.log_softmax(own_BC)).sum(1)
      else:
        of_part_B = ((own_BC - right_BC) ** 2)[:, 0]
      loss_B = jnp.where(batch['part'] == k, of_part_B, loss_B)
    counted_B = rows_B * weights_P[batch['part']].astype(jnp.float32)
    return {'loss': (jnp.where(counted_B > 0, loss_B * counted_B, 0).sum(), counted_B.sum())}

  return objective
