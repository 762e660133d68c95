"""The columns that a task reads, checked row by row before a tokenizer sees them: that they are there, and sound.

A task says of each column of its texts what stands there, by a kind of `KINDS`, or a `Kind` of its own:

  Columns([config.context, config.question], config.answers, 'answers', kinds={config.context: 'text'}, row=_checked)

* 'text' (what is not named in `kinds`): a string that is not empty;
* 'optional': a string that may be empty; null and missing become '';
* 'words': a list of strings, none empty; or a text, which `row` is to cut up;
* 'options': a list of two strings or more, none empty;
* 'given': anything but null, looked at by `row`.

Labels have kinds of their own (`ftlib/data/labels.py: CHECKS`; `FAULTS`: what is wrong with one), and may have a `Kind`
besides, which says what types they are of. `row(row) -> row` is
given a row whose columns are sound each by itself, and gives what it is to be: it raises `ValueError` with what is
wrong of columns together (tags and words of different number, an answer that the context does not hold). A value of a
wrong type stops the run, as most likely the wrong column is named; whatever else is wrong with a row is counted, and
`data.on_bad_row=skip` passes over such rows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ftlib.base.errors import InputError, did_you_mean, listing
from ftlib.data.labels import Columns, Splits
from ftlib.data.sources import Rows, subset

_SKIPPABLE = 0.05  # share of a split's rows; more bad ones mean that something is wrong with the data
_TOLD_APART = ('class', 'labels', 'score')  # kinds of labels that are no part of a text
_SHOWN = 5  # of those, in a message
_MISSING = object()


class Kind(NamedTuple):
  """What stands in a column: values of `types`, described by `wanted`; `fault(value)` says what is wrong, or ''.
  `absent`: what a value becomes that is null or missing, None where that is a fault."""

  types: tuple[type, ...]
  wanted: str
  fault: Callable[[Any], str] = lambda value: ''
  absent: Any = None


@dataclasses.dataclass
class Unusable:
  """Rows of one file that cannot be used, over all of its pieces: `count` of the `total` so far, and what is wrong with
  the `first`. `skip`: whether they are passed over, as the setting `flag` says."""

  skip: bool
  flag: str = '--config.data.on_bad_row'
  total: int = 0
  count: int = 0
  first: list[str] = dataclasses.field(default_factory=list)

  def add(self, rows: Rows, faults: Mapping[int, str]) -> None:
    """Counts a piece's rows and the faults of some. Raises `InputError` where such are not to be passed over."""
    self.total += len(rows)
    self.count += len(faults)
    found = [*faults.items()][: _SHOWN - len(self.first)]
    self.first += [f'{rows.where(i)}: {fault}' for i, fault in found]
    if faults and not self.skip:
      raise InputError(f'{self._said(rows.file)}:\n{self._listed}\nMend them, or leave them out with {self.flag}=skip.')

  def note(self, file: str) -> list[str]:
    """What the user should know of the whole file. Raises `InputError` where too many rows would be passed over."""
    if self.count > _SKIPPABLE * self.total:
      raise InputError(
        f'{self._said(file)}, more than the {_SKIPPABLE:.0%} that {self.flag}=skip passes over:\n{self._listed}\n'
        'Mend the data.'
      )
    return [f'{file}: {self.count} of {self.total} rows skipped, the first {self.first[0]}'] if self.count else []

  def _said(self, file: str) -> str:
    return f'{file}: {self.count} of {self.total} rows cannot be used'

  @property
  def _listed(self) -> str:
    more = self.count - len(self.first)
    return listing(self.first) + (f'\n  ... and {more} more' if more else '')


def _empty(value: Any) -> str:
  return 'is empty' if isinstance(value, str) and (not value or value.isspace()) else ''


def _strings(value: Any, *, least: int, what: str) -> str:
  """What is wrong with a list of strings."""
  if len(value) < least:
    return 'is an empty list' if not value else f'has only {len(value)} {what}'
  for i, part in enumerate(value):
    if not isinstance(part, str):
      return f'holds the {type(part).__name__} {repr(part)[:40]} as {what[:-1]} {i + 1}, where a string is needed'
    if _empty(part):
      return f'holds an empty {what[:-1]}, number {i + 1} of {len(value)}'
  return ''


def _words(value: Any) -> str:
  return _empty(value) if isinstance(value, str) else _strings(value, least=1, what='words')


KINDS: Mapping[str, Kind] = {
  'text': Kind((str,), 'a text is a string', _empty),
  'optional': Kind((str,), 'a text is a string', absent=''),
  'words': Kind((list, str), 'words are a list of strings, or a text', _words),
  'options': Kind((list,), 'options are a list of strings', lambda v: _strings(v, least=2, what='options')),
  'given': Kind((object,), ''),
}
_GROUP = Kind((str, int), 'a group is a string or an integer', _empty)


def spared(splits: Splits, spare: Mapping[str, str], notes: list[str]) -> Splits:
  """A column that a split lacks, from another that may be a list of texts, of which the first is taken."""
  out = dict(splits)
  for column, other in spare.items():
    for name, rows in out.items():
      if column not in rows.columns and other in rows.columns:
        first = lambda v: v[0] if isinstance(v, list) and v else v  # noqa: E731
        found = [{**row, column: first(row[other])} if other in row else row for row in rows]
        out[name] = dataclasses.replace(rows, rows=found)
        notes.append(f'{rows.file}: "{column}" is the first of each row\'s "{other}"')
  return out


