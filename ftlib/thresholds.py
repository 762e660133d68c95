"""Tuned thresholds in the run folder: found on the validation split with a checkpoint, used with it ever after.

A task that asks for them (`task.threshold=tuned`) has `tuned(examples, predictions)`, which `Run.evaluate` calls on the
validation split, and `thresholds`, which stand in for it elsewhere. `thresholds.json` holds {step: {label: threshold}}.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ftlib.base.errors import InputError
from ftlib.io import workdir as files

if TYPE_CHECKING:
  from ftlib.run import Run  # which imports this file

FILE = 'thresholds.json'


def asked(run: Run) -> bool:
  """Whether the run's task tunes thresholds."""
  return 'tuned' in (getattr(run.task.config, name, '') for name in ('threshold', 'null_threshold'))


def _names(run: Run) -> list[str]:
  """What thresholds are called: by labels, or, without such, the one above which there is no answer."""
  return [str(label) for label in run.task.labels] or ['no answer']


def save(run: Run, workdir: pathlib.Path, predictions: Mapping[str, np.ndarray], step: int) -> None:
  """Writes what was tuned with the predictions of a checkpoint on the validation split."""
  if not asked(run) or 'thresholds' not in predictions:
    return
  path = workdir / FILE
  found = files.read_json(path) if path.exists() else {}
  values_C = predictions['thresholds'][0].tolist()
  names = _names(run)[-len(values_C) :]  # of two classes, the second alone has one
  files.write_json(path, {**found, str(step): dict(zip(names, values_C, strict=True))})


def check_there(run: Run, *, split: str) -> None:
  """Raises `InputError` where thresholds are to be tuned for what is no run of its own, on other rows than
  validation's: there are none, and it is said before anything is computed."""
  if asked(run) and split != 'validation':
    field = 'null_threshold' if hasattr(run.task.config, 'null_threshold') else 'threshold'
    raise InputError(
      f'task.{field}=tuned: thresholds are tuned on the validation split of a training run and stand with its '
      'checkpoint, and here is none\n  take --split=validation, judge the run itself by --workdir=, or give a number '
      f'by --config.task.{field}='
    )


def read(run: Run, workdir: pathlib.Path, step: int, *, split: str) -> Run:
  """The run with the thresholds that were tuned with a checkpoint, to evaluate or predict other rows than validation's.

  Raises `InputError` where they never were.
  """
  if not asked(run) or split == 'validation':
    return run
  path = workdir / FILE
  found = files.read_json(path) if path.exists() else {}
  if str(step) not in found:
    raise InputError(
      f'thresholds are tuned, but {path} holds no thresholds of checkpoint {step}; tune them first by\n'
      f'  python eval.py --workdir={workdir} --split=validation --checkpoint={step}'
    )
  values = found[str(step)]
  values_C = np.array([values[name] for name in _names(run) if name in values], np.float64)
  return dataclasses.replace(run, task=dataclasses.replace(run.task, thresholds=values_C))
