"""The measures of relations: what the official scorer of SemEval-2010 Task 8 printed, and cases by hand."""

from __future__ import annotations

import numpy as np
import pytest

from ftlib.evals import relations

NAMES = [
  f'{r}({d})'
  for r in (
    *('Cause-Effect', 'Component-Whole', 'Content-Container', 'Entity-Destination', 'Entity-Origin'),
    *('Instrument-Agency', 'Member-Collection', 'Message-Topic', 'Product-Producer'),
  )
  for d in ('e1,e2', 'e2,e1')
] + ['Other']
# The confusion matrix that semeval2010_task8_scorer-v1.2.pl printed for some system's answers to the 2,717 test rows
# (a row for each true label), and below it the numbers that the scorer printed.
COUNTS = """
101 14 0 1 0 0 1 0 0 0 1 2 0 1 2 0 0 0 11
7 162 0 0 0 0 0 0 11 0 0 0 0 2 0 0 0 3 9
0 1 102 17 4 4 3 1 2 1 0 2 3 6 3 0 0 2 11
0 1 24 85 0 1 2 0 0 1 0 5 0 2 2 2 0 2 23
0 0 1 1 130 7 6 1 3 0 0 0 0 1 0 0 0 1 2
0 0 0 4 1 26 1 0 2 1 0 0 0 1 0 0 0 0 3
0 0 1 0 13 3 255 3 1 1 0 1 0 0 2 0 0 3 8
0 0 0 0 0 0 0 1 0 0 0 0 0 0 0 0 0 0 0
2 1 0 0 0 0 7 0 163 6 0 1 0 4 2 0 6 0 19
1 0 1 0 1 1 0 0 7 27 0 1 0 0 0 0 0 1 7
0 0 1 0 0 1 0 0 0 0 4 3 1 0 1 0 0 1 10
1 1 3 8 0 0 1 0 2 1 4 76 0 1 3 2 0 6 25
0 0 2 0 0 0 1 0 2 0 0 1 15 3 0 1 1 0 6
0 0 6 3 1 0 0 0 1 0 1 0 9 161 2 1 0 5 11
0 0 1 6 0 1 3 0 0 0 0 2 0 2 148 17 2 7 21
0 0 0 0 0 0 0 0 0 0 0 1 0 0 8 31 2 3 6
1 6 1 2 0 0 1 1 5 0 0 0 0 3 1 2 61 13 11
0 0 1 4 0 0 3 0 2 2 0 8 0 2 2 3 8 71 17
3 12 15 34 22 3 28 2 36 7 2 18 4 37 31 7 10 20 163
"""
OFFICIAL = {
  'f1_macro': 69.10,
  'precision_macro': 67.91,
  'recall_macro': 70.58,
  'f1_undirected': 75.47,
  'accuracy': 65.59,
  'f1_micro': 70.13,
  'precision_micro': 68.78,
  'recall_micro': 71.54,
}
BY_RELATION = {  # precision, recall, F1, support
  'Cause-Effect': (83.76, 80.18, 81.93, 328),
  'Component-Whole': (57.72, 59.94, 58.81, 312),
  'Content-Container': (71.23, 81.25, 75.91, 192),
  'Entity-Destination': (79.75, 87.67, 83.52, 292),
  'Entity-Origin': (66.90, 73.64, 70.11, 258),
  'Instrument-Agency': (60.15, 51.28, 55.36, 156),
  'Member-Collection': (68.22, 75.54, 71.69, 233),
  'Message-Topic': (65.57, 68.58, 67.04, 261),
  'Product-Producer': (57.89, 57.14, 57.52, 231),
  'Other': (44.90, 35.90, 39.90, 454),
}


def test_the_official_scorer_says_the_same():
  confusion = np.array([line.split() for line in COUNTS.split('\n') if line], int)
  assert confusion.sum() == 2717
  got = relations.scores(confusion, NAMES, other='Other')
  assert set(OFFICIAL) == set(relations.METRICS)
  for name, value in OFFICIAL.items():
    assert round(100 * got[name], 2) == value, name
  for name, values in BY_RELATION.items():
    own = got['per_class'][name]
    assert tuple(round(100 * own[n], 2) for n in ('precision', 'recall', 'f1')) == values[:3], name
    assert own['support'] == values[3]


def scored(gold, said, names=('A-B(e1,e2)', 'A-B(e2,e1)', 'C-D(e1,e2)', 'Other')):
  number = {n: i for i, n in enumerate(names)}
  confusion = relations.confusion(*(np.array([number[v] for v in x]) for x in (gold, said)), len(names))
  return relations.scores(confusion, names, other='Other')


def test_the_wrong_direction_is_a_mistake_of_both_kinds():
  got = scored(['A-B(e1,e2)', 'A-B(e1,e2)'], ['A-B(e1,e2)', 'A-B(e2,e1)'])
  assert (got['precision_macro'], got['recall_macro'], got['f1_macro']) == (0.5, 0.5, 0.5)
  assert got['f1_undirected'] == 1


def test_the_mean_is_over_true_relations_without_other():
  got = scored(['A-B(e1,e2)', 'Other', 'Other'], ['A-B(e1,e2)', 'C-D(e1,e2)', 'Other'])
  assert got['f1_macro'] == 1  # C-D is said, but does not occur
  assert got['per_class']['C-D'] == {'precision': 0, 'recall': 0, 'f1': 0, 'support': 0}
  got = scored(['A-B(e1,e2)', 'C-D(e1,e2)'], ['Other', 'C-D(e1,e2)'])
  assert (got['f1_macro'], got['recall_micro'], got['precision_micro']) == (0.5, 0.5, 1)


def test_labels_without_directions_are_relations_of_their_own():
  got = scored(['x', 'y', 'y'], ['x', 'y', 'x'], names=('x', 'y'))
  assert got['f1_macro'] == pytest.approx((2 / 3 + 2 / 3) / 2)
  assert got['f1_undirected'] == got['f1_macro']


def test_nothing_to_find():
  assert scored(['Other'], ['Other'])['f1_macro'] == 0


def test_rows_counted_several_times():
  labels, said = np.array([0, 1, 1]), np.array([0, 1, 0])
  twice = relations.confusion(labels, said, 2, np.array([2, 0, 1]))
  assert twice.tolist() == relations.confusion(labels[[0, 0, 2]], said[[0, 0, 2]], 2).tolist()
