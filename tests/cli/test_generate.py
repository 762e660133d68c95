"""The task `generate` from training to predictions, the program that writes texts, and models judged untrained."""

import io
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from ftlib import fine_tune, generate, generators, judge, recipe
from ftlib import run as runs
from ftlib.base.errors import InputError
from ftlib.generation.settings import Settings
from tests import tiny


def rows(count, seed):
  rng = np.random.default_rng(seed)
  pick = lambda words: ' '.join(rng.choice(words, 3))  # noqa: E731
  return [{'prompt': pick((tiny.GOOD, tiny.BAD)[i % 2]), 'completion': ('warm', 'cold')[i % 2]} for i in range(count)]


def config_of(model, data, task='generate', method='lora', **values):
  made = tiny.config(model, data, method=method, train__steps=150, train__eval_every=150, optim__learning_rate=3e-2)
  made.task, made.objective = (recipe.component_section(s, n) for s, n in (('task', task), ('objective', 'language')))
  made.task.form, made.task.template, made.train.max_length = 'prompt', 'chat', 64
  if task == 'generate':
    made.task.metrics, made.task.max_new_tokens = 'exact,bleu,distinct,length', 6
  if 'also' in made.method:
    made.method.also = ''
  for name, value in values.items():
    section, field = name.split('__')
    made[section][field] = value
  return made


@pytest.fixture(scope='module')
def llama(tmp_path_factory):
  return tiny.llama_folder(tmp_path_factory.mktemp('llama'))


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  folder = tmp_path_factory.mktemp('questions')
  for seed, (name, count) in enumerate((('train', 64), ('validation', 12), ('test', 8))):
    (folder / f'{name}.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows(count, seed)))
  return folder


@pytest.fixture(scope='module')
def trained(llama, data, no_report, tmp_path_factory):
  where = tmp_path_factory.mktemp('generate') / 'run'
  fine_tune.run(config_of(llama, data), str(where))
  return where


def test_a_run_is_scored_by_its_answers(trained, data):
  found = judge.run(str(trained), split='test', checkpoint='best')
  stored = json.loads((trained / 'eval' / 'test.json').read_text())['metrics']
  records = [json.loads(l) for l in (trained / 'eval' / 'test_predictions.jsonl').read_text().splitlines()]
  given = [json.loads(l) for l in (data / 'test.jsonl').read_text().splitlines()]
  assert [r['reference'] for r in records] == [r['completion'] for r in given]
  assert [r['prompt'] for r in records] == [r['prompt'] for r in given]
  right = np.mean([r['prediction'].strip() == r['reference'] for r in records])
  assert found['exact_match'] == stored['exact_match'] == right
  assert right > 0.6, 'what a little training teaches is learnt'
  assert {'bleu', 'distinct_1', 'length_mean', 'perplexity', 'loss'} <= set(stored)
  assert json.loads((trained / 'summary.json').read_text())['best_metric']['name'] == 'exact_match'


def test_texts_of_a_run_are_those_of_its_evaluation(trained, data, tmp_path):
  records = [json.loads(l) for l in (trained / 'eval' / 'validation_predictions.jsonl').read_text().splitlines()]
  asked = generate.read_rows(data / 'validation.jsonl', 'prompt')
  data.rename(tmp_path / 'gone')  # nothing of it is asked for
  try:
    speaker = generate.of_run(str(trained), Settings(max_new_tokens=6))
  finally:
    (tmp_path / 'gone').rename(data)
  assert all('adapter' not in str(p) for p, _ in jax.tree_util.tree_leaves_with_path(speaker.generator.params))
  generate.write_answers(speaker, asked, 'prompt', tmp_path / 'out.jsonl')
  lines = [json.loads(l) for l in (tmp_path / 'out.jsonl').read_text().splitlines()]
  assert [l['text'] for l in lines] == [r['prediction'] for r in records]
  assert [l['prompt'] for l in lines] == [r['prompt'] for r in asked]
  assert {l['ended'] for l in lines} <= {'eos', 'length'}
  raw = generate.of_run(str(trained), Settings(max_new_tokens=6), raw=True)
  assert raw.prompts(asked[:1], 'prompt') != speaker.prompts(asked[:1], 'prompt')
  assert raw.tokenizer.decode(raw.prompts(asked[:1], 'prompt')[0]).endswith(asked[0]['prompt'])


def test_merged_and_unmerged_say_the_same(trained, monkeypatch):
  from ftlib import folder

  run = runs.build(*folder.stored(trained)[:1], split='validation')
  own, frozen, _ = judge.restored(run, trained, 'best')
  prompts = run.task.prompts(run.dataset.splits['validation'][:6], run.tokenizer)
  tokens = lambda g: [t[0].tokens.tolist() for t in g.generate(prompts)]  # noqa: E731
  merged = tokens(generators.of_run(run, own, frozen, Settings(max_new_tokens=8)))
  object.__setattr__(run.method, 'merge', None)
  kept = generators.of_run(run, own, frozen, Settings(max_new_tokens=8))
  assert any('adapter' in str(p) for p, _ in jax.tree_util.tree_leaves_with_path(kept.params))
  assert tokens(kept) == merged
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')  # stacked layers, where they are
  assert tokens(generators.of_run(run, own, frozen, Settings(max_new_tokens=8))) == merged


def test_a_conversation(trained):
  speaker = generate.of_run(str(trained), Settings(max_new_tokens=6))
  out, asked = io.StringIO(), []
  plain = generate.Speaker.conversation
  lines = [
    'good great fine\n',
    '\n',
    'bad awful\n',
    '/reset\n',
    'good great fine\n',
    '/what\n',
    'a ' * 300,
    '/quit\n',
    'no\n',
  ]

  class Heard(generate.Speaker):
    def conversation(self, turns):
      asked.append([t['content'] for t in turns])
      return plain(self, turns)

  heard = Heard(speaker.generator, speaker.tokenizer, speaker.task)
  generate.converse(heard, iter(lines), out, ask=lambda: None, stream=True)
  said = out.getvalue().splitlines()
  assert asked[0] == ['good great fine']
  assert asked[1] == ['good great fine', said[0], 'bad awful']
  assert asked[2] == ['good great fine']
  assert said[0] == said[3], 'the same question of a new conversation'
  assert '(a new conversation)' in said
  assert any('/what is no command' in s for s in said)
  assert any('positions' in s for s in said)
  assert 'no' not in [a[-1] for a in asked]


@pytest.mark.slow
def test_the_program(llama, tmp_path):
  def program(*argv, stdin=''):
    command = [sys.executable, '-m', 'ftlib.generate', *argv]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=600, check=False)

  chat = program(f'--model={llama}', '--chat', '--max_new_tokens=5', stdin='good\nbad\n/quit\n')
  assert chat.returncode == 0, chat.stderr
  assert len(chat.stdout.splitlines()) >= 2
  for argv, said in (
    ((f'--model={llama}', '--workdir=x', '--prompt=a'), 'give one of them'),
    (('--prompt=a',), 'give --workdir=RUN_FOLDER or --model'),
    ((f'--model={llama}', '--prompt=a', '--temperature=0', '--sample'), '--temperature=0.0: wanted above 0'),
  ):
    done = program(*argv)
    assert done.returncode == 2
    assert said in done.stderr
    assert 'Traceback' not in done.stderr


