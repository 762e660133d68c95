"""What the label column of a task holds: checked row by row, and made of one type throughout.

`CHECKS[kind](splits, column, notes)` gives the splits with such labels; it raises `InputError` with file and line.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ftlib.base.errors import InputError, did_you_mean, listing
from ftlib.data import chat
from ftlib.data.sources import Rows

Splits = dict[str, Rows]

PART = 'task'  # the column that says which part a row is of, where there are several
STRATIFIED = ('class', 'labels')  # kinds by whose values rows are dealt out to splits
_LARGEST = 3e38  # of float32, about
_NUMBER = re.compile(r'\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*', re.ASCII)


class Columns(NamedTuple):
  """The columns that a task reads: of the texts, of the label (None: there are none), and what stands in the latter.

  `fields`: the task's settings that name the texts' columns, and last that of the label. `spare`: {column: another that
  has it in splits that lack the first, or a list of it}. `kinds`: {column of the texts: what stands in it, where that
  is no plain text}, and `row`: what a row becomes, both as `ftlib/data/columns.py` says. `parts`: {name: (path,
  columns)} of several sources that are read one behind another, a row's name in its column `PART`. `cleaned(row,
  clean)`: the row after `clean(text)`, where something points into the texts; raises `ValueError` where it points
  nowhere. `somewhere`: {field: a column that one split or more has}.
  """

  texts: Sequence[str]
  label: str | None = None
  kind: str = 'class'
  fields: Sequence[str] = ('text', 'pair', 'label')
  spare: Mapping[str, str] | None = None
  kinds: Mapping[str, Any] | None = None
  row: Callable[[dict], dict] | None = None
  parts: Mapping[str, tuple[str, Columns]] | None = None
  cleaned: Callable[[dict, Callable[[str], str]], dict] | None = None
  somewhere: Mapping[str, str] | None = None


def classes(splits: Splits, column: str, notes: list[str]) -> Splits:
  """Strings, or integers throughout: 1.0 becomes 1 and true 'true'. Raises where labels are of several kinds."""
  words = {str: 'string', bool: 'boolean', int: 'integer', float: 'integer'}
  first: dict[str, str] = {}
  for rows in splits.values():
    for i, row in enumerate(rows):
      value = row[column]
      if type(value) not in words or (isinstance(value, float) and not value.is_integer()):
        raise _odd(rows, i, column, 'a class label is a string or an integer')
      if (kind := words[type(value)]) not in first:
        first[kind] = f'{rows.where(i)}: the {kind} {value!r}'
  if len(first) > 1:
    seen = listing(first.values())
    raise InputError(f'task.label: "{column}" is of several kinds, first seen at\n{seen}\nWrite all labels one way.')
  if 'boolean' in first:
    notes.append(f'labels: the booleans of "{column}" are taken as the strings "false" and "true"')
  _note_alike((row[column] for rows in splits.values() for row in rows), notes)
  plain = {bool: lambda v: str(v).lower(), float: int}
  return _mapped(splits, column, lambda v: plain[type(v)](v) if type(v) in plain else v)


def _note_alike(values: Iterable[Any], notes: list[str]) -> None:
  """Of labels that differ in case or spaces alone, most likely by a slip: two classes where one was meant."""
  spelt: dict[str, list[str]] = {}
  for value in sorted({v for v in values if isinstance(v, str)}):
    spelt.setdefault(' '.join(value.split()).casefold(), []).append(value)
  if alike := [repr(names)[1:-1] for names in spelt.values() if len(names) > 1]:
    more = f' (and {len(alike) - 1} more such)' if len(alike) > 1 else ''
    notes.append(f'labels: {alike[0]}{more} differ in case or spaces alone, and are classes of their own')


def label_sets(splits: Splits, column: str, notes: list[str]) -> Splits:
  """Lists of strings, or of integers throughout, none twice in one. Raises where labels are of several kinds."""
  first: dict[type, str] = {}
  for rows in splits.values():
    for i, row in enumerate(rows):
      for value in row[column]:
        if type(value) not in (str, int):
          raise _odd(rows, i, column, 'a label is a string or an integer', value)
        first.setdefault(type(value), f'{rows.where(i)}: {value!r}')
  if len(first) > 1:
    seen = listing(first.values())
    raise InputError(f'task.label: "{column}" holds strings and integers, first seen at\n{seen}\nWrite all one way.')
  if twice := sum(len({*row[column]}) < len(row[column]) for rows in splits.values() for row in rows):
    notes.append(f'labels: {twice} rows have one twice in "{column}", which counts once')
  _note_alike((v for rows in splits.values() for row in rows for v in row[column]), notes)
  return _mapped(splits, column, lambda v: v if len({*v}) == len(v) else list(dict.fromkeys(v)))


def scores(splits: Splits, column: str, notes: list[str]) -> Splits:
  """Floats: finite numbers, or texts that spell one (in a .csv everything is text)."""

  def number(value: Any) -> float | None:
    if isinstance(value, str):
      value = float(value) if _NUMBER.fullmatch(value) else None
    known = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST  # false of NaN
    return float(value) if known else None

  for rows in splits.values():
    for i, row in enumerate(rows):
      if number(row[column]) is None:
        raise _odd(rows, i, column, 'a score is a finite number')
  return _mapped(splits, column, number)


def tags(splits: Splits, column: str, notes: list[str]) -> Splits:
  """Lists of strings, or of integers throughout."""
  first: dict[str, str] = {}
  for rows in splits.values():
    for i, row in enumerate(rows):
      for tag in row[column]:
        first.setdefault(type(tag).__name__, f'{rows.where(i)}: the {type(tag).__name__} {tag!r}')
  if len(first) > 1:
    raise InputError(
      f'task.label: the tags of "{column}" are of several kinds, first seen at\n{listing(first.values())}\n'
      'Write all tags one way.'
    )
  _note_alike((v for rows in splits.values() for row in rows for v in row[column]), notes)
  return splits


def tags_fault(value: Any) -> str:
  """What is wrong with the tags of a row, '' where nothing is: a list of strings or integers, or a text of them."""
  if not isinstance(value, list | str):
    return f'the {type(value).__name__} {repr(value)[:60]} is no list of tags'
  if not value:
    return 'the list of tags is empty'
  for i, tag in enumerate(value if isinstance(value, list) else ()):
    if not isinstance(tag, str | int) or isinstance(tag, bool) or tag == '':
      return f'tag {i + 1} is the {type(tag).__name__} {repr(tag)[:40]}; a tag is a string or an integer'
  return ''


def conversations(splits: Splits, column: str, notes: list[str]) -> Splits:
  """Lists of turns `{'role', 'content'}`, whatever of `ftlib/data/chat.py: messages` they were written as."""
  if found := sum(isinstance(row[column][0], str) and len(row[column]) % 2 for rows in splits.values() for row in rows):
    notes.append(f'{found} conversations end with a turn that nothing answers, which was left out')
  return _mapped(splits, column, chat.messages)


def as_made(splits: Splits, column: str, notes: list[str]) -> Splits:
  """What `Columns.row` has checked and made of labels, row by row."""
  return splits


CHECKS: Mapping[str, Callable[[Splits, str, list[str]], Splits]] = {
  'class': classes,
  'labels': label_sets,
  'score': scores,
  'messages': conversations,
  'answers': as_made,
  'choice': as_made,
  'tags': tags,
}
FAULTS: Mapping[str, Callable[[Any], str]] = {  # kind -> what is wrong with a value, or ''
  'messages': chat.fault,
  'tags': tags_fault,
}


def unknown_label(label: Any, values: Sequence[str], known: Sequence[str], *, where: str, rest: str) -> str:
  """What is said of a label that a run does not know: the first one, all `values` of that kind, and the list."""
  return (
    f"{where}: label {label!r} is not in the run's label list{did_you_mean(str(label), known)} {rest}\n"
    f'  labels here that are unknown:\n{listing(values, limit=5)}\n  label list: {", ".join(known[:20])}'
  )


def _mapped(splits: Splits, column: str, change: Callable[[Any], Any]) -> Splits:
  def changed(row: dict[str, Any]) -> dict[str, Any]:
    value = change(row[column])
    return row if value is row[column] else {**row, column: value}

  return {name: dataclasses.replace(rows, rows=[*map(changed, rows)]) for name, rows in splits.items()}


def _odd(rows: Rows, i: int, column: str, wanted: str, *value: Any) -> InputError:
  """`value`: that of the column, unless it is given."""
  (value,) = value or (rows[i][column],)
  return InputError(
    f'{rows.where(i)}: "{column}" {"is" if value is rows[i][column] else "holds"} the {type(value).__name__} '
    f'{repr(value)[:60]}, but {wanted}\n'
    'Mend the data, or name another column by --config.task.label=.'
  )
