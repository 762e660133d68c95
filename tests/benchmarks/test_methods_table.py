"""benchmarks/tables/methods.py without the measuring: subsets, what is measured again, the table and its flags."""

from __future__ import annotations

import argparse
import importlib.util
import json
import pathlib
import sys

import pytest

FILE = pathlib.Path(__file__).resolve().parents[2] / 'benchmarks' / 'tables' / 'methods.py'


@pytest.fixture(scope='module')
def methods():
  spec = importlib.util.spec_from_file_location('methods_table', FILE)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture
def args(tmp_path):
  """Arguments over a data folder of numbered rows."""
  for name in ('sst2', 'stsb'):
    (tmp_path / 'data' / name).mkdir(parents=True)
    for split, count in (('train', 90), ('validation', 30)):
      lines = [json.dumps({'text': f'{split} {i}'}) for i in range(count)]
      (tmp_path / 'data' / name / f'{split}.jsonl').write_text('\n'.join(lines) + '\n')
  fields = {
    'data': tmp_path / 'data',
    'rows': 40,
    'judged': 20,
    'results': tmp_path,
    'again': False,
    'readme': tmp_path / 'README.md',
  }
  more = {'methods': 'lora,full', 'datasets': 'sst2,stsb', 'reference_python': 'python'}
  return argparse.Namespace(**fields, **more)


def texts(path):
  return [json.loads(line)['text'] for line in path.read_text().splitlines()]


@pytest.mark.parametrize('judge_by', ['validation', 'train'])
def test_subsets_are_fixed_and_apart(methods, args, tmp_path, judge_by):
  (tmp_path / 'a').mkdir()
  (tmp_path / 'b').mkdir()
  one, two = (methods.subset(args, 'sst2', tmp_path / n, judge_by=judge_by) for n in 'ab')
  for split, count in (('train', 40), ('validation', 20)):
    got = texts(one / f'{split}.jsonl')
    assert got == texts(two / f'{split}.jsonl')
    assert len(set(got)) == count
  assert all(t.startswith(judge_by) for t in texts(one / 'validation.jsonl'))
  assert not {*texts(one / 'train.jsonl')} & {*texts(one / 'validation.jsonl')}


def test_labels_of_pairs_are_scores(methods, args, tmp_path):
  (args.data / 'mrpc').mkdir()
  for split in ('train', 'validation'):
    lines = [json.dumps({'text': str(i), 'label': ('paraphrase', 'not_paraphrase')[i % 2]}) for i in range(50)]
    (args.data / 'mrpc' / f'{split}.jsonl').write_text('\n'.join(lines) + '\n')
  folder = methods.subset(args, 'mrpc', tmp_path)
  for split, count in (('train', 40), ('validation', 20)):
    rows = [json.loads(line) for line in (folder / f'{split}.jsonl').read_text().splitlines()]
    assert len(rows) == count
    assert all(r['score'] == (r['label'] == 'paraphrase') for r in rows)


def row(method, library, scores, data='sst2', **more):
  peft = {'peft': {'peft_type': 'LORA'}, 'learning_rate': 1e-3} if library == 'ftlib' else {}
  numbers = {'scores': scores, 'trainable': 10, 'row_seconds': 1.0, 'metric': 'accuracy'}
  return {'method': method, 'library': library, 'data': data, **numbers, **peft, **more}


@pytest.mark.parametrize(
  ('ours', 'theirs', 'flagged'),
  [
    ([0.80, 0.80, 0.80], [0.79, 0.79, 0.79], False),  # within 1.5 points
    ([0.80, 0.80, 0.80], [0.78, 0.78, 0.78], True),
    ([0.80, 0.85, 0.75], [0.76, 0.81, 0.71], False),  # within a deviation
    ([0.80, 0.85, 0.75], [0.72, 0.77, 0.67], True),
  ],
)
def test_what_is_flagged(methods, ours, theirs, flagged):
  rows = [row('lora', 'ftlib', ours), row('lora', 'peft', theirs)]
  assert bool(methods.gap(*rows)) is flagged
  (line,) = [line for line in methods.render(rows, []).splitlines() if line.startswith('| lora')]
  apart = 100 * (sum(ours) - sum(theirs)) / 3
  assert (f'**sst2 {apart:+.1f}**' in line) is flagged
  assert ('| none |' in line) is not flagged
  assert ('| 80.0 ± 0.0 / 7' in line) or ('| 80.0 ± 5.0 / 7' in line)


