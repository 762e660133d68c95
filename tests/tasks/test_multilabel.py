"""Several labels a row: how they are read, what is refused, and thresholds that are tuned on validation."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from ftlib import export, fine_tune, judge, recipe, run, shapes
from ftlib import thresholds as run_thresholds
from ftlib.analysis import Options
from ftlib.data.labels import Columns
from ftlib.data.preparation import Config as DataConfig
from ftlib.data.preparation import load
from ftlib.tasks import multilabel
from tests import tiny
from tests.contract.gold_multilabel import rows
from tests.refusal import refused


def folder(path, **splits):
  path.mkdir(exist_ok=True)
  for name, found in splits.items():
    (path / f'{name}.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in found))
  return path


def read(path, **values):
  config = multilabel.Config(**values)
  data = load(DataConfig(path=str(path)), **Columns(*multilabel.columns(config))._asdict())
  return data, multilabel.build(config, train=data.splits['train'], known=None)


LISTS = [{'text': 'a', 'labels': ['x', 'y']}, {'text': 'b', 'labels': []}, {'text': 'c', 'labels': ['z', 'x', 'x']}]


def test_lists(tmp_path):
  data, task = read(folder(tmp_path, train=LISTS, validation=LISTS[:1]))
  assert task.labels == ['x', 'y', 'z']
  np.testing.assert_array_equal(task.counts, [[1, 2], [2, 1], [2, 1]])
  assert data.splits['train'][2]['labels'] == ['z', 'x']
  assert any('1 rows have one twice' in n for n in data.notes)
  assert task.about == 'any of 3 labels: x, y, z; 1.33 a row'
  numbers = [{**r, 'labels': [len(l) for l in r['labels']]} for r in LISTS]
  numbers.append({'text': 'd', 'labels': [10]})
  assert read(folder(tmp_path, train=numbers, validation=numbers))[1].labels == [1, 10]


def test_texts_with_a_separator(tmp_path):
  (tmp_path / 'train.csv').write_text('text,labels\na,x|y\nb,\nc, z | x \nd,y\n')
  (tmp_path / 'validation.csv').write_text('text,labels\na,x\n')
  data, task = read(tmp_path, separator='|')
  assert [r['labels'] for r in data.splits['train']] == [['x', 'y'], [], ['z', 'x'], ['y']]
  assert task.labels == ['x', 'y', 'z']
  message = refused(lambda: read(tmp_path), 'train.csv:2: "labels" is the str', 'task.separator')
  assert '--config.task.label=' in message


@pytest.mark.parametrize(
  ('labels', 'words'),
  [
    ('x', ['train.jsonl:2: "labels" is the str \'x\', but labels are a list', 'task.separator']),
    (None, ['train.jsonl:2: "labels" is null']),
    ({'x': 1}, ['train.jsonl:2: "labels" is the dict']),
    (['x', ''], ['train.jsonl:2: "labels" holds an empty label']),
    (['x', None], ['train.jsonl:2: "labels" holds the NoneType None']),
    (['x', ['y']], ['train.jsonl:2: "labels" holds the list']),
    (['x', 1], ['strings and integers', "train.jsonl:1: 'x'", 'train.jsonl:2: 1']),
  ],
)
def test_labels_that_are_none(tmp_path, labels, words):
  found = [LISTS[0], {'text': 'b', 'labels': labels}, LISTS[2]]
  refused(lambda: read(folder(tmp_path, train=found, validation=LISTS[:1])), *words)


def test_one_label_is_too_few(tmp_path):
  one = [{'text': t, 'labels': ['x'] * (t == 'a')} for t in 'abc']
  refused(lambda: read(folder(tmp_path, train=one, validation=one)), "only one label, 'x'")


def test_a_label_that_training_has_not(tmp_path):
  data, task = read(folder(tmp_path, train=LISTS, validation=[LISTS[0], {'text': 'd', 'labels': ['x', 'zz', 'q']}]))
  words = ["validation.jsonl:2: label 'zz' is not in the run's label list; did you mean \"z\"?", '1 rows have such']
  refused(lambda: task.examples(data.splits['validation'], None, limit=8), *words)


def test_windows_vote_for_labels():
  task = multilabel.build(multilabel.Config(window_pooling='vote'), train=LISTS, known=None)
  examples = type('', (), {'windows': np.array([0, 0, 0, 1])})
  p = np.array([[0.9, 0.1, 0.6], [0.2, 0.1, 0.6], [0.2, 0.4, 0.1], [0.7, 0.1, 0.2]], np.float32)
  got = task.combined(examples, {'probabilities': p})['probabilities']
  np.testing.assert_allclose(got[0], [(1 + 1.3 / 3) / 4, 0.6 / 3 / 4, (2 + 1.3 / 3) / 4], rtol=1e-6)
  np.testing.assert_array_equal(got >= 0.5, [[0, 0, 1], [1, 0, 0]])


@pytest.fixture(scope='module')
def config(tiny_bert, tmp_path_factory):
  data = folder(tmp_path_factory.mktemp('several'), train=rows(48, 0), validation=rows(32, 1), test=rows(24, 2))
  c = tiny.config(tiny_bert, data, train__steps=4, train__eval_every=4, optim__learning_rate=1e-2)
  c.task, c.objective = (
    recipe.component_section('task', 'multilabel'),
    recipe.component_section('objective', 'multilabel'),
  )
  c.task.threshold, c.checkpoint.metric = 'tuned', 'loss'
  return c


def test_thresholds_are_those_of_validation(config, tmp_path):
  """Tuned where training ends, used on other rows, and asked for where a checkpoint has none."""
  where = tmp_path / 'run'
  fine_tune.run(config, str(where))
  known = json.loads((where / 'thresholds.json').read_text())
  stored = json.loads((where / 'eval' / 'validation.json').read_text())
  best = stored['checkpoint']
  assert set(known) == {str(best)}
  assert {n: c['threshold'] for n, c in stored['metrics']['per_class'].items()} == known[str(best)]
  assert set(known[str(best)].values()) != {0.5}
  metrics = judge.run(str(where), split='test', checkpoint='best', options=Options(bootstrap=0))
  assert {n: c['threshold'] for n, c in metrics['per_class'].items()} == known[str(best)]
  thresholds = [known[str(best)][n] for n in ('good', 'the')]
  for line in (where / 'eval' / 'test_predictions.jsonl').read_text().splitlines():
    record = json.loads(line)
    assert record['prediction'] == [
      n for n, p, t in zip(('good', 'the'), record['probabilities'], thresholds) if p >= t - 1e-6 * (p < t)
    ]
  built = run.build(config, split='test')
  wanted = f'no thresholds of checkpoint {best + 1}', f'--split=validation --checkpoint={best + 1}'
  refused(lambda: run_thresholds.read(built, where, best + 1, split='test'), *wanted)
  assert run_thresholds.read(built, where, best + 1, split='validation') is built  # which tunes them anew
  export.export(where, tmp_path / 'out')
  assert json.loads((tmp_path / 'out' / 'config.json').read_text())['problem_type'] == 'multi_label_classification'


def test_a_step_is_traced_without_data(config, tiny_bert):
  found = shapes.of(recipe.read(config), json.loads((tiny_bert / 'config.json').read_text()), classes=5)
  assert found.batch['labels'].shape == (16, 5)
  assert jax.eval_shape(found.step, found.state, found.frozen, found.batch)[1]['loss'][0].shape == ()


def test_metrics_while_training_are_with_tuned_thresholds(config):
  built = run.build(config)
  own, frozen = built.load()
  metrics, predictions = built.evaluate(own, frozen, 'validation')
  p, labels = predictions['probabilities'], built.examples['validation'].extra['labels']
  said = p >= [c['threshold'] for c in metrics['per_class'].values()]
  assert metrics['subset_accuracy'] == pytest.approx((said == labels).all(1).mean())
  usual = built.task.metrics(built.examples['validation'], {'probabilities': p, 'thresholds': np.full_like(p, 0.5)})
  assert metrics['f1_macro'] > usual['f1_macro']
  refused(lambda: built.evaluate(own, frozen, 'test'), 'task.threshold=tuned', 'evaluate that split, or give a number')
