"""ftlib.evals.report on synthetic run folders: what the page says, that it is safe, self-contained and repeatable."""

import html.parser
import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from ftlib.evals import metrics, report

BINARY = ['negative', 'positive']
TWENTY = [f'intent_{i:02d}' for i in range(20)]
EVIL = '<script>alert(1)</script>"><img src=http://evil.example/x onerror=alert(2)></svg>&amp;'


pytestmark = pytest.mark.filterwarnings('error')


def write_json(path, value):
  path.write_text(json.dumps(value), encoding='utf-8')


def write_lines(path, rows, tail=''):
  path.write_text('\n'.join(json.dumps(row) for row in rows) + '\n' + tail, encoding='utf-8')


def add_split(run, split, classes, *, N=200, text=None, pair=None, seed=0):
  """Evaluated predictions of a classifier that is mostly right."""
  (run / 'eval').mkdir(exist_ok=True)
  rng = np.random.default_rng(seed)
  C = len(classes)
  labels = rng.integers(0, C, size=N)
  labels[:C] = np.arange(C)[:N]
  logits = 1.5 * rng.normal(size=(N, C)) + 3 * np.eye(C)[labels]
  probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  record = metrics.classification(labels, probabilities, names=classes)
  write_json(run / 'eval' / f'{split}.json', {'metrics': record, 'n': N, 'checkpoint': 400, 'labels': classes})
  rows = [
    {
      'id': f'{split}-{i}',
      'label': classes[labels[i]],
      'prediction': classes[probabilities[i].argmax()],
      'probabilities': probabilities[i].tolist(),
      'text': text or f'The film number {i} is a quiet, funny and finely acted one.',
      **({'pair': pair} if pair else {}),
    }
    for i in range(N)
  ]
  write_lines(run / 'eval' / f'{split}_predictions.jsonl', rows)
  return record


def make_run(run, *, name='reviews-lora', steps=600):
  """A run folder without evaluated splits."""
  run.mkdir(parents=True, exist_ok=True)
  config = {
    'name': name,
    'model': {'name': 'tiny-bert'},
    'method': {'name': 'lora', 'rank': 8},
    'data': {'path': 'data/x'},
  }
  write_json(run / 'config.json', config)
  env = {'versions': {'jax': '0.10.2'}, 'device': 'cpu', 'commit': 'abc123', 'date': '2025-11-21T10:00:00'}
  write_json(run / 'env.json', env | {'command': ['python', 'train.py', '--config=a b.py']})
  best = {'name': 'accuracy', 'value': 0.9, 'step': 400}
  numbers = {'params_total': 66_000_000, 'params_trainable': 300_000, 'opt_state_bytes': 2_400_000, 'steps': steps}
  write_json(
    run / 'summary.json', numbers | {'tokens_per_second': 12345.6, 'compile_seconds': 3.2, 'best_metric': best}
  )
  rng = np.random.default_rng(0)
  rows = []
  for step in range(10, steps + 1, 10):
    loss = float(np.exp(-step / 300) + 0.05 * rng.random())
    rows.append(
      {'step': step, 'split': 'train', 'loss': loss, 'learning_rate': 1e-4 * (1 - step / steps), 'grad_norm': 1.0}
    )
    if step % 100 == 0:
      accuracy = 0.9 - abs(step - 400) / 2000
      rows.append(
        {'step': step, 'split': 'validation', 'loss': loss + 0.1, 'accuracy': accuracy, 'f1_macro': accuracy - 0.01}
      )
  write_lines(run / 'metrics.jsonl', rows, tail='{"step": 610, "split": "tr')
  return run


class Reader(html.parser.HTMLParser):
  """Elements, attributes and text of a page; fails on tags that do not match."""

  VOID = frozenset({'meta', 'br', 'wbr', 'img', 'link', 'input', 'hr'})

  def __init__(self, page):
    super().__init__()
    self.open, self.tags, self.attributes, self.words = [], [], [], []
    self.feed(page)
    self.close()
    assert self.open == []

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += [(tag, *attr) for attr in attrs]
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += [(tag, *attr) for attr in attrs]

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if 'style' not in self.open:
      self.words.append(data)

  @property
  def text(self):
    return ' '.join(' '.join(self.words).split())

  def values(self, name):
    return [value for _, key, value in self.attributes if key == name]


