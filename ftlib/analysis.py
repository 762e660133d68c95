"""What an evaluation says besides its metrics: intervals, slices, calibration, and another run on the same rows.

Everything here is of predictions on the host, by `ftlib/resampling.py` for every task.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ftlib import resampling
from ftlib.base.errors import InputError, did_you_mean
from ftlib.data import windows
from ftlib.data.batches import Examples
from ftlib.data.sources import Rows
from ftlib.evals import bootstrap, calibration, metrics, paired
from ftlib.evals.bootstrap import Counted
from ftlib.run import Run

LENGTH = 'length'
_NONE, _OTHER = '(none)', '(other)'
_MOST = 20  # slices of a column; the rest of its values are one more
_SECONDS = 10.0  # what intervals may take where nobody has said how many samples there are to be


@dataclasses.dataclass(frozen=True)
class Options:
  """What eval.py was asked for: `bootstrap` samples (0: no intervals, None: as many as are quick), `slices`: 'length'
  or columns, `calibrate`: the split that a temperature is fitted on, `against`: the folder of another run."""

  bootstrap: int | None = None
  slices: Sequence[str] = ()
  calibrate: str = ''
  against: str = ''

  def __post_init__(self):
    if self.bootstrap is not None and self.bootstrap < 0:
      raise InputError(f'--bootstrap={self.bootstrap}: wanted a number of samples, or 0 for no intervals')


@dataclasses.dataclass(frozen=True)
class Answers:
  """A run's predictions of N rows. `rows` are what metrics and slices ask of these; `keys` [N] tell by what a row asks
  and what its answer is, and `where(i)` its place; `right` bool [N], None where the task's records do not say."""

  run: Run
  examples: Examples
  predictions: Mapping[str, Any]
  rows: Sequence[Mapping[str, Any]]
  keys: Sequence[int]
  where: Callable[[int], str]
  right: np.ndarray | None


def answers(run: Run, examples: Examples, predictions: Mapping[str, Any], rows: Rows) -> Answers:
  """Those to rows that are held whole."""
  found = right([*run.task.records(rows, predictions)], len(rows))
  return Answers(run, examples, predictions, rows, keys(run, rows), rows.where, found)


def keys(run: Run, rows: Sequence[Mapping[str, Any]]) -> list[int]:
  """A number for what each row asks and what the answer is, whatever the columns are called."""
  found = run.settings.modules['task'].columns(run.settings.task)
  names = [*found.texts, *([found.label] if found.label else [])]
  return [hash(repr([row[n] for n in names])) for row in rows]


def right(records: Sequence[Mapping[str, Any]], count: int) -> np.ndarray | None:
  """Which of `count` rows are right, by their records; None where these do not say."""
  if len(records) != count or not all({'label', 'prediction'} <= r.keys() for r in records):
    return None
  return np.array([r['label'] == r['prediction'] for r in records], bool)


def analysed(
  run: Run, examples: Examples, predictions: Mapping[str, Any], rows: Sequence[Mapping], options: Options
) -> dict[str, Any]:
  """What goes into `eval/<split>.json` beside the metrics: `intervals` {metric: [low, high]}, also `per_class`,
  `bootstrap` {samples, level, without}, `slices` {by: [{slice, n, metrics, intervals}]}, of scalars alone, and, of
  classifiers, `calibration`. Raises `InputError`."""
  counted, total = resampling.resampled(run.task, examples, predictions, rows), resampling.count(examples)
  out = {'metric': run.task.metric, **_intervals(counted, total, options)}
  if options.slices:
    groups = grouped(options.slices, rows, resampling.lengths(examples))
    out['slices'] = {by: _slices(counted, of_rows, options, len(groups)) for by, of_rows in groups.items()}
  if (judged := classes(examples, predictions)) is not None:
    out['calibration'] = calibration.measures(*judged)
  return out


def classes(examples: Examples, predictions: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray] | None:
  """(labels int [N], probabilities [N, C]) where rows are of one class each and the predictions are probabilities."""
  p_NC, labels = predictions.get('probabilities'), examples.extra.get('labels')
  if p_NC is None or labels is None or labels.ndim != 1 or labels.dtype.kind != 'i' or p_NC.ndim != 2:
    return None
  if np.abs(p_NC.sum(1) - 1).max(initial=0) > metrics.SUM_TOLERANCE:
    return None
  return windows.of_rows(examples, 'labels'), p_NC


