"""Whether probabilities mean what they say: calibration errors, the Brier score, and one temperature that mends them.

Shapes: N rows, C classes, B bins.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

BINS = 15
_TINY = float(np.finfo(np.float32).tiny)  # what a float32 softmax gives at least, but for 0
_RANGE = (0.01, 100.0)  # of temperatures


class Bins(NamedTuple):
  """Of the rows in each bin of confidence [B]: their number, how many are right, the sum of their confidence."""

  edges: np.ndarray
  count: np.ndarray
  right: np.ndarray
  confidence: np.ndarray

  @property
  def error(self) -> float:
    """The mean distance of confidence and accuracy, bins weighted by their rows (Guo et al. 2017, equation 3)."""
    return float(np.abs(self.right - self.confidence).sum() / max(self.count.sum(), 1))


def bins(confidence_N: np.ndarray, right_N: np.ndarray, *, count: int = BINS, adaptive: bool = False) -> Bins:
  """Rows by confidence, in `count` bins of equal width over (0, 1], or (`adaptive`) of equally many rows (Nguyen &
  O'Connor 2015), fewer where there are fewer rows."""
  confidence_N, right_N = np.asarray(confidence_N, np.float64), np.asarray(right_N, np.float64)
  if adaptive:
    order = np.argsort(confidence_N, kind='stable')
    parts = [p for p in np.array_split(order, count) if len(p)]
    of_N = np.empty(len(order), np.int64)
    for b, part in enumerate(parts):
      of_N[part] = b
    edges = np.array([confidence_N[parts[0][0]], *(confidence_N[p[-1]] for p in parts)]) if parts else np.zeros(1)
  else:
    edges = np.linspace(0, 1, count + 1)
    of_N = np.clip(np.ceil(confidence_N * count).astype(np.int64) - 1, 0, count - 1)
  sums = (np.bincount(of_N, w, minlength=len(edges) - 1) for w in (None, right_N, confidence_N))
  return Bins(edges, *sums)


def measures(labels_N: np.ndarray, probabilities_NC: np.ndarray) -> dict[str, float]:
  """`ece` (15 bins of equal width), `ece_adaptive` (15 of equally many rows), `brier` (Brier 1950: the squared distance
  from one-hot, summed over classes, 0 to 2) and `nll` (nats a row)."""
  labels_N, p_NC = np.asarray(labels_N, np.int64), np.asarray(probabilities_NC, np.float64)
  right_N, confidence_N = p_NC.argmax(1) == labels_N, p_NC.max(1)
  one_hot_NC = np.eye(p_NC.shape[1])[labels_N]
  return {
    'ece': bins(confidence_N, right_N).error,
    'ece_adaptive': bins(confidence_N, right_N, adaptive=True).error,
    'brier': float(((p_NC - one_hot_NC) ** 2).sum(1).mean()),
    'nll': _nll(np.log(np.maximum(p_NC, _TINY)), labels_N),
  }


def scaled(probabilities_NC: np.ndarray, temperature: float) -> np.ndarray:
  """softmax(logits / temperature), float64 [N, C]: a softmax's logits are its logarithms but for a constant. What is 0,
  an option that a row does not have, stays so."""
  logits_NC = _logarithms(probabilities_NC) / temperature
  e_NC = np.exp(logits_NC - logits_NC.max(1, keepdims=True))
  return e_NC / e_NC.sum(1, keepdims=True)


def temperature(labels_N: np.ndarray, probabilities_NC: np.ndarray) -> float:
  """The temperature at which these rows are likeliest (Guo et al. 2017, section 4.2), from 0.01 to 100.

  The loss is convex in 1 / T, so that the one minimum is found by a bounded search.
  """
  from scipy.optimize import minimize_scalar

  labels_N = np.asarray(labels_N, np.int64)
  log_NC, at = _logarithms(probabilities_NC), (np.arange(len(labels_N)), labels_N)
  log_NC[at] = np.maximum(log_NC[at], np.log(_TINY))
  low, high = (np.log(t) for t in _RANGE)
  found = minimize_scalar(
    lambda t: _nll(log_NC / np.exp(t), labels_N), bounds=(low, high), method='bounded', options={'xatol': 1e-6}
  )
  return float(np.exp(found.x))


def at_bound(temperature: float) -> bool:
  """Whether a temperature that was found is the least or the greatest that is looked for."""
  return any(abs(np.log(temperature / bound)) < 1e-3 for bound in _RANGE)


def _logarithms(probabilities_NC: np.ndarray) -> np.ndarray:
  p_NC = np.asarray(probabilities_NC, np.float64)
  return np.where(p_NC > 0, np.log(np.maximum(p_NC, _TINY)), -np.inf)


def _nll(logits_NC: np.ndarray, labels_N: np.ndarray) -> float:
  top_N1 = logits_NC.max(1, keepdims=True)
  norm_N = np.log(np.exp(logits_NC - top_N1).sum(1)) + top_N1[:, 0]
  return float((norm_N - logits_NC[np.arange(len(labels_N)), labels_N]).mean())
