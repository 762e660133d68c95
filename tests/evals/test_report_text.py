"""The report of language tasks: curves, rows by loss, preference pairs, samples side by side, the mask of the loss."""

from __future__ import annotations

import html
import json
import re

import numpy as np
import pytest

from ftlib.evals import plots, plots_text, report, report_data
from ftlib.evals.report_data import Valued

pytestmark = pytest.mark.filterwarnings('error')
EVIL = '</pre><script>alert(1)</script>"><img src=x>&amp;'


def write_lines(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


def run_of(folder, records, metrics, *, best='perplexity', preview=(), samples=()):
  """A run folder with one evaluated split and a history of six evaluations."""
  (folder / 'eval').mkdir(parents=True)
  record = {'metrics': metrics, 'n': len(records), 'checkpoint': 40, 'labels': []}
  (folder / 'eval' / 'validation.json').write_text(json.dumps(record))
  write_lines(folder / 'eval' / 'validation_predictions.jsonl', records)
  for name, rows in (('preview', preview), ('samples', samples)):
    if rows:
      write_lines(folder / 'eval' / f'{name}.jsonl', rows)
  history = []
  for step in range(1, 61):
    loss = 1 + 4 / step
    history.append({'step': step, 'split': 'train', 'loss': loss, 'learning_rate': 1e-3, 'grad_norm': 1.0})
    if step % 10 == 0:
      own = {'perplexity': float(np.exp(loss + 0.1))} if 'perplexity' in metrics else {'accuracy': 0.9}
      history.append({'step': step, 'split': 'validation', 'loss': loss + 0.1, **own})
  write_lines(folder / 'metrics.jsonl', history)
  summary = {'best_metric': {'name': best, 'value': 3.25, 'step': 40}}
  (folder / 'summary.json').write_text(json.dumps(summary))
  return folder


def records_of(count=40, **more):
  """Rows whose loss is their number over ten, in a shuffled order."""
  order = np.random.default_rng(0).permutation(count)
  return [
    {'id': f'r{i}', 'label': f'answer {i}', 'loss': i / 10, 'tokens': int(5 + i), 'text': f'question {i}', **more}
    for i in order
  ]


METRICS = {'loss': 1.18, 'perplexity': 3.25, 'bits_per_token': 1.7, 'accuracy': 0.625}


def ids(page, after, before):
  return re.findall(r'class="id">(r\d+)<', page[page.index(f'>{after}<') : page.index(f'>{before}<')])


def test_an_sft_page(tmp_path):
  page = report.write(run_of(tmp_path, records_of(), METRICS)).read_text()
  assert ids(page, 'Highest loss', 'Lowest loss') == [f'r{i}' for i in range(39, 27, -1)]
  assert ids(page, 'Lowest loss', 'Setup')[:6] == [f'r{i}' for i in range(6)]
  for words in ('question 39', 'answer 39', 'Perplexity', '3.25', 'Bits per token', 'Loss of each row', '>44<'):
    assert words in page
  assert page.count('<svg') == 5  # loss, perplexity, rate, gradient; the rows
  assert 'Validation metric' not in page
  assert '>Prediction<' not in page
  assert report.write(tmp_path).read_text() == page


def test_accuracy_of_tokens_is_no_share_of_rows(tmp_path):
  page = report.write(run_of(tmp_path, records_of(), METRICS)).read_text()
  assert 'Token accuracy' in page
  assert '% interval' not in page
  assert 'Perplexity on validation' in page


def test_the_headline_without_a_best_metric_is_the_perplexity(tmp_path):
  run_of(tmp_path, records_of(), METRICS)
  (tmp_path / 'summary.json').unlink()
  assert '<p>Perplexity on validation</p>' in report.write(tmp_path).read_text()


def test_a_page_of_plain_texts(tmp_path):
  records = [{'id': i, 'loss': 1.0 + i, 'tokens': 9, 'text': f'text {i}'} for i in range(3)]
  page = report.write(run_of(tmp_path, records, METRICS)).read_text()
  assert 'Highest loss' in page
  assert 'Lowest loss' not in page  # all are shown
  assert '>Reference<' not in page
  assert page.index('text 2') < page.index('text 1') < page.index('text 0')


def test_a_page_of_answers(tmp_path):
  records = [
    {'id': i, 'prompt': f'ask {i}', 'prediction': f'said {i}' if i < 2 else None, 'reference': f'right {i}', 'loss': i}
    for i in range(4)
  ]
  page = report.write(run_of(tmp_path, records, {**METRICS, 'rougeL': 0.5}, best='rougeL')).read_text()
  for words in ('ask 3', 'said 1', 'right 0', 'ROUGE-L', '>Prediction<', '>Reference<'):
    assert words in page
  assert 'ROUGE-L on validation' in page


def test_a_page_of_pairs(tmp_path):
  records = [
    {
      'id': f'r{i}',
      'label': 'chosen',
      'prediction': 'chosen' if m > 0 else 'rejected',
      'margin': m,
      'chosen_logp': -1.0,
      'rejected_logp': -2.0,
      'text': f'ask {i}',
      'chosen': f'warm {i}',
      'rejected': f'cold {i}',
    }
    for i, m in enumerate(np.linspace(-3, 5, 30))
  ]
  page = report.write(run_of(tmp_path, records, {'accuracy': 0.6}, best='accuracy')).read_text()
  assert ids(page, 'Rejected answers ahead, or nearest to it', 'Surest') == [f'r{i}' for i in range(12)]
  assert ids(page, 'Surest', 'Setup')[:6] == [f'r{i}' for i in range(29, 23, -1)]
  assert 'In 11 of 30 pairs the rejected answer is ahead or level.' in page.replace('\N{NARROW NO-BREAK SPACE}', '')
  assert 'warm 0' in page
  assert 'cold 29' in page
  assert '% interval' in page  # this accuracy is a share of pairs
  assert 'Token accuracy' not in page
  assert 'Validation metric' in page


def test_the_mask_shows_what_is_learnt(tmp_path):
  pieces = [['<|user|>\nhow', False], [f'fine{EVIL}', True], ['', False]]
  rows = [{'row': f'data/{EVIL}.jsonl:3', 'tokens': 12, 'supervised': 4, 'pieces': pieces}]
  page = report.write(run_of(tmp_path, records_of(), METRICS, preview=rows)).read_text()
  assert '<script' not in page
  assert f'&lt;|user|&gt;\nhow<mark>{html.escape(f"fine{EVIL}")}</mark></pre>' in page
  assert page.count('<mark>') == 1
  assert '12 tokens, 4 supervised' in page


def test_a_long_piece_keeps_its_ends(tmp_path):
  long = 'BEGIN ' + 'x' * 5000 + ' END'
  rows = [{'row': 'a:1', 'tokens': 2, 'supervised': 1, 'pieces': [[long, False], ['done', True]]}]
  page = report.write(run_of(tmp_path, records_of(), METRICS, preview=rows)).read_text()
  assert 'BEGIN x' in page
  assert 'x END<mark>done</mark>' in page
  assert 'x' * 1000 not in page


@pytest.mark.parametrize(
  'row', [{}, {'pieces': 3}, {'pieces': [1, ['a']]}, {'pieces': []}, {'row': None, 'tokens': []}]
)
def test_odd_previews_leave_no_section(tmp_path, row):
  page = report.write(run_of(tmp_path, records_of(), METRICS, preview=[row])).read_text()
  assert 'What the loss is taken over' not in page


def test_samples_stand_side_by_side(tmp_path):
  rows = [
    {'id': 7, 'prompt': f'why\n{EVIL}', 'reference': 'so it is', 'before': 'blah', 'after': f'so {EVIL}'},
    {'prompt': 'and', 'reference': 'r', 'before': 'b'},
  ]
  page = report.write(run_of(tmp_path, records_of(), METRICS, samples=rows)).read_text()
  part = page[page.index('id="samples"') : page.index('id="s0-results"')]
  said = [html.unescape(x) for x in re.findall(r'<dd dir="auto">(.*?)</dd>', part, re.S)]
  assert said == ['so it is', 'blah', f'so {EVIL}', 'r', 'b', '–']
  assert html.escape(f'why\n{EVIL}') in part
  assert '<script' not in page


def test_rows_of_text_are_escaped(tmp_path):
  records = records_of(20, prediction=EVIL) + [{'id': EVIL, 'label': EVIL, 'text': EVIL, 'loss': 9.0, 'tokens': 1}]
  page = report.write(run_of(tmp_path, records, METRICS)).read_text()
  assert page.count(html.escape(EVIL)) >= 4
  assert '<script' not in page


def test_perplexity_in_training_is_of_the_loss():
  train = [{'step': s, 'loss': 2.0} for s in (1, 2)]
  evaluated = [{'step': 2, 'perplexity': 8.0}]
  chart = plots.perplexity({'train': train, 'validation': evaluated}, {'name': 'perplexity', 'step': 2})
  assert f'train from {np.exp(2.0):.4g} at step 1' in chart.alt
  assert 'validation from 8 at step 2' in chart.alt
  assert chart.note == 'Dashed line: the best checkpoint, step 2.'
  assert plots.perplexity({'train': train, 'validation': evaluated}, {'name': 'rougeL', 'step': 2}).note == ''
  assert plots.perplexity({'train': train, 'validation': [{'step': 2, 'accuracy': 1.0}]}, {}) is None
  falling = [{'step': s, 'loss': loss} for s, loss in enumerate((6.0, 4.0, 2.0))]
  drawn = plots.perplexity({'train': falling, 'validation': evaluated}, {}).svg
  ticks = re.findall(r'>([\d.]+)</text>', drawn)
  assert {'10', '20', '50', '100', '200'} <= set(ticks)
  huge = plots.perplexity({'train': [{'step': 1, 'loss': 900.0}], 'validation': evaluated}, {})
  assert 'inf' not in huge.alt


@pytest.mark.parametrize('values', [[0.0], [2.0, 2.0], [1e-9, 1e9], [-5.0, 5.0]])
def test_histograms_of_degenerate_rows(values):
  valued = Valued([{}] * len(values), np.array(values))
  for chart in (plots_text.losses, plots_text.margins):
    drawn = chart(valued, slug='s0')
    assert drawn.svg.startswith('<svg')
    assert 'nan' not in drawn.alt


def test_rows_without_a_loss_are_left_out(tmp_path):
  (tmp_path / 'eval').mkdir()
  rows = [{'loss': 1}, {'loss': None}, {'loss': 'x'}, {'loss': float('nan')}, {'loss': True}, {'text': 'a'}]
  (tmp_path / 'eval' / 'test_predictions.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  split = report_data.read(tmp_path).splits[0]
  assert split.losses.values_N.tolist() == [1.0]
  assert split.margins is None
