"""What a task is: how rows become examples, which head they need, and how answers are judged.

A task file exposes `OBJECTIVE` (the name of the usual one), `Config`, `columns(config) -> Columns` (what it reads of
the data, `ftlib/data/labels.py`) and `build(config, *, train, known) -> Task` over the training rows and the label list
that a stored run or the data come with. A task whose answers are generated has `generation`, `asked`, `prompts` and
`judged` besides (`ftlib/tasks/generate.py`): `Run.evaluate` generates, and adds `prediction`. One whose rows may be cut
into windows (`Examples.windows`) has `combined(examples, predictions)`, those of windows as those of rows, and these
are what `metrics` and `records` get. One that tunes something on the validation split (`task.threshold`) has
`tuned(examples, predictions)`, these predictions with it, and a field `thresholds` (`ftlib/thresholds.py`); one whose
answers follow from a setting or from other rows has `ruled(examples, predictions)`, these with what was decided, which
goes before the task's own decision, so that runs of different rules can be compared. One that takes more than labels
from the training rows has `learnt`, {field: value} as JSON has them: they stand with the run, and take the place of
what `build` gives without rows. Where `HEADLESS` is true, the model needs no new parameters for its head.

What eval.py and `ftlib.predict` ask of every task has a general answer, and a task may have a better one:

* rows without labels (`unlabelled`): `placeholder(row)` is a label that stands in, which no prediction depends on; by
  default the first of the label list, or 0.
* intervals, slices and comparisons (`ftlib/resampling.py`): `resampled(examples, predictions) -> Counted`, the scalars
  of `metric_names`, and `per_class`, over rows that stand there so many times (`ftlib/evals/counted.py` has those of
  classes and scores, and `sums` for what follows from sums over rows); by default `metrics` of the rows themselves,
  which is exact and slow. For that, what of `Examples.host` is of single rows or documents is a list or an array of
  them.

So `metrics` may depend on a row only by what `examples` (`extra`, `host`) and `predict` keep of it, not on its tokens,
which are let go, and not on the order of the rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from ftlib.base.types import Batch, Head, Outputs
from ftlib.data.batches import Examples
from ftlib.data.labels import Columns


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
    (`per_class` {class: {precision, recall, f1, support}} and `confusion` are shown). A measure that is not defined on
    this split is None."""

  def records(self, rows: Sequence[Mapping[str, Any]], predictions: Mapping[str, np.ndarray]) -> Iterator[dict]:
    """One JSON object a row for the predictions file: `id`, `label`, `prediction`, `text` and more."""


def unlabelled(task: Task, rows: Sequence[Mapping[str, Any]], columns: Columns) -> list[dict[str, Any]]:
  """The rows with a placeholder for a label, whatever label they have, to be predicted."""
  usual = task.labels[0] if len(task.labels) else 0.0
  placeholder = getattr(task, 'placeholder', lambda row: usual)
  return [{**row, columns.label: placeholder(row)} for row in rows]
