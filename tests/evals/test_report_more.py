"""The report on slices, calibration, another run and attributed tokens: what it says, and what it survives."""

import dataclasses
import json

import numpy as np
import pytest

from ftlib.evals import calibration, report, report_data, report_more

pytestmark = pytest.mark.filterwarnings('error')
EVIL = '<script>alert(1)</script>"'
MORE = {
  'metric': 'accuracy',
  'bootstrap': {'samples': 1000, 'level': 0.95},
  'intervals': {'accuracy': [0.71, 0.93], 'mse': [2.0, 3.0], 'per_class': {'b': {'f1': [0.4567, 0.7891]}}},
  'slices': {
    'genre': [
      {'slice': 'drama', 'n': 12, 'metrics': {'accuracy': 0.75}, 'intervals': {'accuracy': [0.5, 0.9123]}},
      {'slice': EVIL, 'n': 3, 'metrics': {'accuracy': None}},
    ]
  },
  'calibration': {'ece': 0.123, 'ece_adaptive': 0.11, 'brier': 0.4, 'nll': 0.5},
  'calibrated': {
    'temperature': 1.7,
    'split': 'validation',
    'ece': 0.02,
    'ece_adaptive': 0.03,
    'brier': 0.39,
    'nll': 0.4,
    'notes': [f'fitted on these {EVIL}'],
  },
  'against': {
    'run': f'runs/{EVIL}',
    'metrics': {
      'accuracy': {'here': 0.9, 'there': 0.8, 'difference': 0.1, 'interval': [0.01, 0.2]}
      | {'p_bootstrap': 0.02, 'p_randomization': 0.03},
      'odd': {'here': 1.0, 'there': None},
    },
    'mcnemar': {'only_here': 5, 'only_there': 1, 'p': 0.21875},
  },
}


@pytest.fixture
def folder(tmp_path):
  """`folder(more, attribution)`: a run folder with a classifier's test split of 40 rows."""

  def make(more=MORE, attribution=()):
    (tmp_path / 'eval').mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    p = rng.dirichlet([1, 1, 1], 40)
    rows = [
      {'id': i, 'label': 'abc'[i % 3], 'prediction': 'abc'[p[i].argmax()], 'probabilities': p[i].tolist(), 'text': 't'}
      for i in range(40)
    ]
    by_class = {c: {'precision': 0.5, 'recall': 0.7, 'f1': 0.6, 'support': 13} for c in 'abc'}
    metrics = {'accuracy': 0.825, 'mse': 2.5, 'per_class': by_class}
    record = {'metrics': metrics, 'n': 40, 'labels': ['a', 'b', 'c'], **more}
    (tmp_path / 'eval' / 'test.json').write_text(json.dumps(record))
    (tmp_path / 'eval' / 'temperature.json').write_text('{"temperature": 1.7}')
    for name, lines in (('predictions', rows), ('attribution', attribution)):
      text = ''.join(json.dumps(r) + '\n' for r in lines)
      (tmp_path / 'eval' / f'test_{name}.jsonl').write_text(text)
    return tmp_path

  return make


def test_what_the_page_says(folder):
  record = {'row': 3, 'target': 'good', 'method': 'integrated_gradients', 'completeness': 0.001}
  tokens = [['fine', 0.5], [EVIL, -1.0]]
  where = folder(attribution=[{**record, 'tokens': tokens}])
  page = report.render(report_data.read(where))
  for words in (
    'interval 0.7100 to 0.9300',
    'interval 2 to 3',
    'By genre',
    '0.5000 to 0.9123',
    '0.457 to 0.789',
    '0.1230',
    'T = 1.7',
    '+0.1000',
    '+0.0100 to +0.2000',
    'p = 0.219',
    'Right in one alone: 5 here, 1 there',
    'row 3, good, integrated gradients, sum off by 0.10%',
    'rgba(43,92,138,0.275)',
    'rgba(181,83,42,0.550)',
    'ROC curve',
    'Precision-recall curve',
  ):
    assert words in page, words
  assert '<script' not in page
  [split] = report_data.read(where).splits  # temperature.json is no split
  error = calibration.bins(split.judged.confidence_N, split.judged.correct_N).error
  scaled = calibration.scaled(split.judged.probabilities_NC, 1.7)
  after = calibration.bins(scaled.max(1), split.judged.correct_N).error
  assert f'Expected calibration error {error:.3f}, at T = 1.7 {after:.3f}.' in page


def test_measures_of_one_of_two_classes_say_of_which(folder):
  one = {'here': 0.9, 'there': 0.8, 'difference': 0.1}
  split = report_data.read(folder({'against': {'run': 'r', 'metrics': {'f1': one, 'f1_macro': one}}})).splits[0]
  assert 'F1 (b)' not in report_more.against(split)
  two = report_more.against(dataclasses.replace(split, classes=['a', 'b']))
  assert ('>F1 (b)<' in two, '>F1 (macro)<' in two) == (True, True)


def test_classes_with_intervals_have_the_width_of_the_page(folder):
  """Of three classes as of many: half of it cuts off what stands behind the intervals."""
  page = report.render(report_data.read(folder()))
  assert '<div class="block wide classes"><h3>By class</h3>' in page
  assert page.index('Confusion matrix') < page.index('>By class<')


def test_attributed_rows_that_are_not_shown_are_counted(folder):
  rows = [{'row': i, 'target': 'good', 'method': 'rollout', 'tokens': [['a', 1.0]]} for i in range(25)]
  page = report.render(report_data.read(folder({}, rows)))
  assert 'The first 20 of 25 rows; all are in eval/test_attribution.jsonl.' in page
  assert 'The first' not in report.render(report_data.read(folder({}, rows[:20])))


def test_without_intervals_shares_have_that_of_wilson(folder):
  split = report_data.read(folder({})).splits[0]
  assert report_more.blocks(split) == ''
  page = report.render(report_data.read(folder({})))
  assert 'interval 0.6805 to 0.9125' in page
  assert 'interval 2 to 3' not in page


ODD = [
  dict.fromkeys(MORE, 3),
  dict.fromkeys(MORE),
  {n: [n] for n in MORE},
  {'intervals': {'accuracy': [1]}, 'slices': {'a': [3, {}], 'b': {}}, 'against': {'metrics': {'x': 3}}},
  {'calibrated': {}, 'calibration': {'ece': 'x'}, 'bootstrap': {'level': 'x'}, 'intervals': {'accuracy': 'ab'}},
]


@pytest.mark.parametrize('more', ODD, ids=range(len(ODD)))
def test_odd_files_are_survived(folder, more):
  rows = [{}, {'tokens': 3}, {'tokens': [3, ['a'], ['a', None]]}, {'tokens': [['a', 0.0]], 'completeness': 'x'}]
  assert 'Results on test' in report.render(report_data.read(folder(more, rows)))
