"""Rows of a file that a user brings to a trained model, a piece at a time: however long the file, few are held.

.jsonl, .csv, .tsv and .txt are read line by line, '-' is the standard input; whatever else `ftlib/data/sources.py`
reads (.json, .parquet, compressed files) is read whole, and given in pieces. In a .txt every line is a text, or the
task's two texts with a tab between; empty lines are passed over.
"""

from __future__ import annotations

import array
import dataclasses
import os
import pathlib
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ftlib.base.errors import InputError, did_you_mean, listing
from ftlib.data import sources
from ftlib.data.sources import Rows

FORMATS = ('txt', 'jsonl', 'csv', 'tsv')
STDIN = '-'
PIECE = 1024  # rows


@dataclasses.dataclass
class Incoming:
  """`path` with the columns `texts` of a task; `format` '' goes by the file's ending. `passed`: lines of a .txt that
  were empty so far, and `first` the place of the first of them. Raises `InputError` for a file that cannot be there."""

  path: str
  texts: Sequence[str]
  format: str = ''
  encoding: str = 'utf-8'
  field: str = '--input'
  passed: int = 0
  first: str = ''

  def __post_init__(self):
    if self.format and self.format not in FORMATS:
      near = did_you_mean(self.format, FORMATS)
      raise InputError(f'--format={self.format} is none of {", ".join(FORMATS)}{near}')
    if self.path == STDIN:
      self.format = self.format or 'txt'
      return
    place = pathlib.Path(os.path.expanduser(self.path))
    if not place.is_file():
      if place.is_dir():
        raise InputError(f'{self.field}={self.path}: is a folder; give a file of it')
      siblings = sorted(f.name for f in place.parent.iterdir()) if place.parent.is_dir() else []
      raise InputError(f'{self.field}={self.path}: there is no such file{did_you_mean(place.name, siblings)}')
    ending = place.name.lower().rpartition('.')[2]
    self.format = self.format or (ending if ending in FORMATS else '')

  @property
  def name(self) -> str:
    """How messages and results name the file: without its folder and its endings."""
    return 'stdin' if self.path == STDIN else pathlib.Path(self.path).name.partition('.')[0] or 'file'

  @property
  def notes(self) -> list[str]:
    """What was passed over, after the rows are read."""
    return [f'empty lines passed over: {self.passed}, the first {self.first}'] if self.passed else []

  def pieces(self, *, size: int = PIECE) -> Iterator[Rows]:
    """The rows, at most `size` at a time; those without an `id` get their number from 0 (of a .txt, that of the line).
    Raises `InputError` with file and line, and for a file without rows."""
    shown = 'stdin' if self.path == STDIN else self.path
    unit, found = ':', self._numbered(shown)
    if not self.format:
      whole = sources.read(self.path, encoding=self.encoding)
      unit, found = whole.unit, ((at, i, row) for i, (at, row) in enumerate(zip(whole.at, whole)))
    rows, at, some = [], array.array('q'), False
    for number, i, row in found:
      rows.append(row if 'id' in row else {'id': i, **row})
      at.append(number)
      if len(rows) == size:
        yield Rows(rows, self.name, shown, at, unit)
        rows, at, some = [], array.array('q'), True
    if rows:
      yield Rows(rows, self.name, shown, at, unit)
    elif not some:
      raise InputError(f'{shown}: holds no rows' + (f', but {self.passed} empty lines' if self.passed else ''))

  def _numbered(self, shown: str) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(line, number from 0, row)."""
    if self.path == STDIN:
      yield from self._parsed(sys.stdin, shown)
      return
    try:
      file = open(os.path.expanduser(self.path), encoding=self.encoding, newline='')  # noqa: SIM115 - closed below
    except LookupError as e:
      raise InputError(f'--encoding={self.encoding}: {e}; usual ones: utf-8, utf-16, latin-1, gb18030') from e
    with file:
      yield from self._parsed(file, shown)

  def _parsed(self, lines: Iterable[str], shown: str) -> Iterator[tuple[int, int, dict[str, Any]]]:
    lines = self._sound(lines, shown)
    if self.format in ('csv', 'tsv'):
      found = sources.table_rows(lines, shown, ',' if self.format == 'csv' else '\t')
      yield from ((at, i, row) for i, (at, row) in enumerate(found))
      return
    count = 0
    for number, line in sources.stripped(_rejoined(lines)):
      if not line:
        self.passed += self.format == 'txt'
        self.first = self.first or f'{shown}:{number}'
      elif self.format == 'jsonl':
        yield number, count, sources.json_row(line, f'{shown}:{number}', last=False)
        count += 1
      else:
        yield number, number - 1, self._of_line(line, f'{shown}:{number}')

  def _of_line(self, line: str, where: str) -> dict[str, str]:
    if len(self.texts) == 1:
      return {self.texts[0]: line}
    parts = line.split('\t')
    if len(parts) != len(self.texts):
      raise InputError(
        f'{where}: {len(parts)} text{"s" * (len(parts) > 1)} in the line, but the task reads {len(self.texts)}:\n'
        f'{listing(self.texts)}\nPut a tab between them, or give a .jsonl, .csv or .tsv with these columns.'
      )
    return dict(zip(self.texts, parts))

  def _sound(self, lines: Iterable[str], shown: str) -> Iterator[str]:
    """The lines without a byte order mark, as long as they can be decoded and hold no NUL."""
    number, rest = 0, iter(lines)
    while True:
      try:
        line = next(rest)
      except StopIteration:
        return
      except UnicodeDecodeError as e:
        before = e.object[: e.start].decode(self.encoding, 'ignore')  # of a chunk, whose lines were not given yet
        raise InputError(
          f'{shown}:{number + 1 + before.count(chr(10))}: not {self.encoding} ({e.reason}); save it as utf-8, or set '
          f'{"--encoding=" if self.field == "--input" else "data.encoding of the run"}'
        ) from e
      number += 1
      line = line.removeprefix('\ufeff') if number == 1 else line
      if fault := re.search('[\0\ud800-\udfff]', line):
        raise InputError(f'{shown}:{number}: the character {fault[0]!a} stands in the text\nRemove it.')
      yield line


def _rejoined(lines: Iterable[str]) -> Iterator[str]:
  """Lines that end in a line feed alone or in both: a carriage return by itself, at which files are cut too, is
  text."""
  held = ''
  for line in lines:
    held += line
    if held.endswith('\n'):
      yield held
      held = ''
  if held:
    yield held