def fitted(examples: Examples, predictions: Mapping[str, Any], *, task: str) -> dict[str, Any]:
  """What `eval/temperature.json` says: `temperature`, and the measures of these rows `before` and `after` it.

  Raises `InputError` for a task without classes.
  """
  judged = classes(examples, predictions)
  if judged is None:
    raise InputError(
      f'--calibrate is for tasks that give each row one of several classes, and task.name={task} does not'
    )
  found = calibration.temperature(*judged)
  after = calibration.measures(judged[0], calibration.scaled(judged[1], found))
  return {'temperature': found, 'n': len(judged[0]), 'before': calibration.measures(*judged), 'after': after}


def recalibrated(
  examples: Examples, predictions: Mapping[str, Any], fitted: Mapping[str, Any], *, split: str
) -> dict[str, Any]:
  """The measures of the rows of `split` at a temperature that was `fitted`, with it, the split it is of, and `notes` on
  what they do not show."""
  labels_N, p_NC = classes(examples, predictions)
  found = {'temperature': fitted['temperature'], 'split': fitted['split']}
  notes = []
  if fitted['split'] == split:
    notes.append(f'the temperature was fitted on these {split} rows, so that they look better than others will')
  if calibration.at_bound(fitted['temperature']):
    notes.append('the temperature stands at a bound of its range: no finite one is best on the rows it was fitted on')
  after = calibration.measures(labels_N, calibration.scaled(p_NC, fitted['temperature']))
  return {**found, **after, **({'notes': notes} if notes else {})}


def compared(here: Answers, there: Answers, options: Options) -> dict[str, Any]:
  """Two runs on the same rows (`ftlib/evals/paired.py`), each by its own rule of decision (`Task.ruled`), with
  McNemar's test where there is an accuracy.

  Raises `InputError` where these are of different tasks, labels or rows, or where their metrics are read differently.
  """
  field = f'--against={options.against}'
  _check_alike(here, there, field)
  task, rows = here.run.task, here.rows
  examples = resampling.joined([here.examples, there.examples])
  predictions = resampling.joined_predictions([_ruled(here), _ruled(there)])
  counted = resampling.resampled(task, examples, predictions, [*rows, *rows])
  _check_rule(counted, here, there, field)
  out = {'run': options.against, **paired.compared(counted, len(rows), samples=options.bootstrap)}
  if 'accuracy' in task.metric_names and here.right is not None and there.right is not None:
    out['mcnemar'] = paired.mcnemar(here.right, there.right)
  return out


def grouped(
  slices: Sequence[str], rows: Sequence[Mapping[str, Any]], lengths: np.ndarray
) -> dict[str, list[tuple[str, np.ndarray]]]:
  """{by: [(name, bool [N] rows of the slice)]}: rows by their tokens, in buckets of which each is twice as long as the
  one before, and by the values of columns, numbers of many values in quarters. Raises `InputError` for an unknown
  column."""
  columns = list(dict.fromkeys(c for row in rows for c in row))
  out = {}
  for by in slices:
    if by in columns:  # before the length, so that a column may be called so
      out[by] = _by_values([row.get(by) for row in rows])
    elif by == LENGTH:
      out[by] = _by_length(lengths)
    else:
      known = [LENGTH, *columns]
      raise InputError(
        f'--slices={by}: the rows have no such column{did_you_mean(by, known)}\n  there are {", ".join(known)}'
      )
  return out


def _intervals(counted: Counted, total: int, options: Options, *, within: Any = None, share: int = 1) -> dict[str, Any]:
  if options.bootstrap == 0:
    return {}
  found = bootstrap.intervals(counted, total, samples=options.bootstrap, within=within, seconds=_SECONDS / share)
  how = {'samples': found.samples, 'level': found.level} | ({'without': found.without} if found.without else {})
  return {'intervals': found.bounds, 'bootstrap': how}


def _slices(
  counted: Counted, groups: Sequence[tuple[str, np.ndarray]], options: Options, kinds: int
) -> list[dict[str, Any]]:
  scalars = lambda counts: {n: v for n, v in counted(counts).items() if n != 'per_class'}  # noqa: E731
  out = []
  for name, within in groups:
    found = scalars(within.astype(np.int64))
    intervals = _intervals(scalars, len(within), options, within=within, share=kinds * len(groups))
    out.append({'slice': name, 'n': int(within.sum()), 'metrics': found, **intervals})
  return out


