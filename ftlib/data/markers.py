"""Texts in which two entities are marked: where they stand, and tokens in front of and behind each.

Markers become tokens of their own where a vocabulary keeps unused ones ('[unused1]' in BERT's), so that nothing is
resized, else the characters $ and #. A text that is too long is cut so that both entities stay.

Shapes: N rows.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ftlib.base.errors import InputError, listing
from ftlib.data.literal import literal
from ftlib.data.tokens import Tokens
from ftlib.data.words import around, spacing

NAMES = ('<e1>', '</e1>', '<e2>', '</e2>')
KINDS = ('', 'unused', 'text')
TEXT = ('$', '$', '#', '#')  # as R-BERT has them (Wu & He 2019)
_TAG = re.compile('|'.join(map(re.escape, NAMES)))
_UNUSED = (r'\[unused(\d+)\]', r'<unused(\d+)>', r'<\|reserved_special_token_(\d+)\|>')  # BERT, Gemma, Llama 3

Part = str | int  # text, or the number of a marker of `NAMES`


@dataclasses.dataclass(frozen=True)
class Marked:
  """N documents; `marks` int32 [N, 2]: the tokens at which the markers in front of the two entities stand. `kind`:
  'unused' or 'text', what the markers are."""

  tokens: Tokens
  marks: np.ndarray
  kind: str


def of_text(text: str) -> list[Part]:
  """The parts of a text with markers. Raises `ValueError` where these are not as they should be."""
  found = [m[0] for m in _TAG.finditer(text)]
  for name in NAMES:
    if found.count(name) != 1:
      times = 'more than once' if name in found else 'nowhere'
      raise ValueError(f'has the marker {name} {times}; one of each is needed')
  if found not in ([*NAMES], [*NAMES[2:], *NAMES[:2]]):
    raise ValueError(f'has its markers in the order {" ".join(found)}; each entity ends before the other begins')
  parts: list[Part] = []
  at = 0
  for m in _TAG.finditer(text):
    parts += [text[at : m.start()], NAMES.index(m[0])]
    at = m.end()
  return _checked([*parts, text[at:]])


def of_spans(text: str, head: Any, tail: Any) -> list[Part]:
  """The parts of a text whose entities are given by their characters, [first, the one behind the last]. Raises
  `ValueError`."""
  spans = [_span(value, text) for value in (head, tail)]
  first, second = sorted(range(2), key=spans.__getitem__)
  (a, b), (c, d) = spans[first], spans[second]
  if b > c:
    raise ValueError(f'has entities that overlap, at {[a, b]} and {[c, d]}')
  at = 2 * first, 2 * first + 1, 2 * second, 2 * second + 1
  return _checked([text[:a], at[0], text[a:b], at[1], text[b:c], at[2], text[c:d], at[3], text[d:]])


def changed(parts: Sequence[Part], change: Callable[[str], str]) -> list[Part]:
  """The parts with every text changed by itself, markers where they were, and a space where there was one beside a
  marker that the change took away."""
  out: list[Part] = []
  for i, part in enumerate(parts):
    if isinstance(part, int):
      out.append(part)
      continue
    new, front, back = change(part), i > 0 and part[:1].isspace(), i + 1 < len(parts) and part[-1:].isspace()
    if not new:
      out.append(' ' * (front and back))
    else:
      out.append(' ' * (front and not new[0].isspace()) + new + ' ' * (back and not new[-1].isspace()))
  return out


def written(parts: Sequence[Part]) -> str:
  """The text again, with markers."""
  return ''.join(NAMES[part] if isinstance(part, int) else part for part in parts)


def spanned(parts: Sequence[Part]) -> tuple[str, list[int], list[int]]:
  """The text again without markers, and the characters of the two entities."""
  text, at = '', [0] * len(NAMES)
  for part in parts:
    if isinstance(part, int):
      at[part] = len(text)
    else:
      text += part
  return text, at[:2], at[2:]


def entities(parts: Sequence[Part]) -> tuple[str, str]:
  """The texts of the first and of the second entity."""
  found = {a: str(b).strip() for a, b in itertools.pairwise(parts) if isinstance(a, int)}
  return found[0], found[2]


def encode(
  tokenizer: Any, rows: Sequence[Sequence[Part]], *, limit: int, kind: str, where: Callable[[int], str]
) -> Marked:
  """Documents of at most `limit` tokens, as much around the entities as fits, on both sides alike. `kind`: of `KINDS`,
  '' for unused tokens where there are any. Raises `InputError` where the two entities are too far apart for that."""
  plain = literal(tokenizer).plain
  lead = spacing(plain)
  front, back, types = around(tokenizer)
  room = limit - len(front) - len(back)
  unused = _unused(tokenizer)
  if kind == 'unused' and not unused:
    raise InputError(
      "task.markers=unused: the tokenizer's vocabulary has no four unused tokens, such as [unused1]; take "
      '--config.task.markers=text, which writes $ and #'
    )
  texts = [lead + t for t in TEXT]
  own = [e.ids for e in plain.encode_batch(texts, add_special_tokens=False)] if kind == 'text' or not unused else unused
  ids, marks, lengths, far, cut = [], [], [], [], 0
  flat = [text for parts in rows for text in _texts(parts, lead)]
  encoded = iter(plain.encode_batch(flat, add_special_tokens=False))
  for i, parts in enumerate(rows):
    at, body = {}, []
    for part in parts:
      if isinstance(part, int):
        at[part] = len(body), len(body) + len(own[part])
      body += own[part] if isinstance(part, int) else next(encoded).ids
    begin, end = min(a for a, _ in at.values()), max(b for _, b in at.values())
    if end - begin > room:
      far.append(f'{where(i)}: {end - begin + len(front) + len(back)} tokens')
      continue
    cut += len(body) > room
    start = max(0, min(begin - (room - (end - begin)) // 2, len(body) - room))
    body = body[start : start + room]
    ids.append([*front, *body, *back])
    marks.append([len(front) + at[m][0] - start for m in (0, 2)])
    lengths.append(len(body))
  if far:
    raise InputError(
      f'{len(far)} of {len(rows)} rows have their two entities too far apart for {limit} tokens; with what is between '
      f'them they take\n{listing(far, limit=5)}\nRaise --config.train.max_length=, or leave these rows out.'
    )
  offsets = np.concatenate([[0], np.cumsum([len(d) for d in ids])]).astype(np.int64)
  kinds = [t for n in lengths for t in (*types[0], *[types[1]] * n, *types[2])]
  tokens = Tokens(np.fromiter((t for d in ids for t in d), np.int32), np.asarray(kinds, np.int32), offsets, cut)
  return Marked(tokens, np.asarray(marks, np.int32), 'unused' if own is unused else 'text')


def _texts(parts: Sequence[Part], lead: str) -> list[str]:
  """The texts among parts without white space around them, with `lead` in front where there was some before."""
  out, spaced = [], False
  for text in (p for p in parts if isinstance(p, str)):
    bare = text.strip()
    out.append(lead + bare if bare and (spaced or text[:1].isspace()) else bare)
    spaced = text[-1:].isspace() if text else spaced
  return out


def _unused(tokenizer: Any) -> list[list[int]]:
  """Four tokens that no text gives, the first by their numbers; [] where a vocabulary has none."""
  vocab = tokenizer.get_vocab()
  for pattern in _UNUSED:
    found = sorted((int(m[1]), i) for piece, i in vocab.items() if (m := re.fullmatch(pattern, piece)))
    if len(found) >= len(NAMES):
      return [[i] for _, i in found[: len(NAMES)]]
  return []


def _span(value: Any, text: str) -> tuple[int, int]:
  if isinstance(value, Mapping):
    value = [value.get('start'), value.get('end', value.get('stop'))]
  if not (isinstance(value, list) and len(value) == 2 and all(type(v) is int for v in value)):
    raise ValueError(f'has the span {repr(value)[:60]}; one is [first character, the one behind the last]')
  start, stop = value
  if not 0 <= start < stop <= len(text):
    raise ValueError(f'has the span {value}, but the text has characters 0 to {len(text)}')
  return start, stop


def _checked(parts: list[Part]) -> list[Part]:
  if '' in (found := entities(parts)):
    raise ValueError(f'has an empty entity between {" and ".join(NAMES[:2] if not found[0] else NAMES[2:])}')
  return parts
