"""A model over a whole split: every row counted once, padding never."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from ftlib.base.types import Batch


def evaluate(
  eval_step: Callable[[Batch], tuple[dict, dict]], batches: Iterable[tuple[np.ndarray, Batch]], *, rows: int
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
  """(means of the objective's sums, predictions [rows, ...] in the split's order).

  `batches` gives (row numbers, Batch); rows of a batch beyond its row numbers are padding. Predictions for each token
  are as wide as the widest batch, with zeros behind the tokens of narrower ones.
  """
  totals: dict[str, np.ndarray] = {}
  arrays: dict[str, np.ndarray] = {}
  pending: Any = None

  def take(numbers: np.ndarray, sums: dict, predictions: dict) -> None:
    for name, pair in jax.device_get(sums).items():
      totals[name] = totals.get(name, 0) + np.asarray(pair, np.float64)
    for name, values in jax.device_get(predictions).items():
      if name not in arrays:
        arrays[name] = np.zeros((rows, *values.shape[1:]), values.dtype)
      if values.ndim > 1 and (more := values.shape[1] - arrays[name].shape[1]) > 0:
        arrays[name] = np.pad(arrays[name], [(0, 0), (0, more)] + [(0, 0)] * (values.ndim - 2))
      arrays[name][(numbers, *map(slice, values.shape[1:2]))] = values[: len(numbers)]

  for numbers, batch in batches:
    out = eval_step(batch)
    if pending is not None:
      take(*pending)  # one batch late, so that the device is not waited for
    pending = (numbers, *out)
  if pending is not None:
    take(*pending)
  return {n: float(s / w) if w else 0.0 for n, (s, w) in totals.items()}, arrays
