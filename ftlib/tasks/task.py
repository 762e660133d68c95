"""What a task is: how rows become examples, which head they need, and how answers are judged.

A task file exposes `Config`, `columns(config)` and `build(config, *, train, known) -> Task`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from ftlib.base.types import Head, Outputs
from ftlib.data.batches import Examples


class Task(Protocol):
  """`labels` is the stored label list, `counts` the training rows of each, `metric` what "best" means by default."""

  labels: list
  counts: np.ndarray
  head: Head
  metric: str

  def examples(self, rows: Sequence[Mapping[str, Any]], tokenizer: Any, *, limit: int) -> Examples:
    """Rows as tokens with labels and weights, cut to `limit` tokens."""

  def predict(self, outputs: Outputs) -> dict[str, jax.Array]:
    """On the device: what is kept of a forward pass, arrays [B, ...]."""

  def metrics(self, examples: Examples, predictions: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """On the host: every measure over a whole split; scalars, `per_class` and `confusion`."""

  def records(self, rows: Sequence[Mapping[str, Any]], predictions: Mapping[str, np.ndarray]) -> Iterator[dict]:
    """One JSON object a row for the predictions file."""
