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
    name, equals, number = part.rpartition('=')
    if not equals:
      raise InputError(f'{field}={text!r}: {part!r} is no label=weight; labels are {", ".join(names[:20])}')
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


def effective_number(counts_C: np.ndarray, beta: float) -> np.ndarray:
  """(1 - beta^n) / (1 - beta) of n rows: the more there are, the less a further one says (Cui et al. 2019, equation 2).
  At beta 0 it is 1; towards beta 1 it is n."""
  return np.expm1(np.maximum(counts_C, 1) * np.log(beta)) / (beta - 1) if beta else np.ones(np.shape(counts_C))


def effective(counts_C: np.ndarray, beta: float) -> np.ndarray:
  """1 / `effective_number` of a label's rows, scaled to a mean of 1."""
  weights_C = 1 / effective_number(counts_C, beta)
  return weights_C / weights_C.mean()
