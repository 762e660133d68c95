"""Tags of words and the entities that they mean: schemes, how broken sequences are read, and what may follow what.

A tag is 'O', or a prefix and a type, 'B-PER' ('B' alone has the type '_'). In BIO (also called IOB2) B begins an entity
and I goes on with it; in BIOES E ends one and S is one of a single word (BILOU's L and U, BMES's M are read as E, S and
I); in IOB1 B stands only where an entity directly follows one of its own type. Whatever else a label list holds is
'plain': parts of speech, say, that mean no entities.

Shapes: C labels.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

OUTSIDE = 'O'
SCHEMES = ('bio', 'bioes', 'plain')
_LETTERS = {'B': 'B', 'I': 'I', 'M': 'I', 'E': 'E', 'L': 'E', 'S': 'S', 'U': 'S'}
_TYPED = re.compile(r'[BIMELSU]-.+', re.DOTALL)


class Entity(NamedTuple):
  """An entity of words `start` to `stop` - 1."""

  kind: str
  start: int
  stop: int


def scheme_of(labels: Iterable[object]) -> str:
  """'bio', 'bioes' (where E or S is used) or 'plain', by the labels that occur."""
  labels = {*labels} - {OUTSIDE}
  typed = all(isinstance(l, str) and _TYPED.fullmatch(l) for l in labels)
  if not labels or not (typed or ('B' in labels and labels <= {*_LETTERS} and len(labels) > 1)):
    return 'plain'
  return 'bioes' if {_LETTERS[l[0]] for l in labels} & {'E', 'S'} else 'bio'


def strays(counts: Mapping[object, int]) -> set:
  """The tags of no scheme, of tags that occur so often and most of which, by number or by words, have one."""
  labels = {*counts} - {OUTSIDE}
  scheme = {l for l in labels if isinstance(l, str) and _TYPED.fullmatch(l)} or labels & {*_LETTERS}
  if scheme <= {*_LETTERS} and not {'B'} < scheme:
    return set()
  odd = labels - scheme
  in_words = sum(counts[l] for l in scheme) > sum(counts[l] for l in odd)
  return odd if in_words or len(scheme) > len(odd) else set()


@functools.lru_cache(maxsize=4096)
def split(tag: str) -> tuple[str, str]:
  """(one of 'O', 'B', 'I', 'E', 'S'; type) of a tag, ('O', '') of one that is in no scheme."""
  prefix, _, kind = tag.partition('-')
  return (_LETTERS[prefix], kind or '_') if prefix in _LETTERS else ('O', '')


def kinds(labels: Iterable[str]) -> list[str]:
  """The types in a label list, sorted."""
  return sorted({kind for prefix, kind in map(split, labels) if prefix != 'O'})


def label_list(types: Sequence[str], scheme: str) -> list[str]:
  """All tags of a scheme over types: O, and of each type B, I and, in BIOES, E, S."""
  return [OUTSIDE, *(_joined(letter, t) for t in types for letter in ('BI' if scheme == 'bio' else 'BIES'))]


def _joined(letter: str, kind: str) -> str:
  return letter if kind == '_' else f'{letter}-{kind}'


def entities(tags: Sequence[str]) -> list[Entity]:
  """The entities of a sequence, read as conlleval and seqeval's default do: what goes on with nothing begins one.

  An I or E continues the entity of a B or I of its type before it, and begins one everywhere else.
  """
  out: list[Entity] = []
  open_ = ''  # the type that an I may go on with
  for i, (prefix, kind) in enumerate(map(split, tags)):
    if prefix in ('I', 'E') and kind == open_:
      out[-1] = out[-1]._replace(stop=i + 1)
    elif prefix != 'O':
      out.append(Entity(kind, i, i + 1))
    open_ = kind if prefix in ('B', 'I') else ''
  return out


def strict_entities(tags: Sequence[str], scheme: str) -> list[Entity]:
  """The entities that are written as the scheme has them, 'bio' (seqeval's strict IOB2) or 'bioes' (its IOBES): in the
  first one begins with B, in the second it is B, I ..., E or S. The rest is outside."""
  out: list[Entity] = []
  start, kind = -1, ''  # of the entity that is open
  for i, (prefix, own) in enumerate([*map(split, tags), ('O', '')]):
    if start >= 0 and prefix in ('I', 'E') and own == kind:
      if prefix == 'E' and scheme == 'bioes':
        out.append(Entity(kind, start, i + 1))
        start = -1
      continue
    if start >= 0 and scheme == 'bio':
      out.append(Entity(kind, start, i))
    start = -1
    if prefix == 'B' or (prefix == 'S' and scheme == 'bio'):
      start, kind = i, own
    elif prefix == 'S':
      out.append(Entity(own, i, i + 1))
  return out


def written(found: Iterable[Entity], length: int, scheme: str) -> list[str]:
  """The tags of `length` words with these entities, which do not overlap."""
  tags = [OUTSIDE] * length
  for kind, start, stop in found:
    inner = [_joined('I', kind)] * (stop - start - 1)
    tags[start:stop] = [_joined('B', kind), *inner]
    if scheme == 'bioes':
      tags[stop - 1] = _joined('E' if inner else 'S', kind)
  return tags


def legal(labels: Sequence[str], scheme: str) -> np.ndarray:
  """Which label may follow which, bool [C + 1, C + 1]: row C is the beginning of a row, column C its end."""
  parts = [*map(split, labels), ('O', '')]
  if scheme == 'plain':
    return np.ones((len(parts), len(parts)), bool)
  return np.array([[_follows(before, after, closed=scheme == 'bioes') for after in parts] for before in parts])


def _follows(before: tuple[str, str], after: tuple[str, str], *, closed: bool) -> bool:
  goes_on = before[0] in ('B', 'I') and after[0] in ('I', 'E') and before[1] == after[1]
  if closed and before[0] in ('B', 'I'):
    return goes_on
  return goes_on or after[0] not in ('I', 'E')


def faults(tags: Sequence[str], *, closed: bool) -> int:
  """At how many places a sequence goes on with nothing or, where entities are `closed` by E, leaves one open."""
  parts = [('O', ''), *map(split, tags), ('O', '')]
  return sum(not _follows(a, b, closed=closed) for a, b in itertools.pairwise(parts))


def is_iob1(rows: Iterable[Sequence[str]]) -> bool:
  """Whether tags are IOB1: I begins entities, and B stands nowhere but directly behind an entity of its own type."""
  begun = False
  for tags in rows:
    before = ('O', '')
    for part in map(split, tags):
      if part[0] in ('E', 'S') or (part[0] == 'B' and (before[0] == 'O' or before[1] != part[1])):
        return False
      begun |= part[0] == 'I' and before[1] != part[1]
      before = part
  return begun
