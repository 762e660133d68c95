"""benchmarks/tables/tasks.py without the measuring: the table, its jobs, and how the peer's logits are judged."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import pathlib
import sys
import tempfile

import jax
import numpy as np
import pytest

from ftlib import config_file, recipe, run
from ftlib.base import trees
from ftlib.data import batches
from ftlib.models import stack
from tests import tiny

FOLDER = pathlib.Path(__file__).resolve().parents[2] / 'benchmarks' / 'tables'


def module(name):
  spec = importlib.util.spec_from_file_location(f'{name}_table', FOLDER / f'{name}.py')
  found = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = found  # dataclasses look there
  spec.loader.exec_module(found)
  return found


@pytest.fixture(scope='module')
def tasks():
  return module('tasks')


def row(library, scores, task='sst2', metric='accuracy', rows=1000, judged=400):
  sizes = {'rows': rows, 'judged': judged}
  return {'task': task, 'library': library, 'scores': {metric: scores}, 'row_seconds': 1.0, **sizes}


@pytest.mark.parametrize(
  ('ours', 'theirs', 'said'),
  [
    ([0.80, 0.80, 0.80], [0.81, 0.81, 0.81], '-1.0'),
    ([0.80, 0.80, 0.80], [0.82, 0.82, 0.82], '**-2.0**'),
    ([0.80, 0.85, 0.75], [0.82, 0.87, 0.77], '-2.0'),  # a pooled deviation is 5
  ],
)
def test_what_is_apart(tasks, ours, theirs, said):
  assert tasks.apart(row('ftlib', ours), row('pytorch', theirs), 'accuracy') == said


def test_the_table(tasks):
  both = row('ftlib', [0.7, 0.7, 0.7], 'mrpc', rows=600)
  both['scores']['f1'] = [0.8, 0.8, 0.8]
  rows = [row('ftlib', [0.5, 0.6, 0.7]), row('pytorch', [0.5, 0.6, 0.7]), both]
  rows += [row('ftlib', [0.1, 0.1, 0.1], 'msra_ner_bilstm', 'f1', 8000, 300)]
  lines = tasks.render(rows).splitlines()
  assert lines[2:] == [
    '| sst2 | classify | MiniLM | accuracy | 1,000 / 400 | 0.600 ± 0.100 | 0.600 ± 0.100 | +0.0 |',
    '| mrpc | classify | MiniLM | accuracy | 600 / 400 | 0.700 ± 0.000 |  |  |',
    '| mrpc | classify | MiniLM | f1 | 600 / 400 | 0.800 ± 0.000 |  |  |',
    '| msra_ner | tag | BiLSTM from nothing | f1 | 8,000 / 300 | 0.100 ± 0.000 |  |  |',
  ]


def test_trials_of_fewer_rows_are_not_in_the_table(tasks):
  assert len(tasks.render([row('ftlib', [0.5, 0.6, 0.7], rows=20)]).splitlines()) == 2


@pytest.fixture
def measured(tasks, tmp_path, monkeypatch):
  """`measured(tasks, **flags)`: the jobs that a command starts; `fails` has the sides that cannot be measured."""
  for name in ('sst2', 'cola', 'msra_ner'):
    (tmp_path / 'data' / name).mkdir(parents=True)
    for split in ('train', 'validation'):
      (tmp_path / 'data' / name / f'{split}.jsonl').write_text(
        ''.join(json.dumps({'text': str(i)}) + '\n' for i in range(9))
      )
  jobs, fails = [], set()

  def spoken(command, job, what):
    jobs.append(job)
    rows = pathlib.Path(job['config'].partition('data=')[2].partition(',')[0]) / 'train.jsonl'
    job['there'] = len(rows.read_text().splitlines())
    for library in job['libraries']:
      if library in fails:
        return
      yield {k: v for k, v in row(library, [0.5, 0.6, 0.7], job['task']).items() if k not in ('rows', 'judged')}

  monkeypatch.setattr(tasks, 'spoken', spoken)

  def call(names, *, fail=(), **flags):
    fails.clear()
    fails.update(fail)
    jobs.clear()
    fields = {'data': tmp_path / 'data', 'rows': 4, 'judged': 3, 'results': tmp_path, 'again': False}
    args = argparse.Namespace(**{**fields, 'tasks': names, 'reference_python': 'python', **flags})
    with tempfile.TemporaryDirectory() as folder:
      lacking = tasks.measure(args, pathlib.Path(folder))
    return [(j['task'], j['libraries'], j['there']) for j in jobs], lacking, [*jobs]

  monkeypatch.setitem(tasks.TASKS, 'cola', dataclasses.replace(tasks.TASKS['cola'], metrics=('accuracy',)))
  bilstm = dataclasses.replace(tasks.TASKS['msra_ner_bilstm'], metrics=('accuracy',))
  monkeypatch.setitem(tasks.TASKS, 'msra_ner_bilstm', bilstm)
  return call


def test_what_is_measured_is_not_measured_again(measured):
  both = ['ftlib', 'pytorch']
  assert measured('sst2,cola')[:2] == ([('sst2', both, 4), ('cola', both, 4)], [])
  assert measured('sst2,cola')[:2] == ([], [])
  assert measured('sst2', again=True)[0] == [('sst2', both, 4)]


def test_a_side_that_lacks_is_measured_later(measured):
  assert measured('sst2', reference_python='none')[:2] == ([('sst2', ['ftlib'], 4)], [])
  assert measured('sst2')[0] == [('sst2', ['pytorch'], 4)]
  assert measured('cola', fail=['pytorch'])[1] == ['cola (pytorch)']
  assert measured('cola')[:2] == ([('cola', ['pytorch'], 4)], [])


def test_other_numbers_of_rows_are_another_measurement(measured):
  measured('sst2')
  assert measured('sst2', rows=5)[0] == [('sst2', ['ftlib', 'pytorch'], 5)]
  assert measured('sst2', judged=2)[0] == [('sst2', ['ftlib', 'pytorch'], 4)]
  assert measured('sst2', rows=5)[0] == []
  assert measured('sst2', rows=5, again=True)[0] == [('sst2', ['ftlib', 'pytorch'], 5)]
  assert measured('sst2')[0] == []


def test_jobs(measured):
  [sst2, bilstm] = measured('sst2,msra_ner_bilstm')[2]
  assert sst2['values']['optim.learning_rate'] == 1e-4
  assert bilstm['values']['optim.learning_rate'] == 2e-3
  assert bilstm['libraries'] == ['ftlib']  # there is no other side
  assert bilstm['config'].startswith('configs/bilstm.py:task=tag,data=')


def test_every_row_asked_for_is_there(tasks):
  names = 'sst2 cola mrpc stsb goemotions conll2003 squad semeval2010_task8 chnsenticorp msra_ner'.split()
  models = {n: {t.model for name, t in tasks.TASKS.items() if (t.data or name) == n} for n in names}
  chinese = {'MiniLM', 'BiLSTM from nothing'}
  assert models == {n: chinese if n in ('chnsenticorp', 'msra_ner') else {'MiniLM'} for n in names}
  assert {t.recipe: t.metrics for n, t in tasks.TASKS.items() if n.startswith('mrpc')} == {
    'classify': ('accuracy', 'f1'),
    'embed': ('roc_auc',),
  }
  for name, task in tasks.TASKS.items():
    job = {**tasks.COMMON, **task.values}
    c = config_file.load(
      f'configs/{"bilstm" if task.bilstm else task.recipe}.py', [(k, str(v)) for k, v in job.items()]
    )
    assert recipe.read(c).train.grouped is False, name


def test_the_order_is_the_one_that_the_peer_draws(tasks):
  """A permutation an epoch; `tests/parity/test_tasks_there.py` trains both sides."""
  grouped, size = tasks.COMMON['train.grouped'], tasks.COMMON['train.batch_size']
  order = batches.Order(np.arange(40)[::-1], size, seed=3, grouped=grouped)
  for epoch in range(2):
    rows = np.concatenate([order.rows(3 * epoch + i) for i in range(3)])
    np.testing.assert_array_equal(rows, np.random.default_rng([3, epoch]).permutation(40))


@pytest.fixture
def worker(monkeypatch):
  monkeypatch.setattr(sys, 'path', [str(FOLDER), *sys.path])
  return module('tasks_worker')


def test_other_steps_than_ones_own_are_an_error(worker, tiny_bert, toy_data, tmp_path, monkeypatch):
  built = run.build(tiny.config(tiny_bert, toy_data, train__steps=8, optim__warmup=0.2))
  job = {'reference_python': 'python', 'kind': 'classify'}
  given = {}

  def peer(command, **options):
    given.update(np.load(command[command.index('--examples') + 1]))
    np.savez(command[command.index('--output') + 1], logits=np.zeros((32, 2)), seconds=1.0, steps=steps)

  monkeypatch.setattr(worker.subprocess, 'run', peer)
  steps = 8
  worker.peer_logits(built, job, 0, tmp_path)
  np.testing.assert_allclose(
    given['rates'], 1e-2 * np.array([0, 1 / 2, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]), rtol=1e-6
  )
  steps = 9
  with pytest.raises(RuntimeError, match='PyTorch took 9 steps and ftlib 8'):
    worker.peer_logits(built, job, 0, tmp_path)


def test_logits_of_others_are_judged_as_ones_own(worker, tiny_bert, toy_data):
  built = run.build(tiny.config(tiny_bert, toy_data))
  own, frozen = built.load()
  params = stack.unstack(trees.join(own, frozen))
  apply = jax.jit(lambda b: built.method.model.apply(params, b).logits)
  logits = np.zeros((len(built.examples['validation']), built.task.head.classes), np.float32)
  for numbers, batch in built.eval_batches('validation'):
    logits[numbers] = np.asarray(apply(batch))[: len(numbers)]
  metrics = built.evaluate(own, frozen, 'validation')[0]
  for name in ('log_loss', 'roc_auc'):
    assert worker.judged(built, logits)[name] == pytest.approx(metrics[name], abs=1e-6)
  assert worker.judged(built, logits[::-1])['log_loss'] != pytest.approx(metrics['log_loss'], abs=1e-4)


def test_cosines_of_others_are_judged_as_ones_own(worker, tiny_bert, tmp_path):
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
  assert worker.judged(built, predictions['cosine'][:, None])['spearman'] == pytest.approx(
    metrics['spearman'], abs=1e-9
  )
  other = worker.judged(built, predictions['cosine'][::-1, None])['spearman']
  assert other != pytest.approx(metrics['spearman'], abs=1e-4)
