"""A question and a passage as tokens, a long passage in several windows, and the way back to its characters.

A window is the question, as much of the passage as fits behind it, and the special tokens that the tokenizer puts
around the two. The next one begins `stride` tokens before its end, so that neighbours share text.

Shapes: N windows, T tokens of all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ftlib.base.errors import InputError
from ftlib.data import tokens
from ftlib.data.tokens import Tokens

INSIDE, NULL = 1, 2  # of `Passages.candidates`
_CHUNK = 1024
_SPACE = np.array([chr(i).isspace() for i in range(0x3002)])  # the last is 0x3000
_LEAST = 8  # tokens of question and passage that a window must have room for


@dataclasses.dataclass(frozen=True)
class Passages:
  """N windows. `candidates` int8 [T]: `INSIDE` for tokens of the passage, `NULL` for the one that stands for "nothing
  here", else 0. `characters` int32 [T, 2]: where in the passage a token of it begins and ends, without white space
  around it. `rows` int64 [N]: the row of each window. `starts`, `ends` int32 [N]: the first and the last token of the
  span that was asked for, as places in the window; both that of `NULL` where the window has not the whole of it.

  Counts of rows: `tokens.truncated` passages have several windows, `shortened` questions lost their end, of `unseen`
  spans no window has the whole, and `inexact` ones begin or end inside a token.
  """

  tokens: Tokens
  candidates: np.ndarray
  characters: np.ndarray
  rows: np.ndarray
  starts: np.ndarray
  ends: np.ndarray
  shortened: int
  unseen: int
  inexact: int


def windows(
  tokenizer: Any,
  questions: Sequence[str],
  passages: Sequence[str],
  spans: Sequence[tuple[int, int] | None],
  *,
  limit: int,
  stride: int,
  max_question: int,
  where: Callable[[int], str],
  null: str = 'cls',
) -> Passages:
  """Rows of a question and a passage as windows of at most `limit` tokens; `spans` (first character, the one behind
  the last) are looked for in them, None for none.

  `stride`: tokens of the passage that a window shares with the one before, at most half of those that fit.
  `max_question`: of longer ones the end is cut off, and of those that would take more than half a window. `null`: which
  token of a window is `NULL`, 'cls' the first or 'last'; where a tokenizer puts nothing behind the passage, its end of
  text is put there for that.
  `where(row)` says where a row is to be found.

  Raises `InputError` where `limit` leaves no room, and for a passage without tokens.
  """
  special = tokenizer.num_special_tokens_to_add(pair=True)
  if limit - special < _LEAST:
    raise InputError(
      f'train.max_length={limit} leaves {max(limit - special, 0)} tokens for question and context beside the {special} '
      'special ones; raise it'
    )
  between, found = apart(tokenizer), _Found()
  for first in range(0, len(questions), _CHUNK):
    part = slice(first, first + _CHUNK)
    encoded = tokenizer(
      [q + between for q in questions[part]],
      list(passages[part]),
      return_attention_mask=False,
      return_offsets_mapping=True,
      split_special_tokens=True,
    )
    for j, ids in enumerate(encoded['input_ids']):
      own = np.array([-1 if s is None else s for s in encoded.sequence_ids(j)])
      types = encoded['token_type_ids'][j] if 'token_type_ids' in encoded else [0] * len(ids)
      places = np.asarray(encoded['offset_mapping'][j], np.int32).reshape(-1, 2)
      row = _Row(np.asarray(ids, np.int32), np.asarray(types, np.int32), own, places)
      row = _shortened(row, min(max_question, (limit - special) // 2), len(between), found)
      if null == 'last' and len(row.own) and row.own[-1] == 1:
        row = _closed(row, tokens.frame(tokenizer)[1])
      i = first + j
      if not (row.own == 1).any():
        raise InputError(f'{where(i)}: the context has no token: the tokenizer drops all that it holds')
      _cut(row, i, passages[i], spans[i], limit=limit, stride=stride, last=null == 'last', found=found)
  return found.joined()


def apart(tokenizer: Any) -> str:
  """What is put behind the first text of a pair: a line break where the tokenizer has no token to keep them apart."""
  more = tokenizer.num_special_tokens_to_add(pair=True) - tokenizer.num_special_tokens_to_add(pair=False)
  return '' if more else '\n'


@dataclasses.dataclass(frozen=True)
class _Row:
  """Tokens of one row: ids, types, which text each is of (0, 1, -1 for special ones), and its characters there."""

  ids: np.ndarray
  types: np.ndarray
  own: np.ndarray
  places: np.ndarray


@dataclasses.dataclass
class _Found:
  """Windows so far."""

  parts: list[tuple[np.ndarray, ...]] = dataclasses.field(default_factory=list)  # ids, types, candidates, characters
  rows: list[int] = dataclasses.field(default_factory=list)
  spans: list[tuple[int, int]] = dataclasses.field(default_factory=list)
  cut: int = 0
  shortened: int = 0
  unseen: int = 0
  inexact: int = 0

  def joined(self) -> Passages:
    ids, types, candidates, characters = (np.concatenate(x) for x in zip(*self.parts))
    offsets = np.concatenate([[0], np.cumsum([len(p[0]) for p in self.parts])]).astype(np.int64)
    starts, ends = np.asarray(self.spans, np.int32).T
    counts = self.shortened, self.unseen, self.inexact
    rows = np.asarray(self.rows, np.int64)
    return Passages(Tokens(ids, types, offsets, self.cut), candidates, characters, rows, starts, ends, *counts)


def _shortened(row: _Row, most: int, closing: int, found: _Found) -> _Row:
  """The row with at most so many tokens of its question, the last `closing` ones among them."""
  asked = np.flatnonzero(row.own == 0)
  if len(asked) <= most:
    return row
  found.shortened += 1
  kept = np.delete(np.arange(len(row.ids)), asked[most - closing : len(asked) - closing])
  return _Row(row.ids[kept], row.types[kept], row.own[kept], row.places[kept])


def _closed(row: _Row, end: int) -> _Row:
  """The row with a token behind its passage."""
  more = lambda x, value: np.concatenate([x, np.asarray([value], x.dtype)])  # noqa: E731
  return _Row(more(row.ids, end), more(row.types, row.types[-1]), more(row.own, -1), more(row.places, [0, 0]))


def _cut(
  row: _Row, i: int, text: str, span: tuple[int, int] | None, *, limit: int, stride: int, last: bool, found: _Found
) -> None:
  """Adds the windows of a row."""
  inside = np.flatnonzero(row.own == 1)
  first, count = int(inside[0]), len(inside)
  around = np.delete(np.arange(len(row.ids)), inside)
  head, tail = around[around < first], around[around > first]
  room = limit - len(around)
  step = room - min(stride, room // 2)
  begins = [*range(0, max(count - room, 0) + step, step)]
  places = trimmed(text, row.places[inside])
  wanted = None
  if span is not None:
    begin, behind = span
    wanted = int(np.searchsorted(places[:, 1], begin, 'right')), int(np.searchsorted(places[:, 0], behind, 'left')) - 1
    exact = wanted[0] <= wanted[1] and (places[wanted[0], 0], places[wanted[1], 1]) == (begin, behind)
    found.inexact += not exact
  found.cut += len(begins) > 1
  seen = False
  for begin in begins:
    stop = min(begin + room, count)
    picked = np.concatenate([head, inside[begin:stop], tail])
    candidates = (row.own[picked] == 1).astype(np.int8) * INSIDE
    null = len(picked) - 1 if last else 0
    candidates[null] = NULL
    characters = np.zeros((len(picked), 2), np.int32)
    characters[len(head) : len(head) + stop - begin] = places[begin:stop]
    whole = wanted is not None and begin <= wanted[0] <= wanted[1] < stop
    seen |= whole
    move = len(head) - begin
    found.spans.append((wanted[0] + move, wanted[1] + move) if whole else (null, null))
    found.parts.append((row.ids[picked], row.types[picked], candidates, characters))
    found.rows.append(i)
  found.unseen += span is not None and not seen


def trimmed(text: str, places_T2: np.ndarray) -> np.ndarray:
  """Where tokens begin and end in a text, int [T, 2], without the white space that some tokenizers count in.

  A token of nothing else begins where the next one does and ends where the one before it did.
  """
  codes = np.frombuffer(text.encode('utf-32-le', 'surrogatepass'), np.uint32)
  black = np.flatnonzero(~_SPACE[np.minimum(codes, len(_SPACE) - 1)])
  if not len(black):
    return places_T2
  begins, ends = places_T2.T
  after = black[np.minimum(np.searchsorted(black, begins, 'left'), len(black) - 1)]
  before = black[np.maximum(np.searchsorted(black, ends, 'left') - 1, 0)] + 1
  return np.stack([np.maximum(after, begins), np.minimum(before, ends)], 1).astype(places_T2.dtype)
