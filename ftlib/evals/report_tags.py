"""The report's part on tags: which kinds of mistakes there are, and texts with the words coloured that they are about.

A true entity and a predicted one that share words are one mistake (of type, of boundary, or of both); a true one that
none shares is missed, a predicted one spurious. Without entities, each word with another tag is a mistake of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from ftlib.base import tags
from ftlib.base.tags import Entity
from ftlib.evals import report_format as fmt
from ftlib.evals.report_data import Split, number
from ftlib.evals.report_page import block, cut, example_table, grid, table, text

WORST = 12  # rows shown
_OFTEN, _OF_A_ROW = 6, 8  # types of a kind of mistake that are named, and mistakes of a row that are told
_AROUND, _WORDS = 12, 70  # words in front of the first mistake that are shown, and words of a row
_TITLES = {
  'missed': 'Missed',
  'spurious': 'Spurious',
  'type': 'Wrong type',
  'boundary': 'Wrong boundary',
  'both': 'Wrong type and boundary',
  'tag': 'Wrong tag',
}


class Mistake(NamedTuple):
  """`kind` of `_TITLES`; `true` and `said`: the entities, None where there is none."""

  kind: str
  true: Entity | None
  said: Entity | None

  @property
  def types(self) -> str:
    """'PER', or 'PER → ORG' where the two differ."""
    both = [e.kind for e in (self.true, self.said) if e is not None]
    return ' → '.join(dict.fromkeys(both))

  def words(self) -> Iterator[int]:
    """The words that it is about."""
    for entity in (self.true, self.said):
      if entity is not None:
        yield from range(entity.start, entity.stop)


def examples(split: Split) -> str:
  """Kinds of mistakes and the rows with the surest of them; '' for what are no predictions of tags."""
  count, sure, pairs = 0, [], Counter()
  for i, row in enumerate(split.rows):
    if _is_tagged(row):
      count += 1
      if own := mistakes(row):
        sure.append((max(_sure(row, m) for m in own), i))
        pairs.update((m.kind, m.types) for m in own)
  if not count:
    return ''
  worst = [(row := split.rows[i], mistakes(row)) for _, i in sorted(sure, key=lambda pair: -pair[0])[:WORST]]
  counts = Counter()
  for (kind, _), n in pairs.items():
    counts[kind] += n
  often = {k: _often([(t, n) for (kind, t), n in pairs.most_common() if kind == k]) for k in counts}
  kinds = [(text(title), text(often[k]), fmt.integer(counts[k])) for k, title in _TITLES.items() if counts[k]]
  note = f'{fmt.integer(len(sure))} of {fmt.integer(count)} rows have mistakes; these have the surest of them.'
  note += ' Green words are entities that were found.' if any('entities' in row for row, _ in worst) else ''
  cells = [(_coloured(row, own), '<br>'.join(_all_told(row, own))) for row, own in worst]
  return grid(
    block('Kinds of mistakes', table(('Mistake', 'Most often', 'Count'), kinds, kind='pairs'), kind='wide'),
    block('Mistakes', example_table(('Text', 'Mistakes'), cells), note=note, kind='wide'),
  )


def mistakes(row: Mapping) -> list[Mistake]:
  """What is wrong with a row, in the order of its words."""
  if 'entities' not in row:
    pairs = enumerate(zip(row['label'], row['prediction']))
    return [Mistake('tag', Entity(str(a), i, i + 1), Entity(str(b), i, i + 1)) for i, (a, b) in pairs if a != b]
  true, said = (tags.entities([str(t) for t in row[key]]) for key in ('label', 'prediction'))
  right = {*true} & {*said}
  true, said = ([e for e in side if e not in right] for side in (true, said))
  out = []
  for entity in true:
    other = max(said, key=lambda e: _shared(entity, e), default=None)
    if other is None or not _shared(entity, other):
      out.append(Mistake('missed', entity, None))
      continue
    said.remove(other)
    same = entity.kind == other.kind, entity[1:] == other[1:]
    out.append(Mistake({(False, True): 'type', (True, False): 'boundary'}.get(same, 'both'), entity, other))
  out += [Mistake('spurious', None, entity) for entity in said]
  return sorted(out, key=lambda m: min(m.words()))


def _is_tagged(row: Mapping) -> bool:
  sides = [row.get(key) for key in ('tokens', 'label', 'prediction')]
  return all(isinstance(side, list) for side in sides) and len({len(side) for side in sides}) == 1


def _shared(a: Entity, b: Entity) -> int:
  return max(0, min(a.stop, b.stop) - max(a.start, b.start))


def _sure(row: Mapping, mistake: Mistake) -> float:
  """How sure a wrong entity was; of what is only missed, 0."""
  for entity in row.get('entities') or ():
    if mistake.said is not None and isinstance(entity, Mapping) and entity.get('start') == mistake.said.start:
      return number(entity.get('confidence')) or 0.0
  return 0.0


def _words(row: Mapping, start: int, stop: int) -> str:
  """Words as a text, as the row's own text has them together."""
  spaced = ' '.join(map(str, row['tokens'])) == row.get('text')
  return (' ' if spaced else '').join(map(str, row['tokens'][start:stop]))