def test_table_has_a_column_for_every_cell(methods):
  costs = {'opt_state_bytes': 2e6, 'checkpoint_bytes': 3e6, 'step_over_full': 0.5, 'step_over_lora': 1.25}
  rows = [row('lora', 'ftlib', [0.1] * 3), row('full', 'ftlib', [0.2] * 3, data='stsb', trainable=999)]
  lines = methods.render(rows, [{'method': 'lora', **costs, 'peak_memory_bytes': 1.5e9}]).splitlines()
  assert len({line.count('|') for line in lines}) == 1
  assert [line.split('|')[1].strip() for line in lines] == ['method', '---', 'lora', 'full']
  assert '| 2.00 MB | 3.00 MB | 0.50 | 1.25 | 1.50 GB |' in lines[2]
  staged = {'method': 'lora', **costs, 'peak_memory_bytes': 1.5e9, 'stages': [0.25, 0.4, 0.85]}
  assert '| 0.50 (0.25 to 0.85) | 1.25 |' in methods.render(rows, [staged])
  assert 'stsb spearman, PEFT beside it' in lines[0]
  assert lines[2].split('|')[3:5] == [' 10.0 ± 0.0 ', '  ']


def test_what_is_there_is_not_measured_again(methods, args, monkeypatch):
  calls = []

  def spoken(command, job, what):
    calls.append((what, job))
    if 'jobs' in job:
      numbers = ('accuracy', 'spearman', 'trained_parameters', 'steps', 'train_seconds')
      for one in job['jobs'][: 1 if what.startswith('full') else None]:
        yield {'name': one['name'], 'results': [dict.fromkeys(numbers, 0.5)] * 3, 'row_seconds': 1.0}
    else:
      for data in job['data']:
        yield {k: v for k, v in row('', 'ftlib', [0.5] * 3, data).items() if k != 'method'} | {'method': job['method']}

  monkeypatch.setattr(methods, 'spoken', spoken)
  monkeypatch.setattr('ftlib.io.hf.resolve', lambda name: pathlib.Path(name))
  data = {n: {**methods.DATA[n], 'path': n} for n in ('sst2', 'stsb')}
  methods.quality(args, data)
  assert [what for what, _ in calls] == ['lora (quality)', 'lora (PEFT)', 'full (quality)', 'full (PEFT)']
  assert [j['embed'] for j in calls[1][1]['jobs']] == [False, True]
  assert all(j['learning_rate'] == 1e-3 for j in calls[1][1]['jobs'])
  calls.clear()
  methods.quality(args, data)  # of full, PEFT's second row lacks
  assert [(what, [j['name'] for j in job['jobs']]) for what, job in calls] == [('full (PEFT)', ['stsb'])]
  calls.clear()
  args.methods = 'head'  # pairs have none
  methods.quality(args, data)
  assert [list(job['data']) for _, job in calls if 'data' in job] == [['sst2']]
  calls.clear()
  args.again, args.methods = True, 'full'
  methods.quality(args, data)
  assert [what for what, _ in calls] == ['full (quality)', 'full (PEFT)']
  stored = [json.loads(line) for line in (args.results / 'methods.jsonl').read_text().splitlines()]
  assert [r['method'] for r in stored].count('lora') == 4
  assert {(r['rows'], r['judged']) for r in stored} == {(40, 20)}


def test_a_process_that_fails_is_shown_and_gives_what_it_measured(methods, capsys):
  script = "import sys; print('row {\"a\": 1}'); print('noise'); sys.stdin.read(); sys.exit('it broke')"
  assert list(methods.spoken([sys.executable, '-c', script], {}, 'lora (PEFT)')) == [{'a': 1}]
  said = capsys.readouterr().out
  assert 'lora (PEFT): exit status 1' in said
  assert 'it broke' in said
