"""The report of a regression: its charts, its worst rows, and what is no regression."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ftlib.evals import metrics, plots_scores, report, report_data
from ftlib.evals.report_data import Scored

pytestmark = pytest.mark.filterwarnings('error')


def scored_run(folder, N=300, seed=0):
  """A run folder with one evaluated split of scores from 0 to 5; row 7 is furthest off."""
  rng = np.random.default_rng(seed)
  scores = rng.integers(0, 26, N) / 5
  predictions = scores + rng.normal(size=N) / 2
  predictions[7] = scores[7] + 9
  (folder / 'eval').mkdir(parents=True)
  record = {'metrics': metrics.regression(scores, predictions), 'n': N, 'checkpoint': 3, 'labels': []}
  (folder / 'eval' / 'test.json').write_text(json.dumps(record))
  rows = [
    {'id': f'test-{i}', 'label': float(x), 'prediction': float(y), 'text': f'first {i} <b>', 'pair': f'second {i}'}
    for i, (x, y) in enumerate(zip(scores, predictions))
  ]
  (folder / 'eval' / 'test_predictions.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
  best = {'name': 'pearson', 'value': 0.9, 'step': 3}
  (folder / 'summary.json').write_text(json.dumps({'best_metric': best}))
  return record['metrics'], rows


def test_page(tmp_path):
  numbers, rows = scored_run(tmp_path)
  page = report.write(tmp_path).read_text()
  for words in ('Prediction and score', 'Errors', 'Worst errors', 'Nearest', 'Pearson correlation on test'):
    assert words in page
  for value in numbers.values():
    assert f'{value:.4f}' in page or f'{value:.4g}' in page
  for absent in ('Confusion', 'ROC', 'Calibration', 'By class', '<b>'):
    assert absent not in page
  worst = sorted(rows, key=lambda r: -abs(r['prediction'] - r['label']))[:12]
  assert worst[0]['id'] == 'test-7'
  section = page[page.index('Worst errors') : page.index('Nearest')]
  assert section.index('>test-7<') < section.index(f'>{worst[1]["id"]}<')
  assert all(f'>{r["id"]}<' in section for r in worst)
  assert '+9' in section
  for row in worst[:3]:  # as many decimals in all of a column
    for name, value in (('True', f'{row["label"]:.6g}'), ('Predicted', f'{row["prediction"]:.3f}')):
      assert f'<span data-name="{name}" class="number">{value}</span>' in section
  assert page.count('<svg') == 2
  assert len(page) < 300_000
  assert report.write(tmp_path).read_text() == page


def test_few_rows_make_a_page(tmp_path):
  scored_run(tmp_path, N=8)
  page = report.write(tmp_path).read_text()
  assert 'Worst errors' in page
  assert 'Nearest' not in page


@pytest.mark.parametrize(
  ('scores', 'predictions'), [([2.0], [2.0]), ([1.0, 1.0], [0.0, 3.0]), ([0.0, 1e6], [5e5, 5e5])]
)
def test_charts_of_degenerate_scores(scores, predictions):
  scored = Scored([{}] * len(scores), np.array(scores), np.array(predictions))
  for chart in (plots_scores.scatter, plots_scores.errors):
    drawn = chart(scored, slug='s0')
    assert drawn.svg.startswith('<svg')
    assert 'nan' not in drawn.alt


def test_the_mean_line_goes_through_the_means():
  x, y = np.array([0.0, 0.1, 5.0, 5.0]), np.array([1.0, 2.0, 3.0, 5.0])
  at, mean = plots_scores._means(x, y)
  np.testing.assert_allclose(at, [0.05, 5.0])
  np.testing.assert_allclose(mean, [1.5, 4.0])


def test_rows_that_are_no_scores_are_left_out(tmp_path):
  (tmp_path / 'eval').mkdir()
  rows = [
    {'label': 1, 'prediction': 2.5},
    {'label': '1', 'prediction': 2.5},
    {'label': 1.0, 'prediction': None},
    {'label': float('nan'), 'prediction': 1.0},
    {'label': True, 'prediction': 1.0},
  ]
  (tmp_path / 'eval' / 'test_predictions.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  for labels, count in (([], 1), (['a', 'b'], None)):
    (tmp_path / 'eval' / 'test.json').write_text(json.dumps({'labels': labels}))
    scored = report_data.read(tmp_path).splits[0].scored
    assert (scored and len(scored.rows)) == count
