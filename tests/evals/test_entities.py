"""Entities and their measures: equal to seqeval on stored cases, and to scikit-learn for words one by one."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

from ftlib.base import tags
from ftlib.base.tags import Entity
from ftlib.evals import entities

CASES = json.loads((pathlib.Path(__file__).parent / 'data' / 'entity_cases.json').read_text())


def found(rows, scheme, mode):
  return [tags.entities(row) if mode == 'default' else tags.strict_entities(row, scheme) for row in rows]


def compare(case):
  """Raises where ftlib and seqeval differ on a case."""
  for mode, expected in case['expected'].items():
    gold, said = (found(case[side], case['scheme'], mode) for side in ('gold', 'said'))
    types = tags.kinds(t for row in case['gold'] + case['said'] for t in row)
    got = entities.scores(entities.counts(gold, said, types).sum(0), types)
    names = ('precision', 'recall', 'f1')
    assert [got[n] for n in names] == pytest.approx(expected['micro'], abs=1e-9), (mode, case)
    assert [got[f'{n}_macro'] for n in names] == pytest.approx(expected['macro'], abs=1e-9), (mode, case)
    assert got['f1_weighted'] == pytest.approx(expected['weighted'][2], abs=1e-9), (mode, case)
    assert got['f1'] == pytest.approx(expected['f1'], abs=1e-9), (mode, case)
    rows = {t: [r[n] for n in (*names, 'support')] for t, r in got['per_class'].items()}
    assert rows.keys() == expected['types'].keys(), (mode, case)
    for t, row in rows.items():
      assert row == pytest.approx(expected['types'][t], abs=1e-9), (mode, t, case)


def test_stored_cases_of_seqeval():
  assert len(CASES) > 90
  assert {c['scheme'] for c in CASES} == {'bio', 'bioes'}
  both = [c['expected'] for c in CASES if len(c['expected']) == 2]
  differ = [e for e in both if e['default']['micro'] != e['strict']['micro']]
  assert len(differ) > 20  # or strictness would not be tested
  for case in CASES:
    compare(case)


def test_nothing_there_and_nothing_said():
  got = entities.scores(entities.counts([[]], [[]], ['PER']).sum(0), ['PER'])
  assert (got['f1'], got['f1_macro'], got['f1_weighted'], got['per_class']) == (0.0, 0.0, 0.0, {})


def test_words_as_scikit_learn_has_them():
  from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

  rng = np.random.default_rng(0)
  for _ in range(20):
    gold, said = rng.integers(0, 4, (2, 30))
    rows = np.repeat(np.arange(3), 10)
    counts = entities.word_counts(gold, said, rows, rows=3, classes=6)
    assert (
      counts[1].tolist() == entities.word_counts(gold[10:20], said[10:20], rows[:10], rows=1, classes=6)[0].tolist()
    )
    got = entities.tokens(counts.sum(0), list('abcdef'))  # e and f never occur
    assert got['token_accuracy'] == pytest.approx(accuracy_score(gold, said))
    macro = precision_recall_fscore_support(gold, said, average='macro', zero_division=0)
    assert [got[f'{n}_macro'] for n in ('precision', 'recall', 'f1')] == pytest.approx(macro[:3])
    each = precision_recall_fscore_support(gold, said, average=None, zero_division=0)
    assert [r['f1'] for r in got['per_class'].values()] == pytest.approx(each[2])
    assert [r['support'] for r in got['per_class'].values()] == each[3].tolist()
    assert entities.confusion(gold, said, 6)[:4, :4].tolist() == confusion_matrix(gold, said, labels=range(4)).tolist()


READ = [  # tags, entities as conlleval reads them, entities that are written well
  ('bio', 'B-X I-X O', [('X', 0, 2)], [('X', 0, 2)]),
  ('bio', 'I-X I-X', [('X', 0, 2)], []),
  ('bio', 'B-X I-Y', [('X', 0, 1), ('Y', 1, 2)], [('X', 0, 1)]),
  ('bio', 'B-X B-X', [('X', 0, 1), ('X', 1, 2)], [('X', 0, 1), ('X', 1, 2)]),
  ('bio', 'O I-X B-X', [('X', 1, 2), ('X', 2, 3)], [('X', 2, 3)]),
  ('bio', 'B I O', [('_', 0, 2)], [('_', 0, 2)]),
  ('bioes', 'B-X E-X S-Y', [('X', 0, 2), ('Y', 2, 3)], [('X', 0, 2), ('Y', 2, 3)]),
  ('bioes', 'B-X I-X O', [('X', 0, 2)], []),
  ('bioes', 'E-X E-X', [('X', 0, 1), ('X', 1, 2)], []),
  ('bioes', 'U-X B-X L-X', [('X', 0, 1), ('X', 1, 3)], [('X', 0, 1), ('X', 1, 3)]),
  ('bioes', 'B-X-Y M-X-Y E-X-Y', [('X-Y', 0, 3)], [('X-Y', 0, 3)]),
]


@pytest.mark.parametrize(('scheme', 'text', 'lenient', 'strict'), READ)
def test_how_sequences_are_read(scheme, text, lenient, strict):
  row = text.split()
  assert tags.entities(row) == [Entity(*e) for e in lenient]
  assert tags.strict_entities(row, scheme) == [Entity(*e) for e in strict]


@pytest.mark.parametrize('scheme', ['bio', 'bioes'])
def test_what_is_written_is_read_back_and_legal(scheme):
  labels = tags.label_list(['X', 'Y'], scheme)
  legal = tags.legal(labels, scheme)
  rng = np.random.default_rng(1)
  seen = set()
  for _ in range(60):
    row = [labels[i] for i in rng.integers(0, len(labels), 7)]
    again = tags.written(tags.entities(row), len(row), scheme)
    assert tags.entities(again) == tags.strict_entities(again, scheme) == tags.entities(row)
    assert tags.faults(again, closed=scheme == 'bioes') == 0
    path = [len(labels), *map(labels.index, row), len(labels)]
    steps = sum(not legal[a, b] for a, b in zip(path, path[1:]))  # noqa: RUF007
    assert steps == tags.faults(row, closed=scheme == 'bioes')
    assert (again == row) == (steps == 0)
    seen.add(steps)
  assert len(seen) > 3


@pytest.mark.parametrize(
  ('labels', 'scheme'),
  [
    (['O', 'B-X', 'I-X'], 'bio'),
    (['O', 'I-X'], 'bio'),
    (['O', 'B-X', 'I-X', 'S-X'], 'bioes'),
    (['B-X', 'L-X'], 'bioes'),
    (['O', 'B', 'I'], 'bio'),
    (['B', 'M', 'E', 'S'], 'bioes'),
    (['O'], 'plain'),
    (['NN', 'B-X'], 'plain'),
    (['NN', 'VB', '.'], 'plain'),
    ([0, 1], 'plain'),
    (['B', 'C'], 'plain'),
  ],
)
def test_schemes_are_found(labels, scheme):
  assert tags.scheme_of(labels) == scheme


def test_iob1_is_known_by_where_its_b_stands():
  assert tags.is_iob1([['I-X', 'I-X', 'B-X', 'O'], ['O', 'I-Y']])
  assert not tags.is_iob1([['B-X', 'I-X'], ['O', 'I-Y']])
  assert not tags.is_iob1([['O', 'O']])
  assert not tags.is_iob1([['I-X'], ['S-X']])
