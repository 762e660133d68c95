"""Texts made plain, and training rows that stand there twice left out, both where the user asks for it.

`data.clean` names what is done with every text of every split, in the order of `STEPS`; so what a stored run is asked
later goes through the same.
"""

from __future__ import annotations

import dataclasses
import functools
import html
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ftlib.base.errors import InputError, did_you_mean
from ftlib.data.sources import Rows, subset

URL, USER = '[URL]', '[USER]'
_TAG = re.compile(r'<!--.*?-->|</?[A-Za-z][^<>]*>', re.DOTALL)
_SCRIPT = re.compile(r'<(script|style)\b[^<>]*>.*?</\1\s*>', re.DOTALL | re.IGNORECASE)
# A URL ends before Chinese and before the punctuation that follows it in a sentence.
_URL = re.compile(r'(?:https?://|www\.)[A-Za-z0-9\-._~:/?#\[\]@!$&\'()*+,;=%]*[A-Za-z0-9\-_~/#&=%]', re.IGNORECASE)
_USER = re.compile(r'(?<![\w@.])@\w{1,30}(?!\w)')  # not within an address of e-mail, nor a text without spaces
_REPEATED = re.compile(r'([^\W\d_]|[!?！？。~～….，,])\1{3,}')
_SPACES = re.compile(r'\s+')
_SHOWN = 3  # texts with several labels


def _plain_html(text: str) -> str:
  return html.unescape(_TAG.sub(' ', _SCRIPT.sub(' ', text)))


def _without_control(text: str) -> str:
  """Without control characters but for line breaks and tabs, and without invisible ones (zero width, direction marks);
  the joiners that emoji and several scripts are written with stay."""
  kept = '\n\t\u200c\u200d'
  return ''.join(c for c in text if c in kept or unicodedata.category(c) not in ('Cc', 'Cf', 'Cs', 'Co'))


STEPS: Mapping[str, Callable[[str], str]] = {
  'html': _plain_html,  # tags are removed with what scripts hold, entities (&amp;) become what they stand for
  'nfkc': lambda text: unicodedata.normalize('NFKC', text),  # full width and ligatures to plain letters
  'control': _without_control,
  'urls': lambda text: _URL.sub(URL, text),
  'users': lambda text: _USER.sub(USER, text),
  'repeats': lambda text: _REPEATED.sub(r'\1\1\1', text),  # more than three of a letter or mark become three
  'whitespace': lambda text: _SPACES.sub(' ', text).strip(),  # one space for any run of it, line breaks too
}


def cleaner(spec: str) -> Callable[[str], str] | None:
  """What `data.clean` does with a text: some of `STEPS` with commas between, or 'all'; None where it is empty.

  Raises `InputError` for a step that is not known.
  """
  names = [part.strip() for part in spec.split(',') if part.strip()]
  if not names:
    return None
  for name in names:
    if name not in STEPS and name != 'all':
      raise InputError(
        f'data.clean={spec!r}: {name!r} is no step{did_you_mean(name, [*STEPS, "all"])}; known: {", ".join(STEPS)}, all'
      )
  steps = [step for name, step in STEPS.items() if name in names or 'all' in names]

  def clean(text: str) -> str:
    for step in steps:
      text = step(text)
    return text

  return clean


def cleaned(
  splits: Mapping[str, Rows],
  columns: Sequence[str],
  spec: str,
  notes: list[str],
  *,
  how: Callable[[dict, Callable[[str], str]], dict] | None = None,
) -> dict[str, Rows]:
  """The splits with the texts of `columns` cleaned, or rows as `how` has it (`Columns.cleaned`); what is no text, or
  points nowhere, is left as it is, to be refused later."""
  clean = cleaner(spec)
  if clean is None:
    return dict(splits)
  whole = lambda row, clean: {**row, **{c: clean(row[c]) for c in columns if isinstance(row.get(c), str)}}  # noqa: E731
  how, out = how or whole, {}
  for name, rows in splits.items():
    found = []
    for row in rows:
      try:
        new = how(row, clean)
      except ValueError:
        new = row
      found.append(row if new == row else new)
    count = sum(a is not b for a, b in zip(found, rows))
    empty = sum(any(isinstance(a.get(c), str) and not a[c] and b[c] for c in columns) for a, b in zip(found, rows))
    if count:
      gone = f', {empty} of which had nothing else in a text' if empty else ''
      notes.append(f'{rows.file}: {count} of {len(rows)} rows changed by data.clean={spec}{gone}')
    out[name] = dataclasses.replace(rows, rows=found)
  return out


def normal(text: str) -> str:
  """What two texts share that differ in case, width, spaces and punctuation alone; itself where that is nothing."""
  folded = unicodedata.normalize('NFKC', text).casefold()
  kept = ''.join(c if unicodedata.category(c)[0] not in 'PZC' else ' ' for c in folded)
  return _SPACES.sub(' ', kept).strip() or folded


def deduplicated(
  splits: Mapping[str, Rows], columns: Sequence[str], label: str | None, how: str, notes: list[str]
) -> dict[str, Rows]:
  """The splits without the training rows whose texts stand in validation or test, or with the same label in a training
  row before; `how`: 'exact', or 'normalised' (`normal`).

  Raises `InputError` where no training row is left.
  """
  if not how:
    return dict(splits)
  key = functools.partial(_key, columns=columns, how=how)
  judged = {key(row) for name, rows in splits.items() if name != 'train' for row in rows}
  train = splits['train']
  found: dict[tuple, set[str]] = {}
  kept, leaked = [], 0
  for i, row in enumerate(train):
    texts, value = key(row), repr(row[label]) if label else ''
    if texts in judged:
      leaked += 1
    elif value not in found.setdefault(texts, set()):
      found[texts].add(value)
      kept.append(i)
  if not kept:
    raise InputError(f'data.deduplicate={how}: no training row is left; all have the text of a row to judge by')
  if len(kept) < len(train):
    notes.append(
      f'train: {len(train) - len(kept)} of {len(train)} rows left out by data.deduplicate={how}: {leaked} have the '
      f'text of a row of another split, {len(train) - len(kept) - leaked} that of an earlier one with the same label'
    )
  return {**splits, 'train': subset(train, kept)}


def note_conflicts(
  train: Rows, columns: Sequence[str], label: str, how: str, notes: list[str], *, sets: bool = False
) -> None:
  """Counts the texts that stand there with different labels, and names the rows of the first of them; `how` as above,
  '' for exact. `sets`: labels are lists whose order says nothing."""
  of_text: dict[tuple, list[int]] = {}
  for i, row in enumerate(train):
    of_text.setdefault(_key(row, columns=columns, how=how), []).append(i)
  value = lambda i: {*v} if isinstance(v := train[i][label], list) and sets else v  # noqa: E731
  found = [at for at in of_text.values() if any(value(i) != value(at[0]) for i in at)]
  if not found:
    return
  shown = []
  for at in found[:_SHOWN]:
    others = [i for i in at if value(i) != value(at[0])]
    shown.append(' and '.join(f'{train.where(i)} has {repr(train[i][label])[:60]}' for i in (at[0], others[0])))
  more = '; ...' if len(found) > _SHOWN else ''
  rows = sum(map(len, found))
  notes.append(
    f'train: {len(found)} texts ({rows} rows) stand there with different labels, and were left there: '
    f'{"; ".join(shown)}{more}'
  )


def _key(row: Mapping[str, Any], *, columns: Sequence[str], how: str) -> tuple[str, ...]:
  """What rows share whose texts are the same."""
  form = normal if how == 'normalised' else str
  return tuple(form(str(row[c])) for c in columns)
