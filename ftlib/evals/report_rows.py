"""The rows of a .jsonl file for the report, read when they are asked for: what is held of a row is its place."""

from __future__ import annotations

import array
import json
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np


class Rows(Sequence[dict]):
  """The JSON objects at some places (bytes) of a file. What has no longer a row there gives {}."""

  def __init__(self, path: pathlib.Path, at: Sequence[int] | np.ndarray):
    self.path, self.at = path, np.asarray(at, np.int64)

  def __len__(self) -> int:
    return len(self.at)

  def __iter__(self) -> Iterator[dict]:
    if len(self):
      with self.path.open('rb') as f:
        for place in self.at:
          f.seek(place)
          yield parsed(f.readline()) or {}

  def __getitem__(self, i):
    return Rows(self.path, self.at[i]) if isinstance(i, slice) else next(iter(self.taken([i])))

  def taken(self, indices: Sequence[int]) -> Rows:
    """Some of them, in this order."""
    return Rows(self.path, self.at[np.asarray(indices, np.int64)])


def read(path: pathlib.Path, notes: list[str]) -> Rows:
  """The JSON objects of a file, one a line. A cut last line is what a kill leaves, so it goes unmentioned."""
  at, bad, place = array.array('q'), 0, 0
  try:
    with path.open('rb') as f:
      for line in f:
        if parsed(line) is not None:
          at.append(place)
        elif line.strip():
          bad += line.endswith(b'\n')
        place += len(line)
  except FileNotFoundError:
    return Rows(path, at)
  except OSError:
    notes.append(f'{path.name} could not be read; left out.')
    return Rows(path, [])
  if bad:
    notes.append(f'{path.name}: {bad} unreadable lines left out.')
  return Rows(path, at)


def parsed(line: bytes) -> dict | None:
  """The object of a line, None where there is none."""
  try:
    row = json.loads(line.decode(errors='replace'))
  except (ValueError, RecursionError):
    return None
  return row if isinstance(row, dict) else None
