"""benchmarks/tables/tasks.py without the measuring: the table, its jobs, and how the peer's logits are judged."""

from __future__ import annotations

import argparse
import importlib.util
import json
import pathlib
import sys

import jax
import numpy as np
import pytest

from ftlib import recipe, run
from ftlib.base import trees
from ftlib.models import stack
from tests import tiny

FOLDER = pathlib.Path(__file__).resolve().parents[2] / 'benchmarks' / 'tables'


def module(name):
  spec = importlib.util.spec_from_file_location(f'{name}_table', FOLDER / f'{name}.py')
  found = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(found)
  return found


@pytest.fixture(scope='module')
def tasks():
  return module('tasks')


def row(library, scores, task='sst2', **more):
  return {
    'task': task,
    'library': library,
    'metric': 'accuracy',
    'scores': scores,
    'judged': 400,
    'row_seconds': 1.0,
  } | more


@pytest.mark.parametrize(
  ('ours', 'theirs', 'said'),
  [
    ([0.80, 0.80, 0.80], [0.81, 0.81, 0.81], '-1.0'),
    ([0.80, 0.80, 0.80], [0.82, 0.82, 0.82], '**-2.0**'),
    ([0.80, 0.85, 0.75], [0.82, 0.87, 0.77], '-2.0'),  # a pooled deviation is 5
  ],
)
def test_what_is_apart(tasks, ours, theirs, said):
  assert tasks.apart(row('ftlib', ours), row('pytorch', theirs)) == said


def test_the_table(tasks):
  lines = tasks.render(
    [row('ftlib', [0.5, 0.6, 0.7]), row('ftlib', [0.1, 0.1, 0.1], 'squad', metric='f1')]
  ).splitlines()
  assert lines[2] == '| sst2 | classify | accuracy | 1,000 / 400 | 0.600 ± 0.100 |  |  |'
  assert lines[3].startswith('| squad | extract | f1 | 500 / 400 | 0.100 ± 0.000 |')
  assert len(lines) == 4


def test_what_is_measured_is_not_measured_again(tasks, tmp_path, monkeypatch):
  for name in ('sst2', 'cola'):
    (tmp_path / 'data' / name).mkdir(parents=True)
    for split in ('train', 'validation'):
      (tmp_path / 'data' / name / f'{split}.jsonl').write_text(
        ''.join(json.dumps({'text': str(i)}) + '\n' for i in range(9))
      )
  jobs = []

  def spoken(command, job, what):
    jobs.append(job)
    rows = pathlib.Path(job['config'].partition('data=')[2].partition(',')[0]) / 'train.jsonl'
    assert len(rows.read_text().splitlines()) == 4
    yield row('ftlib', [0.5, 0.6, 0.7], job['task'])

  monkeypatch.setattr(tasks, 'spoken', spoken)
  fields = {'data': tmp_path / 'data', 'rows': 4, 'judged': 3, 'results': tmp_path, 'again': False}
  args = argparse.Namespace(**fields, tasks='sst2,cola', reference_python='none')
  for i in range(2):
    (tmp_path / str(i)).mkdir()
    tasks.measure(args, tmp_path / str(i))
  assert [j['task'] for j in jobs] == ['sst2', 'cola']
  assert jobs[0]['values']['optim.learning_rate'] == jobs[1]['values']['optim.learning_rate'] == 1e-4


def test_logits_of_others_are_judged_as_ones_own(tiny_bert, toy_data, monkeypatch):
  monkeypatch.setattr(sys, 'path', [str(FOLDER), *sys.path])
  worker = module('tasks_worker')
  built = run.build(tiny.config(tiny_bert, toy_data))
  own, frozen = built.load()
  params = stack.unstack(trees.join(own, frozen))
  apply = jax.jit(lambda b: built.method.model.apply(params, b).logits)
  logits = np.zeros((len(built.examples['validation']), built.task.head.classes), np.float32)
  for numbers, batch in built.eval_batches('validation'):
    logits[numbers] = np.asarray(apply(batch))[: len(numbers)]
  metrics = built.evaluate(own, frozen, 'validation')[0]
  for name in ('log_loss', 'roc_auc'):
    assert worker.judged(built, logits, name) == pytest.approx(metrics[name], abs=1e-6)
  assert worker.judged(built, logits[::-1], 'log_loss') != pytest.approx(metrics['log_loss'], abs=1e-4)


def test_cosines_of_others_are_judged_as_ones_own(tiny_bert, tmp_path, monkeypatch):
  monkeypatch.setattr(sys, 'path', [str(FOLDER), *sys.path])
  worker = module('tasks_worker')
  for split in ('train', 'validation'):
    rows = zip(tiny.rows(24, 0), tiny.rows(24, 5))
    lines = [{'text_a': a['text'], 'text_b': b['text'], 'score': i % 6} for i, (a, b) in enumerate(rows)]
    (tmp_path / f'{split}.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in lines))
  c, small = recipe.recipe(task='embed', method='full', optim='adamw'), tiny.config(tiny_bert, tmp_path)
  for section in ('model', 'data', 'train', 'mesh'):
    c[section] = small[section]
  built = run.build(c)
  own, frozen = built.load()
  metrics, predictions = built.evaluate(own, frozen, 'validation')[:2]
  assert worker.judged(built, predictions['cosine'][:, None], 'spearman') == pytest.approx(
    metrics['spearman'], abs=1e-9
  )
  other = worker.judged(built, predictions['cosine'][::-1, None], 'spearman')
  assert other != pytest.approx(metrics['spearman'], abs=1e-4)
