"""Binary cross-entropy of every label by itself, with positive weights, label smoothing, focal loss and R-Drop.

Equal to PyTorch's `BCEWithLogitsLoss(pos_weight=w)`: the mean over labels c, and over rows, of
`-w[c] y log p - (1 - y) log(1 - p)`. With smoothing s the target y is `(1 - s) y + s / 2` (Szegedy et al. 2016, over
the two classes of a label); with `focal_gamma` the two terms are multiplied by `(1 - p)^gamma` and `p^gamma` (Lin et
al. 2017, equation 4, with the sigmoid; their alpha is a positive weight). `r_drop` (`objective.py`) is over the
divergences of the Bernoulli distributions, of which a row's is the mean over its labels.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ftlib.base import label_weights
from ftlib.base.errors import InputError
from ftlib.base.settings import setting
from ftlib.base.types import Batch, Outputs, Sums
from ftlib.objectives.objective import Objective

ROWWISE = True  # a row's loss follows from the row alone


@dataclasses.dataclass(frozen=True)
class Config:
  """`pos_weight`: how much more a row that has a label counts for it than one that has not: '' (all 1), 'balanced'
  (rows without the label / rows with it), 'effective' (the same of effective numbers of rows, with `effective_beta`: 0
  is all 1, towards 1 it is 'balanced'), or 'label=weight,label=weight'. `focal_gamma`: how much less an answer counts
  the surer it is right (0: not at all). `r_drop`: weight of R-Drop. `prior`: whether the bias of a new
  head starts at the best answer that is the same for all rows (`constant.py`), or at 0."""

  pos_weight: str = ''
  effective_beta: float = setting(0.999, low=0, below=1)
  label_smoothing: float = setting(0.0, low=0, below=1)
  focal_gamma: float = setting(0.0, low=0)
  r_drop: float = setting(0.0, low=0)
  prior: bool = True


def build(config: Config, *, labels: list, counts: np.ndarray) -> Objective:
  """The objective for a label list; `counts` int [C, 2] are the training rows without and with each label."""
  counts = np.asarray(counts)
  if not labels or counts.ndim != 2:
    raise InputError('objective.name=multilabel is for task.name=multilabel, whose rows have any number of labels')
  if config.pos_weight in ('balanced', 'effective'):
    rows_C2 = counts
    if config.pos_weight == 'effective':
      rows_C2 = label_weights.effective_number(counts, config.effective_beta)
    positive_C = np.where(counts.all(1), rows_C2[:, 0] / np.maximum(rows_C2[:, 1], 1), 1.0)
  else:
    positive_C = label_weights.given(config.pos_weight, labels, field='objective.pos_weight')
  positive_C = jnp.asarray(positive_C, jnp.float32)
  gamma, smoothing = config.focal_gamma, config.label_smoothing

  def sums(outputs: Outputs, batch: Batch) -> Sums:
    """Sums of the loss and of right answers over a batch with `labels` int [B, C], 0 or 1, and `weights` float [B]."""
    logits_BC, y_BC = outputs.logits.astype(jnp.float32), batch['labels']
    yes_BC, no_BC = jax.nn.log_sigmoid(logits_BC), jax.nn.log_sigmoid(-logits_BC)  # log p, log(1 - p)
    wanted_BC = (1 - smoothing) * y_BC + smoothing / 2
    focus = lambda x_BC: jnp.exp(gamma * x_BC) if gamma else 1.0  # noqa: E731
    loss_BC = -positive_C * wanted_BC * focus(no_BC) * yes_BC - (1 - wanted_BC) * focus(yes_BC) * no_BC
    right_B = ((logits_BC > 0) == (y_BC > 0)).astype(jnp.float32).mean(-1)
    rows_B = batch['weights']
    return {
      'loss': (jnp.where(rows_B > 0, loss_BC.mean(-1) * rows_B, 0).sum(), rows_B.sum()),
      'label_accuracy': ((right_B * rows_B).sum(), rows_B.sum()),
    }

  def divergence(outputs: Outputs, others: Outputs, batch: Batch) -> jax.Array:
    """The sum over rows of the mean divergence of each label's two distributions."""
    a_BC, b_BC = (x.logits.astype(jnp.float32) for x in (outputs, others))
    apart_B = ((jax.nn.sigmoid(a_BC) - jax.nn.sigmoid(b_BC)) * (a_BC - b_BC)).mean(-1) / 2
    rows_B = batch['weights']
    return jnp.where(rows_B > 0, apart_B * rows_B, 0).sum()

  return Objective(sums, divergence, config.r_drop)
