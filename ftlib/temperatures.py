"""The temperature in the run folder: fitted by `eval.py --calibrate` with one checkpoint, used with that one alone.

`eval/temperature.json` holds `temperature`, the `split` and the `checkpoint` it is of, and measures before and after.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping
from typing import Any

from ftlib.base.errors import InputError
from ftlib.io import workdir as files

FILE = 'temperature.json'  # in the folder of evaluations


def save(workdir: pathlib.Path, found: Mapping[str, Any]) -> None:
  """Writes what was fitted (`analysis.fitted`) with its split and checkpoint."""
  (workdir / 'eval').mkdir(exist_ok=True)
  files.write_json(workdir / 'eval' / FILE, found)


def read(workdir: pathlib.Path, step: int, *, field: str) -> dict[str, Any]:
  """What was fitted with a checkpoint. Raises `InputError` where nothing was, or nothing of use, or with another."""
  path = workdir / 'eval' / FILE
  fit = f'python eval.py --workdir={workdir} --calibrate=validation --checkpoint={step}'
  if not path.is_file():
    raise InputError(f'{field}: {path} is not there; fit it first by\n  {fit}')
  found = files.read_json(path)
  value = found.get('temperature')
  if not isinstance(value, int | float) or not (value > 0 and math.isfinite(value)):
    raise InputError(f'{field}: {path} holds no temperature; write it anew by\n  {fit}')
  if found.get('checkpoint') != step:
    raise InputError(
      f'{field}: {path} is of checkpoint {found.get("checkpoint")}, and the answers are of {step}\n'
      f'Take --checkpoint={found.get("checkpoint")}, or fit it anew by\n  {fit}'
    )
  return found
