"""Copies of training rows with small changes to their texts, which their labels survive; no other data are needed.

`data.augment='swap=0.1,delete=0.1'` names what is done and to which share of the words. After Wei & Zou 2019 (EDA)
without its synonyms, which need a thesaurus, and Karimi et al. 2021 (AEDA, punctuation). In Chinese and
Japanese a character stands for a word. A copy follows from the seed, the row's line and the number of the copy.
"""

from __future__ import annotations

import array
import dataclasses
import random
import re
from collections.abc import Callable, Mapping, Sequence

from ftlib.base.errors import InputError, did_you_mean
from ftlib.data.sources import Rows

# Kana, Chinese characters, and the punctuation among them.
_ALONE = '\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff'
_ALONE += '\u3001-\u303f\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65'
_UNITS = re.compile(f'[{_ALONE}]|[^\\s{_ALONE}]+')
_MARKS, _WIDE = ('.', ';', '?', ':', '!', ','), ('。', '；', '？', '：', '！', '，')
_Units = list[str]


def units(text: str) -> tuple[_Units, _Units]:
  """(the words, and characters of writing without spaces; what stands before each and at the end, one more)."""
  found = [(m.start(), m.end()) for m in _UNITS.finditer(text)]
  edges = [0, *(e for span in found for e in span), len(text)]
  return [text[a:b] for a, b in found], [text[a:b] for a, b in zip(edges[::2], edges[1::2])]


def _joined(words: _Units, gaps: _Units) -> str:
  """The text again, with a space where two words have come together that would be one without it."""
  parts = [gaps[0]]
  for i, (word, gap) in enumerate(zip(words, gaps[1:])):
    apart = gap or i + 1 == len(words) or _alone(word[-1]) or _alone(words[i + 1][0])
    parts += [word, gap if apart else ' ']
  return ''.join(parts)


def _alone(letter: str) -> bool:
  return bool(re.match(f'[{_ALONE}]', letter))


def _some(count: int, share: float, rng: random.Random) -> int:
  """`share` of `count`, rounded up or down so that it is exact on average; at least 1."""
  return max(1, int(count * share + rng.random()))


def _swap(text: str, share: float, rng: random.Random) -> str:
  """Two words change places, as often as `share` of the words."""
  words, gaps = units(text)
  for _ in range(_some(len(words), share, rng) if len(words) > 1 else 0):
    a, b = rng.sample(range(len(words)), 2)
    words[a], words[b] = words[b], words[a]
  return _joined(words, gaps)


def _delete(text: str, share: float, rng: random.Random) -> str:
  """Each word goes with the probability `share`; one at least stays."""
  words, gaps = units(text)
  if not words:
    return text
  kept = [i for i in range(len(words)) if rng.random() >= share] or [rng.randrange(len(words))]
  return _joined([words[i] for i in kept], ['', *(gaps[i] for i in kept[1:]), gaps[-1]])


def _insert(text: str, share: float, rng: random.Random) -> str:
  """Words of the text are said again at another place, `share` of them."""
  words, gaps = units(text)
  for _ in range(_some(len(words), share, rng) if words else 0):
    at = rng.randrange(len(words) + 1)
    words.insert(at, rng.choice(words))
    gaps.insert(at if at else 1, '')
  return _joined(words, gaps)


def _punctuate(text: str, share: float, rng: random.Random) -> str:
  """Punctuation marks before words, as many as `share` of the words."""
  words, gaps = units(text)
  if not words:
    return text
  for at in rng.sample(range(len(words)), min(len(words), _some(len(words), share, rng))):
    wide = _alone(words[at][0])
    words[at] = f'{rng.choice(_WIDE)}{words[at]}' if wide else f'{rng.choice(_MARKS)} {words[at]}'
  return _joined(words, gaps)


def _typo(text: str, share: float, rng: random.Random) -> str:
  """Each letter, with the probability `share`, is left out, doubled, or changes places with the next one."""
  letters, i = list(text), 0
  while i < len(letters):
    if letters[i].isalnum() and rng.random() < share:
      kind = rng.choice('dst')
      if kind == 'd' and len(letters) > 1:
        letters[i] = ''
      elif kind == 't':
        letters[i] *= 2
      elif i + 1 < len(letters) and letters[i + 1].isalnum():
        letters[i], letters[i + 1] = letters[i + 1], letters[i]
        i += 1
    i += 1
  return ''.join(letters)


OPERATIONS: Mapping[str, Callable[[str, float, random.Random], str]] = {
  'swap': _swap,
  'delete': _delete,
  'insert': _insert,
  'punctuate': _punctuate,
  'typo': _typo,
}


def read(spec: str) -> list[tuple[str, float]]:
  """[(operation, share)] of `data.augment`. Raises `InputError` for an unknown one, and shares that are none."""
  found: dict[str, float] = {}
  for part in filter(None, (p.strip() for p in spec.split(','))):
    name, _, number = part.partition('=')
    if name not in OPERATIONS or name in found:
      raise InputError(
        f'data.augment={spec!r}: {name!r} is {"there twice" if name in found else "no operation"}'
        f'{did_you_mean(name, OPERATIONS)}; known: {", ".join(OPERATIONS)}, each as name=share'
      )
    try:
      found[name] = float(number)
    except ValueError:
      found[name] = 0.0
    if not 0 < found[name] < 1:
      raise InputError(f'data.augment={spec!r}: {part!r} lacks a share above 0 and below 1, such as {name}=0.1')
  return [*found.items()]


def changed(text: str, operations: Sequence[tuple[str, float]], rng: random.Random) -> str:
  """The text after all operations; as it was where they would leave nothing of it."""
  new = text
  for name, share in operations:
    new = OPERATIONS[name](new, share, rng)
  return new if new.strip() else text


def augmented(train: Rows, columns: Sequence[str], spec: str, copies: int, seed: int, notes: list[str]) -> Rows:
  """The training rows, and behind them `copies` changed ones of each, which name the line of theirs as their own.

  Copies that came out as a row that is there already (of one word, say) are left out.
  """
  operations = read(spec)
  if not operations:
    return train
  key = lambda row: tuple(row[c] for c in columns)  # noqa: E731
  found, at, there = list(train.rows), array.array('q', train.at), {key(row) for row in train}
  for copy in range(copies):
    for i, row in enumerate(train):
      rng = random.Random(f'{seed} {copy} {train.at[i]}')
      new = {**row, **{c: changed(row[c], operations, rng) for c in columns}}
      if key(new) not in there:
        there.add(key(new))
        found.append(new)
        at.append(train.at[i])
  wanted, got = copies * len(train), len(found) - len(train)
  short = '' if got == wanted else f'; {wanted - got} more came out as texts that were there already'
  notes.append(f'train: {got} rows added by data.augment={spec}{short}')
  return dataclasses.replace(train, rows=found, at=at)
