"""Preference tuning from pairs to a report: the reference is data, bad pairs are found, and eval.py says the same."""

import json
import re
import shutil

import numpy as np
import pytest

from ftlib import fine_tune, generate, judge, recipe, reference
from ftlib import run as runs
from ftlib.base import trees
from ftlib.base.errors import InputError, Stopped
from ftlib.generation.settings import Settings
from ftlib.models import stack
from tests import tiny

QUESTIONS = ['is it good', 'is it bad', 'a film', 'the story', 'an actor']


def rows(count, seed):
  """Prompts with a warm and a cold answer, of which the warm one is chosen."""
  rng = np.random.default_rng(seed)
  some = lambda words: ' '.join(rng.choice(words, rng.integers(1, 5)))  # noqa: E731
  return [{'prompt': QUESTIONS[i % 5], 'chosen': some(tiny.GOOD), 'rejected': some(tiny.BAD)} for i in range(count)]


def folder_of(folder, **splits):
  folder.mkdir(exist_ok=True)
  for name, found in {'train': rows(48, 0), 'validation': rows(16, 1), 'test': rows(12, 2), **splits}.items():
    (folder / f'{name}.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in found))
  return folder


@pytest.fixture(scope='module')
def llama(tmp_path_factory):
  return tiny.llama_folder(tmp_path_factory.mktemp('llama'))


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  return folder_of(tmp_path_factory.mktemp('pairs'))


@pytest.fixture(scope='module')
def make(llama, data):
  """`make(loss='orpo', data=folder, train__steps=3)`: a small config."""

  def config(*, data=data, method='lora', loss='sigmoid', **values):
    made = tiny.config(llama, data, method=method, train__steps=12, train__eval_every=6, train__log_every=1)
    made.task, made.objective = (recipe.component_section(s, 'preference') for s in ('task', 'objective'))
    made.objective.loss, made.method.also, made.train.max_length = loss, '', 64
    for name, value in values.items():
      section, field = name.split('__')
      made[section][field] = value
    return made

  return config


@pytest.fixture(scope='module')
def dpo(make, no_report, tmp_path_factory):
  """A run of twelve steps. Copy it before you change it."""
  where = tmp_path_factory.mktemp('dpo') / 'run'
  fine_tune.run(make(), str(where))
  return where


def logged(where, split):
  lines = (where / 'metrics.jsonl').read_text().splitlines()
  return [r for r in map(json.loads, lines) if r['split'] == split]


def test_it_starts_at_log_two_and_learns(dpo):
  train, validation = logged(dpo, 'train'), logged(dpo, 'validation')
  assert train[0]['loss'] == pytest.approx(np.log(2), abs=1e-5)
  assert abs(train[0]['margin']) < 1e-4
  assert train[-1]['loss'] < 0.6
  assert train[-1]['margin'] > 0.2
  assert validation[-1]['accuracy'] > 0.9
  names = {'loss', 'accuracy', 'margin', 'chosen_reward', 'rejected_reward', 'chosen_logp', 'rejected_logp'}
  assert names <= set(train[-1])
  assert names <= set(validation[-1])
  for row in (*train, *validation):
    assert row['margin'] == pytest.approx(row['chosen_reward'] - row['rejected_reward'], abs=1e-5)


def test_eval_and_its_records(dpo, tmp_path):
  where = shutil.copytree(dpo, tmp_path / 'run')
  metrics = judge.run(str(where), split='validation', checkpoint='last')
  want = logged(where, 'validation')[-1]
  for name in ('loss', 'accuracy', 'margin', 'rejected_logp'):
    assert metrics[name] == pytest.approx(want[name], rel=1e-5)
  judge.run(str(where), split='test', checkpoint='best')
  records = [json.loads(l) for l in (where / 'eval' / 'test_predictions.jsonl').read_text().splitlines()]
  there = rows(12, 2)
  assert [(r['text'], r['chosen'], r['rejected']) for r in records] == [
    (r['prompt'], r['chosen'], r['rejected']) for r in there
  ]
  assert {r['prediction'] for r in records} <= {'chosen', 'rejected'}
  stored = json.loads((where / 'eval' / 'test.json').read_text())['metrics']
  assert stored['accuracy'] == np.mean([r['margin'] > 0 for r in records])


def test_it_is_asked_as_it_was_trained(dpo, make):
  """The prompt of a raw question is what stands before the answers of a pair; the instruction template is not used."""
  speaker = generate.of_run(str(dpo), Settings(max_new_tokens=4))
  row = rows(48, 0)[7]
  (prompt,) = speaker.prompts([{'prompt': row['prompt']}], 'prompt')
  found = runs.build(make()).examples['train'].tokens
  pair = [found.ids[found.offsets[i] : found.offsets[i + 1]] for i in (14, 15)]
  assert all(ids[: len(prompt)].tolist() == prompt for ids in pair)
  assert speaker.tokenizer.decode(pair[0][len(prompt) :], skip_special_tokens=True).strip() == row['chosen']
  assert len(speaker.generator.generate([prompt])[0][0].tokens) <= 4


def test_the_reference_is_the_starting_model(dpo, make, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(reference, 'EVERY', 0.0)
  with np.load(dpo / 'reference.npz') as file:
    there = {n: file[n] for n in file.files}
  assert sorted(there) == ['test', 'test.rows', 'train', 'train.rows', 'validation', 'validation.rows']
  assert there['train'].shape == (48, 2)
  assert there['train'].dtype == np.float32
  built = runs.build(make())
  reference.compute(built, *built.load())
  said, total = capsys.readouterr().out, sum(map(len, built.examples.values()))
  assert f'log-probabilities of {total} pairs' in said
  assert re.findall(r'(\d+) of \d+ after', said)[-1] == str(total)  # every batch tells how far it is
  np.testing.assert_allclose(built.examples['test'].extra['reference'], there['test'], atol=1e-4)
  last = {r['step']: r for r in logged(dpo, 'validation')}[12]
  reward = 0.1 * (last['chosen_logp'] - there['validation'][:, 0].mean())
  assert last['chosen_reward'] == pytest.approx(reward, abs=1e-4)


def test_an_untrained_model_is_compared_with_no_reference(make, dpo, data, tmp_path, capsys):
  metrics = judge.untrained(make(), split='test', output=str(tmp_path / 'zero'))
  said = capsys.readouterr().out
  assert 'objective.loss=sigmoid compares with the model that training starts from, which is this one' in said
  assert set(metrics) == {'loss', 'accuracy', 'margin', 'chosen_logp', 'rejected_logp'}
  with np.load(dpo / 'reference.npz') as file:
    reference_N2 = file['test']
  built = runs.build(make(), split='test')
  weights = np.split(built.examples['test'].per_token['weights'], built.examples['test'].tokens.offsets[1:-1])
  mean_N2 = reference_N2 / np.array([w.sum() for w in weights]).reshape(-1, 2)
  margin_N = mean_N2[:, 0] - mean_N2[:, 1]
  assert 0 < metrics['accuracy'] == (margin_N > 0).mean() < 1
  assert metrics['margin'] == pytest.approx(margin_N.mean(), abs=1e-4)
  assert metrics['loss'] == pytest.approx(-mean_N2[:, 0].mean(), rel=1e-4)
  records = (tmp_path / 'zero' / 'eval' / 'test_predictions.jsonl').read_text().splitlines()
  np.testing.assert_allclose([json.loads(r)['margin'] for r in records], margin_N, atol=1e-4)


def test_a_run_that_goes_on_has_the_same_reference(make, dpo, tmp_path, monkeypatch):
  where = tmp_path / 'run'
  save = fine_tune.Checkpoints.save

  def stop(self, step, *args, **options):
    save(self, step, *args, **options)
    if step == 6:
      self.wait()
      raise Stopped('SIGTERM', signum=15)

  monkeypatch.setattr(fine_tune.Checkpoints, 'save', stop)
  with pytest.raises(Stopped):
    fine_tune.run(make(), str(where))
  monkeypatch.setattr(fine_tune.Checkpoints, 'save', save)
  monkeypatch.setattr(reference, 'compute', lambda *_: pytest.fail('the reference is computed once'))
  fine_tune.run(make(), str(where))
  assert [r['loss'] for r in logged(where, 'train')] == [r['loss'] for r in logged(dpo, 'train')]


def test_a_reference_that_is_gone_or_of_other_rows(dpo, tmp_path):
  where = shutil.copytree(dpo, tmp_path / 'run')
  evaluate = lambda: judge.run(str(where), split='test', checkpoint='last')  # noqa: E731
  config = json.loads((where / 'config.json').read_text())
  (where / 'config.json').write_text(json.dumps({**config, 'train': {**config['train'], 'max_length': 12}}))
  with pytest.raises(InputError, match=r'reference\.npz is of other test rows'):
    evaluate()
  (where / 'config.json').write_text(json.dumps(config))
  (where / 'reference.npz').write_bytes(b'PK\x03\x04nothing')
  with pytest.raises(InputError, match=r'reference\.npz cannot be read'):
    evaluate()
  (where / 'reference.npz').unlink()
  with pytest.raises(InputError, match=r'reference\.npz is gone'):
    evaluate()


def test_orpo_needs_none(make, tmp_path):
  fine_tune.run(make(loss='orpo', optim__learning_rate=3e-2), str(tmp_path / 'run'))
  assert not (tmp_path / 'run' / 'reference.npz').exists()
  train, validation = logged(tmp_path / 'run', 'train'), logged(tmp_path / 'run', 'validation')
  assert train[-1]['loss'] < 0.8 * train[0]['loss']
  assert train[-1]['margin'] > train[0]['margin'] + 0.1
  assert validation[-1]['accuracy'] > 0.9


def test_micro_batches_give_the_same(make, dpo, tmp_path):
  fine_tune.run(make(train__accumulate=4), str(tmp_path / 'run'))
  got, want = (logged(w, 'train')[:4] for w in (tmp_path / 'run', dpo))
  assert len(got) == 4
  for a, b in zip(got, want, strict=True):
    assert a['loss'] == pytest.approx(b['loss'], abs=2e-5)
    assert a['chosen_logp'] == pytest.approx(b['chosen_logp'], rel=1e-4)


# --- what a row is


def ids_of(built, split='train'):
  tokens = built.examples[split].tokens
  return [tokens.ids[a:b].tolist() for a, b in zip(tokens.offsets, tokens.offsets[1:])]


def test_answers_stand_behind_their_prompt(make):
  built = runs.build(make())
  row, tokenizer = built.dataset.splits['train'][0], built.tokenizer
  ask = f'<|im_start|>user\n{row["prompt"]}<|im_end|>\n<|im_start|>assistant\n'
  weights = built.examples['train'].per_token['weights']
  at = 0
  for ids, name in zip(ids_of(built)[:2], ('chosen', 'rejected')):
    answer = f'{row[name]}<|im_end|>'
    assert tokenizer.decode(ids).startswith(ask + answer)
    own = [t for t, w in zip(ids[1:], weights[at:]) if w]
    assert tokenizer.decode(own) == answer
    at += len(ids)
  assert len(built.examples['train']) == 48


def turns(*texts):
  return [{'role': ('user', 'assistant')[i % 2], 'content': t} for i, t in enumerate(texts)]


def test_turns_are_the_same_as_texts(make, tmp_path):
  whole = [
    {'chosen': turns(r['prompt'], r['chosen']), 'rejected': turns(r['prompt'], r['rejected'])} for r in rows(48, 0)
  ]
  behind = [
    {
      'prompt': turns(r['prompt']) if i % 2 else r['prompt'],
      'chosen': turns('', r['chosen'])[1:],
      'rejected': turns('', r['rejected'])[1:],
    }
    for i, r in enumerate(rows(48, 0))
  ]
  want = ids_of(runs.build(make()))
  for k, train in enumerate((whole, behind)):
    path = folder_of(tmp_path / str(k), train=train, validation=train[:8], test=train[:8])
    assert ids_of(runs.build(make(data=path, task__form='messages'))) == want


def test_text_without_a_template(make):
  built = runs.build(make(task__template='question'))
  row = built.dataset.splits['train'][0]
  got = built.tokenizer.decode(ids_of(built)[0])
  assert got == f'Question: {row["prompt"]}\nAnswer: {row["chosen"]}<|im_end|>'


def test_long_prompts_lose_the_same_for_both(make, tmp_path):
  train = [{**r, 'prompt': 'the story of the film ' * 20} for r in rows(48, 0)]
  built = runs.build(make(data=folder_of(tmp_path / 'long', train=train)))
  ids = ids_of(built)
  assert max(map(len, ids)) == 64
  for i, row in enumerate(train):
    chosen, rejected = (built.tokenizer.decode(d) for d in ids[2 * i : 2 * i + 2])
    assert chosen.rstrip().endswith(f'assistant\n{row["chosen"]}<|im_end|>')
    assert rejected.rstrip().endswith(f'assistant\n{row["rejected"]}<|im_end|>')
    assert chosen.split('assistant')[0] == rejected.split('assistant')[0]
  assert any('48 of 48 rows (100.0%) were cut to 64 tokens' in n for n in built.notes)


# --- what is refused


def changed(i, **values):
  found = rows(48, 0)
  found[i] = {k: v for k, v in {**found[i], **values}.items() if v is not ...}
  return found


BAD = {
  'missing column': ([{'prompt': 'a', 'chosen': 'b'}] * 48, {}, ['no column "rejected"', '--config.task.rejected=']),
  'empty answer': (changed(3, chosen=' '), {}, ['train.jsonl:4', '"chosen" is empty']),
  'no text': (changed(3, rejected=['x']), {}, ['train.jsonl:4', '"rejected" is the list']),
  'all the same': (
    [{**r, 'rejected': r['chosen']} if i % 8 == 0 else r for i, r in enumerate(rows(48, 0))],
    {},
    ['train: 6 of 48 pairs teach nothing', 'train.jsonl:1: chosen and rejected are the same', '5%'],
  ),
  'same within the limit': (
    [{**r, 'chosen': 'good ' * 80 + 'a', 'rejected': 'good ' * 80 + 'b'} for r in rows(48, 0)],
    {},
    ['48 of 48 pairs', 'are the same within 64 tokens', 'train.max_length'],
  ),
  'no prompt': (
    [{'chosen': turns('', 'x')[1:], 'rejected': turns('', 'y')[1:]}] * 48,
    {'form': 'messages'},
    ['no prompt in front'],
  ),
  'other prompts': (
    [{'chosen': turns('a', 'x'), 'rejected': turns('b', 'y')}] * 48,
    {'form': 'messages'},
    ['train.jsonl:1', 'differ before their last turn'],
  ),
  'no rejected': ([{'chosen': turns('a', 'x')}] * 48, {'form': 'messages'}, ['train.jsonl:1', '"rejected" is missing']),
  'empty rejected': (
    [{'chosen': turns('a', 'x'), 'rejected': []}] * 48,
    {'form': 'messages'},
    ['train.jsonl:1', '"rejected" is empty'],
  ),
  'ends with a user': (
    [{'chosen': turns('a', 'x'), 'rejected': turns('a')}] * 48,
    {'form': 'messages'},
    ['train.jsonl:1', 'no assistant turn'],
  ),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_pairs(make, refused, tmp_path, name):
  train, task, words = BAD[name]
  splits = {'validation': train[:8], 'test': train[:8]} if task else {}
  path = folder_of(tmp_path / 'bad', train=train, **splits)
  refused(make(data=path, **{f'task__{k}': v for k, v in task.items()}), *words)


def test_a_pair_that_teaches_nothing_is_left_out(make, tmp_path):
  same = rows(48, 0)
  same[5]['rejected'] = f' {same[5]["chosen"]}'
  built = runs.build(make(data=folder_of(tmp_path / 'one', train=same)))
  assert len(built.examples['train']) == len(built.dataset.splits['train']) == 47
  assert any('train: 1 of 48 pairs were dropped' in n and 'train.jsonl:6' in n for n in built.notes)


def test_settings_that_do_not_fit(make, refused):
  refused(make(objective__label_smoothing=0.1, loss='ipo'), 'label_smoothing=0.1 is for loss=sigmoid')
  refused(make(train__packing=True), 'train.packing=true')
  refused(make(task__prompt=''), "prompt='' is for form='messages'")
  refused(make(method='prompt'), 'virtual tokens', 'take another method')


def test_nothing_but_the_adapter_trains(dpo, make):
  built = runs.build(make(), split='validation')
  own, _, _ = judge.restored(built, dpo, 'last')
  assert all('adapter' in n for n in trees.flatten(stack.unstack(own)))
