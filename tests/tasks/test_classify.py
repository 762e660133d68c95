"""What classification and scores have besides: thresholds of two classes, windows, weights, sampling, few rows."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from ftlib import folder, predict, recipe, run, stream, thresholds
from ftlib.base import lookup
from ftlib.data.batches import Examples
from ftlib.data.incoming import Incoming
from ftlib.data.sources import Rows
from ftlib.tasks import classify, similarity
from tests import tiny
from tests.refusal import refused

ROWS = [{'text': t, 'label': l} for t, l in zip('abcdef', [0, 1, 0, 1, 0, 0])]
P = np.array([0.3, 0.45, 0.1, 0.4, 0.2, 0.7], np.float32)
PREDICTIONS = {'probabilities': np.stack([1 - P, P], 1)}
EXAMPLES = Examples(None, {'labels': np.array([r['label'] for r in ROWS], np.int32)})


def task(**values):
  return classify.build(classify.Config(**values), train=ROWS, known=None)


@pytest.mark.parametrize(
  ('values', 'wanted'),
  [
    ({}, [0, 0, 0, 0, 0, 1]),
    ({'threshold': '0.35'}, [0, 1, 0, 1, 0, 1]),
    ({'threshold': 'tuned'}, [0, 1, 0, 1, 0, 1]),
    ({'threshold': 'tuned', 'tune': 'mcc'}, [0, 1, 0, 1, 0, 1]),
  ],
)
def test_two_classes_by_a_threshold(values, wanted):
  found = task(**values)
  predictions = found.tuned(EXAMPLES, PREDICTIONS)
  metrics = found.metrics(EXAMPLES, predictions)
  assert metrics['accuracy'] == pytest.approx(np.mean(np.array(wanted) == EXAMPLES.extra['labels']))
  assert [r['prediction'] for r in found.records(ROWS, predictions)] == wanted
  assert metrics.get('thresholds') == ({'1': pytest.approx(0.35)} if values else None)
  assert metrics['confusion'][0][1] == 1


def test_a_threshold_is_for_two_classes():
  three = [*ROWS, {'text': 'g', 'label': 2}]
  build = lambda t: classify.build(classify.Config(threshold=t), train=three, known=None)  # noqa: E731
  refused(lambda: build('0.3'), 'task.threshold=0.3 is for two classes, and there are 3')
  refused(lambda: task(threshold='f1'), "task.threshold='f1'", 'argmax or tuned')
  assert build('argmax')


def test_windows_of_rows_vote():
  examples = Examples(None, {'labels': np.array([0, 0, 0, 1], np.int32)}, windows=np.array([0, 0, 0, 1]))
  p = np.array([[0.6, 0.4], [0.6, 0.4], [0.1, 0.9], [0.2, 0.8]])
  got = {how: task(window_pooling=how).combined(examples, {'probabilities': p})['probabilities'] for how in
         ('mean', 'max', 'vote')}  # fmt: skip
  np.testing.assert_allclose(got['mean'][0], p[:3].mean(0))
  np.testing.assert_allclose(got['max'][0], [0.4, 0.6])  # 0.6 and 0.9, scaled to sum to 1
  assert [x[0].argmax() for x in got.values()] == [1, 1, 0]
  for x in got.values():
    np.testing.assert_allclose(x.sum(1), 1)
    assert task().metrics(examples, {'probabilities': x})['per_class']['0']['support'] == 1


def test_windows_of_scores():
  examples = Examples(None, {'labels': np.array([1, 1, 3], np.float32)}, windows=np.array([0, 0, 1]))
  rows = [{'text_a': 'a', 'text_b': 'b', 'score': s} for s in (1.0, 3.0)]
  for how, wanted in (('mean', [2, 5]), ('max', [4, 5])):
    found = similarity.build(similarity.Config(window_pooling=how), train=rows, known=None)
    predictions = found.combined(examples, {'scores': np.array([0.0, 4, 5], np.float32)})
    np.testing.assert_array_equal(predictions['scores'], wanted)
    assert found.metrics(examples, predictions)['mae'] == pytest.approx(np.mean(np.abs(np.array(wanted) - [1, 3])))
  refused(lambda: recipe.read(_scores(window_pooling='vote')), "task.window_pooling='vote' is not one of mean, max")


def _scores(**values):
  c = recipe.recipe(task='similarity', method='full', optim='sgd')
  c.task.update(values)
  return c


@pytest.fixture(scope='module')
def long_data(tmp_path_factory):
  """A fifth is good; texts of up to 42 words; weights."""
  folder = tmp_path_factory.mktemp('long')
  for seed, (name, count) in enumerate((('train', 64), ('validation', 24), ('test', 24))):
    found = [r for i, r in enumerate(tiny.rows(count * 4, seed)) if i % 2 or i % 8 == 0][:count]
    with (folder / f'{name}.jsonl').open('w') as f:
      for i, row in enumerate(found):
        text = ' '.join([row['text']] * (3 if i % 5 == 0 else 1))
        f.write(json.dumps({'id': i, 'text': text, 'label': row['label'], 'sure': 1 + i % 3}) + '\n')
  return folder


@pytest.fixture(scope='module')
def settings(tiny_bert, long_data):
  return tiny.config(
    tiny_bert,
    long_data,
    train__max_length=16,
    task__truncate='windows',
    task__stride=4,
    task__threshold='tuned',
    task__weight='sure',
    data__sampling='balanced',
  )


@pytest.fixture(scope='module')
def built(settings):
  return run.build(settings)


def test_windows_are_answered_by_row(built, tmp_path):
  own, frozen = built.load()
  metrics, predictions = built.evaluate(own, frozen, 'validation')
  examples, rows = built.examples['validation'], built.dataset.splits['validation']
  assert len(examples) > len(rows) == 24 == len(predictions['probabilities'])
  assert any(n.startswith('validation: 4 of 24 rows (16.7%) were made into') for n in built.notes)
  folder.write_evaluation(tmp_path, built, 'validation', metrics, predictions, 5)
  stored = json.loads((tmp_path / 'eval' / 'validation.json').read_text())
  assert (stored['n'], stored['truncated']) == (24, 4)
  records = [json.loads(line) for line in (tmp_path / 'eval' / 'validation_predictions.jsonl').read_text().splitlines()]
  (at,) = json.loads((tmp_path / 'thresholds.json').read_text())['5'].values()
  assert metrics['thresholds'] == {'good': at}
  for r in records:
    assert r['prediction'] == ('good' if r['probabilities'][1] >= at - 1e-6 else 'bad')
    assert sum(r['probabilities']) == pytest.approx(1, abs=1e-5)
  assert metrics['accuracy'] == pytest.approx(np.mean([r['prediction'] == r['label'] for r in records]))
  again = thresholds.read(built, tmp_path, 5, split='test')
  assert again.evaluate(own, frozen, 'test')[0]['thresholds'] == {'good': at}
  refused(lambda: thresholds.read(built, tmp_path, 6, split='test'), 'no thresholds of checkpoint 6')
  asked = stream.Stream(again, own, frozen)
  refused(lambda: predict.stored_temperature(asked, str(tmp_path), 5), '--calibrated', '(task.threshold=tuned)')
  # what the run is asked later is cleaned as its data, has neither label nor weight, and may be long
  data = dataclasses.replace(built.settings.data, clean='html,whitespace')
  again = dataclasses.replace(again, settings=dataclasses.replace(built.settings, data=data))
  (tmp_path / 'asked.txt').write_text(''.join(f'<p>{r["text"].replace(" ", " <br>")}</p>\n' for r in rows))
  parts = list(stream.Stream(again, own, frozen).over(Incoming(str(tmp_path / 'asked.txt'), ['text'])))
  answers = [r for found, _, p in parts for r in again.task.records(found, p)]
  assert [a['text'] for a in answers] == [r['text'] for r in rows]
  np.testing.assert_allclose([a['probabilities'] for a in answers], predictions['probabilities'], atol=2e-5)


def test_what_such_a_run_is_made_of(built):
  train = built.examples['train']
  assert train.windows is not None
  assert len(train) > len(built.dataset.splits['train']) == 64
  rows = built.dataset.splits['train']
  np.testing.assert_array_equal(train.extra['weights'], [rows[i]['sure'] for i in train.windows])
  drawn = np.concatenate([built.order.rows(i) for i in range(built.order.steps_per_epoch)])
  labels = train.extra['labels']
  assert abs((labels[drawn] == 1).mean() - 0.5) < 0.03 < 0.45 - (labels == 1).mean()
  first = built.batch(0)[1]['weights']
  assert set(np.asarray(first).tolist()) <= {1.0, 2.0, 3.0}


WEIGHED = {'text': 'text', 'weight': 'sure'}


@pytest.mark.parametrize(
  ('task', 'values', 'labels'),
  [
    ('classify', WEIGHED, ['bad', 'good']),
    ('multilabel', WEIGHED, ['bad', 'good']),
    ('similarity', WEIGHED, []),
    ('relation', WEIGHED, ['bad', 'good']),
    ('several', {'parts': 'one=classify; two=classify,weight=sure'}, ['one/bad', 'one/good', 'two/bad', 'two/good']),
  ],
)
def test_rows_weigh_what_their_column_says_and_1_without_it(settings, task, values, labels):
  """Of a run that is built without its data, too."""
  c = settings.copy_and_resolve_references()
  c.task = recipe.component_section('task', task, **values)
  c.objective = recipe.component_section('objective', lookup.component('tasks', task, field='task').OBJECTIVE)
  bare = run.build(c, labels=labels, data=False)
  row = {'text': '<e1>good</e1> <e2>bad</e2>', 'text_b': 'bad', 'label': 'bad', 'labels': ['bad'], 'score': 1.0}
  rows = [{**row, 'task': 'two', **more} for more in ({'sure': 2.0}, {}, {'sure': 0.5})]
  rows = Rows(rows, 'asked', 'asked.jsonl', range(len(rows)))
  assert bare.task.examples(rows, bare.tokenizer, limit=bare.limit).extra['weights'].tolist() == [2.0, 1.0, 0.5]


PRIVATE = {'privacy__noise_multiplier': 1.0, 'privacy__microbatch': 16, 'privacy__delta': 1e-4}
PLAIN = {'task__weight': '', 'data__sampling': ''}


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'task__weight': 'sur'}, 'task.weight=sur: the training rows have no such column; did you mean "sure"'),
    ({'data__sampling': 'good=2,bda=1'}, "data.sampling='good=2,bda=1': 'bda' is no label; did you mean \"bad\""),
    ({'data__shots': 200}, 'data.shots=200: 2 labels have fewer training rows'),
    ({'data__shots': 2, 'data__limit': 4}, 'data.shots=2 and data.limit=4 both'),
    ({'task__stride': 14}, 'task.stride=14: a window has room for 14 tokens'),
    (PRIVATE, 'task.weight=sure: under privacy every row counts alike'),
    ({**PRIVATE, 'task__weight': ''}, 'data.sampling=balanced: under privacy every row counts alike'),
    ({**PRIVATE, **PLAIN, 'data__augment': 'swap=0.1'}, 'data.augment=swap=0.1: under privacy a row'),
    ({**PRIVATE, **PLAIN}, 'rows longer than 16 tokens were made into several documents'),
  ],
)
def test_what_is_refused(settings, changes, words):
  c = settings.copy_and_resolve_references()
  for name, value in changes.items():
    section, field = name.split('__')
    c[section][field] = value
  refused(lambda: run.build(c), words)


def test_few_rows_of_each_class(settings):
  c = settings.copy_and_resolve_references()
  c.data.shots, c.data.sampling = 3, ''
  built = run.build(c)
  labels = [r['label'] for r in built.dataset.splits['train']]
  assert sorted(labels) == ['bad'] * 3 + ['good'] * 3
  assert any('6 of 64 rows taken, 3 of each label' in n for n in built.notes)
  assert len(built.dataset.splits['validation']) == 24
