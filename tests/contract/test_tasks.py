"""What every task of ftlib/tasks keeps, found by listing the folder, and one from outside that has no label column:
on an encoder, and of each kind of head one on a decoder.

A task added tomorrow is held to all of this by its file alone; labels of a new kind need a line in `LABELS`. Where a
task's rows, right answers (by document) or weights are of another form, `tests/contract/gold_TASK.py` says so, by
functions `rows(count, seed)`, `config(c)` (which changes it), `answered(built, split, noise)` and `weight(examples)`,
each of which may be missing.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import pathlib

import jax
import numpy as np
import pytest

from ftlib import fine_tune, judge, recipe, resampling, run, shapes_batch, show, stream
from ftlib.analysis import Options
from ftlib.base import lookup
from ftlib.base.types import Outputs
from ftlib.data import batches
from ftlib.data.incoming import Incoming
from ftlib.data.labels import CHECKS, Columns
from ftlib.data.sources import subset
from ftlib.evals.metrics import SHARES
from tests import tiny
from tests.tasks import alike

OUTSIDE = 'tests.outside.odd_task'
ALL = (*lookup.names('tasks'), OUTSIDE)
HEADLESS = lambda n: getattr(lookup.component('tasks', n, field='task.name'), 'HEADLESS', False)  # noqa: E731
LABELS = {  # kind -> the label of a row of `tiny.rows`
  'class': lambda row: row['label'],
  'score': lambda row: len(row['text']) / 20 + (row['label'] == 'good'),
}
FOUND = (p.stem for p in pathlib.Path(__file__).parent.glob('gold_*.py'))
GOLD = {stem.removeprefix('gold_'): importlib.import_module(f'tests.contract.{stem}') for stem in FOUND}
TASKS = [n for n in ALL if n in GOLD or not HEADLESS(n)]  # tests/tasks/test_language.py has those of language models


ON_A_DECODER = ('tag', 'relation', 'multiple_choice', 'embed', 'multilabel')


@pytest.fixture(scope='module', params=[*TASKS, *(f'{n}-llama' for n in ON_A_DECODER)])
def case(request):
  return request.param


@pytest.fixture(scope='module')
def name(case):
  return case.removesuffix('-llama')


@pytest.fixture(scope='module')
def model(case, tiny_bert, tmp_path_factory):
  return tiny.llama_folder(tmp_path_factory.mktemp('llama')) if case.endswith('-llama') else tiny_bert


def plain_rows(columns, count, seed):
  rows = []
  for own, other in zip(tiny.rows(count, seed), tiny.rows(count, seed + 9)):
    row = dict(zip(columns.texts, (own['text'], other['text'])))
    rows.append(row | ({columns.label: LABELS[columns.kind](own)} if columns.label else {}))
  return rows


@pytest.fixture(scope='module')
def config(case, name, model, tmp_path_factory):
  """A small config of the task, on data of its kind."""
  module = lookup.component('tasks', name, field='task.name')
  columns, folder = Columns(*module.columns(module.Config())), tmp_path_factory.mktemp('data')
  for seed, (split, count) in enumerate((('train', 96), ('validation', 32), ('test', 24))):
    rows = getattr(GOLD.get(name), 'rows', functools.partial(plain_rows, columns))(count, seed)
    (folder / f'{split}.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
  c = tiny.config(model, folder, train__steps=24, train__eval_every=6, optim__learning_rate=2e-2)
  c.task, c.objective = (recipe.component_section(s, n) for s, n in (('task', name), ('objective', module.OBJECTIVE)))
  c.method.also = '' if HEADLESS(name) else c.method.also
  getattr(GOLD.get(name), 'config', lambda c: None)(c)
  if case == 'relation-llama':
    c.task.pooling = 'last'
  return c


@pytest.fixture(scope='module')
def built(config):
  return run.build(config)


def scalars(metrics):
  return {n: v for n, v in metrics.items() if isinstance(v, int | float)}


def by_class(metrics):
  return {(c, n): one[n] for c, one in metrics.get('per_class', {}).items() for n in SHARES}


def answered(built, split, *, noise=0.0):
  """The predictions, by row, of logits that say what the labels say, but for some noise."""
  examples = built.examples[split]
  got = getattr(GOLD.get(built.settings.names['task']), 'answered', plain_answers)(built, split, noise)
  return got if examples.windows is None else built.task.combined(examples, got)


def plain_answers(built, split, noise):
  labels = built.examples[split].extra['labels']
  exact = np.eye(built.task.head.classes)[labels] * 40 if labels.dtype.kind == 'i' else labels[..., None]
  exact = exact + noise * exact.std() * np.random.default_rng(0).normal(size=exact.shape)
  got = built.task.predict(Outputs(None, logits=jax.numpy.asarray(exact, np.float32)), {})
  return {n: np.asarray(x) for n, x in got.items()}


def test_kinds_of_labels_have_rows_here():
  modules = [lookup.component('tasks', n, field='task.name') for n in GOLD if hasattr(GOLD[n], 'rows')]
  own = {Columns(*m.columns(m.Config())).kind for m in modules}
  assert set(LABELS) | own == set(CHECKS) - {'messages'} | {'class'}  # 'messages' are of language models


@pytest.mark.parametrize('split', ['train', 'validation', 'test'])
def test_gold_answers_score_perfectly(built, split):
  got = scalars(built.task.metrics(built.examples[split], answered(built, split)))
  for name, higher in built.task.metric_names.items():
    assert got[name] == pytest.approx(1.0 if higher else 0.0, abs=1e-6), name


def test_metric_names_are_those_of_metrics(built):
  names = built.task.metric_names
  assert built.task.metric in names
  assert scalars(built.task.metrics(built.examples['test'], answered(built, 'test'))).keys() == names.keys()


def test_worse_answers_score_worse(built):
  right, wrong = (built.task.metrics(built.examples['train'], answered(built, 'train', noise=n)) for n in (0, 2))
  for name, higher in built.task.metric_names.items():
    assert (wrong[name] < right[name] - 1e-3) if higher else (wrong[name] > right[name] + 1e-3), name


def test_records_hold_the_answers(built):
  rows = built.dataset.splits['test']
  records = list(built.task.records(rows, answered(built, 'test')))
  assert len(records) == len(rows)
  for record in records:
    assert json.loads(json.dumps(record)) == record
    assert {'id', 'label', 'prediction', 'text'} <= set(record)
    want = record['label']
    assert record['prediction'] == (pytest.approx(want, abs=1e-5) if isinstance(want, float) else want)
  assert len({r['id'] for r in records}) == len(records)


def test_shapes_are_known_before_there_are_data(built):
  """`ftlib.shapes` goes by fields, dtypes and sizes of a batch as they are, but for its length."""
  s, labels = built.settings, built.task.labels
  if s.names['objective'] == 'several':
    return  # tests/train/test_shapes_tasks.py
  task = shapes_batch.task_of(s, len(labels))
  assert dataclasses.replace(task.head, classes=0) == dataclasses.replace(built.task.head, classes=0)
  want = batches.collate(built.examples['train'], range(4), size=4, edges=(512,), pad_id=0)
  got = shapes_batch.batch_of(s, task, rows=4, length=512 // task.head.documents)
  assert {n: (x.shape, x.dtype) for n, x in got.items()} == {n: (x.shape, x.dtype) for n, x in want.items()}


def test_padding_and_order_do_not_change_a_prediction(built, name):
  own, frozen = built.load()
  examples, pad = built.examples['validation'], built.tokenizer.pad_token_id
  longest = int(examples.lengths.max())

  def over(numbers, *, size, edge):
    """(predictions by row, sums of the objective) in batches of `size` rows of `edge` tokens."""
    found, sums = {}, {}
    for i in range(0, len(numbers), size):
      part = numbers[i : i + size]
      got, predictions = built.eval_step(
        own, frozen, batches.collate(examples, part, size=size, edges=(edge,), pad_id=pad)
      )
      for n, pair in got.items():
        sums[n] = sums.get(n, 0) + np.asarray(pair, np.float64)
      for n, x in predictions.items():
        found.setdefault(n, {}).update(zip(part, np.asarray(x)))
    return {n: np.stack([v[i] for i in range(len(numbers))]) for n, v in found.items()}, sums

  numbers = list(range(len(examples)))
  tight, sums = over(numbers, size=len(numbers), edge=longest)
  wide, again = over(numbers[::-1], size=len(numbers) - 3, edge=longest + 11)  # the last batch has rows of padding
  for n, x in tight.items():
    assert np.asarray(x).std() > 0
    same = wide[n][:, : x.shape[1]] if x.ndim > 1 else wide[n]  # what is said of tokens is as long as the rows
    np.testing.assert_allclose(same, x, rtol=0, atol=2e-5, err_msg=n)
  for n, pair in sums.items():  # what compares the rows of a batch is of the batch
    if not getattr(built.settings.modules['objective'], 'COUPLED', False):
      np.testing.assert_allclose(again[n], pair, rtol=1e-5, err_msg=n)
  assert sums['loss'][1] == pytest.approx(getattr(GOLD.get(name), 'weight', len)(examples))


def test_a_run_that_goes_on_is_one_that_never_stopped(config, built, tmp_path):
  whole, again = alike.stopped_and_not(built, run.build(config, labels=[*built.task.labels]), tmp_path)
  assert all(np.array_equal(a, b) for a, b in zip(whole, again, strict=True))


def test_it_trains_and_is_evaluated(config, name, tmp_path, capsys):
  config = config.copy_and_resolve_references()
  if 'prior' in config.objective:
    config.objective.prior = False  # so that there is far to fall
  fine_tune.run(config, str(tmp_path / 'run'))
  rows = [json.loads(line) for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()]
  losses = [r['loss'] for r in rows if r['split'] == 'train']
  assert np.mean(losses[-3:]) < 0.8 * losses[0]
  metrics = judge.run(str(tmp_path / 'run'), split='test', checkpoint='last', options=Options(bootstrap=10))
  stored = json.loads((tmp_path / 'run' / 'eval' / 'test.json').read_text())
  assert stored['metrics']['loss'] == metrics['loss']
  best = json.loads((tmp_path / 'run' / 'summary.json').read_text())['best_metric']
  built = run.build(config, labels=stored['labels'])
  seen = [r[built.task.metric] for r in rows if r['split'] == 'validation']
  assert len(seen) == 4
  wanted = max(seen) if built.task.metric_names[built.task.metric] else min(seen)
  assert (best['name'], best['value']) == (built.task.metric, wanted)
  assert f'{name}, {built.task.about}' in show.summary(built, tmp_path)
  assert built.task.about in capsys.readouterr().out
  page = (tmp_path / 'run' / 'report.html').read_text()
  assert 'Results on test' in page


def test_rows_of_a_file_with_labels_and_without(config, built, tmp_path, monkeypatch):
  """Without labels the predictions are the same, and in pieces the metrics; the run's data need not be there."""
  bare = run.build(config, labels=[*built.task.labels], data=False)
  assert bare.task.head == built.task.head
  module, file = built.settings.modules['task'], pathlib.Path(config.data.path) / 'test.jsonl'
  columns = Columns(*module.columns(built.settings.task))
  plain = tmp_path / 'plain.jsonl'
  rows = [json.loads(line) for line in file.read_text().splitlines()]
  plain.write_text(''.join(json.dumps({k: v for k, v in r.items() if k != columns.label}) + '\n' for r in rows))
  source = stream.Stream(built, *built.load())

  def answers(path, **labelled):
    return list(dataclasses.replace(source, **labelled).over(Incoming(str(path), columns.texts)))

  [(_, _, want)] = answers(file, labelled=True)
  [(read, _, got)] = answers(plain)
  assert want.keys() == got.keys()
  for name, x in want.items():
    np.testing.assert_array_equal(got[name], x, err_msg=name)
  records = list(built.task.records(read, got))
  assert [r['prediction'] for r in records] == [r['prediction'] for r in built.task.records(read, want)]
  monkeypatch.setattr(stream, 'PIECE', 7)
  parts = answers(file, labelled=True)
  assert sum(len(r) for r, _, _ in parts) == len(rows)
  examples = resampling.joined([e for _, e, _ in parts])
  metrics = built.task.metrics(examples, resampling.joined_predictions([p for _, _, p in parts]))
  examples = built.examples['test'].unpacked
  for name, value in scalars(built.task.metrics(examples, want)).items():
    assert metrics[name] == pytest.approx(value, abs=1e-5), name


def test_metrics_of_resampled_rows(built):
  """Over rows that are drawn several times they are those of a split in which the rows stand so often."""
  examples, rows, names = built.examples['train'].unpacked, built.dataset.splits['train'], built.task.metric_names
  predictions = answered(built, 'train', noise=0.7)
  counted = resampling.resampled(built.task, examples, predictions, rows)
  got, want = counted(np.ones(len(rows), int)), built.task.metrics(examples, predictions)
  assert {n: got[n] for n in names} == pytest.approx({n: want[n] for n in names})
  assert by_class(got) == pytest.approx(by_class(want))
  if getattr(built.settings.modules['objective'], 'COUPLED', False):
    return  # rows are compared with each other, and fewer of them are another question
  counts = np.random.default_rng(0).integers(0, 3, len(rows))
  drawn = np.repeat(np.arange(len(rows)), counts)
  again = built.task.examples(subset(rows, drawn), built.tokenizer, limit=built.limit)
  got, want = counted(counts), built.task.metrics(again, {n: x[drawn] for n, x in predictions.items()})
  assert {n: got[n] for n in names} == pytest.approx({n: want[n] for n in names})
  assert by_class(got) == pytest.approx(by_class(want))
