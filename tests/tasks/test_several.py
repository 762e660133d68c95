"""Several tasks at once: their data, what a row counts for, how often parts are drawn, and what is refused."""

from __future__ import annotations

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftlib import fine_tune, judge, predict, recipe, run, stream
from ftlib.base.errors import InputError
from ftlib.base.types import Outputs
from ftlib.data.incoming import Incoming
from ftlib.objectives import classification, multilabel, regression, several
from ftlib.tasks import several as task
from tests import tiny
from tests.refusal import refused

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


@pytest.fixture(scope='module')
def trained(config, tmp_path_factory):
  """A run whose parts are numbered classes, numbered labels and scores; (its folder, rows of a file, the run)."""
  folder = tmp_path_factory.mktemp('trained')
  kinds = {
    'stars': ('label', lambda i: i % 3),
    'moods': ('labels', lambda i: [1, 2][: i % 3]),
    'words': ('score', float),
  }
  rows = {n: [{'text': f'good film {i}', column: of(i)} for i in range(12)] for n, (column, of) in kinds.items()}
  for name, own in rows.items():
    (folder / name).mkdir()
    for split in ('train', 'validation'):
      (folder / name / f'{split}.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in own))
  c = config('stars=classify; moods=multilabel; words=similarity,text=text,pair=', data__path=str(folder))
  c.train.steps = 1
  fine_tune.run(c, str(folder / 'run'))
  mixed = [{'id': f'{n}{i}', 'task': n, **row} for i in range(12) for n, own in rows.items() for row in own[i : i + 1]]
  return folder / 'run', mixed, judge.opened(str(folder / 'run'), 'validation', 'last')


def over(source, rows, path):
  (path / 'a.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
  return Incoming(str(path / 'a.jsonl'), source.columns.texts)


def test_a_file_of_all_parts_is_judged_as_their_splits_are(trained, tmp_path):
  folder, mixed, (built, own, frozen, _) = trained
  want, predictions = built.evaluate(own, frozen, 'validation')
  source, _ = stream.of_run(str(folder), checkpoint='last', labelled=True)
  [(read, examples, found)] = source.over(over(source, mixed, tmp_path))
  assert [r['id'] for r in read] == [r['id'] for r in mixed]
  got = source.run.task.metrics(examples, found)
  assert got == pytest.approx({n: want[n] for n in got}, abs=1e-5)
  said = [*source.run.task.records(read, found)]
  assert [r['label'] for r in said] == [r.get('label', r.get('labels', r.get('score'))) for r in mixed]
  records = built.task.records(built.dataset.splits['validation'], predictions)
  wanted = [r['prediction'] for r in records if r['task'] == 'stars']
  assert [r['prediction'] for r in said if r['task'] == 'stars'] == wanted
  assert {type(x) for x in wanted} == {int}


def test_labels_are_neither_needed_nor_looked_at_to_predict(trained, tmp_path):
  folder, mixed, _ = trained
  source, _ = stream.of_run(str(folder), checkpoint='last')
  answers = {}
  for what, change in (
    ('with', lambda r: r),
    ('without', lambda r: {k: r[k] for k in ('id', 'task', 'text')}),
    ('odd', lambda r: {**r, 'label': 'unheard of', 'labels': 'x', 'score': 'high'}),
  ):
    answers[what] = []
    predict.predict(source, over(source, [change(r) for r in mixed], tmp_path), answers[what].append)
    assert not any('label' in r for r in answers[what])
  assert answers['with'] == answers['without'] == answers['odd']


@pytest.mark.parametrize(
  ('at', 'change', 'says'),
  [
    (3, {'label': 7}, "a.jsonl:4: label '7' is not in the run's label list"),
    (3, {'label': None}, 'a.jsonl:4: "label" is null'),
    (4, {'labels': [1, 7]}, 'a.jsonl:5: label 7 is not in'),
    (4, {'labels': 'x'}, 'a.jsonl:5: "labels" is the str'),
    (5, {'score': 'high'}, 'a.jsonl:6: "score" is the str \'high\', but a score is a finite number'),
    (5, {'score': 'nan'}, 'a.jsonl:6: "score" is the str \'nan\''),
    (5, {'task': 'wrods'}, 'a.jsonl:6: "task" is \'wrods\'; did you mean "words"'),
    (3, {'text': ' '}, 'part stars of task.parts: '),
  ],
)
def test_rows_of_a_file_that_cannot_be_judged(trained, tmp_path, at, change, says):
  _, mixed, (built, own, frozen, _) = trained
  rows = [{**r, **(change if i == at else {})} for i, r in enumerate(mixed)]
  source = stream.Stream(built, own, frozen, labelled=True)
  refused(lambda: list(source.over(over(source, rows, tmp_path))), says)
  if None in change.values():
    rows[at].pop(*change)
    refused(lambda: list(source.over(over(source, rows, tmp_path))), 'a.jsonl:4: "label" is missing')


def test_a_label_that_training_lacks_is_told_with_its_own_file_and_line(config, data, tmp_path):
  shutil.copytree(data, tmp_path / 'data')
  with (tmp_path / 'data' / 'tone' / 'validation.jsonl').open('a') as file:
    file.write('\n\n' + json.dumps({'text': 'a film', 'label': 'odd'}) + '\n')
  for parts in (PARTS, '; '.join(reversed(PARTS.split('; ')))):
    says = "tone/validation.jsonl:13: label 'odd' is not in the run's label list"
    refused(lambda p=parts: run.build(config(p, data__path=str(tmp_path / 'data'))), says)


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
