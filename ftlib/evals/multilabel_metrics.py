"""Metrics of rows that have any number of labels, on the host: numpy in, plain Python numbers out, ready for JSON.

`NAMES` says which scalars there are: {name: whether higher is better}. Shapes: N examples, C labels. scikit-learn
computes what it knows, with what it leaves open settled so: an undefined ratio is 0, but a row that has no label and of
which none is predicted is right, so that its precision, recall and F1 are 1; an undefined ranking metric is None.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ftlib.evals import counted
from ftlib.evals.metrics import SHARES

_CELLS = 2**22  # comparisons of labels that are held at once
_AVERAGES = ('micro', 'macro', 'samples')
NAMES = {
  'subset_accuracy': True,
  'hamming_loss': False,
  **{f'{share}_{average}': True for average in _AVERAGES for share in SHARES},
  'roc_auc': True,
  'average_precision': True,
  'lrap': True,
}


def multilabel(
  labels_NC: np.ndarray, probabilities_NC: np.ndarray, *, thresholds: np.ndarray | float, names: Sequence[str]
) -> dict:
  """All metrics of one evaluated split as a JSON-ready dict. A label is predicted from its threshold on.

  Scalars: `subset_accuracy` (rows whose set of labels is right), `hamming_loss` (the share of wrong answers over rows
  and labels); `precision`, `recall` and `f1`, each `_micro` (over all answers), `_macro` (the mean over labels) and
  `_samples` (the mean over rows); `roc_auc` and `average_precision`, means over the labels (None if one of them has no
  row with it or none without); `lrap`, label ranking average precision: of the labels at least as probable as a right
  one, the share that is right.

  Nested: `per_class` {name: {precision, recall, f1, support, roc_auc, threshold}}.

  Args:
    labels_NC: 0 or 1.
    probabilities_NC: finite, in [0, 1].
    thresholds: one, [C] or [N, C].
    names: the C label names in the order of the columns.

  Raises:
    ValueError: an argument is not as described.
  """
  import sklearn.metrics as sk  # on use: it takes seconds to load, and tasks import this file to name their metrics

  names = [str(name) for name in names]
  labels_NC, probabilities_NC = np.asarray(labels_NC), np.asarray(probabilities_NC, np.float64)
  _check(labels_NC, probabilities_NC, names)
  thresholds_NC = np.broadcast_to(thresholds, probabilities_NC.shape)
  predictions_NC = (probabilities_NC >= thresholds_NC).astype(int)

  def scores(average: str | None) -> tuple:
    return sk.precision_recall_fscore_support(labels_NC, predictions_NC, average=average, zero_division=0)

  metrics = {
    'subset_accuracy': float((labels_NC == predictions_NC).all(axis=1).mean()),
    'hamming_loss': float((labels_NC != predictions_NC).mean()),
  }
  empty = float((~labels_NC.any(axis=1) & ~predictions_NC.any(axis=1)).mean())
  for average in _AVERAGES:
    for key, value in zip(SHARES, scores(average)[:3]):
      metrics[f'{key}_{average}'] = min(1.0, float(value) + (empty if average == 'samples' else 0))
  roc_auc_C = _by_label(sk.roc_auc_score, labels_NC, probabilities_NC)
  metrics['roc_auc'] = _mean(roc_auc_C)
  metrics['average_precision'] = _mean(_by_label(sk.average_precision_score, labels_NC, probabilities_NC))
  metrics['lrap'] = float(sk.label_ranking_average_precision_score(labels_NC, probabilities_NC))
  precision_C, recall_C, f1_C, support_C = scores(None)
  metrics['per_class'] = {
    name: {
      'precision': float(precision_C[c]),
      'recall': float(recall_C[c]),
      'f1': float(f1_C[c]),
      'support': int(support_C[c]),
      'roc_auc': roc_auc_C[c],
      'threshold': float(thresholds_NC[0, c]),
    }
    for c, name in enumerate(names)
  }
  return metrics


def resampled(
  labels_NC: np.ndarray, probabilities_NC: np.ndarray, *, thresholds: np.ndarray | float, names: Sequence[str]
) -> counted.Counted:
  """The scalars of `multilabel` over the same arguments and `per_class`, each of O(N C) for rows that stand there so
  many times."""
  y_NC, p_NC = np.asarray(labels_NC, bool), np.asarray(probabilities_NC, np.float64)
  z_NC = p_NC >= thresholds
  C = y_NC.shape[1]
  ranked = [counted.Ranked(p_NC[:, c], y_NC[:, c]) for c in range(C)]
  hits_N, said_N, true_N = (y_NC & z_NC).sum(1), z_NC.sum(1), y_NC.sum(1)
  neither_N = (said_N + true_N == 0).astype(float)
  rows_N = counted.shares(hits_N, said_N, true_N)
  of_rows = [(y_NC == z_NC).all(1), (y_NC != z_NC).mean(1), _lrap(y_NC, p_NC), *(x_N + neither_N for x_N in rows_N)]
  stats_NK = np.concatenate([np.stack(of_rows, 1), y_NC & z_NC, z_NC, y_NC], axis=1).astype(np.float64)

  def metrics(counts_N: np.ndarray) -> dict[str, Any]:
    total = counts_N.sum()
    sums_K = counts_N @ stats_NK
    subset, hamming, lrap, *samples = (sums_K[:6] / total).tolist()
    hits_C, said_C, true_C = sums_K[6:].reshape(3, C)
    found = {'subset_accuracy': subset, 'hamming_loss': hamming, 'lrap': lrap}
    found |= {f'{n}_samples': value for n, value in zip(SHARES, samples)}
    micro, macro = counted.shares(hits_C.sum(), said_C.sum(), true_C.sum()), counted.shares(hits_C, said_C, true_C)
    for average, shares in (('micro', micro), ('macro', macro)):
      found |= {f'{n}_{average}': float(np.mean(x)) for n, x in zip(SHARES, shares)}
    areas = [r(counts_N) for r in ranked]
    for i, name in enumerate(('roc_auc', 'average_precision')):
      found[name] = None if None in areas else float(np.mean([a[i] for a in areas]))
    return {**found, 'per_class': counted.per_class(names, macro)}

  return metrics


def _lrap(y_NC: np.ndarray, p_NC: np.ndarray) -> np.ndarray:
  """Label ranking average precision of each row [N], 1 where it has none of the labels or all."""
  N, C = y_NC.shape
  right_NC = np.zeros((N, C))
  for some in np.array_split(np.arange(N), max(1, N * C * C // _CELLS)):
    above_nCC = p_NC[some, None, :] >= p_NC[some, :, None]  # [n, j, k]: k is at least as probable as j
    right_NC[some] = (above_nCC & y_NC[some, None, :]).sum(2) / above_nCC.sum(2)
  plain_N = ~y_NC.any(1) | y_NC.all(1)
  return np.where(plain_N, 1.0, counted.ratio((right_NC * y_NC).sum(1), y_NC.sum(1)))


def _by_label(score, labels_NC: np.ndarray, probabilities_NC: np.ndarray) -> list[float | None]:
  """The score of each label; None where every row or no row has it."""
  defined_C = labels_NC.any(axis=0) & ~labels_NC.all(axis=0)
  return [float(score(labels_NC[:, c], probabilities_NC[:, c])) if d else None for c, d in enumerate(defined_C)]


def _mean(values_C: list[float | None]) -> float | None:
  return None if None in values_C else math.fsum(values_C) / len(values_C)


def _check(labels_NC: np.ndarray, probabilities_NC: np.ndarray, names: list[str]) -> None:
  C = len(names)
  if C < 2 or len(set(names)) < C:
    raise ValueError(f'names must be at least two different label names, got {names}')
  if labels_NC.ndim != 2 or labels_NC.shape[1] != C or not len(labels_NC):
    raise ValueError(f'labels_NC must be [N, {C}] with N of 1 or more, got {labels_NC.shape}')
  if probabilities_NC.shape != labels_NC.shape:
    raise ValueError(f'probabilities_NC must have shape {labels_NC.shape}, got {probabilities_NC.shape}')
  if not np.isin(labels_NC, (0, 1)).all():
    raise ValueError('labels_NC must be 0 or 1')
  inside_NC = (probabilities_NC >= 0) & (probabilities_NC <= 1)  # false of NaN
  if not inside_NC.all():
    row = int((~inside_NC).any(axis=1).argmax())
    raise ValueError(f'probabilities_NC must lie in [0, 1]; the first row that does not is {row}; were these logits?')
