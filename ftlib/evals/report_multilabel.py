"""The report's part on rows of any number of labels: a curve for each label, and the rows that are furthest off.

Shapes: N examples, C labels.
"""

from __future__ import annotations

import array
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from ftlib.evals import plots_classes
from ftlib.evals import report_format as fmt
from ftlib.evals.report_data import Split, number
from ftlib.evals.report_page import block, example_table, figure, shown, word

WORST = 12  # rows shown


@dataclasses.dataclass(frozen=True)
class Marked:
  """The N rows, as read, whose labels are sets of known ones: who has which, `positives_NC`, what was predicted,
  `said_NC`, and `probabilities_NC`."""

  rows: Sequence[dict]
  positives_NC: np.ndarray
  said_NC: np.ndarray
  probabilities_NC: np.ndarray

  @property
  def off_N(self) -> np.ndarray:
    """How far the probabilities of the labels that are wrong in a row are from the truth, summed."""
    wrong_NC = self.positives_NC != self.said_NC
    return (wrong_NC * np.abs(self.positives_NC - self.probabilities_NC)).sum(1)


def read(split: Split) -> Marked | None:
  """What there is of such rows, None without any."""
  names, kept, probabilities = set(split.classes), array.array('q'), array.array('d')
  sides = bytearray(), bytearray()
  for i, row in enumerate(split.rows):
    lists = [row.get(key) for key in ('label', 'prediction', 'probabilities')]
    if all(isinstance(x, list) for x in lists) and len(lists[2]) == len(names) and not _odd(names, lists):
      kept.append(i)
      for side, labels in zip(sides, lists):
        has = {*map(str, labels)}
        side.extend(c in has for c in split.classes)
      probabilities.extend(lists[2])
  if not kept:
    return None
  wide = lambda values, kind: np.array(values, kind).reshape(len(kept), -1)  # noqa: E731
  return Marked(split.rows.taken(kept), *(wide(side, bool) for side in sides), wide(probabilities, float))


def _odd(names: set[str], lists: list[list]) -> bool:
  """Whether a label is not known, or a probability none."""
  return not {*map(str, lists[0] + lists[1])} <= names or None in map(number, lists[2])


def charts(split: Split, *, slug: str) -> list[str]:
  """A ROC and a precision-recall curve for each label; [] for other tasks."""
  found = read(split)
  if found is None:
    return []
  made = (chart(found, split.classes, slug=slug) for chart in (plots_classes.roc, plots_classes.precision_recall))
  return [figure(chart) for chart in made]


def examples(split: Split) -> str:
  """The rows whose wrong labels are furthest off; '' for other tasks, and where none is wrong."""
  found = read(split)
  if found is None:
    return ''
  wrong = np.flatnonzero((found.positives_NC != found.said_NC).any(1))
  worst = wrong[np.argsort(-found.off_N[wrong], kind='stable')][:WORST]
  cells = []
  for i in worst:
    of_label = zip(found.probabilities_NC[i], found.positives_NC[i], found.said_NC[i])
    labels = dict(zip(split.classes, of_label))
    cells.append((shown(found.rows[i]), _listed(labels, 1), _listed(labels, 2)))
  note = f'{fmt.integer(len(wrong))} of {fmt.integer(len(found.rows))} rows have a label too many or too few; these '
  note += 'are the furthest off. In orange what is wrong, with its probability.'
  return block('Worst mistakes', example_table(('Text', 'True', 'Predicted'), cells), note=note, kind='wide')


def _listed(labels: Mapping[str, tuple], side: int) -> str:
  """The labels of one side, those that the other lacks marked; a dash for none."""
  out = []
  for name, values in labels.items():
    if values[side]:
      right = values[1] == values[2]
      out.append(word(name) if right else f'<span class="wrong">{word(name)}</span> {values[0]:.3f}')
  return ', '.join(out) or '–'
