"""The report's examples of questions: spans of a context with the gold one marked, and options by their texts."""

from __future__ import annotations

import array
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from ftlib.evals import report_format as fmt
from ftlib.evals.report_data import Split, number
from ftlib.evals.report_page import block, cut, example_table, grid, shown, text

WORST, BEST = 12, 6  # examples shown of the mistakes, and of what is right
_AROUND = 90  # characters of the context beside an answer
_NONE = 'no answer'


def examples(split: Split) -> str:
  """Tables of what is wrong and right, the surest first; '' where the rows are of no such task."""
  if split.judged is not None and has_options(split):
    return _options(split)
  at, sure, hits = array.array('q'), array.array('d'), bytearray()
  for i, row in enumerate(split.rows):
    if _is_span(row):
      at.append(i)
      sure.append(number(row.get('probability')) or 0.0)
      hits.append(number(row.get('exact_match')) == 1)
  if not at:
    return ''
  at_N, sure_N, right_N = np.array(at), np.array(sure), np.array(hits, bool)
  rows, order = split.rows.taken(at_N), np.argsort(-sure_N, kind='stable')
  wrong, right = order[~right_N[order]][:WORST], order[right_N[order]]
  said = f'{fmt.integer(int((~right_N).sum()))} of {fmt.integer(len(at_N))} answers do not match'
  note = 'Marked in the context: the gold answer. Underlined: the prediction.'
  return grid(
    block('Surest mistakes', _span_table(rows, wrong), note=f'{said}; these are the surest. {note}', kind='wide'),
    block('Least certain and right', _span_table(rows, right[::-1][:BEST]), note=note, kind='wide'),
  )


def has_options(split: Split) -> bool:
  """Whether the rows are questions with options of their own."""
  return split.judged is not None and all(isinstance(row.get('options'), list) for row in split.judged.rows)


def _is_span(row: Mapping) -> bool:
  return isinstance(row.get('context'), str) and isinstance(row.get('n_best'), list)


def _span_table(found: Sequence[Mapping], indices: np.ndarray) -> str:
  head = ('Question and context', 'Gold', 'Predicted', 'Probability', 'F1')
  rows = []
  for row in (found[i] for i in indices):
    verdict = 'right' if number(row.get('exact_match')) == 1 else 'wrong'
    probability, f1 = number(row.get('probability')), number(row.get('f1'))
    cells = (
      f'<span dir="auto">{cut(row.get("label") or _NONE)}</span>',
      f'<span class="{verdict}" dir="auto">{cut(row.get("prediction") or _NONE)}</span>',
      '–' if probability is None else f'{probability:.3f}',
      '–' if f1 is None else f'{f1:.3f}',
    )
    rows.append((f'{shown(row)}<span class="pair" dir="auto">{snippet(row)}</span>', *cells))
  return example_table(head, rows)


def snippet(row: Mapping) -> str:
  """HTML of the context around the first gold answer, in a mark, and the prediction, underlined, which may overlap."""
  context = row['context']
  gold = next(iter(row.get('answers') or ()), None)
  places = {'gold': _span(gold, context), 'said': _span(row if row.get('prediction') else None, context)}
  parts: list[list[int]] = []  # stretches of the context that are shown
  for start, end in sorted(place for place in places.values() if place) or [(0, 0)]:
    first, last = max(0, start - _AROUND), min(len(context), end + _AROUND)
    if parts and first <= parts[-1][1]:
      parts[-1][1] = max(parts[-1][1], last)
    else:
      parts.append([first, last])
  shown_parts = ['…' * (first > 0) + _marked(context, first, last, places) for first, last in parts]
  return ' '.join(shown_parts) + '…' * (parts[-1][1] < len(context))


def _span(answer: object, context: str) -> tuple[int, int] | None:
  """Where an answer stands, as {'start', 'end'} or {'start', 'text'}; None for none."""
  if not isinstance(answer, Mapping) or not isinstance(answer.get('start'), int):
    return None
  start = answer['start']
  end = answer.get('end', start + len(str(answer.get('text', ''))))
  return (start, end) if isinstance(end, int) and 0 <= start < end <= len(context) else None


def _marked(context: str, first: int, last: int, places: Mapping[str, tuple[int, int] | None]) -> str:
  borders = sorted({first, last, *(min(max(p, first), last) for place in places.values() for p in place or ())})
  out = ''
  for start, end in itertools.pairwise(borders):
    inside = {name for name, place in places.items() if place and place[0] <= start and end <= place[1]}
    piece = text(context[start:end])
    if 'said' in inside:
      piece = f'<u class="{"right" if "gold" in inside else "wrong"}">{piece}</u>'
    out += f'<mark>{piece}</mark>' if 'gold' in inside else piece
  return out


def _options(split: Split) -> str:
  """The mistakes and the least certain right answers, each with the texts of the options."""
  judged = split.judged
  order = np.argsort(-judged.confidence_N, kind='stable')
  wrong, right = (order[judged.correct_N[order] == hit] for hit in (False, True))
  said = f'{fmt.integer(len(wrong))} of {fmt.integer(len(order))} answers are wrong; these are the surest of them.'
  return grid(
    block('Worst mistakes', _option_table(split, wrong[:WORST]), note=said, kind='wide said'),
    block('Least certain and right', _option_table(split, right[::-1][:BEST]), kind='wide said'),
  )


def _option_table(split: Split, indices: np.ndarray) -> str:
  judged, rows = split.judged, []
  for i in indices:
    row, true, chosen = judged.rows[i], int(judged.labels_N[i]), int(judged.predictions_N[i])
    verdict = 'right' if true == chosen else 'wrong'
    others = '\n'.join(str(o) for k, o in enumerate(row['options']) if k not in (true, chosen))
    cells = (
      _option(row, true),
      f'<span class="{verdict}">{_option(row, chosen)}</span>',
      f'<span dir="auto">{cut(others or None)}</span>',
      f'{judged.probabilities_NC[i, chosen]:.3f}',
      f'{judged.probabilities_NC[i, true]:.3f}',
    )
    rows.append((shown(row), *cells))
  return example_table(('Question', 'True', 'Chosen', 'Other options', 'p(chosen)', 'p(true)'), rows)


def _option(row: Mapping, at: int) -> str:
  return f'<span dir="auto">{cut(row["options"][at] if at < len(row["options"]) else None)}</span>'
