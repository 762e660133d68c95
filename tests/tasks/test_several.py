"""Several tasks at once: their data, what a row counts for, how often parts are drawn, and what is refused."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftlib import recipe, run
from ftlib.base.errors import InputError
from ftlib.base.types import Outputs
from ftlib.objectives import classification, multilabel, regression, several
from ftlib.tasks import several as task
from tests import tiny

PARTS = 'tone=classify; words=similarity,text=text,pair='


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """A folder for each part, the second three times as large and without a test split."""
  folder = tmp_path_factory.mktemp('parts')
  for name, splits in (
    ('tone', {'train': 20, 'validation': 10, 'test': 8}),
    ('words', {'train': 60, 'validation': 12}),
  ):
    (folder / name).mkdir()
    for seed, (split, count) in enumerate(splits.items()):
      rows = [{'text': r['text'], 'label': r['label'], 'score': len(r['text'])} for r in tiny.rows(count, seed)]
      rows = [{k: v for k, v in r.items() if k != ('score' if name == 'tone' else 'label')} for r in rows]
      (folder / name / f'{split}.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
  return folder


@pytest.fixture(scope='module')
def config(tiny_bert, data):
  def make(parts=PARTS, **values):
    c = recipe.recipe(task='several', method='lora', optim='adamw')
    small = tiny.config(tiny_bert, data)
    for section in ('model', 'data', 'train', 'mesh'):
      c[section] = small[section]
    c.task.parts = parts
    for name, value in values.items():
      section, field = name.split('__')
      c[section][field] = value
    return c

  return make


@pytest.fixture(scope='module')
def built(config):
  return run.build(config())


def test_rows_of_all_parts_with_labels_of_their_own(built):
  assert built.task.labels == ['tone/bad', 'tone/good', 'words']
  assert built.task.counts.tolist() == [10, 10, 60]
  assert {n: len(e) for n, e in built.examples.items()} == {'train': 80, 'validation': 22, 'test': 8}
  found, rows = built.examples['train'].extra, built.dataset.splits['train']
  for i, row in enumerate(rows):
    wanted = [0, 0, row['score']] if row['task'] == 'words' else [row['label'] == 'bad', row['label'] == 'good', 0]
    assert found['answers'][i].tolist() == wanted
    start, stop = built.examples['train'].tokens.offsets[i : i + 2]
    ids = built.examples['train'].tokens.ids[start:stop].tolist()
    assert ids == built.tokenizer(row['text'])['input_ids']


def test_a_row_counts_for_its_own_part_alone(built):
  """The loss is that of each part's own objective over its own rows and logits."""
  extra = {n: x[10:30] for n, x in built.examples['train'].extra.items()}
  logits = jnp.asarray(np.random.default_rng(0).normal(size=(20, 3)), jnp.float32)
  apply = lambda part: lambda *_: Outputs(None, logits=part)  # noqa: E731
  total, weight = built.objective(apply(logits), extra, None)['loss']
  tone = extra['part'] == 0
  assert 5 < tone.sum() < 15
  build = {'labels': ['bad', 'good'], 'counts': np.ones(2)}
  first = classification.build(classification.Config(), **build)
  second = regression.build(regression.Config(), labels=[], counts=np.zeros(0))
  ones = np.ones(20, np.float32)
  a = first(apply(logits[tone, :2]), {'labels': extra['answers'][tone, :2].argmax(1), 'weights': ones[tone]}, None)[
    'loss'
  ][0]
  b = second(apply(logits[~tone, 2:]), {'labels': extra['answers'][~tone, 2], 'weights': ones[~tone]}, None)['loss'][0]
  assert (float(total), float(weight)) == (pytest.approx(float(a + b), rel=1e-5), 20)
  weighed = several.build(several.Config(weights='words=0.5'), labels=built.task.labels, counts=np.ones(3))
  total, weight = weighed(apply(logits), extra, None)['loss']
  assert (float(total), float(weight)) == (pytest.approx(float(a + b / 2), rel=1e-5), tone.sum() + (~tone).sum() / 2)
  grad = jax.grad(lambda x: built.objective(apply(x), extra, None)['loss'][0])(logits)
  assert (np.asarray(grad)[tone, 2] == 0).all()
  assert (np.asarray(grad)[~tone, :2] == 0).all()


