"""The task `generate` from training to predictions, the program that writes texts, and models judged untrained."""

import dataclasses
import io
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from ftlib import fine_tune, generate, generators, judge, recipe
from ftlib import folder as folder_of_run
from ftlib import run as runs
from ftlib.base.errors import InputError
from ftlib.data import tokens
from ftlib.generation.settings import Settings
from ftlib.tasks import sft
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
  speaker = generate.of_pretrained(str(llama), Settings(max_new_tokens=8))
  with pytest.raises(InputError, match='the prompt: the prompt is empty'):
    speaker.prompts([{'p': ''}], 'p')
  file = tmp_path / 'in.jsonl'
  for text, said in (
    ('{"a": 1}\n', 'has no column'),
    ('nothing\n', 'is no JSON'),
    ('', 'is empty'),
    ('{"p": ""}', 'empty'),
    ('{"p": []}', 'line 1: the prompt is empty'),
    ('{"p": "a"}\n\n{"p": 5}', 'line 3: a conversation is a list of turns, not the int 5'),
    ('{"p": [1]}', 'turn 1 is 1, not an object'),
    ('{"p": [{"role": "user"}]}', 'which is no text'),
    ('{"p": [{"role": "usr", "content": "x"}]}', 'did you mean "user"'),
    ('{"p": [{"role": "system", "content": "x"}, {"role": "system", "content": "x"}]}', '2 system turns'),
    ('{"p": ["a", "b"]}', 'ends with a turn of the assistant'),
  ):
    file.write_text(text)
    with pytest.raises(InputError, match=said):
      generate.read_rows(file, 'p')
  file.write_bytes(b'\xff')
  with pytest.raises(InputError, match='cannot be read'):
    generate.read_rows(file, 'p')
  file.write_text('\n{"p": "a\u2028b"}\n{"p": "' + 'x ' * 300 + '"}\n')
  asked = generate.read_rows(file, 'p')
  assert asked[0]['p'] == 'a\u2028b'
  with pytest.raises(InputError, match=r'in\.jsonl, line 3: 600 tokens and --max_new_tokens=8 are more than the 128'):
    generate.write_answers(speaker, asked, 'p', tmp_path / 'out.jsonl')
  assert not (tmp_path / 'out.jsonl').exists()
  file.write_text('{"p": [{"from": "human", "value": "good"}]}')
  one = speaker.prompts(generate.read_rows(file, 'p'), 'p')
  assert one == [speaker.conversation([{'role': 'user', 'content': 'good'}])]
  row = {'instruction': 'a', 'input': 5}
  task = sft.Sft(sft.Config(form='instruction', template='alpaca'))
  with pytest.raises(InputError, match='"input" is the int 5'):
    generate.Speaker(speaker.generator, speaker.tokenizer, task).prompts([row], 'instruction')
  with pytest.raises(InputError, match='no such file'):
    generate.read_rows(tmp_path / 'absent', 'p')
  config = config_of(llama, data, task__max_new_tokens=128)
  with pytest.raises(InputError, match=r'task\.max_new_tokens=128'):
    judge.untrained(config, split='test', output=None)


def test_a_run_that_could_not_answer_does_not_begin(llama, data, refused):
  refused(config_of(llama, data, task__max_new_tokens=128), 'task.max_new_tokens=128 leaves no room for a prompt')
  virtual = config_of(llama, data, method='prompt', task__max_new_tokens=120)
  refused(virtual, 'positions for 128 tokens behind 20 virtual ones')


def changed(model, folder, name, **values):
  """A copy of a model folder, some values of one of its files changed."""
  shutil.copytree(model, folder)
  file = folder / name
  there = json.loads(file.read_text()) if file.exists() else {}
  file.write_text(json.dumps({k: v for k, v in {**there, **values}.items() if v is not ...}))
  return folder


