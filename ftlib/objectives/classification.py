"""Cross-entropy over classes, with label smoothing, class weights, focal loss and R-Drop.

Equal to PyTorch's `CrossEntropyLoss(weight=w, label_smoothing=s)`: the sum over rows of
`(1 - s) w[y] nll(y) + s / C * sum_c w[c] nll(c)` over the sum of `w[y]` (Szegedy et al. 2016 for the smoothing). With
`focal_gamma` every `nll(c)` is `-(1 - p[c])^gamma log p[c]` instead, which leaves little of a row that is right already
(Lin et al. 2017, equation 5; their alpha is a class weight). `r_drop`: see `objective.py`.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ftlib.base.errors import InputError, did_you_mean
from ftlib.base.settings import setting
from ftlib.base.types import Batch, Outputs, Sums
from ftlib.objectives.objective import Objective, symmetric_kl

ROWWISE = True  # a row's loss follows from the row alone


@dataclasses.dataclass(frozen=True)
class Config:
  """`class_weights`: '' (all 1), 'balanced' (rows / (classes * rows of the class)), or 'label=weight,label=weight'.
  `focal_gamma`: how much less a row counts the surer it is right (0: not at all). `r_drop`: weight of R-Drop."""

  label_smoothing: float = setting(0.0, low=0, below=1)
  class_weights: str = ''
  focal_gamma: float = setting(0.0, low=0)
  r_drop: float = setting(0.0, low=0)


def build(config: Config, *, labels: list, counts: np.ndarray) -> Objective:
  """The objective for a label list; `counts` int [C] are the training rows of each class."""
  if not labels:
    raise InputError('objective.name=classification is for tasks with a list of labels, and this one has none')
  weights_C = jnp.asarray(class_weights(config.class_weights, labels, counts), jnp.float32)
  smoothing = config.label_smoothing

  def sums(outputs: Outputs, batch: Batch) -> Sums:
    """Sums of the loss and of correct rows over a batch with `labels` int [B] and `weights` float [B]."""
    logits_BC = outputs.logits.astype(jnp.float32)
    nll_BC = -jax.nn.log_softmax(logits_BC)
    if config.focal_gamma:
      nll_BC *= jnp.maximum(-jnp.expm1(-nll_BC), 1e-12) ** config.focal_gamma  # at 0 a root has no derivative
    y_B, rows_B = batch['labels'], batch['weights']
    own_B = jnp.take_along_axis(nll_BC, y_B[:, None], axis=1)[:, 0] * weights_C[y_B]
    loss_B = (1 - smoothing) * own_B + smoothing * (nll_BC * weights_C).mean(-1)
    correct_B = (logits_BC.argmax(-1) == y_B).astype(jnp.float32)
    return {
      'loss': (jnp.where(rows_B > 0, loss_B * rows_B, 0).sum(), (weights_C[y_B] * rows_B).sum()),
      'accuracy': ((correct_B * rows_B).sum(), rows_B.sum()),
    }

  def divergence(outputs: Outputs, others: Outputs, batch: Batch) -> jax.Array:
    """The sum of the mean divergence of each row's two distributions."""
    rows_B = batch['weights']
    apart_B = symmetric_kl(outputs.logits, others.logits) * weights_C[batch['labels']] * rows_B
    return jnp.where(rows_B > 0, apart_B, 0).sum()

  return Objective(sums, divergence, config.r_drop)


def class_weights(text: str, labels: list, counts: np.ndarray) -> np.ndarray:
  """Weights float [C] from the setting's text. Raises `InputError` for an unknown label or a bad number."""
  weights = np.ones(len(labels))
  if text == 'balanced':
    return counts.sum() / (len(labels) * np.maximum(counts, 1))
  names = [str(l) for l in labels]
  for part in filter(None, text.split(',')):
    name, _, number = part.rpartition('=')
    if name.strip() not in names:
      raise InputError(
        f'objective.class_weights={text!r}: {name.strip()!r} is no label{did_you_mean(name.strip(), names)}; '
        f'labels are {", ".join(names[:20])}'
      )
    try:
      weights[names.index(name.strip())] = float(number)
    except ValueError:
      raise InputError(f'objective.class_weights={text!r}: {number!r} is no number') from None
  if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.any()):
    raise InputError(f'objective.class_weights={text!r}: weights are finite, not negative, and not all zero')
  return weights
