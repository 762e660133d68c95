"""The report's examples of spans and of options: what is marked, what is shown first, and that texts stay text."""

from __future__ import annotations

import json
import re

import pytest

from ftlib.evals import report_page, report_spans, report_split
from ftlib.evals.report_data import read

CONTEXT = 'The film was made in <Paris> by two brothers, and was shown in London in 1899, late in May.'


def row(said, gold='Paris', *, context=CONTEXT, probability=0.5, **more):
  place = lambda t: {'start': context.index(t), 'end': context.index(t) + len(t)} if t else {'start': None, 'end': None}  # noqa: E731
  answers = [{'text': gold, 'start': context.index(gold)}] if gold else []
  return {
    'id': said,
    'label': gold,
    'prediction': said,
    **place(said),
    'probability': probability,
    'exact_match': float(said == gold),
    'f1': float(said == gold),
    'answers': answers,
    'n_best': [],
    'text': 'Where?',
    'context': context,
    **more,
  }


def split_of(folder, rows, labels=(), metrics=None):
  (folder / 'eval').mkdir(exist_ok=True)
  record = {'metrics': metrics or {'f1': 0.5}, 'n': len(rows), 'labels': [*labels], 'checkpoint': 3}
  (folder / 'eval' / 'test.json').write_text(json.dumps(record))
  (folder / 'eval' / 'test_predictions.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
  return read(folder).splits[0]


@pytest.mark.parametrize(
  ('said', 'want'),
  [
    ('London', 'in &lt;<mark>Paris</mark>&gt; by two brothers, and was shown in <u class="wrong">London</u> in 1899'),
    ('Paris', '&lt;<mark><u class="right">Paris</u></mark>&gt;'),
    ('in <Paris', '<u class="wrong">in &lt;</u><mark><u class="right">Paris</u></mark>&gt;'),
    ('', '&lt;<mark>Paris</mark>&gt;'),
  ],
)
def test_what_is_marked(said, want):
  got = report_spans.snippet(row(said))
  assert want in got
  assert re.sub('<[^>]*>', '', got).replace('&lt;', '<').replace('&gt;', '>').strip('…') in CONTEXT


def test_without_a_gold_answer_the_prediction_is_shown_alone():
  got = report_spans.snippet(row('London', gold=''))
  assert '<mark>' not in got
  assert '<u class="wrong">London</u>' in got


def test_long_contexts_are_cut():
  far = 'x' * 400
  got = report_spans.snippet(row('London', context=f'{far} Paris {far} London {far}'))
  assert got.startswith('…xxx')
  assert got.count('…') == 3
  assert len(got) < 600
  near = report_spans.snippet(row('London', context=f'{far} Paris or London {far}'))
  assert near.count('…') == 2


def test_the_surest_mistakes_come_first(tmp_path):
  rows = [row('London', probability=p, id=f'id{p}') for p in (0.2, 0.9, 0.4)] + [row('Paris', probability=0.7, id='ok')]
  page = report_split.render(split_of(tmp_path, rows), slug='s')
  order = [page.index(f'id{p}') for p in (0.9, 0.4, 0.2)]
  assert order == sorted(order)
  assert '3 of 4 answers do not match' in page
  assert page.index('id0.2') < page.index('Least certain and right') < page.index('>ok<')


def test_numbers_stay_in_one_line_and_texts_do_not():
  page = report_page.example_table(('Text', 'Gold', 'F1'), [('a', 'b', '0.456'), ('a', '<i>1</i>', '+1\u202f234')])
  assert page.count('class="number"') == 2
  assert '<span data-name="F1" class="number">+1\u202f234</span>' in page
  assert '.examples .number{white-space:nowrap}' in report_page.CSS


def test_no_answer_has_a_name(tmp_path):
  page = report_spans.examples(split_of(tmp_path, [row('', gold='Paris'), row('London', gold='')]))
  assert page.count('no answer') == 2


def test_rows_that_are_cut_off_or_odd_do_no_harm(tmp_path):
  odd = [row('London', answers=[3]), row('London', start='x'), row('London', end=10**6, probability='high')]
  assert report_spans.examples(split_of(tmp_path, odd)).count('<tr>') >= 3


def test_options_are_shown_by_their_texts(tmp_path):
  rows = [
    {
      'id': 'a',
      'label': 'A',
      'prediction': 'C',
      'probabilities': [0.1, 0.2, 0.7],
      'options': ['x<y', 'two', 'three'],
      'text': 'Q1',
    },
    {
      'id': 'b',
      'label': 'B',
      'prediction': 'B',
      'probabilities': [0.4, 0.6, 0],
      'options': ['one', 'zwei'],
      'text': 'Q2',
    },
  ]
  split = split_of(tmp_path, rows, 'ABC', {'accuracy': 0.5, 'confusion': [[0, 0, 1], [0, 1, 0], [0, 0, 0]]})
  page = report_split.render(split, slug='s')
  assert 'x&lt;y' in page
  assert '<span class="wrong"><span dir="auto">three</span></span>' in page
  assert 'zwei' in page[page.index('Least certain and right') :]
  assert 'ROC' not in page
  assert '1 of 2 answers are wrong' in page


def test_other_tasks_have_none(tmp_path):
  rows = [{'id': 'a', 'label': 'A', 'prediction': 'B', 'probabilities': [0.1, 0.9], 'text': 'Q1'}] * 2
  split = split_of(tmp_path, rows, 'AB', {'accuracy': 0.5})
  assert report_spans.examples(split) == ''
  assert 'Worst mistakes' in report_split.render(split, slug='s')