def test_labels_that_stand_alone(config, data, tmp_path):
  """A part whose rows have any number of labels: each by a sigmoid, the mean over them, and by its own threshold."""
  (tmp_path / 'moods').mkdir()
  moods = ['calm|sad', '', 'a/b', 'calm', 'sad|a/b|calm', '']
  lines = ''.join(json.dumps({'text': f'good {i}', 'labels': m}) + '\n' for i, m in enumerate(moods * 4))
  for split in ('train', 'validation'):
    (tmp_path / 'moods' / f'{split}.jsonl').write_text(lines)
  parts = f'moods=multilabel,separator=|,threshold=0.4,data={tmp_path / "moods"}; tone=classify'
  built = run.build(config(parts, data__path=str(data)))
  assert built.task.labels == ['moods+a/b', 'moods+calm', 'moods+sad', 'tone/bad', 'tone/good']
  assert built.task.counts.tolist() == [8, 12, 8, 10, 10]
  assert built.examples['train'].extra['answers'][:3, :3].tolist() == [[0, 1, 1], [0, 0, 0], [1, 0, 0]]
  extra = {n: x[18:30] for n, x in built.examples['train'].extra.items()}
  logits = jnp.asarray(np.random.default_rng(0).normal(size=(12, 5)), jnp.float32)
  apply = lambda part: lambda *_: Outputs(None, logits=part)  # noqa: E731
  first = multilabel.build(multilabel.Config(), labels=['a', 'b', 'c'], counts=np.ones((3, 2)))
  second = classification.build(classification.Config(), labels=['bad', 'good'], counts=np.ones(2))
  tone, ones = extra['part'] == 1, np.ones(12, np.float32)
  assert tone.sum() == 6
  a = first(apply(logits[~tone, :3]), {'labels': extra['answers'][~tone, :3], 'weights': ones[~tone]}, None)['loss'][0]
  right = extra['answers'][tone, 3:].argmax(1)
  b = second(apply(logits[tone, 3:]), {'labels': right, 'weights': ones[tone]}, None)['loss'][0]
  total, weight = built.objective(apply(logits), extra, None)['loss']
  assert (float(total), float(weight)) == (pytest.approx(float(a + b), rel=1e-5), 12)
  rows = built.dataset.splits['train']
  got = built.task.predict(Outputs(None, logits=jnp.full((44, 5), -0.3)), {})  # p = 0.43
  said = [*built.task.records(rows, {n: np.asarray(x) for n, x in got.items()})]
  assert (said[0]['label'], said[0]['prediction'], said[0]['task']) == (
    ['calm', 'sad'],
    ['a/b', 'calm', 'sad'],
    'moods',
  )
  with pytest.raises(InputError, match='threshold=tuned is for tasks by themselves'):
    run.build(config(parts.replace('0.4', 'tuned'), data__path=str(data)))


def test_parts_are_drawn_by_temperature(config):
  share = {}
  for temperature in (1.0, 2.0, 1e6):
    order = run.build(config(task__temperature=temperature)).order
    drawn = np.concatenate([order.rows(i) for i in range(40 * order.steps_per_epoch)])
    share[temperature] = (drawn < 20).mean()
  assert share[1.0] == 0.25
  assert share[2.0] == pytest.approx(1 / (1 + 3**0.5), abs=0.02)
  assert share[1e6] == pytest.approx(0.5, abs=0.02)


def test_metrics_of_each_part_and_of_those_that_a_split_lacks(built):
  extra = built.examples['test'].extra
  logits = extra['answers'] * 30
  got = {n: np.asarray(x) for n, x in built.task.predict(Outputs(None, logits=logits), {}).items()}
  found = built.task.metrics(built.examples['test'], got)
  assert (found['mean'], found['tone/accuracy'], found['words/pearson']) == (1.0, 1.0, None)
  assert found.keys() == built.task.metric_names.keys()


def test_the_stored_label_list_is_enough(config, built):
  bare = run.build(config(), labels=built.task.labels, data=False)
  assert bare.task.labels == built.task.labels


@pytest.mark.parametrize(
  ('parts', 'said'),
  [
    ('', 'names none'),
    ('tone', 'is not NAME=TASK'),
    ('tone=classify;tone=classify', 'stands there twice'),
    ('tone=clasify', 'did you mean "classify"'),
    ('tone=lm', 'tone=lm cannot be a part of several; these can: classify, multilabel, similarity'),
    ('tone=classify,truncate=windows', r'(?s)truncate=windows. is not FIELD=VALUE.*fields: data, text, pair, label'),
    ('tone=classify,txt=a', 'did you mean "text"'),
    ('tone=classify,text=sentence', r'part tone of task.parts: .* has no column "sentence"'),
    ('tone=classify; nowhere=classify', r'(?s)part nowhere of task.parts: .*no such file or folder'),
  ],
)
def test_what_is_refused(config, parts, said):
  with pytest.raises(InputError, match=said):
    run.build(config(parts))


def test_a_task_that_reads_marked_tokens_is_no_part():
  rows = [{'task': 'a', 'text': '<e1>x</e1> <e2>y</e2>', 'label': label} for label in 'xy']
  with pytest.raises(InputError, match=r'task\.parts: a: its head reads marked tokens'):
    task.build(task.Config(parts='a=relation'), train=rows, known=None)


def test_settings_that_name_no_part_or_metric(config):
  with pytest.raises(InputError, match=r"'tune' is no label|did you mean"):
    run.build(config(objective__weights='tune=2'))
  with pytest.raises(InputError, match='did you mean "tone/accuracy"'):
    run.build(config(task__best='tone/acuracy'))