def read(run):
  page = (run / 'report.html').read_text(encoding='utf-8')
  check(page)
  return Reader(page)


def check(page):
  """What every report must be: well-formed, without scripts, without requests, with ids that are unique and found."""
  reader = Reader(page)
  assert not {'script', 'img', 'link', 'iframe', 'object', 'form'} & set(reader.tags)
  assert not [name for _, name, _ in reader.attributes if name.startswith('on')]
  links = [value for name in ('src', 'href', 'xlink:href', 'srcset', 'action') for value in reader.values(name)]
  assert all(link.startswith(('#', 'data:image/png;base64,')) for link in links)
  ids = reader.values('id')
  assert len(ids) == len(set(ids))
  wanted = [link[1:] for link in links if link.startswith('#')] + re.findall(r'url\(#([^)]+)\)', page)
  assert set(wanted) <= set(ids)
  assert not re.search(r'url\((?!#)|@import', page)
  assert "default-src 'none'" in page
  svgs = [attribute for attribute in reader.attributes if attribute[0] == 'svg']
  assert reader.tags.count('svg') == len([a for a in svgs if a[1] == 'aria-label' and len(a[2]) > 20])


@pytest.fixture(scope='module')
def binary(tmp_path_factory):
  run = make_run(tmp_path_factory.mktemp('runs') / 'binary')
  add_split(run, 'validation', BINARY)
  add_split(run, 'test', BINARY, N=2000, seed=1)
  assert report.write(run) == run / 'report.html'
  return run


@pytest.fixture(scope='module')
def twenty(tmp_path_factory):
  run = make_run(tmp_path_factory.mktemp('runs') / 'twenty')
  add_split(run, 'validation', TWENTY, N=2000)
  report.write(run)
  return run


def test_header_and_tiles(binary):
  text = read(binary).text.replace('\N{NARROW NO-BREAK SPACE}', ' ')
  accuracy = json.loads((binary / 'eval' / 'test.json').read_text())['metrics']['accuracy']
  header = (
    'reviews-lora',
    'tiny-bert',
    '2025-11-21 10:00',
    f'{accuracy:.3f} Accuracy on test',
    'n = 2 000, 95 % interval',
  )
  tiles = ('Trained parameters 300 000', '0.45 % of 66.0 M', 'Optimizer state 2.4 MB', 'Tokens per second 12 346 cpu')
  for part in (*header, *tiles, 'Compilation 3.2 s'):
    assert part in text


def test_environment_as_ftlib_records_it(tmp_path):
  devices = {'backend': 'gpu', 'count': 8, 'kinds': ['NVIDIA H200']}
  env = {'devices': devices, 'source': {'commit': 'abc', 'dirty': True}, 'argv': ['train.py', '--config=a.py:x']}
  write_json(tmp_path / 'env.json', env)
  write_json(
    tmp_path / 'summary.json', {'tokens_per_second': 1e6, 'best_metric': {'name': 'mcc', 'value': 0.5, 'step': 3}}
  )
  report.write(tmp_path)
  text = read(tmp_path).text
  for part in ('8 x NVIDIA H200', 'abc, with uncommitted changes', 'python train.py --config=a.py:x'):
    assert part in text
  assert '0.500 Matthews correlation on validation best while training, step 3' in text


def test_sections_and_charts_of_a_binary_run(binary):
  reader = read(binary)
  for title in ('Training', 'Results on test', 'Results on validation', 'Setup', 'Reproduce', 'Configuration'):
    assert title in reader.text
  charts = ('Loss', 'Validation metric', 'Learning rate', 'Gradient norm', 'Confusion matrix', 'ROC curve')
  for title in (*charts, 'Precision-recall curve', 'Calibration', 'Confidence'):
    assert title in reader.words
  for title in ('Worst mistakes', 'Least certain', 'Most confident and right'):
    assert reader.words.count(title) == 2  # one for each split
  assert reader.tags.count('svg') == 4 + 2 * 5
  assert reader.text.index('Results on test') < reader.text.index('Results on validation')
  for axis in ('step', 'loss', 'learning rate', 'true positive rate', 'recall', 'predicted', 'accuracy'):
    assert axis in reader.words
  assert 'F1 (positive)' in reader.text
  assert "python train.py '--config=a b.py'" in reader.text
  assert 'abc123' in reader.text
  assert 'the split that also picked the checkpoint' not in reader.text  # the headline is of the test split


