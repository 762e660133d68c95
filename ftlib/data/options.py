"""Options of a question, of which one is right: the forms in which data have them, and in which they name that one.

Options stand in one column, as a list of texts or as {'text': [...], 'label': [...]} with names of their own (as in ARC
and CommonsenseQA), or each in a column of its own, the last of which may be empty.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import Any

from ftlib.data.columns import Kind

FORMS = ('index', 'number', 'letter', 'text', 'name')
_LEAST = 2


def names(count: int) -> list[str]:
  """What options are called by their places: A, B, ..., or 1, 2, ... where the letters do not suffice."""
  return list(string.ascii_uppercase[:count]) if count <= 26 else [str(i + 1) for i in range(count)]


def columns_of(setting: str) -> list[str]:
  """The columns that 'options' or 'ending0,ending1' names."""
  return [name.strip() for name in setting.split(',') if name.strip()]


def kinds(columns: Sequence[str]) -> dict[str, Any]:
  """What stands in the columns (`ftlib/data/columns.py`)."""
  if len(columns) > 1:
    return dict.fromkeys(columns, 'optional')
  wanted = 'options are a list of texts, or {"text": [...], "label": [...]}'
  return {columns[0]: Kind((list, Mapping), wanted)}


def read(row: Mapping[str, Any], columns: Sequence[str]) -> tuple[list[str], list[str]]:
  """(the texts of a row's options, their own names or []). Raises `ValueError`."""
  own: list[Any] = []
  if len(columns) > 1:
    texts = [row[column] for column in columns]
    while texts and not texts[-1].strip():
      texts.pop()
  else:
    texts = row[columns[0]]
    if isinstance(texts, Mapping):
      texts, own = texts.get('text'), texts.get('label') or []
    elif texts and all(isinstance(option, Mapping) for option in texts):
      texts, own = [o.get('text') for o in texts], [o['label'] for o in texts if o.get('label') is not None]
    if not isinstance(texts, list) or (own and (not isinstance(own, list) or len(own) != len(texts))):
      raise ValueError(f'the options {repr(row[columns[0]])[:80]} are not as many names as texts')
  if len(texts) < _LEAST:
    raise ValueError(f'there {"is one option" if texts else "are no options"}, where {_LEAST} or more are needed')
  for i, text in enumerate(texts, 1):
    if not isinstance(text, str) or not text.strip():
      raise ValueError(f'option {i} of {len(texts)} is {"empty" if isinstance(text, str) else repr(text)[:40]}')
  return list(texts), [str(name) for name in own]


def place(label: Any, texts: Sequence[str], own: Sequence[str] = (), *, form: str = '') -> int:
  """The number, from 0, of the option that a label means. Raises `ValueError`.

  `form`: 'index' counts from 0, 'number' from 1, 'letter' is A, B, ..., 'text' the option's text and 'name' its own
  name; '' is a number from 0, or whichever of the others but 'number' fits.
  """
  said = str(label).strip() if isinstance(label, str) else label
  if isinstance(said, float) and said.is_integer():
    said = int(said)
  if isinstance(said, bool) or not isinstance(said, int | str):
    raise ValueError(f'the label is the {type(label).__name__} {repr(label)[:40]}, which names no option')
  readings = {f: _reading(said, texts, own, f) for f in ([form] if form else FORMS) if form or f != 'number'}
  found = {f: i for f, i in readings.items() if i is not None}
  if not form and 'name' in found:
    return found['name']
  if not form and isinstance(said, int) and 'index' in found:
    return found['index']  # a number is one, whatever the options say
  if len({*found.values()}) == 1:
    return next(iter(found.values()))
  if found:
    said_by = ', '.join(f'by its {f} option {i + 1}' for f, i in found.items())
    raise ValueError(f'the label {label!r} means several options, {said_by}; say which by --config.task.label_as=')
  shown = ', '.join(repr(t[:24]) for t in texts[:6]) + (', ...' if len(texts) > 6 else '')
  hint = (
    ' (task.label_as=number counts from 1)' if not form and _reading(said, texts, own, 'number') is not None else ''
  )
  raise ValueError(f'the label {str(label)[:40]!r} names none of the {len(texts)} options {shown}{hint}')


def _reading(said: int | str, texts: Sequence[str], own: Sequence[str], form: str) -> int | None:
  """The option that a label means in a form, None for none. Raises `ValueError` for one that means two."""
  if form in ('index', 'number'):
    if isinstance(said, str) and not (said.isascii() and said.isdecimal()):
      return None
    at = int(said) - (form == 'number')
    return at if 0 <= at < len(texts) else None
  if isinstance(said, int) and form != 'name':
    return None
  if form == 'letter':
    at = string.ascii_uppercase.find(str(said).upper()) if len(str(said)) == 1 else -1
    return at if 0 <= at < len(texts) else None
  known = [t.strip() for t in texts] if form == 'text' else [*own]
  if known.count(str(said)) > 1:
    raise ValueError(f'the label {said!r} is the {form} of several options')
  return known.index(str(said)) if str(said) in known else None
