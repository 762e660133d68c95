"""How well relations between two entities are found: the measures of SemEval-2010 Task 8 (Hendrickx et al. 2010).

Labels are relations with a direction, 'Cause-Effect(e1,e2)' and 'Cause-Effect(e2,e1)', or without one, and maybe one
that stands for none ('Other'). The official score is macro-F1 "(9+1)-way with directionality taken into account": both
directions of a relation are one class, in which the wrong direction is a mistake, and the mean is over the relations
that occur among the true labels, without 'Other'.

Shapes: C labels, R relations.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

METRICS = {
  **dict.fromkeys(('f1_macro', 'precision_macro', 'recall_macro', 'f1_micro', 'precision_micro', 'recall_micro'), True),
  **dict.fromkeys(('f1_undirected', 'accuracy'), True),
}
_DIRECTION = re.compile(r'\(e[12],\s*e[12]\)$')


def relation(label: str) -> str:
  """A label without its direction."""
  return _DIRECTION.sub('', label)


def confusion(labels_N: np.ndarray, predictions_N: np.ndarray, classes: int, counts_N: np.ndarray | None = None):
  """Rows by true (row) and predicted label, [C, C]; `counts_N`: how often each row stands there."""
  cells_N = np.asarray(labels_N, np.int64) * classes + predictions_N
  return np.bincount(cells_N, counts_N, minlength=classes**2).reshape(classes, classes)


def scores(confusion_CC: np.ndarray, names: Sequence[str], *, other: str) -> dict:
  """The measures, and `per_class` {relation: precision, recall, f1, support}, 'Other' among them.

  `f1_macro` is the official score, with the means of precision and recall beside it; `_micro`: over all rows of
  relations; `f1_undirected`: macro-F1 where either direction is right; `accuracy`: of labels as they are. What is not
  defined is 0.
  """
  of_C = [relation(n) for n in names]
  relations = sorted(set(of_C))
  member_RC = np.array([[o == r for o in of_C] for r in relations], np.float64)
  right_C = np.diagonal(confusion_CC).astype(np.float64)
  true_R, said_R = member_RC @ confusion_CC.sum(1), member_RC @ confusion_CC.sum(0)
  directed_R = member_RC @ right_C
  either_R = np.diagonal(member_RC @ confusion_CC @ member_RC.T)
  judged_R = np.array([r != other for r in relations]) & (true_R > 0)
  precision_R, recall_R, f1_R = _shares(directed_R, said_R, true_R)
  micro = _shares(*(x_R[judged_R].sum(keepdims=True) for x_R in (directed_R, said_R, true_R)))
  mean = lambda x_R: float(x_R[judged_R].mean()) if judged_R.any() else 0.0  # noqa: E731
  out = {'f1_macro': mean(f1_R), 'precision_macro': mean(precision_R), 'recall_macro': mean(recall_R)}
  out |= {n: float(x[0]) for n, x in zip(('precision_micro', 'recall_micro', 'f1_micro'), micro)}
  out['f1_undirected'] = mean(_shares(either_R, said_R, true_R)[2])
  out['accuracy'] = float(right_C.sum() / max(confusion_CC.sum(), 1))
  columns = {'precision': precision_R, 'recall': recall_R, 'f1': f1_R}
  rows = {r: {n: float(x_R[i]) for n, x_R in columns.items()} for i, r in enumerate(relations)}
  return {**out, 'per_class': {r: {**row, 'support': int(n)} for (r, row), n in zip(rows.items(), true_R)}}


def _shares(right_R: np.ndarray, said_R: np.ndarray, true_R: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(precision, recall, F1), 0 where one is not defined."""
  ratio = lambda a, b: np.divide(a, b, out=np.zeros_like(a), where=b > 0)  # noqa: E731
  return ratio(right_R, said_R), ratio(right_R, true_R), ratio(2 * right_R, said_R + true_R)