def test_a_validation_headline_says_that_it_picked_the_checkpoint(twenty):
  assert 'the split that also picked the checkpoint' in read(twenty).text


def test_numbers_are_those_of_the_files(binary):
  reader = read(binary)
  record = json.loads((binary / 'eval' / 'test.json').read_text())['metrics']
  for key in ('accuracy', 'f1_macro', 'mcc', 'roc_auc', 'average_precision', 'log_loss'):
    assert f'{record[key]:.4f}' in reader.words
  labels = ' '.join(reader.values('aria-label'))
  assert f'AUC: positive {record["roc_auc"]:.3f}' in labels
  assert f'AP: positive {record["average_precision"]:.3f}' in labels
  for count in np.ravel(record['confusion']):
    assert str(count) in reader.words


def test_worst_mistakes_are_the_surest_wrong_ones(binary):
  rows = [json.loads(line) for line in (binary / 'eval' / 'test_predictions.jsonl').read_text().splitlines()]
  wrong = [row for row in rows if row['label'] != row['prediction']]
  worst = sorted(wrong, key=lambda row: -max(row['probabilities']))[:12]
  words = read(binary).words
  start = words.index('Worst mistakes')
  section = words[start : words.index('Least certain', start)]
  assert [word for word in section if word.startswith('test-')] == [row['id'] for row in worst]


def test_twenty_classes(twenty):
  reader = read(twenty)
  for title in ('Most frequent confusions', 'By class', 'All counts, with percent of the true class'):
    assert title in reader.words
  record = json.loads((twenty / 'eval' / 'validation.json').read_text())['metrics']
  text = ''.join(reader.words)
  assert all(name in text for name in TWENTY)
  top = max(record['confusion'][i][j] for i in range(20) for j in range(20) if i != j)
  start = reader.words.index('Most frequent confusions')
  assert str(top) in reader.words[start : start + 24]
  assert 'Confusion matrix of 20 classes' in ' '.join(reader.values('aria-label'))


def test_size(binary, twenty):
  for run in (binary, twenty):
    assert (run / 'report.html').stat().st_size < 700_000


def test_same_folder_gives_the_same_bytes(twenty):
  """In another process with another hash seed, too."""
  before = (twenty / 'report.html').read_bytes()
  code = f'import pathlib; from ftlib.evals import report; report.write(pathlib.Path({str(twenty)!r}))'
  env = os.environ | {'PYTHONHASHSEED': '77'}
  subprocess.run([sys.executable, '-c', code], check=True, env=env, cwd=pathlib.Path(__file__).parents[2])
  assert (twenty / 'report.html').read_bytes() == before
  assert sorted(p.name for p in twenty.iterdir() if p.name.startswith('.')) == []  # no temporary file is left


@pytest.mark.parametrize('count', [2, 8])
def test_hostile_texts_stay_text(tmp_path, count):
  run = make_run(tmp_path / 'evil', name=EVIL)
  classes = [EVIL, '$x_1$', '_hidden', 'a\x00b\ud800', '中文 العربية', '', ' ', 'h'][:count]
  add_split(run, 'validation', classes, N=60, text=EVIL + '\x07', pair=EVIL)
  write_json(run / 'env.json', {'command': EVIL, 'device': EVIL, EVIL: {EVIL: EVIL}})
  write_json(
    run / 'summary.json', {'tokens_per_second': 1, 'best_metric': {'name': EVIL, 'value': 1, 'step': EVIL}, EVIL: EVIL}
  )
  with (run / 'metrics.jsonl').open('a') as f:
    f.write('\n' + json.dumps({'step': 5, 'split': EVIL, 'loss': 1.0, EVIL: 2.0}) + '\n')
  report.write(run)
  reader = read(run)  # parsed, no element came of it
  assert '<script>alert(1)</script>' in reader.text
  page = (run / 'report.html').read_text(encoding='utf-8')
  assert '<script' not in page
  assert '\x00' not in page


