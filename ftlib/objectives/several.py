"""The losses of several tasks over one row of logits, of which each task has its own stretch: cross-entropy over its
classes, the mean of the binary cross-entropies of its labels, or the squared error of its score. A row counts for its
own task alone; all rows weigh the same, but for `weights` of tasks (Liu et al. 2019, MT-DNN, with tasks mixed within a
batch)."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ftlib.base import label_weights
from ftlib.base.errors import InputError
from ftlib.base.types import Batch, Sums

ROWWISE = True  # a row's loss follows from the row alone
CLASS, LABEL = (
  '/',
  '+',
)  # between a part's name and one of its classes, of which a row has one, or labels, which stand alone


@dataclasses.dataclass(frozen=True)
class Config:
  """`weights`: how much the rows of a part count, 'part=weight,part=weight', 1 for those that are not named. `prior`:
  whether the bias of a new head starts at the best answer that is the same for all rows (`constant.py`), or at 0."""

  weights: str = ''
  prior: bool = True


class Part(NamedTuple):
  """Which of all logits are a part's, and what they are: `CLASS`, `LABEL`, or '' for one score."""

  name: str
  start: int
  stop: int
  kind: str


def split(label: str) -> tuple[str, str, str]:
  """(part, kind, its own label) of a label of the list; a part's name is of letters, digits, '_', '.' and '-'."""
  name = re.match(r'[\w.-]+', label)[0]
  return name, label[len(name) : len(name) + 1], label[len(name) + 1 :]


def parts(labels: list[str]) -> list[Part]:
  """The parts that a label list is of: 'part/class' or 'part+label', one behind another, or 'part' for a score."""
  out, at = [], 0
  for (name, kind), members in itertools.groupby(labels, lambda label: split(label)[:2]):
    own = [*members]
    out.append(Part(name, at, at + len(own), kind))
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
    """Sums over a batch with `part` int [B], `answers` float [B, C], of a part's classes or labels 1 for the right
    ones, and `weights` float [B]."""
    logits_BC, rows_B = apply(batch, key).logits.astype(jnp.float32), batch['weights']
    loss_B = jnp.zeros_like(rows_B)
    for k, part in enumerate(found):
      own_BC, right_BC = (x[:, part.start : part.stop] for x in (logits_BC, batch['answers']))
      if part.kind == LABEL:
        of_part_B = -(right_BC * jax.nn.log_sigmoid(own_BC) + (1 - right_BC) * jax.nn.log_sigmoid(-own_BC)).mean(1)
      elif part.kind == CLASS:
        of_part_B = -(right_BC * jax.nn.log_softmax(own_BC)).sum(1)
      else:
        of_part_B = ((own_BC - right_BC) ** 2)[:, 0]
      loss_B = jnp.where(batch['part'] == k, of_part_B, loss_B)
    counted_B = rows_B * weights_P[batch['part']].astype(jnp.float32)
    return {'loss': (jnp.where(counted_B > 0, loss_B * counted_B, 0).sum(), counted_B.sum())}

  return objective