def _by_length(lengths_N: np.ndarray) -> list[tuple[str, np.ndarray]]:
  edges = [0, 16]
  while edges[-1] < lengths_N.max():
    edges.append(2 * edges[-1])
  found = [(f'{a + 1}-{b}', (lengths_N > a) & (lengths_N <= b)) for a, b in itertools.pairwise(edges)]
  return [(f'{name} tokens', within) for name, within in found if within.any()]


def _by_values(values: Sequence[Any]) -> list[tuple[str, np.ndarray]]:
  known = [v for v in values if v is not None]
  if len({*map(str, known)}) > _MOST and (numbers := _numbers(known)) is not None:
    column = np.array([np.nan if v is None else float(v) for v in values])
    edges = np.unique(np.quantile(numbers, [0, 0.25, 0.5, 0.75, 1]))
    short = [f'{e:g}' for e in edges]
    names = short if len({*short}) == len(short) else [*map(repr, edges.tolist())]
    found = [
      (f'{names[i]} to {names[i + 1]}', (column >= a if i == 0 else column > a) & (column <= b))
      for i, (a, b) in enumerate(itertools.pairwise(edges))
    ]
    return [f for f in [*found, (_NONE, np.isnan(column))] if f[1].any()]
  names = np.array([_NONE if v is None else str(v) for v in values], object)
  common = [v for v, _ in Counter(names).most_common()]
  found = [(name, names == name) for name in common[:_MOST]]
  rest = ~np.isin(names.astype(str), np.array(common[:_MOST], str))
  return found + ([(f'{_OTHER}: {len(common) - _MOST} values', rest)] if rest.any() else [])


def _numbers(values: Sequence[Any]) -> np.ndarray | None:
  try:
    found = np.array([float(v) for v in values if not isinstance(v, bool)])
  except (TypeError, ValueError):
    return None
  return found if len(found) == len(values) and np.isfinite(found).all() else None


def _check_alike(here: Answers, there: Answers, field: str) -> None:
  tasks = [a.run.settings.names['task'] for a in (here, there)]
  if tasks[0] != tasks[1]:
    raise InputError(f'{field}: its task.name={tasks[1]} and not {tasks[0]}; their metrics are of different things')
  labels = [[*a.run.task.labels] for a in (here, there)]
  if labels[0] != labels[1]:
    raise InputError(f'{field}: its label list is {_short(labels[1])}, and not {_short(labels[0])}')
  a, b = here.keys, there.keys
  if a != b:
    first = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    where = [one.where(first) if first < len(one.keys) else 'no row' for one in (here, there)]
    raise InputError(
      f'{field}: its rows are not those of this run ({len(b)} and {len(a)}), the first that differ:\n'
      f'  {where[0]}\n  {where[1]}\nA paired comparison is of the same rows in the same order.'
    )


def _ruled(of: Answers) -> dict[str, Any]:
  task = of.run.task
  return task.ruled(of.examples, of.predictions) if hasattr(task, 'ruled') else dict(of.predictions)


def _check_rule(counted: Counted, here: Answers, there: Answers, field: str) -> None:
  """Raises `InputError` where this run's way to judge gives other metrics of the other run than that one's own."""
  own = there.run.task.metrics(there.examples, there.predictions)
  found = counted(np.repeat([0, 1], len(there.keys)))
  both = [n for n in here.run.task.metric_names if found.get(n) is not None and own.get(n) is not None]
  if off := [n for n in both if not np.isclose(found[n], own[n], rtol=1e-4, atol=1e-6)]:
    a, b = (dataclasses.asdict(one.run.settings.task) for one in (here, there))
    other = ', '.join(f'task.{n}={b[n]} and not {v}' for n, v in a.items() if b[n] != v)
    raise InputError(
      f'{field}: its {off[0]} is {own[off[0]]:.4f} as it judges itself, and {found[off[0]]:.4f} as this run would; '
      f'its settings are {other}\nRuns are compared that are judged alike.'
    )


def _short(labels: Sequence[Any]) -> str:
  return ', '.join(map(str, labels[:8])) + (f', ... ({len(labels)})' if len(labels) > 8 else '')
