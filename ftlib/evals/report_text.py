"""What a language model says and learns: its hardest and easiest rows, samples side by side, the mask of the loss."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ftlib.evals import report_format as fmt
from ftlib.evals.report_data import Split, Valued, number
from ftlib.evals.report_page import bar, block, cut, example_table, grid, section, shown, table, text

WORST, BEST = 12, 6  # rows shown of each kind
_PIECE, _PIECES = 900, 80  # characters of a piece of a previewed row, of whose middle one can do without; and pieces


def rows(split: Split) -> str:
  """The worst and the best rows by margin or loss, the worst by place; without those, the first predictions."""
  if split.margins is not None:
    return _ranked(
      split.margins, -split.margins.values_N, 'margin', 'Rejected answers ahead, or nearest to it', 'Surest'
    )
  if split.places is not None:
    far = np.argsort(-split.places.values_N, kind='stable')[:WORST]
    return block('Furthest from being found', _table(split.places, 'place', far), kind='wide said')
  if split.losses is not None:
    return _ranked(split.losses, split.losses.values_N, 'loss', 'Highest loss', 'Lowest loss')
  cells = [(shown(row), cut(_reference(row)), cut(row.get('prediction'))) for row in split.rows[:WORST]]
  note = f'The first {len(cells)} of {fmt.integer(len(split.rows))}.'
  return block('Predictions', example_table(('Text', 'Reference', 'Prediction'), cells), note=note)


def places(valued: Valued) -> str:
  """How many right texts stand first, and how many where else."""
  found, total = valued.values_N, len(valued.values_N)
  edges = [1, 2, 6, 11, 101, max(102, int(found.max()) + 1)]
  rows = []
  for low, stop in itertools.pairwise(edges):
    count = int(((found >= low) & (found < stop)).sum())
    if count:
      rows.append(
        (text(f'{low}' if stop == low + 1 else f'{low} to {stop - 1}'), fmt.integer(count), bar(count / total))
      )
  return block('Where the right text stands', table(('Place', 'Rows', 'Share'), rows))


def samples(found: Sequence[Mapping]) -> str:
  """The section of answers before and after training, next to the reference; '' without any."""
  return section(
    'Samples before and after',
    ''.join(_sample(row) for row in found),
    anchor='samples',
    lead='Rows of the validation split, answered by what training began with and by the best checkpoint (greedily).',
  )


def preview(found: Sequence[Mapping]) -> str:
  """The section of training rows with their supervised tokens marked; '' without any."""
  return section(
    'What the loss is taken over',
    *(_previewed(row) for row in found),
    anchor='preview',
    lead='The first training rows as the model reads them. Marked: what is learnt; the rest is only read.',
  )


def _ranked(valued: Valued, worse_N: np.ndarray, key: str, worst: str, best: str) -> str:
  """Two tables, from the worst row on and from the best one on, no row in both."""
  order = np.argsort(-worse_N, kind='stable')
  top, rest = order[:WORST], order[WORST:][::-1][:BEST]
  return grid(
    block(worst, _table(valued, key, top), kind='wide said'),
    block(best, _table(valued, key, rest), kind='wide said'),
  )


def _table(valued: Valued, key: str, indices: Iterable[int]) -> str:
  picked = [(valued.rows[i], valued.values_N[i]) for i in indices]
  columns = _columns(key, [row for row, _ in picked])
  head = ('Text', *(name for name, _ in columns), key.capitalize())
  said = lambda value: f'<span dir="auto">{cut(value)}</span>'  # noqa: E731
  cells = [(shown(r), *(said(get(r)) for _, get in columns), text(fmt.decimal(value))) for r, value in picked]
  return example_table(head, cells)


def _columns(key: str, found: Sequence[Mapping]) -> list:
  """(title, value of a row) of what there is to show of these rows."""
  if key == 'margin':
    wanted = [('Chosen', lambda r: r.get('chosen')), ('Rejected', lambda r: r.get('rejected'))]
  elif key == 'place':
    wanted = [('Right', _reference), ('Found first', lambda r: r.get('prediction'))]
  else:
    wanted = [('Reference', _reference), ('Prediction', lambda r: r.get('prediction')), ('Tokens', _tokens)]
  return [(name, get) for name, get in wanted if any(get(r) is not None for r in found)]


def _reference(row: Mapping) -> object:
  return row.get('label', row.get('reference'))


def _tokens(row: Mapping) -> object:
  count = number(row.get('tokens'))
  return None if count is None else fmt.integer(count)


def _sample(row: Mapping) -> str:
  sides = [
    f'<div class="{kind}"><dt>{title}</dt><dd dir="auto">{cut(row.get(key))}</dd></div>'
    for key, title, kind in (('reference', 'Reference', ''), ('before', 'Before', ''), ('after', 'After', 'new'))
  ]
  identity = f'<span class="id">{cut(row["id"])}</span>' if row.get('id') is not None else ''
  asked = f'<p class="asked" dir="auto">{cut(row.get("prompt"))} {identity}</p>'
  return f'<div class="sample">{asked}<dl class="sides">{"".join(sides)}</dl></div>\n'


def _previewed(row: Mapping) -> str:
  """A training row; '' for one that holds no pieces of text."""
  pieces = row.get('pieces')
  pieces = [p for p in pieces if isinstance(p, list) and len(p) == 2] if isinstance(pieces, list) else []
  if not pieces:
    return ''
  body = ''.join(f'<mark>{_middle(t)}</mark>' if own else _middle(t) for t, own in pieces[:_PIECES])
  body += '…' if len(pieces) > _PIECES else ''
  facts = [f'{cut(row.get(key))} {name}' for key, name in (('tokens', 'tokens'), ('supervised', 'supervised'))]
  name = str(row.get('row', '')).rpartition('/')[2]
  return f'<h3>{text(name)}: {", ".join(facts)}</h3><pre dir="auto">{body}</pre>'


def _middle(value: object) -> str:
  """Text without its middle where it is long."""
  value = str(value)
  half = _PIECE // 2
  return text(value if len(value) <= _PIECE else f'{value[:half]} … {value[-half:]}')