def test_failed_write_leaves_the_old_page(tmp_path, monkeypatch):
  (tmp_path / 'report.html').write_text('old')
  monkeypatch.setattr(report.os, 'replace', lambda *_: (_ for _ in ()).throw(OSError('disk full')))
  with pytest.raises(OSError, match='disk full'):
    report.write(tmp_path)
  assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [('report.html', 'old')]


def test_empty_folder(tmp_path):
  report.write(tmp_path)
  reader = read(tmp_path)
  assert 'holds no config, metrics or predictions yet' in reader.text
  assert tmp_path.name in reader.text


@pytest.mark.parametrize('missing', ['config.json', 'env.json', 'summary.json', 'metrics.jsonl'])
def test_any_file_may_be_missing(tmp_path, missing):
  run = make_run(tmp_path / 'run')
  (run / missing).unlink()
  report.write(run)
  assert ('Training' in read(run).words) == (missing != 'metrics.jsonl')


def test_no_validation_rows_and_odd_values(tmp_path):
  rows = [{'step': 1, 'loss': float('nan')}, {'step': 2, 'loss': 1.0}, {'loss': 3}, {'step': None, 'loss': 3}]
  write_lines(tmp_path / 'metrics.jsonl', rows)
  summary = {'params_total': 0, 'params_trainable': 0, 'steps': 'many', 'best_metric': None, 'compile_seconds': True}
  write_json(tmp_path / 'summary.json', summary)
  (tmp_path / 'env.json').write_text('[1, 2]')
  (tmp_path / 'config.json').write_text('{"cut')
  report.write(tmp_path)
  reader = read(tmp_path)
  assert 'Loss' in reader.words
  assert 'Validation metric' not in reader.words
  assert 'config.json is not a readable JSON object' in reader.text
  assert 'env.json is not' in reader.text


def test_other_tasks_show_their_scalars_and_samples(tmp_path):
  (tmp_path / 'eval').mkdir()
  scalars = {'exact_match': 0.41, 'perplexity': 12.5, 'weird': None, 'bad': float('inf'), 'nested': {'a': 1}}
  write_json(tmp_path / 'eval' / 'test.json', {'metrics': scalars, 'n': 3})
  rows = [{'id': i, 'text': f'question {i}', 'label': 'yes', 'prediction': ['no', i]} for i in range(3)]
  write_lines(tmp_path / 'eval' / 'test_predictions.jsonl', rows)
  write_lines(tmp_path / 'metrics.jsonl', [{'step': 1, 'split': 'validation', 'perplexity': 13.0}])
  report.write(tmp_path)
  reader = read(tmp_path)
  for part in (
    'Exact match',
    '0.4100',
    'Perplexity',
    '12.5',
    'question 2',
    'not defined',
    'Validation metric',
    '["no", 2]',
  ):
    assert part in reader.text
  assert 'ROC curve' not in reader.words


def test_split_without_predictions_or_with_predictions_only(tmp_path):
  record = add_split(tmp_path, 'test', BINARY)
  (tmp_path / 'eval' / 'test_predictions.jsonl').unlink()
  add_split(tmp_path, 'extra', BINARY)
  (tmp_path / 'eval' / 'extra.json').unlink()
  report.write(tmp_path)
  reader = read(tmp_path)
  assert f'{record["accuracy"]:.4f}' in reader.text
  assert 'Confusion matrix' in reader.words
  assert 'ROC curve' not in reader.words
  assert 'Results on extra' in reader.text
  assert 'The film number 0' in reader.text


def test_import_is_light():
  code = 'import sys, ftlib.evals.report; print(sorted({"jax", "sklearn", "matplotlib"} & set(sys.modules)))'
  assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip() == '[]'