def _often(found: Sequence[tuple[str, int]]) -> str:
  """'PER (12), LOC (3) and 2 others (4)': the types of a kind of mistake, most frequent first."""
  rest = found[_OFTEN:]
  more = f' and {len(rest)} other{"s" * (len(rest) > 1)} ({sum(n for _, n in rest)})' if rest else ''
  return ', '.join(f'{t} ({n})' for t, n in found[:_OFTEN]) + more


def _all_told(row: Mapping, own: Sequence[Mistake]) -> list[str]:
  """A row's mistakes in words, and how many more there are."""
  more = len(own) - _OF_A_ROW
  return [_told(row, m) for m in own[:_OF_A_ROW]] + ([f'and {more} more'] if more > 0 else [])


def _told(row: Mapping, mistake: Mistake) -> str:
  """A mistake in words: 'Wrong boundary PER: John Smith → Smith'."""
  spans = [_words(row, e.start, e.stop) for e in (mistake.true, mistake.said) if e is not None]
  said = f'<mark class="{_colour(mistake)}">{text(_TITLES[mistake.kind])}</mark>'
  name = f'<span class="wrong">{said}</span> {text(mistake.types)}'
  return f'{name}: <span dir="auto">{cut(" → ".join(dict.fromkeys(spans)))}</span>'


def _colour(mistake: Mistake) -> str:
  """How its words, and its name beside them, are marked."""
  return mistake.kind if mistake.kind in ('missed', 'spurious') else 'partly'


def _coloured(row: Mapping, own: Sequence[Mistake]) -> str:
  """The row's words with marks on those of mistakes and of entities that are right, from shortly before the first."""
  kind: dict[int, str] = {}
  if 'entities' in row:
    for entity in {*tags.entities(list(map(str, row['label'])))} & {*tags.entities(list(map(str, row['prediction'])))}:
      kind |= dict.fromkeys(range(entity.start, entity.stop), 'found')
  for mistake in own:
    kind |= dict.fromkeys(mistake.words(), _colour(mistake))
  begin = max(0, min(m for mistake in own for m in mistake.words()) - _AROUND)
  stop = min(len(row['tokens']), begin + _WORDS)
  parts = ['… '] if begin else []
  gap = ' ' if _words(row, 0, 2).count(' ') else ''
  for i in range(begin, stop):
    word = text(row['tokens'][i])
    parts.append((f'<mark class="{kind[i]}">{word}</mark>' if i in kind else word) + gap)
  parts.append('…' if stop < len(row['tokens']) else '')
  identity = f'<span class="id">{cut(row["id"])}</span>' if row.get('id') is not None else ''
  return f'<span dir="auto">{"".join(parts)}</span>{identity}'
