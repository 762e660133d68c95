"""Metrics on the host: numpy in, plain Python numbers out, ready for JSON.

`classification_names`, `REGRESSION` and `RANKING` say which scalars there are: {name: whether higher is better}.

Shapes: N examples, C classes. scikit-learn computes what it knows; this file fixes what it leaves to the data or
to warnings: C comes from `names` and not from the classes that happen to occur, an undefined ratio is 0, and an
undefined ranking metric is None (JSON null), never NaN.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence

import numpy as np

SUM_TOLERANCE = 1e-3  # of a row of probabilities; float16 softmax over 50 classes stays within it
REGRESSION = {'pearson': True, 'spearman': True, 'mse': False, 'mae': False}
RANKING = {'roc_auc': True, 'average_precision': True}
SHARES = ('precision', 'recall', 'f1')


def classification(
  labels_N: np.ndarray,
  probabilities_NC: np.ndarray,
  *,
  names: Sequence[str],
  predictions_N: np.ndarray | None = None,
) -> dict:
  """All metrics of one evaluated split as a JSON-ready dict.

  The prediction is the most probable class, the first of equals, unless `predictions_N`, integers in [0, C), says it.

  Scalars: `accuracy`; `precision`, `recall` and `f1`, each `_macro` (plain mean over all C classes, so a class
  that never occurs and is never predicted counts as 0) and `_micro`; `f1_weighted` (by support); `mcc` in [-1, 1],
  0 if either side is constant; `roc_auc` and `average_precision` (binary: class 1 is the positive one; otherwise
  the mean of one-vs-rest over the classes; None if any class is absent from the labels); `log_loss` in nats, of
  the rows scaled to sum to 1. Two classes give also `precision`, `recall` and `f1` of class 1.

  Nested: `per_class` {name: {precision, recall, f1, support, roc_auc}} and `confusion`, C lists of C counts, a row
  for each true class.

  Args:
    labels_N: integers in [0, C).
    probabilities_NC: finite, in [0, 1], each row summing to 1 within 0.001.
    names: the C class names in the order of the columns; at least two, all different.

  Raises:
    ValueError: an argument is not as described; the text names the first bad row.
  """
  # Imported on use: scikit-learn takes seconds to load, and tasks import this file to name their metrics.
  import sklearn.metrics as sk

  names = [str(name) for name in names]
  labels_N, probabilities_NC = _checked(labels_N, probabilities_NC, names)
  predictions_N = probabilities_NC.argmax(axis=1) if predictions_N is None else np.asarray(predictions_N)
  classes = list(range(len(names)))

  def scores(average: str | None) -> tuple:
    return sk.precision_recall_fscore_support(labels_N, predictions_N, labels=classes, average=average, zero_division=0)

  confusion_CC = sk.confusion_matrix(labels_N, predictions_N, labels=classes)
  roc_auc_C = _one_vs_rest(sk.roc_auc_score, labels_N, probabilities_NC)
  average_precision_C = _one_vs_rest(sk.average_precision_score, labels_N, probabilities_NC)
  precision_C, recall_C, f1_C, support_C = scores(None)

  metrics = {'accuracy': float(np.mean(predictions_N == labels_N))}
  for average in ('macro', 'micro'):
    for key, value in zip(SHARES, scores(average)[:3]):
      metrics[f'{key}_{average}'] = float(value)
  metrics['f1_weighted'] = float(scores('weighted')[2])
  metrics['mcc'] = _mcc(confusion_CC, labels_N, predictions_N, sk.matthews_corrcoef)
  metrics['roc_auc'] = _summary(roc_auc_C)
  metrics['average_precision'] = _summary(average_precision_C)
  rows_sum_to_1 = probabilities_NC / probabilities_NC.sum(axis=1, keepdims=True)
  metrics['log_loss'] = float(sk.log_loss(labels_N, rows_sum_to_1, labels=classes))
  if len(names) == 2:
    metrics |= {'precision': float(precision_C[1]), 'recall': float(recall_C[1]), 'f1': float(f1_C[1])}
  metrics['per_class'] = {
    name: {
      'precision': float(precision_C[c]),
      'recall': float(recall_C[c]),
      'f1': float(f1_C[c]),
      'support': int(support_C[c]),
      'roc_auc': roc_auc_C[c],
    }
    for c, name in enumerate(names)
  }
  metrics['confusion'] = confusion_CC.tolist()
  return metrics


def classification_names(classes: int) -> dict[str, bool]:
  """{scalar of `classification` over so many classes: whether higher is better}."""
  names = ['accuracy', *(f'{s}_{average}' for average in ('macro', 'micro') for s in SHARES), 'f1_weighted', 'mcc']
  names += ['roc_auc', 'average_precision']
  return {**dict.fromkeys(names, True), 'log_loss': False, **dict.fromkeys(SHARES if classes == 2 else (), True)}


def regression(scores_N: np.ndarray, predictions_N: np.ndarray) -> dict[str, float]:
  """`pearson` and `spearman` (of average ranks) in [-1, 1], `mse` and `mae`, in the units of the scores.

  A correlation in which either side is constant is 0, as `mcc`, which is one.

  Raises:
    ValueError: there are no rows, or the two are not finite arrays [N].
  """
  from scipy.stats import rankdata

  x_N, y_N = np.asarray(scores_N, np.float64), np.asarray(predictions_N, np.float64)
  if x_N.ndim != 1 or x_N.shape != y_N.shape or not len(x_N):
    raise ValueError(f'scores_N and predictions_N must be [N] with N of 1 or more, got {x_N.shape} and {y_N.shape}')
  _refuse(~np.isfinite(x_N), x_N, 'scores_N must be finite')
  _refuse(~np.isfinite(y_N), y_N, 'predictions_N must be finite')
  return {
    'pearson': _correlation(x_N, y_N),
    'spearman': _correlation(rankdata(x_N), rankdata(y_N)),
    'mse': float(np.mean((y_N - x_N) ** 2)),
    'mae': float(np.mean(np.abs(y_N - x_N))),
  }


def ranking(positive_N: np.ndarray, scores_N: np.ndarray) -> dict[str, float | None]:
  """`roc_auc` and `average_precision` of the rows that `positive_N`, booleans, says, by finite scores; None where all
  rows are positive, or none is."""
  import sklearn.metrics as sk

  positive_N, scores_N = np.asarray(positive_N, bool), np.asarray(scores_N, np.float64)
  if positive_N.all() or not positive_N.any():
    return dict.fromkeys(RANKING)
  return {n: float(getattr(sk, f'{n}_score')(positive_N, scores_N)) for n in RANKING}


def _correlation(x_N: np.ndarray, y_N: np.ndarray) -> float:
  if (x_N == x_N[0]).all() or (y_N == y_N[0]).all():
    return 0.0
  x_N, y_N = (v - v.mean() for v in (x_N, y_N))
  return float(np.clip(x_N @ y_N / (np.linalg.norm(x_N) * np.linalg.norm(y_N)), -1, 1))


def flat(metrics: Mapping) -> dict[str, float]:
  """Only the entries that are one number, as floats, in the same order: what a log line or a chart can hold."""
  return {str(key): float(value) for key, value in metrics.items() if _is_number(value)}


def _is_number(value: object) -> bool:
  return isinstance(value, numbers.Real) and not isinstance(value, (bool, np.bool_))


def _one_vs_rest(score, labels_N: np.ndarray, probabilities_NC: np.ndarray) -> list[float | None]:
  """`score(is this class, its probability)` for each class; None where the class is absent or the only one."""
  positives_NC = labels_N[:, None] == np.arange(probabilities_NC.shape[1])
  defined_C = positives_NC.any(axis=0) & ~positives_NC.all(axis=0)
  return [
    float(score(positives_NC[:, c], probabilities_NC[:, c])) if defined_C[c] else None for c in range(len(defined_C))
  ]


def _summary(values_C: list[float | None]) -> float | None:
  """One number for all classes: that of class 1 if there are two, else the mean; None if any is undefined."""
  if None in values_C:
    return None
  return values_C[1] if len(values_C) == 2 else math.fsum(values_C) / len(values_C)


def _mcc(confusion_CC: np.ndarray, labels_N: np.ndarray, predictions_N: np.ndarray, score) -> float:
  # scikit-learn warns when one class is all there is; by convention a constant side gives 0.
  constant = min(np.count_nonzero(confusion_CC.sum(axis=axis)) for axis in (0, 1)) < 2
  return 0.0 if constant else float(score(labels_N, predictions_N))


def _checked(labels_N, probabilities_NC, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
  """The two arrays as int64 and float64, or a ValueError."""
  labels_N, probabilities_NC = np.asarray(labels_N), np.asarray(probabilities_NC)
  C = len(names)
  if C < 2 or len(set(names)) < C:
    raise ValueError(f'names must be at least two different class names, got {names}')
  if labels_N.ndim != 1 or labels_N.dtype.kind not in 'iu':
    raise ValueError(f'labels_N must be a 1-d array of integers, got shape {labels_N.shape} and dtype {labels_N.dtype}')
  if probabilities_NC.shape != (len(labels_N), C):
    raise ValueError(
      f'probabilities_NC must have shape {(len(labels_N), C)} ({len(labels_N)} labels, {C} names),'
      f' got {probabilities_NC.shape}'
    )
  if not len(labels_N):
    raise ValueError('there are no examples to judge: labels_N is empty')
  # Half precision would make log(0) of what is merely small, and its sums miss 1.
  labels_N, probabilities_NC = labels_N.astype(np.int64), probabilities_NC.astype(np.float64)
  _refuse((labels_N < 0) | (labels_N >= C), labels_N, f'labels_N must lie in [0, {C})')
  finite_N = np.isfinite(probabilities_NC).all(axis=1)
  _refuse(~finite_N, probabilities_NC, 'probabilities_NC must be finite')
  outside_N = ((probabilities_NC < 0) | (probabilities_NC > 1 + SUM_TOLERANCE)).any(axis=1)
  _refuse(outside_N, probabilities_NC, 'probabilities_NC must lie in [0, 1]; were these logits?')
  sums_N = probabilities_NC.sum(axis=1)
  _refuse(np.abs(sums_N - 1) > SUM_TOLERANCE, sums_N, f'rows of probabilities_NC must sum to 1 +- {SUM_TOLERANCE}')
  return labels_N, probabilities_NC


def _refuse(bad_N: np.ndarray, values_N: np.ndarray, must: str):
  if bad_N.any():
    first = int(bad_N.argmax())
    raise ValueError(f'{must}; {int(bad_N.sum())} rows do not, the first is row {first}: {values_N[first]}')
