"""What a task is: how rows become examples, which head they need, and how answers are judged.

A task file exposes `OBJECTIVE` (the name of the usual one), `Config`, `columns(config) -> Columns` (what it reads of
the data, `ftlib/data/labels.py`) and `build(config, *, train, known) -> Task` over the training rows and the label list
that a stored run or the data come with. A task whose answers are generated has `generation`, `asked`, `prompts` and
`judged` besides (`ftlib/tasks/generate.py`): `Run.evaluate` generates, and adds `prediction`. Where `HEADLESS` is
true, the model needs no new parameters for its head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from ftlib.base.types import Batch, Head, Outputs
from ftlib.data.batches import Examples


class Task(Protocol):
  """`labels` is the stored label list, [] where the answers are no classes; `counts` the training rows of each label.
  `metric` is what "best" means by default, one of `metric_names`, {scalar of `metrics`: whether higher is better}.
  `about` says in a line what the answers are."""

  labels: list
  counts: np.ndarray
  head: Head
  metric: str
  metric_names: Mapping[str, bool]
  about: str

  def examples(self, rows: Sequence[Mapping[str, Any]], tokenizer: Any, *, limit: int) -> Examples:
    """Rows as tokens of at most `limit` a document, with what the objective needs of labels and weights."""

  def predict(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
    """On the device: what is kept of a forward pass over a batch, arrays [B, ...]."""

  def metrics(self, examples: Examples, predictions: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """On the host: every measure over a whole split, the scalars of `metric_names` and whatever else JSON holds
    (`per_class` and `confusion` are shown). A measure that is not defined on this split is None."""

  def records(self, rows: Sequence[Mapping[str, Any]], predictions: Mapping[str, np.ndarray]) -> Iterator[dict]:
    """One JSON object a row for the predictions file: `id`, `label`, `prediction`, `text` and more."""
