"""eval.py --file: a stored run on the labelled rows of any file, which are read, answered and written piece by piece.

Held for the metrics: what `Task.predict` and `Task.examples` keep of each row, without its tokens.
"""

from __future__ import annotations

import pathlib
from typing import Any

from ftlib import analysis, folder, resampling, show, show_evaluation, stream
from ftlib.analysis import LENGTH, Options
from ftlib.base.errors import InputError
from ftlib.data.incoming import Incoming
from ftlib.evals import report
from ftlib.io import workdir as files

_SPLITS = ('train', 'validation', 'test')


def run(workdir: str | None, *, file: str, checkpoint: str, skip: bool, options: Options) -> dict[str, Any]:
  """Evaluates a file, writes `eval/<its name>.json` and its predictions; gives the metrics, without the objective's
  loss, whose weights may be those of the training rows. Raises `InputError`."""
  for field, value in (('calibrate', options.calibrate), ('against', options.against)):
    if value:
      raise InputError(f'--{field} is for splits of the data that the run was made with, and --file is a file')
  own, step = stream.of_run(workdir, checkpoint=checkpoint, labelled=True, skip=skip)
  task, where = own.run.task, pathlib.Path(workdir).expanduser()
  incoming = Incoming(file, own.columns.texts, encoding=own.run.settings.data.encoding, field='--file')
  name = _name(file, incoming)
  kept, parts, predictions = [], [], []
  columns = {by for by in options.slices if by != LENGTH}
  with folder.evaluating(where, name) as write:
    for rows, examples, found in own.over(incoming):
      write(task.records(rows, found))
      held = hasattr(task, 'judged')  # whose references are looked at in the end
      kept += [row if held else {c: row[c] for c in columns if c in row} for row in rows]
      parts.append(resampling.joined([examples], tokens=False))
      predictions.append(found)
  if not parts:
    raise InputError(f'--file={file}: holds no row that can be used')
  examples, found = resampling.joined(parts, tokens=False), resampling.joined_predictions(predictions)
  metrics = task.metrics(examples, found)
  if hasattr(task, 'judged'):
    asked = [i for i, answer in enumerate(found['prediction']) if answer is not None]
    metrics |= task.judged([kept[i] for i in asked], [found['prediction'][i] for i in asked])
  more = analysis.analysed(own.run, examples, found, kept, options)
  record = {'metrics': metrics, 'n': len(kept), 'checkpoint': step, 'labels': [*task.labels], 'file': file}
  record |= {'truncated': long} if (long := examples.tokens.truncated) else {}
  files.write_json(where / 'eval' / f'{name}.json', {**record, **more})
  for note in [*own.notes, *_passed(incoming)]:
    print(f'      note  {note}')
  print(show.table(f'{name}, checkpoint {step}, {len(kept):,} rows', metrics, more.get('intervals')))
  print('\n'.join(show_evaluation.lines(more, task.metric)))
  print(f'report: {report.write(where)}')
  return metrics


def _name(file: str, incoming: Incoming) -> str:
  """The file's name without endings; with that of its folder where it is called as a split of the run's data."""
  taken = (*_SPLITS, 'temperature')
  if incoming.name not in taken:
    return incoming.name
  return f'{pathlib.Path(file).expanduser().resolve().parent.name}_{incoming.name}'


def _passed(incoming: Incoming) -> list[str]:
  return [f'{incoming.passed} empty lines were passed over, the first {incoming.first}'] if incoming.passed else []
