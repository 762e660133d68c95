"""What a run of language writes for its report: training rows with their mask, answers before and after."""

from __future__ import annotations

import json
import random

import pytest

from ftlib import fine_tune, recipe, run, samples
from ftlib.base.errors import InputError
from ftlib.evals import report
from ftlib.train import loop
from tests import tiny


def rows(count, seed):
  rng = random.Random(seed)
  words = (tiny.GOOD, tiny.BAD)
  pick = lambda i: ' '.join(rng.choices(words[i % 2], k=3))  # noqa: E731
  return [{'prompt': f'<b>{pick(i)}', 'completion': ('warm', 'cold')[i % 2]} for i in range(count)]


@pytest.fixture(scope='module')
def make(tmp_path_factory):
  llama = tiny.llama_folder(tmp_path_factory.mktemp('llama'))
  data = tmp_path_factory.mktemp('questions')
  for seed, (name, count) in enumerate((('train', 64), ('validation', 12))):
    (data / f'{name}.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows(count, seed)))

  def config(task='sft', **values):
    made = tiny.config(llama, data, method='lora', train__steps=100, train__eval_every=50, optim__learning_rate=3e-2)
    made.task, made.objective = (recipe.component_section(s, n) for s, n in (('task', task), ('objective', 'language')))
    made.task.form, made.task.template, made.train.max_length, made.method.also = 'prompt', 'chat', 64, ''
    for name, value in values.items():
      section, field = name.split('__')
      made[section][field] = value
    return made

  return config


def lines(where, name):
  path = where / 'eval' / f'{name}.jsonl'
  return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Killed(Exception):
  pass


@pytest.fixture(scope='module')
def trained(make, tmp_path_factory):
  """A run that was killed after its first checkpoint, and resumed."""
  where = tmp_path_factory.mktemp('sft') / 'run'
  evaluated, calls = loop._evaluated, []

  def killed(*args):
    calls.append(args)
    if len(calls) == 2:
      raise Killed
    return evaluated(*args)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop, '_evaluated', killed)
    with pytest.raises(Killed):
      fine_tune.run(make(), str(where))
  first = lines(where, 'samples')
  fine_tune.run(make(), str(where))
  return where, first


def test_answers_before_and_after(trained):
  where, first = trained
  found = lines(where, 'samples')
  asked = rows(12, 1)
  assert [r['row'] for r in found] == [0, 4, 7, 11]
  assert [(r['prompt'], r['reference']) for r in found] == [
    (asked[i]['prompt'], asked[i]['completion']) for i in (0, 4, 7, 11)
  ]
  assert [r['before'] for r in found] == [r['before'] for r in first], 'of the start, though the run was resumed'
  assert not any('after' in r for r in first)
  assert sum(r['after'].strip() == r['reference'] for r in found) >= 3, 'what a little training teaches is learnt'
  assert all(r['before'].strip() != r['reference'] for r in found)


def test_the_preview_is_what_is_trained_on(trained, make):
  found = lines(trained[0], 'preview')
  built = run.build(make())
  train = built.examples['train']
  assert len(found) == 8
  for k, row in enumerate(found):
    start, stop = train.tokens.offsets[k : k + 2]
    text = built.tokenizer.decode(train.tokens.ids[start:stop], clean_up_tokenization_spaces=False)
    assert ''.join(t for t, _ in row['pieces']) == text
    assert row['tokens'] == stop - start
    assert row['supervised'] == train.per_token['weights'][start:stop].sum() > 0
    marked = ''.join(t for t, own in row['pieces'] if own)
    assert rows(64, 0)[k]['completion'] in marked
    assert rows(64, 0)[k]['prompt'] not in marked
    assert row['row'].endswith(f'train.jsonl:{k + 1}')


def test_the_page_shows_both(trained):
  page = report.write(trained[0]).read_text()
  for words in ('Samples before and after', 'What the loss is taken over', 'Highest loss', 'Loss of each row'):
    assert words in page
  assert page.count('<mark>') == 8
  assert page.count('<div class="sample">') == 4
  assert '<b>' not in page


def test_no_samples_where_none_are_wanted_or_possible(make, tmp_path, monkeypatch):
  for at, count in enumerate((0, 2)):
    built, said = run.build(make(task__samples=count)), []
    where = tmp_path / str(at)
    where.mkdir()

    def refuse(*args, **kwargs):
      raise InputError('prompt 0 is empty')

    monkeypatch.setattr(samples.generators, 'of_run', refuse)
    own, frozen = built.load()
    writer = samples.Samples(built, where, said.append)
    writer.begin(own, frozen)
    writer.end(own, frozen)
    assert lines(where, 'preview')
    assert not (where / 'eval' / 'samples.jsonl').exists()
    assert said == ['the report has no samples: prompt 0 is empty'] * at


def test_samples_are_generated_as_the_task_generates(make, tmp_path, monkeypatch):
  asked = []

  def caught(run, own, frozen, settings, **kwargs):
    asked.append(settings)
    raise InputError('seen')

  monkeypatch.setattr(samples.generators, 'of_run', caught)
  own = {'task__max_new_tokens': 5, 'task__repetition_penalty': 1.5, 'task__stop': '!'}
  for task, values in (('sft', {}), ('generate', own)):
    built = run.build(make(task, **values))
    samples.Samples(built, tmp_path, print).begin(*built.load())
  room = built.method.model.config.max_length
  assert [(s.max_new_tokens, s.repetition_penalty, s.stop) for s in asked] == [
    (min(samples.NEW, room // 2), 1.0, ()),
    (5, 1.5, ('!',)),
  ]
  assert asked[0].batch_size == asked[1].batch_size == 4  # the samples
