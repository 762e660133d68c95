"""The metrics of a task over any part or resample of the rows, for intervals, slices and comparisons, of every task.

A task may offer `resampled(examples, predictions) -> Counted`, a quick one (`ftlib/evals/counted.py`). For others the
rows are taken so many times, and `Task.metrics` asked: exact, and as slow as it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ftlib.data.batches import Examples
from ftlib.data.tokens import Tokens
from ftlib.evals import counted, text_metrics
from ftlib.evals.bootstrap import Counted
from ftlib.tasks.task import Task

Predictions = Mapping[str, Any]  # of each row, arrays [N, ...] or lists


def resampled(task: Task, examples: Examples, predictions: Predictions, rows: Sequence[Mapping[str, Any]]) -> Counted:
  """The scalars of `task.metric_names` over counts [N] of the rows, and `per_class` where there are classes. Of answers
  that are generated, those that are means or follow from sums."""
  own = getattr(task, 'resampled', None)
  of_task = own(examples, predictions) if own else retaken(task, examples, predictions)
  if not hasattr(task, 'judged') or 'prediction' not in predictions:
    return of_task
  asked = np.array([i for i, answer in enumerate(predictions['prediction']) if answer is not None])
  answers = [predictions['prediction'][i].strip() for i in asked]
  of_texts = counted.texts(text_metrics.groups(task.config.metrics), answers, [task.references(rows[i]) for i in asked])
  return lambda counts: {**of_task(counts), **(of_texts(counts[asked]) if counts[asked].any() else {})}


def retaken(task: Task, examples: Examples, predictions: Predictions) -> Counted:
  """The general answer: `Task.metrics` of the rows, taken so many times."""
  total = count(examples)

  def metrics(counts_N: np.ndarray) -> dict[str, Any]:
    rows = np.repeat(np.arange(total), counts_N)
    found = task.metrics(taken(examples, rows), {n: _at(x, rows) for n, x in predictions.items()})
    classes = {'per_class': found['per_class']} if 'per_class' in found else {}
    return {**{n: found.get(n) for n in task.metric_names}, **classes}

  return metrics


def count(examples: Examples) -> int:
  """The rows that the documents are of."""
  return len(examples) if examples.windows is None else int(examples.windows.max(initial=-1)) + 1


def lengths(examples: Examples) -> np.ndarray:
  """Tokens of each row, int64 [N]; what windows share counts in each."""
  of_documents = examples.lengths
  return of_documents if examples.windows is None else np.bincount(examples.windows, of_documents).astype(np.int64)


def taken(examples: Examples, rows: np.ndarray) -> Examples:
  """The examples of some rows, which may stand there several times, in this order.

  What of `host` is a list or an array as long as there are rows (or documents) is taken along, the rest stays.
  """
  rows = np.asarray(rows, np.int64)
  host = lambda documents: _host(examples, rows, documents)  # noqa: E731
  if examples.packs is not None and not examples.window:
    packs = [examples.packs[r] for r in rows]
    extra = {n: x[rows] for n, x in examples.extra.items()}
    return dataclasses.replace(examples, packs=packs, extra=extra, host=host(rows))
  if examples.windows is None:
    documents, windows = rows, None
  else:
    order = np.argsort(examples.windows, kind='stable')
    parts = np.split(order, np.searchsorted(examples.windows[order], np.arange(1, count(examples))))
    documents = np.concatenate([parts[r] for r in rows]) if len(rows) else rows
    windows = np.repeat(np.arange(len(rows)), [len(parts[r]) for r in rows])
  starts, stops = examples.tokens.offsets[documents], examples.tokens.offsets[documents + 1]
  offsets = np.concatenate([[0], np.cumsum(stops - starts)]).astype(np.int64)
  at = np.repeat(starts - offsets[:-1], stops - starts) + np.arange(offsets[-1])
  tokens = Tokens(examples.tokens.ids[at], examples.tokens.types[at], offsets, examples.tokens.truncated)
  return dataclasses.replace(
    examples,
    tokens=tokens,
    extra={n: x[documents] for n, x in examples.extra.items()},
    per_token={n: x[at] for n, x in examples.per_token.items()},
    windows=windows,
    host=host(documents),
    spans={},
  )


def joined(parts: Sequence[Examples]) -> Examples:
  """The rows of several examples one behind another, to be judged: all ids are 0 and take no room, and nothing is there
  that is of tokens (`per_token`, `spans`)."""
  first, sizes = parts[0], [len(p.tokens) for p in parts]
  offsets = np.concatenate([[0], np.cumsum(np.concatenate([p.tokens.lengths for p in parts]))]).astype(np.int64)
  nothing = np.broadcast_to(np.int32(0), (int(offsets[-1]),))
  windows, packs = None, None
  if any(p.windows is not None for p in parts):  # one whose rows all fit has none
    before = np.concatenate([[0], np.cumsum([count(p) for p in parts])])
    own = [np.arange(len(p)) if p.windows is None else p.windows for p in parts]
    windows = np.concatenate([w + b for w, b in zip(own, before)])
  if first.packs is not None:
    before = np.concatenate([[0], np.cumsum(sizes)])
    packs = [d + b for p, b in zip(parts, before) for d in p.packs]
  together = lambda name: {  # noqa: E731
    n: _concatenated([getattr(p, name)[n] for p in parts]) for n in getattr(first, name)
  }
  return dataclasses.replace(
    first,
    tokens=Tokens(nothing, nothing, offsets, sum(p.tokens.truncated for p in parts)),
    extra=together('extra'),
    per_token={},
    packs=packs,
    windows=windows,
    host=together('host'),
    spans={},
    notes=[*dict.fromkeys(n for p in parts for n in p.notes)],
  )


def joined_predictions(parts: Sequence[Predictions]) -> dict[str, Any]:
  """The predictions of several parts one behind another; those for each token are as wide as the widest, with -1 (of
  numbers that are no integers, 0) behind the last token of the others."""
  return {n: _concatenated([p[n] for p in parts]) for n in parts[0]}


def _concatenated(values: Sequence[Any]) -> Any:
  if isinstance(values[0], np.ndarray):
    if values[0].ndim > 1 and len({v.shape[1] for v in values}) > 1:
      wide = max(v.shape[1] for v in values)
      nothing = -1 if values[0].dtype.kind == 'i' else 0
      room = lambda v: [(0, 0), (0, wide - v.shape[1])] + [(0, 0)] * (v.ndim - 2)  # noqa: E731
      values = [np.pad(v, room(v), constant_values=nothing) for v in values]
    return np.concatenate(values)
  return [x for v in values for x in v] if isinstance(values[0], list | tuple) else values[0]


def _host(examples: Examples, rows: np.ndarray, documents: np.ndarray) -> dict[str, Any]:
  of_rows, of_documents = count(examples), len(examples.tokens)
  out = {}
  for name, value in examples.host.items():
    sized = len(value) if isinstance(value, np.ndarray | list | tuple) else -1
    out[name] = _at(value, rows if sized == of_rows else documents) if sized in (of_rows, of_documents) else value
  return out


def _at(values: Any, rows: np.ndarray) -> Any:
  return values[rows] if isinstance(values, np.ndarray) else [values[r] for r in rows]
