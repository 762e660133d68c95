"""The report of several tasks at once, and of what is to be found."""

import json
import re

import pytest

from ftlib.evals import report, report_data

pytestmark = pytest.mark.filterwarnings('error')
S = '\N{NARROW NO-BREAK SPACE}'


def evaluated(folder, record, rows):
  (folder / 'eval').mkdir()
  (folder / 'eval' / 'test.json').write_text(json.dumps(record))
  (folder / 'eval' / 'test_predictions.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))


def test_several_tasks_have_a_section_each(tmp_path):
  metrics = {'loss': 0.4, 'mean': 0.7, 'a/accuracy': 0.5, 'b/spearman': 0.9, 'c+/f1': 0.1}
  record = {'metrics': metrics, 'n': 8, 'labels': ['a/x', 'a/y', 'b', 'm+u', 'm+v'], 'checkpoint': 3}
  record |= {'intervals': {'mean': [0.6, 0.8], 'a/accuracy': [0.25, 0.75]}, 'bootstrap': {'level': 0.9}}
  rows = [
    {'task': 'a', 'label': 'x', 'prediction': 'xy'[i % 2], 'probabilities': [0.6, 0.4], 'text': f'of a {i}'}
    if i < 4
    else {'task': 'b', 'label': float(i), 'prediction': i + 0.5, 'text': f'of b {i}'}
    for i in range(7)
  ]
  evaluated(tmp_path, record, [*rows, {'task': 'other', 'text': 'of none'}])
  whole, a, b = report_data.read(tmp_path).splits
  assert (whole.name, whole.metrics, whole.n, len(whole.rows)) == ('test', {'loss': 0.4, 'mean': 0.7}, 8, 0)
  assert (a.name, a.metrics, a.n, a.classes) == ('test: a', {'accuracy': 0.5}, 4, ['x', 'y'])
  assert a.judged.predictions_N.tolist() == [0, 1, 0, 1]
  assert a.more['intervals'] == {'accuracy': [0.25, 0.75]}
  assert (b.metrics, b.classes, b.scored.errors_N.tolist()) == ({'spearman': 0.9}, [], [0.5, 0.5, 0.5])
  page = report.render(report_data.read(tmp_path))
  assert [page.count(f'Results on test{part}<') for part in ('', ': a', ': b')] == [1, 1, 1]
  assert f'90{S}% interval 0.2500 to 0.7500' in page
  assert page.index('Mean of the parts') < page.index('of a 1') < page.index('of b 5')


def test_a_column_that_is_called_task_makes_no_parts(tmp_path):
  rows = [{'task': 'a', 'label': 'x', 'prediction': 'x', 'probabilities': [0.6, 0.4]}]
  evaluated(tmp_path, {'metrics': {'accuracy': 1.0}, 'labels': ['x', 'y']}, rows)
  [split] = report_data.read(tmp_path).splits
  assert len(split.judged.rows) == 1


def test_places_of_texts_that_are_to_be_found(tmp_path):
  rows = [
    {'id': f'r{i}', 'text': 'q', 'label': 't', 'prediction': 'u', 'place': p} for i, p in enumerate([1, 1, 7, 300])
  ]
  evaluated(tmp_path, {'metrics': {'mrr': 0.5}}, rows)
  page = report.render(report_data.read(tmp_path))
  table = page[page.index('Where the right text stands') : page.index('Furthest from being found')]
  assert re.findall(r'<th scope="row">([^<]+)</th><td>([^<]+)</td>', table) == [
    ('1', '2'),
    ('6 to 10', '1'),
    ('101 to 300', '1'),
  ]
  assert 0 < page.index('>r3<') < page.index('>r2<') < page.index('>r0<')
