"""Answers of a trained run to rows of any file: python -m ftlib.predict --workdir=W --input=F.jsonl --output=O.jsonl

--input is a .txt (a text a line; a tab between the two of a pair), .jsonl, .csv, .tsv, .json or .parquet, or - for the
standard input (of --format, txt by default). The columns are those that the run was trained on; a label is not needed,
and is not looked at. --output has a JSON object a row, - for the standard output: `id` (the row's own, or its number
from 0) and what the task says of a row, of classifiers with the probability of each label. A .csv or .tsv has the same
as a table: a column for each probability (`probabilities.LABEL`), lists as JSON. Rows are read as they are answered, so
that a file may be of any length.
"""

from __future__ import annotations

import contextlib
import csv
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO

from ftlib import cli, folder, stream, temperatures  # cli first: it sets the environment before JAX is imported
from ftlib.base.errors import InputError
from ftlib.data.incoming import STDIN, Incoming
from ftlib.evals import calibration, report_format
from ftlib.stream import Stream
from ftlib.tasks.task import Task

_SEPARATORS = {'.csv': ',', '.tsv': '\t'}  # of tables; all else is JSON lines
_OTHERS = ('.json', '.parquet')  # which the output is not

Record = Mapping[str, Any]


def predict(
  source: Stream, incoming: Incoming, write: Callable[[Record], Any], *, temperature: float | None = None
) -> int:
  """Writes a record for each row, as rows are read; gives their number. Raises `InputError` with file and line."""
  task, count = source.run.task, 0
  told = not (source.columns.label or source.columns.parts)
  for rows, _, predictions in source.over(incoming):
    records = task.records(rows, predictions)
    if temperature is not None:  # which changes no prediction
      cooled_NC = calibration.scaled(predictions['probabilities'], temperature)
      records = ({**r, 'probabilities': [round(float(x), 6) for x in p]} for r, p in zip(records, cooled_NC))
    for row, record in zip(rows, records, strict=True):
      write(_shown(task, row, record, told))
      count += 1
  return count


def _shown(task: Task, row: Mapping[str, Any], record: Mapping[str, Any], told: bool) -> dict[str, Any]:
  """A record with names to the probabilities, without the label unless that is `told`, as no placeholder."""
  out = {'id': row['id'], **{n: v for n, v in record.items() if n != 'id' and (told or n != 'label')}}
  values = out.get('probabilities')
  if isinstance(values, list) and len(values) == len(task.labels):
    out['probabilities'] = dict(zip(map(str, task.labels), values))
  return out


def check(task: Task, name: str) -> None:
  """Raises `InputError` for a task whose answers are texts."""
  if hasattr(task, 'question'):
    raise InputError(
      f'task.name={name} answers by texts; ask it by\n  python -m ftlib.generate --workdir=RUN --input=F.jsonl '
      '--output=O.jsonl'
    )


def stored_temperature(source: Stream, workdir: str, step: int) -> float:
  """What `eval.py --calibrate` has found with a checkpoint. Raises `InputError` where it is not there, or of no use."""
  threshold = getattr(source.run.task.config, 'threshold', 'argmax')
  if threshold != 'argmax':
    raise InputError(
      f'--calibrated: the run predicts from a threshold on, of probabilities as they are (task.threshold={threshold}), '
      'and others would contradict its predictions; leave the flag out'
    )
  return temperatures.read(pathlib.Path(workdir).expanduser(), step, field='--calibrated')['temperature']


@contextlib.contextmanager
def _output(path: str) -> Iterator[Callable[[Record], Any]]:
  if path == STDIN:
    yield lambda record: sys.stdout.write(folder.line(record))
    sys.stdout.flush()
    return
  target = pathlib.Path(path).expanduser()
  with folder.written(target) as f:
    separator = _SEPARATORS.get(target.suffix.lower())
    yield _table(f, separator, path) if separator else lambda record: f.write(folder.line(record))


def _table(file: TextIO, separator: str, path: str) -> Callable[[Record], Any]:
  """A function that writes records as rows of a table, whose columns are those of the first."""
  table = csv.writer(file, delimiter=separator, lineterminator='\n')
  columns: list[str] = []

  def write(record: Record) -> None:
    row = report_format.leaves(record)
    if not columns:
      columns.extend(row)
      table.writerow(columns)
    if [*row] != columns:
      odd = sorted({*row} ^ {*columns})
      raise InputError(
        f'--output={path}: row {record["id"]} has other columns than the first ({", ".join(odd[:5])}), which no table '
        'has room for; give --output a name with .jsonl'
      )
    table.writerow(
      json.dumps(v, ensure_ascii=False, default=str) if isinstance(v, list | dict) else v for v in row.values()
    )

  return write


def _checked_output(path: str) -> None:
  target = pathlib.Path(path).expanduser()
  if path != STDIN and (target.exists() or not target.absolute().parent.is_dir()):
    raise InputError(f'--output={path}: ' + ('it exists' if target.exists() else 'there is no such folder'))
  if target.suffix.lower() in _OTHERS:
    raise InputError(f'--output={path}: what is written is JSON lines (.jsonl), or a table (.csv, .tsv)')


def main() -> None:
  """Predicts as the flags say."""
  from absl import flags

  f = flags.FLAGS
  if not (f.input and f.output):
    raise InputError('give --input=FILE and --output=FILE.jsonl (or .csv), or - for the standard input and output')
  _checked_output(f.output)
  if f.on_bad_row not in ('error', 'skip'):
    raise InputError(f'--on_bad_row={f.on_bad_row} is none of error, skip')
  Incoming(f.input, (), f.format)  # is it there? before a model is read
  source, step = stream.of_run(f.workdir, checkpoint=f.checkpoint, batch_size=f.batch_size, skip=f.on_bad_row == 'skip')
  check(source.run.task, source.run.settings.names['task'])
  temperature = stored_temperature(source, f.workdir, step) if f.calibrated else None
  began, incoming = time.perf_counter(), Incoming(f.input, source.columns.texts, f.format, f.encoding)
  with _output(f.output) as write:
    count = predict(source, incoming, write, temperature=temperature)
  for note in [*source.notes, *incoming.notes]:
    print(f'note  {note}', file=sys.stderr)
  if sys.stdout.isatty() and f.output != STDIN:
    speed = count / max(time.perf_counter() - began, 1e-9)
    print(f'{f.output}: {count:,} rows by checkpoint {step}, {speed:,.0f} a second')


if __name__ == '__main__':
  from absl import flags

  flags.DEFINE_string('workdir', None, 'the folder that train.py wrote')
  flags.DEFINE_string('checkpoint', 'best', 'best, last, or the number of a step')
  flags.DEFINE_string('input', None, 'the file of rows, or -')
  flags.DEFINE_string('output', None, 'the file to write: .jsonl, .csv or .tsv; or -')
  flags.DEFINE_string('format', '', 'txt, jsonl, csv or tsv, whatever the ending of --input')
  flags.DEFINE_string('encoding', 'utf-8', 'of --input')
  flags.DEFINE_integer('batch_size', None, 'rows that are computed together, as in the run by default')
  flags.DEFINE_bool('calibrated', False, 'probabilities at the temperature that eval.py --calibrate has found')
  flags.DEFINE_string('on_bad_row', 'error', 'error, or skip: what is done with rows that cannot be used')
  sys.exit(cli.run(main))
