"""The best answer that is the same for every row, at which the bias of a new head starts.

From 0 on, a bias has to go as far as the answers lie from it, and an optimizer whose steps are of the size of the
learning rate (Adam) takes thousands to get there: of rare labels to a log odds of -4, of scores to their mean. Until
then the weights of the whole model serve as a bias, and what it knows of the texts is lost. Lin et al. (2017, section
4.1) start at the prior for the same reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from ftlib.base.types import Outputs, Sums

_ROWS = 50_000  # at most, evenly out of all
_PENALTY = 0.1  # in rows


def best(objective: Callable[..., Sums], extra: Mapping[str, np.ndarray], classes: int) -> np.ndarray:
  """The logits float32 [C] at which the mean loss of all rows is least, if all have the same.

  `extra`: what the objective reads of rows besides logits, arrays [N, ...]. A label that no row has, or every one,
  stays finite: there is a small penalty on the squares of the logits.
  """
  from scipy.optimize import minimize

  count = len(next(iter(extra.values())))
  rows = np.linspace(0, count - 1, min(count, _ROWS)).astype(np.int64)
  batch = {name: jnp.asarray(values[rows]) for name, values in extra.items()}

  def loss(logits_C: jax.Array) -> jax.Array:
    logits_NC = jnp.broadcast_to(logits_C, (len(rows), classes))
    total, weight = objective(lambda inputs, key: Outputs(None, logits=logits_NC), batch, None)['loss']
    return total / weight + _PENALTY * (logits_C**2).sum() / (2 * classes * len(rows))

  step = jax.jit(jax.value_and_grad(loss))

  def measured(logits_C: np.ndarray) -> tuple[float, np.ndarray]:
    value, slope_C = step(jnp.asarray(logits_C, jnp.float32))
    return float(value), np.asarray(slope_C, np.float64)

  found = minimize(measured, np.zeros(classes), jac=True, method='L-BFGS-B')
  return found.x.astype(np.float32)
