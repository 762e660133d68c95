"""eval.py --file: a stored run on the labelled rows of any file, which are read, answered and written piece by piece.

Held for the metrics: of each row what `Task.predict` and `Task.examples` keep of it, and nothing that is of its tokens.
"""

from __future__ import annotations

import array
import pathlib
from collections.abc import Callable, Set
from typing import Any

import numpy as np

from ftlib import analysis, folder, resampling, show, show_evaluation, stream, temperatures
from ftlib.analysis import LENGTH, Answers, Options
from ftlib.base.errors import InputError
from ftlib.data.incoming import STDIN, Incoming
from ftlib.evals import report
from ftlib.io import workdir as files
from ftlib.stream import Stream

_SPLITS = ('train', 'validation', 'test')


def run(workdir: str | None, *, file: str, checkpoint: str, skip: bool, options: Options) -> dict[str, Any]:
  """Evaluates a file, writes `eval/<its name>.json` and its predictions; gives the metrics, without the objective's
  loss, whose weights may be those of the training rows. Raises `InputError`."""
  there = _against(options.against, file, skip) if options.against else None
  own, step = stream.of_run(workdir, checkpoint=checkpoint, labelled=True, skip=skip)
  task, where = own.run.task, pathlib.Path(workdir).expanduser()
  fitted = _temperature(where, step, options.calibrate) if options.calibrate else None
  incoming = _incoming(own, file)
  name = _name(file, incoming)
  with folder.evaluating(where, name) as write:
    here = _answers(own, incoming, {by for by in options.slices if by != LENGTH}, write)
  examples, found, rows = here.examples, here.predictions, here.rows
  metrics = task.metrics(examples, found)
  if hasattr(task, 'judged'):
    asked = [i for i, answer in enumerate(found['prediction']) if answer is not None]
    metrics |= task.judged([rows[i] for i in asked], [found['prediction'][i] for i in asked])
  more = analysis.analysed(own.run, examples, found, rows, options)
  if fitted is not None:
    more['calibrated'] = analysis.recalibrated(examples, found, fitted, split=name)
  if there is not None:
    more['against'] = analysis.compared(here, there, options)
  record = {'metrics': metrics, 'n': len(rows), 'checkpoint': step, 'labels': [*task.labels], 'file': file}
  record |= {'truncated': long} if (long := examples.tokens.truncated) else {}
  files.write_json(where / 'eval' / f'{name}.json', {**record, **more})
  for note in [*own.notes, *incoming.notes]:
    print(f'      note  {note}')
  print(show.table(f'{name}, checkpoint {step}, {len(rows):,} rows', metrics, more.get('intervals')))
  print('\n'.join(show_evaluation.lines(more, task.metric)))
  print(f'report: {report.write(where)}')
  return metrics


def _incoming(source: Stream, file: str) -> Incoming:
  return Incoming(file, source.columns.texts, encoding=source.run.settings.data.encoding, field='--file')


def _answers(source: Stream, incoming: Incoming, columns: Set[str], write: Callable[[list[dict]], Any]) -> Answers:
  """A run's answers to the rows of a file; of these the `columns` are kept, and what a row is told apart by."""
  task = source.run.task
  held = hasattr(task, 'judged')  # whose references are looked at in the end
  kept, keys, at, right, parts, predictions = [], [], array.array('q'), [], [], []
  for rows, examples, found in source.over(incoming):
    records = [*task.records(rows, found)]
    write(records)
    right.append(analysis.right(records, len(rows)))
    keys += analysis.keys(source.run, rows)
    at.extend(rows.at)
    unit = rows.unit
    kept += [row if held else {c: row[c] for c in columns if c in row} for row in rows]
    parts.append(resampling.joined([examples]))
    predictions.append(found)
  if not parts:
    raise InputError(f'--file={incoming.path}: holds no row that can be used')
  together = resampling.joined(parts), resampling.joined_predictions(predictions)
  said = None if any(r is None for r in right) else np.concatenate(right)
  return Answers(source.run, *together, kept, keys, lambda i: f'{incoming.path}{unit}{at[i]}', said)


def _against(path: str, file: str, skip: bool) -> Answers:
  """Those of the best checkpoint of another run, which reads the file by itself."""
  if file == STDIN:
    raise InputError('--against with --file=-: each run reads the file by itself; save the rows and give that file')
  other, _ = stream.of_run(path, labelled=True, skip=skip, field='--against')
  return _answers(other, _incoming(other, file), set(), lambda records: None)


def _temperature(where: pathlib.Path, step: int, split: str) -> dict[str, Any]:
  """What was fitted on a split of the run, as on the rows of a file nothing is fitted."""
  field = f'--calibrate={split} with --file'
  found = temperatures.read(where, step, field=field)
  if found['split'] != split:
    raise InputError(
      f'{field}: the stored temperature was fitted on {found["split"]}; say --calibrate={found["split"]}'
    )
  return found


def _name(file: str, incoming: Incoming) -> str:
  """The file's name without endings; with that of its folder where it is called as a split of the run's data."""
  taken = (*_SPLITS, 'temperature')
  if incoming.name not in taken:
    return incoming.name
  return f'{pathlib.Path(file).expanduser().resolve().parent.name}_{incoming.name}'
