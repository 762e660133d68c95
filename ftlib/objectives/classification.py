"""Cross-entropy over classes, with label smoothing, class weights, focal loss and R-Drop; losses for noisy labels.

Equal to PyTorch's `CrossEntropyLoss(weight=w, label_smoothing=s)`: the sum over rows of
`(1 - s) w[y] nll(y) + s / C * sum_c w[c] nll(c)` over the sum of `w[y]` (Szegedy et al. 2016 for the smoothing). With
`focal_gamma` every `nll(c)` is `-(1 - p[c])^gamma log p[c]` instead, which leaves little of a row that is right already
(Lin et al. 2017, equation 5; their alpha is a class weight). `r_drop`: see `objective.py`.

Where labels may be wrong, a row that the model finds unlikely should not count for more and more. In place of nll(c):
`gce`, generalised cross-entropy, (1 - p[c]^q) / q (Zhang & Sabuncu 2018, equation 6: cross-entropy as q goes to 0, the
mean absolute error at 1); `sce`, symmetric cross-entropy, alpha nll(c) + beta 4 (1 - p[c]) (Wang et al. 2019,
equation 8, with log 0 as -4).
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
from ftlib.objectives.objective import Objective, symmetric_kl

ROWWISE = True  # a row's loss follows from the row alone
_LOG_0 = -4.0  # the A of symmetric cross-entropy


@dataclasses.dataclass(frozen=True)
class Config:
  """`class_weights`: '' (all 1), 'balanced' (rows / (classes * rows of the class)), 'effective' (by the effective
  number of rows, with `effective_beta`: 0 is all 1, nearer to 1 is more balanced), or 'label=weight,label=weight'.
  `focal_gamma`: how much less a row counts the surer it is right (0: not at all). `r_drop`: weight of R-Drop.
  `loss`: 'ce', or for labels some of which are wrong 'gce', with `gce_q`, or 'sce', with `sce_alpha` and `sce_beta`."""

  label_smoothing: float = setting(0.0, low=0, below=1)
  class_weights: str = ''
  effective_beta: float = setting(0.999, low=0, below=1)
  focal_gamma: float = setting(0.0, low=0)
  r_drop: float = setting(0.0, low=0)
  loss: str = setting('ce', choices=('ce', 'gce', 'sce'))
  gce_q: float = setting(0.7, above=0, high=1)
  sce_alpha: float = setting(0.1, low=0)
  sce_beta: float = setting(1.0, low=0)


def build(config: Config, *, labels: list, counts: np.ndarray) -> Objective:
  """The objective for a label list; `counts` int [C] are the training rows of each class."""
  if not labels:
    raise InputError('objective.name=classification is for tasks with a list of labels, and this one has none')
  weights_C = class_weights(config.class_weights, labels, counts, config.effective_beta)
  weights_C = jnp.asarray(weights_C, jnp.float32)
  smoothing = config.label_smoothing

  def sums(outputs: Outputs, batch: Batch) -> Sums:
    """Sums of the loss and of correct rows over a batch with `labels` int [B] and `weights` float [B]."""
    logits_BC = outputs.logits.astype(jnp.float32)
    nll_BC = -jax.nn.log_softmax(logits_BC)
    each_BC = _losses(config, nll_BC)
    if config.focal_gamma:
      each_BC *= jnp.maximum(-jnp.expm1(-nll_BC), 1e-12) ** config.focal_gamma  # at 0 a root has no derivative
    y_B, rows_B = batch['labels'], batch['weights']
    own_B = jnp.take_along_axis(each_BC, y_B[:, None], axis=1)[:, 0] * weights_C[y_B]
    loss_B = (1 - smoothing) * own_B + smoothing * (each_BC * weights_C).mean(-1)
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


def _losses(config: Config, nll_BC: jax.Array) -> jax.Array:
  """What a row costs if its class is c, float32 [B, C]."""
  if config.loss == 'gce':
    return -jnp.expm1(-config.gce_q * nll_BC) / config.gce_q
  if config.loss == 'sce':
    return config.sce_alpha * nll_BC + config.sce_beta * _LOG_0 * jnp.expm1(-nll_BC)
  return nll_BC


def class_weights(text: str, labels: list, counts: np.ndarray, beta: float = 0.999) -> np.ndarray:
  """Weights float [C] from the setting's text; `beta` is of 'effective'. Raises `InputError` for an unknown label or a
  bad number."""
  if text == 'balanced':
    return label_weights.balanced(counts)
  if text == 'effective':
    return label_weights.effective(counts, beta)
  return label_weights.given(text, labels, field='objective.class_weights')
