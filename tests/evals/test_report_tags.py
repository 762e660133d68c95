"""Mistakes of tags in the report: what they are called, and that the words they are about are marked."""

from __future__ import annotations

import json

import pytest

from ftlib.base.tags import Entity
from ftlib.evals import report, report_tags
from ftlib.evals.report_tags import Mistake


def row(label, prediction, **more):
  return {'label': label.split(), 'prediction': prediction.split(), 'entities': [], **more}


CASES = [
  ('B-P I-P O', 'B-P I-P O', []),
  ('B-P I-P O', 'O O O', [('missed', ('P', 0, 2), None)]),
  ('O O O', 'O B-P O', [('spurious', None, ('P', 1, 2))]),
  ('B-P I-P O', 'B-Q I-Q O', [('type', ('P', 0, 2), ('Q', 0, 2))]),
  ('B-P I-P O', 'B-P O O', [('boundary', ('P', 0, 2), ('P', 0, 1))]),
  ('B-P I-P O', 'O B-Q I-Q', [('both', ('P', 0, 2), ('Q', 1, 3))]),
  (
    'B-P I-P B-Q',
    'B-P B-P O',
    [('boundary', ('P', 0, 2), ('P', 0, 1)), ('spurious', None, ('P', 1, 2)), ('missed', ('Q', 2, 3), None)],
  ),
]


@pytest.mark.parametrize(('label', 'prediction', 'wanted'), CASES)
def test_kinds_of_mistakes(label, prediction, wanted):
  entity = lambda e: None if e is None else Entity(*e)  # noqa: E731
  assert report_tags.mistakes(row(label, prediction)) == [Mistake(k, entity(a), entity(b)) for k, a, b in wanted]


def test_words_without_a_scheme_are_mistakes_of_their_own():
  plain = {'label': ['NN', 'VB'], 'prediction': ['NN', 'NN']}
  [only] = report_tags.mistakes(plain)
  assert (only.kind, only.types, {*only.words()}) == ('tag', 'VB → NN', {1})


@pytest.fixture
def page(tmp_path):
  """The report of two rows: `page(rows)`."""

  def make(rows):
    folder = tmp_path / 'eval'
    folder.mkdir()
    (folder / 'test_predictions.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
    metrics = {'f1': 0.5, 'per_class': {'PER': {'precision': 0.5, 'recall': 0.25, 'f1': 0.125, 'support': 8}}}
    record = {'metrics': metrics, 'n': len(rows), 'labels': ['O', 'B-PER', 'I-PER']}
    (folder / 'test.json').write_text(json.dumps(record))
    report.write(tmp_path)
    return (tmp_path / 'report.html').read_text()

  return make


def test_the_page_marks_the_words(page):
  names = ['<b>Ann', 'Lee', 'met', 'Bo', 'in', 'May']
  sure = [{'type': 'PER', 'start': 5, 'stop': 6, 'text': 'May', 'confidence': 0.9}]
  one = row('B-PER I-PER O B-PER O O', 'B-PER I-PER O O O B-PER', tokens=names, entities=sure, id=7)
  one['text'] = ' '.join(names)
  right = row('O', 'O', tokens=['x'], text='x', id=8)
  text = page([one, right])
  assert '<mark class="found">&lt;b&gt;Ann</mark> <mark class="found">Lee</mark> met <mark class="missed">Bo<' in text
  assert '<mark class="spurious">May</mark>' in text
  assert '1 of 2 rows have mistakes; these have the surest of them. Green words are entities that were found.' in text
  assert '<mark class="missed">Missed</mark></span> PER: <span dir="auto">Bo</span>' in text  # the colour says which
  assert '<mark class="spurious">Spurious</mark></span> PER: <span dir="auto">May</span>' in text
  assert 'ROC AUC' not in text  # which no tag has: no column of dashes
  assert '>0.125</span>' in text  # the table by type
  assert 'mark.missed{' in text


def test_a_page_without_mistakes_and_one_in_chinese(page):
  tokens = list('王小明在家')
  text = page([row('B-PER I-PER I-PER O O', 'B-PER I-PER O O O', tokens=tokens, text=''.join(tokens))])
  assert '<mark class="partly">王</mark><mark class="partly">小</mark><mark class="partly">明</mark>在家' in text
  assert '<mark class="partly">Wrong boundary</mark></span> PER: <span dir="auto">王小明 → 王小</span>' in text


def test_what_is_not_shown_is_counted(page):
  kinds = [f'K{i}' for i in range(9)]
  many = {'id': 0, 'tokens': ['w'] * 10, 'text': 'w ' * 9 + 'w', 'label': ['O'] * 10, 'entities': []}
  html = page([{**many, 'prediction': [*(f'B-{k}' for k in kinds), 'B-K0']}])
  assert 'K0 (2), K1 (1), K2 (1), K3 (1), K4 (1), K5 (1) and 3 others (3)' in html
  assert html.count('and 2 more') == 1


def test_odd_rows_are_passed_over(page):
  text = page([{'tokens': ['a'], 'label': ['O', 'O'], 'prediction': ['O'], 'text': 'a'}, {'text': 'b'}])
  assert 'Kinds of mistakes' not in text
