"""eval.py's work: a stored run, one of its checkpoints, one split."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from ftlib import folder, show
from ftlib import run as runs
from ftlib.base.errors import InputError, did_you_mean
from ftlib.base.types import Params
from ftlib.evals import report
from ftlib.io.checkpoint import Checkpoints
from ftlib.run import Run
from ftlib.train import state


def run(workdir: str | None, *, split: str, checkpoint: str) -> dict[str, Any]:
  """Evaluates and writes; gives the metrics."""
  if not workdir:
    raise InputError('give the run folder: --workdir=runs/NAME')
  where = pathlib.Path(workdir).expanduser()
  config, labels = folder.stored(where)
  with Checkpoints(where / 'checkpoints', readonly=True) as checkpoints:
    _step(checkpoints, checkpoint, where)
  try:
    built = runs.build(config, labels=labels, split=split)
  except InputError as e:
    stored = where / 'config.json'
    raise InputError(f'{e}\nThe settings are those of {stored}; train.py takes new places of data and model.') from e
  for note in [*built.notes, *folder.changed(where, built)]:
    print(f'      note  {note}')
  own, frozen, step = restored(built, where, checkpoint)
  metrics, predictions = built.evaluate(own, frozen, split)
  folder.write_evaluation(where, built, split, metrics, predictions, step)
  print(show.table(f'{split}, checkpoint {step}, {len(built.examples[split]):,} rows', metrics))
  print(f'report: {report.write(where)}')
  return metrics


def restored(built: Run, where: pathlib.Path, checkpoint: str) -> tuple[Params, Params, int]:
  """(own, frozen, step) of a checkpoint: 'best', 'last' or the number of a step."""
  with Checkpoints(where / 'checkpoints', readonly=True) as checkpoints:
    step = _step(checkpoints, checkpoint, where)
    found = checkpoints.restore(state.storable(built.abstract_state), step=step)
  return state.restored(found.state).own, built.load()[1], found.step


def metric_names(built: Run) -> list[str]:
  """The scalar metrics of a task, known before anything is trained, from a made-up prediction."""
  classes = len(built.task.labels)
  one_each = {'labels': np.arange(classes, dtype=np.int32), 'weights': np.ones(classes, np.float32)}
  examples = runs.batches.Examples(next(iter(built.examples.values())).tokens, one_each)
  metrics = built.task.metrics(examples, {'probabilities': np.eye(classes, dtype=np.float32)})
  return ['loss', *(n for n, v in metrics.items() if isinstance(v, int | float))]


def _step(checkpoints: Checkpoints, wanted: str, where: pathlib.Path) -> int | None:
  """The number of a checkpoint; None for the newest that can be read."""
  steps = checkpoints.steps()
  if not steps:
    raise InputError(f'--workdir={where} holds no checkpoint yet; train.py saves them')
  if wanted == 'last':
    return None
  if wanted == 'best':
    return checkpoints.best()
  if not wanted.isdecimal() or int(wanted) not in steps:
    there = ', '.join(map(str, steps))
    near = did_you_mean(wanted, ('best', 'last'))
    raise InputError(f'--checkpoint={wanted} is none of best, last and the steps {there} of {where}{near}')
  return int(wanted)
