"""From which probability on a label is predicted: as given, or where a split's F1 or Matthews correlation is best.

Shapes: N rows, C labels.
"""

from __future__ import annotations

import math

import numpy as np

from ftlib.base.errors import InputError

TUNED = 'tuned'
MEASURES = ('f1', 'mcc')
_USUAL = 0.5  # where a split says nothing of a label


def read(text: str, *, words: tuple[str, ...] = (TUNED,)) -> float | None:
  """The number in `task.threshold`, None for one of `words`. Raises `InputError` for anything else."""
  if text in words:
    return None
  try:
    number = float(text)
  except ValueError:
    number = math.nan
  if not 0 < number < 1:
    raise InputError(f'task.threshold={text!r}: wanted a number between 0 and 1, or {" or ".join(words)}')
  return number


def best(positives_NC: np.ndarray, scores_NC: np.ndarray, measure: str) -> np.ndarray:
  """Thresholds float64 [C]: predicting a label where its score is at least its threshold has the highest F1 or MCC.

  A threshold lies in the middle between two scores, and of several that are equally good it is the one nearest to
  0.5; for a label that no row or every row has it is 0.5. What is best here is a little too good on these rows.
  """
  columns = zip(np.asarray(positives_NC, bool).T, np.asarray(scores_NC, np.float64).T, strict=True)
  return np.array([_best(positives_N, scores_N, measure) for positives_N, scores_N in columns])


def _best(positives_N: np.ndarray, scores_N: np.ndarray, measure: str) -> float:
  N, P = len(positives_N), int(positives_N.sum())
  if P in (0, N):
    return _USUAL
  order = np.argsort(-scores_N, kind='stable')
  scores_N = scores_N[order]
  last = np.append(scores_N[1:] < scores_N[:-1], True)  # equal scores are predicted together
  k = np.flatnonzero(last) + 1.0  # rows that are predicted
  hits = np.cumsum(positives_N[order])[last].astype(np.float64)
  if measure == 'f1':
    values = 2 * hits / (k + P)
  else:
    spread = np.sqrt(k * (N - k) * P * (N - P))
    values = np.divide(N * hits - k * P, spread, out=np.zeros_like(k), where=spread > 0)
  cuts = (scores_N[last] + np.append(scores_N[1:][last[:-1]], 0.0)) / 2
  top = np.flatnonzero(values >= values.max() - 1e-12)
  return float(cuts[top[np.argmin(np.abs(cuts[top] - _USUAL))]])


def attached(predictions: dict[str, np.ndarray], thresholds_C: np.ndarray) -> dict[str, np.ndarray]:
  """The predictions with `thresholds` [N, C], the same for each row, so that they go wherever rows go."""
  rows = len(next(iter(predictions.values())))
  return {**predictions, 'thresholds': np.broadcast_to(thresholds_C, (rows, len(thresholds_C)))}


def of(
  text: str, known_C: np.ndarray | None, predictions: dict[str, np.ndarray], *, words: tuple[str, ...] = (TUNED,)
) -> np.ndarray | float:
  """The thresholds of predictions, [N, C], [C] or one: those that go with them (`attached`), else the number of `text`,
  or what was tuned before (`known_C`). Raises `InputError` where it was never tuned."""
  if 'thresholds' in predictions:
    return predictions['thresholds']
  number = read(text, words=words)
  if number is not None:
    return number
  if known_C is None:
    raise InputError(
      'task.threshold=tuned: thresholds are tuned on the validation split of a training run, and there are none here; '
      'evaluate that split, or give a number, such as --config.task.threshold=0.5'
    )
  return known_C
