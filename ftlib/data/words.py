"""Rows of words as tokens: which token a word begins at, and windows over rows that are too long.

Words are given to the tokenizer one by one, each as it would be tokenised behind a space, and the name of a special
token among them is text. A word that the tokenizer has nothing for (control characters, say) becomes the unknown token,
so that every word has a first token. Windows hold whole words. What is said of a word is said by the window in which
most stands around it, and by this window alone it is learnt.

Shapes: W documents (windows), T tokens of all of them.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from ftlib.data.literal import literal
from ftlib.data.tokens import Tokens

_CHUNK = 1024
_UNSPACED = (  # scripts written without spaces: kana, Han, Thai, Lao, Khmer, Burmese, and full-width forms
  '\u3001-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef\u0e00-\u0eff\u1780-\u17ff\u1000-\u109f'
  '\U00020000-\U0003ffff'
)
_LETTER_UNSPACED = re.compile(f'[{_UNSPACED}]')


@dataclasses.dataclass(frozen=True)
class Words:
  """Rows of words as documents. `rows` int64 [W]: the row of each. `word` int32 [T]: which of all words begins at a
  token, -1 where none does; `own` bool [T]: that it does, and this document answers for the word. `places`: of each row
  int32 [words, 2], by which of its documents a word is answered for, and at which token of that. `tokens.truncated`:
  rows of several windows. `unknown`: words without tokens of their own."""

  tokens: Tokens
  rows: np.ndarray
  word: np.ndarray
  own: np.ndarray
  places: list[np.ndarray]
  unknown: int


def characters(text: str) -> list[str]:
  """The characters of a text but for white space."""
  return [c for c in text if not c.isspace()]


def unspaced(text: str) -> bool:
  """Whether a fifth or more of a text is of scripts that have no spaces between words."""
  found = len(_LETTER_UNSPACED.findall(text))
  return found > 0 and 5 * found >= len(characters(text))


def joined(words: Sequence[str]) -> str:
  """Words as a text: with spaces, but for single characters of scripts that have none."""
  bare = any(map(unspaced, words)) and sum(map(len, words)) < 1.5 * len(words)
  return ''.join(words) if bare else ' '.join(words)


def encode(tokenizer: Any, rows: Sequence[Sequence[str]], *, limit: int, stride: int) -> Words:
  """Rows of words as documents of at most `limit` tokens. A window shares `stride` tokens with the one before, or more
  for the sake of whole words, and at most half of those that fit."""
  front, back, types = around(tokenizer)
  room = limit - len(front) - len(back)
  plain = literal(tokenizer).plain
  lead, nothing = spacing(plain), _fallback(tokenizer)
  ids: list[int] = []
  word: list[int] = []
  own: list[bool] = []
  lengths, owners, kinds = [], [], []
  places: list[np.ndarray] = []
  first, cut, unknown = 0, 0, 0
  for start in range(0, len(rows), _CHUNK):
    part = [[lead + w if lead and not unspaced(w[:1]) else w for w in row] for row in rows[start : start + _CHUNK]]
    found = plain.encode_batch(part, is_pretokenized=True, add_special_tokens=False)
    for i, encoded in enumerate(found, start):
      pieces = _pieces(encoded, len(rows[i]))
      unknown += sum(not p for p in pieces)
      pieces = [p[:room] or [nothing] for p in pieces]
      ends = np.cumsum([len(p) for p in pieces])
      begins = ends - [len(p) for p in pieces]
      spans = windows(begins, ends, room, min(stride, room // 2))
      cut += len(spans) > 1
      best = _best(begins, ends, spans)
      for k, (a, b) in enumerate(spans):
        body = [t for p in pieces[a:b] for t in p]
        marks = [-1] * len(body)
        for w in range(a, b):
          marks[begins[w] - begins[a]] = first + w
        ids += [*front, *body, *back]
        word += [*[-1] * len(front), *marks, *[-1] * len(back)]
        own += [m >= 0 and best[m - first] == k for m in word[len(own) :]]
        kinds += [*types[0], *[types[1]] * len(body), *types[2]]
        lengths.append(len(front) + len(body) + len(back))
        owners.append(i)
      at = [len(front) + begins[w] - begins[spans[k][0]] for w, k in enumerate(best)]
      places.append(np.stack([best, at], 1).astype(np.int32))
      first += len(pieces)
  offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
  tokens = Tokens(np.asarray(ids, np.int32), np.asarray(kinds, np.int32), offsets, cut)
  of_token = np.asarray(word, np.int32), np.asarray(own, bool)
  return Words(tokens, np.asarray(owners, np.int64), *of_token, places, unknown)


def windows(begins: np.ndarray, ends: np.ndarray, room: int, stride: int) -> list[tuple[int, int]]:
  """(first word, the one behind the last) of each window of at most `room` tokens over words at `begins` to `ends`."""
  out = [(0, int(np.searchsorted(ends, room, 'right')))]
  while out[-1][1] < len(ends):
    a, b = out[-1]
    again = int(np.searchsorted(begins, ends[b - 1] - stride, 'right')) - 1  # the last word that shares enough
    following = b if not stride else max(a + 1, min(again, b))
    out.append((following, int(np.searchsorted(ends, begins[following] + room, 'right'))))
    if out[-1][1] <= b:  # a long word: nothing new fits beside what is shared
      out[-1] = (b, int(np.searchsorted(ends, begins[b] + room, 'right')))
  return out


def _best(begins: np.ndarray, ends: np.ndarray, spans: Sequence[tuple[int, int]]) -> list[int]:
  """Which window answers for each word: the one with most tokens on its scarcer side, where nothing is missing at the
  ends of the row; the first of equals."""
  best, most = [0] * len(ends), np.full(len(ends), -1.0)
  if len(spans) == 1:
    return best
  for k, (a, b) in enumerate(spans):
    left = begins[a:b] - begins[a] if a else np.full(b - a, np.inf)
    right = ends[b - 1] - ends[a:b] if b < len(ends) else np.full(b - a, np.inf)
    around = np.minimum(left, right)
    for w in (a + np.flatnonzero(around > most[a:b])).tolist():
      best[w] = k
    most[a:b] = np.maximum(most[a:b], around)
  return best


def _pieces(encoded: Any, count: int) -> list[list[int]]:
  """The ids of each word, none of one that the tokenizer drops."""
  out: list[list[int]] = [[] for _ in range(count)]
  for piece, w in zip(encoded.ids, encoded.word_ids):
    out[w].append(piece)
  return out


def around(tokenizer: Any) -> tuple[list[int], list[int], tuple[list[int], int, list[int]]]:
  """(ids in front of a text, ids behind it, the token types of front, text and back)."""
  found = tokenizer('a', return_special_tokens_mask=True)
  mask, ids = found['special_tokens_mask'], found['input_ids']
  types = found['token_type_ids'] if 'token_type_ids' in found else [0] * len(ids)
  text = [i for i, special in enumerate(mask) if not special]
  a, b = text[0], text[-1] + 1
  return ids[:a], ids[b:], (types[:a], types[a], types[b:])


def _fallback(tokenizer: Any) -> int:
  """The token of a word that the tokenizer has nothing for."""
  known = (tokenizer.unk_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
  return next(i for i in known if i is not None)


@functools.lru_cache(maxsize=4)
def spacing(plain: Any) -> str:
  """What a word needs in front to be tokenised as within a text: a space for byte-level tokenizers, else nothing."""
  text = plain.encode('the house', add_special_tokens=False)
  wanted = [i for i, (_, end) in zip(text.ids, text.offsets) if end > 3]  # with the space, if that is in a token
  for lead in ('', ' '):
    words = plain.encode([f'{lead}the', f'{lead}house'], is_pretokenized=True, add_special_tokens=False)
    if [i for i, w in zip(words.ids, words.word_ids) if w == 1] == wanted:
      return lead
  return ''
