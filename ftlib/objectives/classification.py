"""Cross-entropy over classes, with label smoothing and class weights.

Equal to PyTorch's `CrossEntropyLoss(weight=w, label_smoothing=s)`: the sum over rows of
`(1 - s) w[y] nll(y) + s / C * sum_c w[c] nll(c)` over the sum of `w[y]` (Szegedy et al. 2016 for the smoothing).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ftlib.base.errors import InputError, did_you_mean
from ftlib.base.settings import setting
from ftlib.base.types import Batch, Outputs, Sums

Objective = Callable[[Callable[[Batch, jax.Array | None], Outputs], Batch, jax.Array | None], Sums]


@dataclasses.dataclass(frozen=True)
class Config:
  """`class_weights`: '' (all 1), 'balanced' (rows / (classes * rows of the class)), or 'label=weight,label=weight'."""

  label_smoothing: float = setting(0.0, low=0, below=1)
  class_weights: str = ''


def build(config: Config, *, labels: list, counts: np.ndarray) -> Objective:
  """The objective for a label list; `counts` int [C] are the training rows of each class."""
  if not labels:
    raise InputError('objective.name=classification is for tasks with a list of labels, and this one has none')
  weights_C = jnp.asarray(class_weights(config.class_weights, labels, counts), jnp.float32)
  smoothing = config.label_smoothing

  def objective(apply, batch: Batch, key: jax.Array | None) -> Sums:
    """Sums of the loss and of correct rows over a batch with `labels` int [B] and `weights` float [B]."""
    logits_BC = apply(batch, key).logits.astype(jnp.float32)
    nll_BC = -jax.nn.log_softmax(logits_BC)
    y_B, rows_B = batch['labels'], batch['weights']
    own_B = jnp.take_along_axis(nll_BC, y_B[:, None], axis=1)[:, 0] * weights_C[y_B]
    loss_B = (1 - smoothing) * own_B + smoothing * (nll_BC * weights_C).mean(-1)
    correct_B = (logits_BC.argmax(-1) == y_B).astype(jnp.float32)
    return {
      'loss': (jnp.where(rows_B > 0, loss_B * rows_B, 0).sum(), (weights_C[y_B] * rows_B).sum()),
      'accuracy': ((correct_B * rows_B).sum(), rows_B.sum()),
    }

  return objective


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
