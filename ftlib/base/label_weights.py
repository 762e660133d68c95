"""Weights by label, as the user writes them or as they follow from how many rows a label has.

C labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ftlib.base.errors import InputError, did_you_mean


def given(text: str, labels: Sequence, *, field: str) -> np.ndarray:
  """Weights float64 [C] of 'label=weight,label=weight', 1 for labels that are not named.

  Raises `InputError` naming `field` for an unknown label and for weights that are no numbers, negative or all zero.
  """
  weights, names = np.ones(len(labels)), [str(l) for l in labels]
  for part in filter(None, text.split(',')):
    name, _, number = part.rpartition('=')
    if name.strip() not in names:
      raise InputError(
        f'{field}={text!r}: {name.strip()!r} is no label{did_you_mean(name.strip(), names)}; '
        f'labels are {", ".join(names[:20])}'
      )
    try:
      weights[names.index(name.strip())] = float(number)
    except ValueError:
      raise InputError(f'{field}={text!r}: {number!r} is no number') from None
  if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.any()):
    raise InputError(f'{field}={text!r}: weights are finite, not negative, and not all zero')
  return weights


def balanced(counts_C: np.ndarray) -> np.ndarray:
  """rows / (labels * rows of the label): every label weighs the same in all (scikit-learn's 'balanced')."""
  return counts_C.sum() / (len(counts_C) * np.maximum(counts_C, 1))


def effective(counts_C: np.ndarray, beta: float) -> np.ndarray:
  """(1 - beta) / (1 - beta^n) of a label with n rows, scaled to a mean of 1: the more rows a label has, the less a
  further one says (Cui et al. 2019, equation 2). At beta 0 all are 1; towards beta 1 they are 1 / n."""
  weights_C = -1 / np.expm1(np.maximum(counts_C, 1) * np.log(beta)) if beta else np.ones(len(counts_C))
  return weights_C / weights_C.mean()
