"""Cross-entropy over the tags of words, or the likelihood of their sequence.

Every counted word weighs the same, whatever rows and batches the words stand in: sums over words with `weights`, as
`classification` has them over rows, of which label smoothing, class weights and focal loss are the same. A model that
brings transitions (`task.crf`) is trained by minus the log-likelihood of the true sequences (`crf.py`), over the number
of their words.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ftlib.base.errors import InputError
from ftlib.base.settings import setting
from ftlib.base.types import Batch, Outputs, Sums
from ftlib.objectives import crf
from ftlib.objectives.classification import class_weights
from ftlib.objectives.objective import Objective, symmetric_kl

ROWWISE = True  # a row's loss follows from the row alone


@dataclasses.dataclass(frozen=True)
class Config:
  """`class_weights`, `effective_beta`: as in `classification`, over the words of tags: '' (all 1), 'balanced',
  'effective', or 'tag=weight,tag=weight'. `focal_gamma`: how much less a word counts the surer it is right (0: not at
  all). `r_drop`: weight of R-Drop. None of these goes with a CRF, whose loss is of sequences."""

  label_smoothing: float = setting(0.0, low=0, below=1)
  class_weights: str = ''
  effective_beta: float = setting(0.999, low=0, below=1)
  focal_gamma: float = setting(0.0, low=0)
  r_drop: float = setting(0.0, low=0)


def build(config: Config, *, labels: list, counts: np.ndarray) -> Objective:
  """The objective for a label list; `counts` int [C] are the training words of each tag."""
  if not labels:
    raise InputError('objective.name=tagging is for tasks with a list of tags, and this one has none')
  weights_C = class_weights(config.class_weights, labels, counts, config.effective_beta)
  weights_C = jnp.asarray(weights_C, jnp.float32)
  smoothing = config.label_smoothing

  def sums(outputs: Outputs, batch: Batch) -> Sums:
    """Sums of the loss and of right words, over a batch with `targets` int, `weights` float and, for a CRF, `chain`
    [B, L], which is 1 at the words of a sequence."""
    logits_BLC = outputs.logits.astype(jnp.float32)
    y_BL, words_BL = batch['targets'], batch['weights']
    right_BL = (logits_BLC.argmax(-1) == y_BL).astype(jnp.float32)
    accuracy = (right_BL * words_BL).sum(), words_BL.sum()
    if outputs.transitions is not None:
      _refuse(config)
      mask_BL = batch['chain'] > 0
      nll_B = crf.nll(logits_BLC, y_BL, mask_BL, outputs.transitions, batch['segments'])
      return {'loss': (nll_B.sum(), mask_BL.sum().astype(jnp.float32)), 'token_accuracy': accuracy}
    nll_BLC = -jax.nn.log_softmax(logits_BLC)
    if config.focal_gamma:
      nll_BLC *= jnp.maximum(-jnp.expm1(-nll_BLC), 1e-12) ** config.focal_gamma  # at 0 a root has no derivative
    own_BL = jnp.take_along_axis(nll_BLC, y_BL[..., None], axis=2)[..., 0] * weights_C[y_BL]
    loss_BL = (1 - smoothing) * own_BL + smoothing * (nll_BLC * weights_C).mean(-1)
    loss = jnp.where(words_BL > 0, loss_BL * words_BL, 0).sum(), (weights_C[y_BL] * words_BL).sum()
    return {'loss': loss, 'token_accuracy': accuracy}

  def divergence(outputs: Outputs, others: Outputs, batch: Batch) -> jax.Array:
    """The sum of the mean divergence of each word's two distributions."""
    words_BL = batch['weights']
    apart_BL = symmetric_kl(outputs.logits, others.logits) * weights_C[batch['targets']] * words_BL
    return jnp.where(words_BL > 0, apart_BL, 0).sum()

  return Objective(sums, divergence, config.r_drop)


def _refuse(config: Config) -> None:
  if odd := [n for n, v in vars(config).items() if v != getattr(Config, n)]:
    raise InputError(
      f'objective.{odd[0]}={getattr(config, odd[0])} with task.crf=true: a CRF is trained by the likelihood of whole '
      'sequences, in which no single word has a weight; leave it at its default'
    )