def test_models_that_cannot_be_asked(llama, tmp_path):
  few = Settings(max_new_tokens=4)
  larger = changed(llama, tmp_path / 'larger', 'config.json')
  tiny.chat_tokenizer(larger, size=400)
  endless = changed(llama, tmp_path / 'endless', 'tokenizer_config.json', eos_token=...)
  changed(endless, tmp_path / 'bare', 'tokenizer_config.json', pad_token=...)
  config = json.loads((endless / 'config.json').read_text())
  (endless / 'config.json').write_text(json.dumps({k: v for k, v in config.items() if k != 'eos_token_id'}))
  odd = changed(llama, tmp_path / 'odd', 'generation_config.json')
  for folder, before, said in (
    (larger, None, r'the tokenizer has 3\d\d tokens, the model 320 embeddings'),
    (endless, None, 'no end-of-sequence token'),
    (tmp_path / 'bare', None, r'no padding token, and none that ends a text \(eos_token\)'),
    (odd, '{', 'generation_config.json is not JSON'),
    (odd, '[1]', 'generation_config.json holds no object'),
    (odd, '{"eos_token_id": ["x"]}', r"eos_token_id=\['x'\] is no token id"),
    (odd, '{"eos_token_id": 999}', 'eos_token_id of the tokenizer or of the files beside it=999: the model has the'),
  ):
    if before:
      (folder / 'generation_config.json').write_text(before)
    with pytest.raises(InputError, match=said):
      generate.of_pretrained(str(folder), few)


def test_a_conversation_needs_a_template(llama, tmp_path):
  bare = generate.of_pretrained(
    str(changed(llama, tmp_path / 'bare', 'tokenizer_config.json', chat_template=...)), Settings(max_new_tokens=4)
  )
  with pytest.raises(InputError, match=r'(?s)has no chat template.*Set --chat_template= to one of turns'):
    bare.chat()
  own = generate.Speaker(bare.generator, bare.tokenizer, chat_template='turns')
  assert own.tokenizer.decode(own.conversation([{'role': 'user', 'content': 'good'}])) == 'good<|im_end|>'
  with pytest.raises(InputError, match=r'--chat_template=turn: neither a file'):
    generate.Speaker(bare.generator, bare.tokenizer, chat_template='turn').chat()


def test_long_prompts_keep_what_the_tokenizer_puts_in_front(generator_of):
  """And it is said how many were cut."""
  generator = generator_of(max_new_tokens=100)
  front = tokens.frame(generator.tokenizer)[0]
  assert (front, generator.room) == ([1], 28)
  long = [1, *range(10, 60)]
  assert generators.cut(long, generator) == [1, *long[-27:]]
  assert generators.cut(long[1:], generator) == long[-28:]
  assert generators.cut(long[:28], generator) == long[:28]


@pytest.fixture
def generator_of(llama, tmp_path):
  """`generator_of(max_new_tokens=4)` of a model whose tokenizer begins texts."""
  from tokenizers import processors

  def make(**values):
    speaker = generate.of_pretrained(str(llama), Settings(**values))
    speaker.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
      single='<|im_start|> $A', special_tokens=[('<|im_start|>', 1)]
    )
    return speaker.generator

  return make


def test_prompts_that_were_cut_are_counted(trained):
  built = runs.build(*folder_of_run.stored(trained)[:1], split='test')
  own, frozen, _ = judge.restored(built, trained, 'best')
  asked = built.task.prompts(built.dataset.splits['test'], built.tokenizer)
  most = sorted(map(len, asked))[-2]  # all but the longest, or several as long, fit
  task = dataclasses.replace(
    built.task, config=dataclasses.replace(built.task.config, max_new_tokens=128 - most, answered=8)
  )
  scores, _ = generators.answers(dataclasses.replace(built, task=task), own, frozen, 'test')
  assert scores.get('prompts_cut', 0) == sum(len(p) > most for p in asked)
  least = min(map(len, asked))
  task = dataclasses.replace(task, config=dataclasses.replace(task.config, max_new_tokens=129 - least))
  scores, _ = generators.answers(dataclasses.replace(built, task=task), own, frozen, 'test')
  assert scores['prompts_cut'] == len(asked)
