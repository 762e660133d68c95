"""Which tokens an answer hangs on: a path's integral of gradients, and attention followed through the layers.

Shapes: L tokens, K keys, D embed, H heads, S steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


def integrated_gradients(
  gradient: Callable[[np.ndarray], np.ndarray], x_LD: np.ndarray, x0_LD: np.ndarray, *, steps: int
) -> np.ndarray:
  """The share of each token in f(x) - f(x0) (Sundararajan et al. 2017, equation 1), float64 [L].

  `gradient(alphas [S]) -> gradients [S, L, D]` of f at x0 + alpha (x - x0). The path's integral is taken by the rule of
  Gauss and Legendre with so many steps, exact where f along the path is a polynomial of degree 2 * steps.
  """
  nodes, weights = np.polynomial.legendre.leggauss(steps)
  grads_SLD = np.asarray(gradient((nodes + 1) / 2), np.float64)
  mean_LD = np.tensordot(weights / 2, grads_SLD, 1)
  return ((np.asarray(x_LD, np.float64) - np.asarray(x0_LD, np.float64)) * mean_LD).sum(-1)


def rollout(layers: Sequence[np.ndarray], *, lead: int = 0) -> np.ndarray:
  """How much of each row of the last layer comes from each token of the first, [L, L] with rows that sum to 1 (Abnar &
  Zuidema 2020, section 3).

  `layers` [H, L, K]: heads are averaged, half of each layer is what passes by it (the residual), and layers are
  multiplied. Keys that no token is (K - L, a prefix) and the first `lead` tokens (virtual ones) are left out, the rest
  scaled to sum to 1.
  """
  total = np.eye(layers[0].shape[1])
  for heads_HLK in layers:
    mean_LK = np.asarray(heads_HLK, np.float64).mean(0)
    own_LL = mean_LK[:, mean_LK.shape[1] - mean_LK.shape[0] :]
    own_LL = own_LL / np.maximum(own_LL.sum(1, keepdims=True), 1e-12)
    total = (0.5 * own_LL + 0.5 * np.eye(len(own_LL))) @ total
  kept = total[lead:, lead:]
  return kept / np.maximum(kept.sum(1, keepdims=True), 1e-12)