def test_a_pretrained_model(llama):
  speaker = generate.of_pretrained(str(llama), Settings(max_new_tokens=5))
  out = io.StringIO()
  ids = speaker.prompts([{'p': 'good film'}], 'p')[0]
  text = generate.show(speaker, ids, out, stream=False)
  assert out.getvalue() == f'{text}\n'
  chats = generate.Speaker(speaker.generator, speaker.tokenizer, template=True, system='be warm')
  turns = [{'role': 'system', 'content': 'be warm'}, {'role': 'user', 'content': 'good film'}]
  wanted = speaker.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True)
  assert chats.prompts([{'p': 'good film'}], 'p')[0] == list(wanted['input_ids'] if hasattr(wanted, 'keys') else wanted)
  several = generate.of_pretrained(str(llama), Settings(max_new_tokens=3, sample=True, num=2))
  out = io.StringIO()
  generate.show(several, ids, out, stream=True)
  assert out.getvalue().startswith('--- 1\n')
  assert '--- 2\n' in out.getvalue()


def test_untrained(llama, data, tmp_path):
  prompts_only = judge.untrained(config_of(llama, data), split='test', output=str(tmp_path / 'zero'))
  records = (tmp_path / 'zero' / 'eval' / 'test_predictions.jsonl').read_text().splitlines()
  assert len(records) == 8
  assert prompts_only['perplexity'] > 50, 'random weights know nothing'
  virtual = config_of(llama, data, method='prompt')
  assert judge.untrained(virtual, split='test', output=None) == prompts_only, 'the method plays no part'
  with pytest.raises(InputError, match='is not empty'):
    judge.untrained(virtual, split='test', output=str(tmp_path / 'zero'))


@pytest.mark.parametrize(
  ('field', 'value', 'said'),
  [
    ('metrics', 'bleu,rogue', "'rogue' is none of"),
    ('metrics', '', 'names none'),
    ('best', 'accuarcy', 'task.best=accuarcy'),
    ('temperature', 0.5, 'task.temperature=0.5 has no effect'),
    ('top_p', 0.0, 'task.top_p=0.0'),
  ],
)
def test_settings_of_the_task(llama, data, refused, field, value, said):
  refused(config_of(llama, data, **{f'task__{field}': value}), said)


def test_prompts_that_cannot_be_asked(llama, tmp_path, tiny_bert, trained, data):
  with pytest.raises(InputError, match='is an encoder'):
    generate.of_pretrained(str(tiny_bert), Settings())
  speaker = generate.of_pretrained(str(llama), Settings())
  with pytest.raises(InputError, match='a prompt is empty'):
    speaker.prompts([{'p': ''}], 'p')
  file = tmp_path / 'in.jsonl'
  for text, said in (
    ('{"a": 1}\n', 'has no column'),
    ('nothing\n', 'is no JSON'),
    ('', 'is empty'),
    ('{"p": ""}', 'empty'),
  ):
    file.write_text(text)
    with pytest.raises(InputError, match=said):
      generate.read_rows(file, 'p')
  with pytest.raises(InputError, match='no such file'):
    generate.read_rows(tmp_path / 'absent', 'p')
  config = config_of(llama, data, task__max_new_tokens=128)
  with pytest.raises(InputError, match=r'task\.max_new_tokens=128'):
    judge.untrained(config, split='test', output=None)