def check_there(splits: Splits, columns: Columns, others: Sequence[tuple[str, str]]) -> None:
  """Raises `InputError` where a split lacks one of the task's columns, or of `others` (setting, column), where all lack
  one of `columns.somewhere`, where one has no name, or where the label is read as a text too."""
  *of_texts, of_label = (f'task.{field}' for field in columns.fields)
  named = [*zip(of_texts, columns.texts)] + ([] if columns.label is None else [(of_label, columns.label)])
  for field, column in named:
    if not column:
      raise InputError(f'{field} is empty; set --config.{field}= to the name of a column')
  if columns.kind in _TOLD_APART and columns.label in columns.texts:
    raise InputError(
      f'{of_label}={columns.label!r} is a column of the texts too ({", ".join(of_texts)}), which are to tell it\n'
      f'Set --config.{of_label}= to the column that holds the labels.'
    )
  for field, column in [*named, *others]:
    for rows in splits.values():
      if column and column not in rows.columns:
        none = ' Where there is none, set it to nothing.' if (columns.kinds or {}).get(column) == 'optional' else ''
        raise InputError(
          f'{field}: {rows.file} has no column "{column}"{did_you_mean(column, rows.columns)}\n'
          f'Its columns:\n{listing(c[:80] for c in rows.columns)}\n{_todo(field, column, rows, splits)}{none}'
        )
  there = list(dict.fromkeys(column for rows in splits.values() for column in rows.columns))
  for field, column in (columns.somewhere or {}).items():
    if column not in there:
      raise InputError(
        f'task.{field}: no split has a column "{column}"{did_you_mean(column, there)}\nThe columns:\n'
        f'{listing(c[:80] for c in there)}\nSet --config.task.{field}= to one of them, or to nothing.'
      )


def _todo(field: str, column: str, rows: Rows, splits: Splits) -> str:
  others = [name for name, of in splits.items() if column in of.columns]
  if others and rows.name == 'test' and field.endswith('.label'):
    return 'A test file without labels is for ftlib.predict: move it out of the folder, or add the column.'
  return f'Set --config.{field}= to one of them' + (f', or add it as {others[0]} has it.' if others else '.')


def sound(
  splits: Splits,
  columns: Columns,
  of_label: Callable[[Any], str] | None,
  *,
  group: str,
  unusable: Mapping[str, Unusable],
) -> Splits:
  """The sound rows, each as `columns.row` has it; others stop the run or are counted in `unusable`, by splits.

  `of_label`: what is wrong with a label besides being absent. `group`: a column by which rows are split, or ''.
  """
  kinds: dict[str, Kind] = {}
  for field, column in zip(columns.fields, columns.texts):
    kind = (columns.kinds or {}).get(column, 'text')
    kinds[column] = kind if isinstance(kind, Kind) else KINDS[kind]
    _check_types(splits, f'task.{field}', column, kinds[column])
  if group:
    kinds.setdefault(group, _GROUP)
    _check_types(splits, 'data.group', group, _GROUP)
  if columns.label and columns.label in (columns.kinds or {}):
    kinds[columns.label] = columns.kinds[columns.label]
    _check_types(splits, f'task.{columns.fields[-1]}', columns.label, kinds[columns.label])
  elif columns.label:
    kinds.setdefault(columns.label, Kind((object,), '', _empty))

  def checked(row: dict) -> dict:
    for column, kind in kinds.items():
      value = row.get(column, _MISSING)
      if fault := _absent(value):
        if kind.absent is None:
          raise ValueError(f'"{column}" {fault}')
        row = {**row, column: kind.absent}
      elif fault := kind.fault(value):
        raise ValueError(f'"{column}" {fault}')
    if columns.label and of_label and (fault := of_label(row[columns.label])):
      raise ValueError(f'"{columns.label}": {fault}')
    return columns.row(row) if columns.row else row

  return {name: _sound(rows, checked, unusable[name]) for name, rows in splits.items()}


def _absent(value: Any) -> str:
  """Null, missing and NaN."""
  if value is None or value is _MISSING:
    return f'is {"null" if value is None else "missing"}'
  return 'is NaN' if isinstance(value, float) and math.isnan(value) else ''


def _check_types(splits: Splits, field: str, column: str, kind: Kind) -> None:
  for rows in splits.values():
    for i, row in enumerate(rows):
      value = row.get(column, _MISSING)
      if not _absent(value) and not isinstance(value, kind.types):
        raise InputError(
          f'{rows.where(i)}: "{column}" is the {type(value).__name__} {repr(value)[:60]}, but {kind.wanted}\n'
          f'Mend the data, or name another column by --config.{field}=.'
        )


def _sound(rows: Rows, checked: Callable[[dict], dict], unusable: Unusable) -> Rows:
  found, faults = [], {}
  for i, row in enumerate(rows):
    try:
      found.append(checked(row))
    except ValueError as e:
      found.append(row)
      faults[i] = str(e)
  unusable.add(rows, faults)
  found = dataclasses.replace(rows, rows=found)
  return subset(found, [i for i in range(len(rows)) if i not in faults]) if faults else found
