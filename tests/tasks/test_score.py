"""Options ranked by a decoder: what is scored, by what it is divided, zero-shot and trained."""

from __future__ import annotations

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftlib import fine_tune, judge, recipe, run
from ftlib.base import trees
from ftlib.base.errors import InputError
from ftlib.base.settings import read
from ftlib.data import batches, tokens
from ftlib.data.labels import Columns
from ftlib.tasks import score
from ftlib.tasks.score import Config
from ftlib.tasks.task import unlabelled
from tests import tiny
from tests.tasks import alike

ROWS = [
  {'prompt': 'the film was', 'options': ['good', 'bad and dull'], 'label': 0},
  {'prompt': 'this plot', 'options': ['warm', 'is cold', 'of it'], 'label': 'B'},
]
CHOICES = 'good=It was great.|bad=It was awful, very awful.'


@pytest.fixture(scope='module')
def llama(tmp_path_factory):
  return tiny.llama_folder(tmp_path_factory.mktemp('llama'))


@pytest.fixture(scope='module')
def tokenizer(llama):
  return tokens.load(llama)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """Rows with options of their own, of which the right one is a good word, and the class of a text."""
  folder = tmp_path_factory.mktemp('options')
  for seed, (name, count) in enumerate((('train', 48), ('validation', 16), ('test', 12))):
    lines = []
    for i, row in enumerate(tiny.rows(count, seed)):
      options = [tiny.BAD[(i + k) % 7] for k in range(1 + i % 3)]
      options.insert(i % (len(options) + 1), tiny.GOOD[i % 7])
      right = i % len(options)
      lines.append(json.dumps({'prompt': row['text'][:20], 'options': options, 'label': right, 'class': row['label']}))
    (folder / f'{name}.jsonl').write_text('\n'.join(lines) + '\n')
  return folder


@pytest.fixture(scope='module')
def config(llama, data):
  def make(method='full', **task):
    c = recipe.recipe(task='score', method=method, optim='adamw')
    small = tiny.config(llama, data, train__max_length=48, train__steps=16, train__eval_every=8)
    for section in ('model', 'data', 'train', 'mesh', 'checkpoint'):
      c[section] = small[section]
    c.optim.learning_rate = 1e-2
    c.task.update(task)
    return c

  return make


@pytest.fixture(scope='module')
def built(config):
  return run.build(config())


def task(rows=ROWS, **settings):
  own = Config(**settings)
  columns = Columns(*score.columns(own))
  rows = [columns.row(row) if columns.row else row for row in rows]
  return score.build(own, train=rows, known=None), rows


def documents(examples, tokenizer):
  """[(text of the prompt, text of the option)] of every document, by what is supervised."""
  out = []
  for a, b in zip(examples.tokens.offsets, examples.tokens.offsets[1:]):
    own = np.flatnonzero(examples.per_token['weights'][a:b]) + 1
    ids = examples.tokens.ids[a:b]
    assert [*own] == [*range(own[0], own[-1] + 1)]
    out.append((tokenizer.decode(ids[: own[0]]), tokenizer.decode(ids[own])))
  return out


@pytest.mark.parametrize(
  ('settings', 'prompt', 'option'),
  [
    ({}, 'the film was', ' good'),
    ({'template': 'question'}, 'Question: the film was\nAnswer:', ' good'),
    ({'template': 'plain'}, 'the film was\n', 'good'),
    ({'between': ''}, 'the film was', 'good'),
    ({'wrap': 'I say: {prompt}  '}, 'I say: the film was', '  good'),
    ({'between': ' ->'}, 'the film was ->', 'good'),
  ],
)
def test_what_is_asked_and_what_is_scored(tokenizer, settings, prompt, option):
  own, rows = task(**settings)
  examples = own.examples(rows, tokenizer, limit=120)
  assert [len(p) for p in examples.packs] == [2, 3]
  assert documents(examples, tokenizer)[0] == (prompt, option)
  assert examples.extra['labels'].tolist() == [0, 1]


def test_a_prompt_of_several_columns(tokenizer):
  rows = [{'p': 'the {h} film', 'h': 'was good', 'options': ['True', 'False'], 'label': 0}]
  own, rows = task(rows, prompt='p', wrap='{prompt}\nQuestion: {h}?\nAnswer:')
  assert score.columns(own.config).texts == ['p', 'h', 'options']
  assert own.asking(rows[0]) == 'the {h} film\nQuestion: was good?\nAnswer:'


def test_a_chat_has_its_template(tokenizer):
  own, rows = task(template='chat')
  (prompt, option), *_ = documents(own.examples(rows, tokenizer, limit=120), tokenizer)
  assert prompt.endswith('user\nthe film was<|im_end|>\n<|im_start|>assistant\n')
  assert option == 'good<|im_end|>'


def test_scores_are_those_of_each_option_by_itself(tokenizer, built):
  """Whatever the sum of its log-probabilities is divided by."""
  params, frozen = built.load()
  apply = functools.partial(built.method.model.apply, trees.join(params, frozen))
  made = {n: task(normalise=n) for n in score.NORMALISE}
  found = {n: own.examples(rows, tokenizer, limit=120) for n, (own, rows) in made.items()}
  examples, rows = found['none'], made['none'][1]
  batch = batches.collate(examples, range(2), size=3, edges=(112,), pad_id=0)
  divisors = {n: np.pad(e.extra['options'], ((0, 1), (0, 0))) for n, e in found.items()}

  @jax.jit
  def scored(batch, divisors):
    outputs = apply(batch, None)
    return {n: own.predict(outputs, {**batch, 'options': divisors[n]}) for n, (own, _) in made.items()}

  alone = batches.Examples(examples.tokens, {}, examples.per_token)
  one = batches.collate(alone, range(5), size=5, edges=(48,), pad_id=0)
  logits = jax.jit(lambda b: (lambda o: o.unembed(o.hidden))(apply(b, None)))(one)
  logp = np.asarray(jax.nn.log_softmax(logits))
  texts = [option for row in rows for option in row['options']]
  there = batch['options'] > 0
  for normalise, got in scored(batch, divisors).items():
    want = []
    for i, text in enumerate(texts):
      at = np.flatnonzero(one['weights'][i])
      total = logp[i, at, one['targets'][i, at]].sum()
      want.append(total / {'none': 1, 'tokens': len(at), 'characters': len(text)}[normalise])
    assert got['scores'].shape == (3, 3)
    np.testing.assert_allclose(np.asarray(got['scores'])[there], want, rtol=2e-5)
    np.testing.assert_allclose(np.asarray(got['probabilities']).sum(1), 1, rtol=1e-5)
    assert (np.asarray(got['probabilities'])[:2][~there[:2]] == 0).all()


def test_long_prompts_lose_their_beginning(tokenizer):
  rows = [{'prompt': 'the film was ' * 9, 'options': ['good', 'bad and dull'], 'label': 0}]
  own, rows = task(rows)
  examples = own.examples(rows, tokenizer, limit=24)
  assert examples.tokens.truncated == 1
  assert examples.tokens.lengths.max() == 24
  (first, a), (second, b) = documents(examples, tokenizer)
  assert first == second
  assert first.endswith('the film was the film was')
  assert (a.strip(), b.strip()) == ('good', 'bad and dull')
  with pytest.raises(InputError, match=r'row 1: an option alone is longer than train.max_length=6'):
    own.examples(rows, tokenizer, limit=6)
  pair = [([1, 5, 6, 7, 8], [False] * 3 + [True] * 2), ([1, 5, 6, 9], [False] * 3 + [True])]
  assert [ids for ids, _ in score._cut(pair, [1], 4, '')] == [[1, 6, 7, 8], [1, 6, 9]]  # what stands in front stays


def test_choices_are_classes(tokenizer):
  rows = [{'prompt': 'the film was', 'label': v} for v in ('bad', 'good', 'bad')]
  own, rows = task(rows, choices=CHOICES)
  assert (own.labels, own.counts.tolist()) == (['good', 'bad'], [1, 2])
  examples = own.examples(rows, tokenizer, limit=120)
  assert documents(examples, tokenizer)[1][1] == ' It was awful, very awful.'
  logits = np.array([[1.0, 3], [2, 0], [1, 0]])
  p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  got = own.metrics(examples, {'probabilities': p, 'scores': logits})
  assert got['accuracy'] == pytest.approx(2 / 3)
  assert {n for n, v in got.items() if isinstance(v, float)} == own.metric_names.keys()
  records = [*own.records(rows, {'probabilities': p, 'scores': logits})]
  assert [(r['label'], r['prediction']) for r in records] == [('bad', 'bad'), ('good', 'good'), ('bad', 'good')]
  numbers, _ = task([{'prompt': 'x', 'label': v} for v in (0, 1)], choices='0=no|1=yes')
  assert numbers.labels == [0, 1]
  columns = Columns(*score.columns(own.config))
  assert unlabelled(own, rows, columns)[0]['label'] == 'good'


def test_choices_that_cannot_be():
  for choices in ('good', 'good=', 'good=a|good=b', 'good=a'):
    with pytest.raises(InputError, match='choices='):
      read(Config, {'choices': choices}, where='task')
  with pytest.raises(InputError, match=r"row 2: label 'god' is not in task.choices=.*did you mean \"good\""):
    task([{'prompt': 'x', 'label': v} for v in ('good', 'god')], choices=CHOICES)
  with pytest.raises(InputError, match='has no place'):
    read(Config, {'wrap': 'x'}, where='task')


def test_records_and_measures(built):
  rows = built.dataset.splits['test']
  examples = built.examples['test']
  gold = 20.0 * np.eye(len(built.task.labels))[examples.extra['labels']]
  scores = np.where(examples.extra['options'] > 0, gold, -1e9)
  p = np.asarray(jax.nn.softmax(jnp.asarray(scores, jnp.float32)))
  got = built.task.metrics(examples, {'probabilities': p})
  assert got['accuracy'] == 1.0
  assert got['log_loss'] < 1e-6
  records = [*built.task.records(rows, {'probabilities': p, 'scores': scores})]
  assert all(r['label'] == r['prediction'] and r['answer'] in tiny.GOOD for r in records)
  assert json.loads(json.dumps(records)) == records
  assert records[0]['scores'][:2] == [20.0, 0.0]
  assert records[0]['scores'][2:] == [None] * (len(built.task.labels) - 2)


def test_a_run_that_goes_on_is_one_that_never_stopped(config, built, tmp_path):
  whole, again = alike.stopped_and_not(built, run.build(config()), tmp_path)
  assert all(np.array_equal(a, b) for a, b in zip(whole, again, strict=True))


def test_padding_and_order_do_not_change_a_prediction(built):
  own, frozen = built.load()
  examples = built.examples['validation']

  def find(numbers, size, edge):
    batch = batches.collate(examples, numbers, size=size, edges=(edge,), pad_id=0)
    sums, got = built.eval_step(own, frozen, batch)
    return {n: np.asarray(x)[: len(numbers)] for n, x in got.items()}, sums

  longest = int(examples.lengths.max())
  (tight, a), (wide, b) = find([*range(16)], 16, longest), find([*range(16)][::-1], 19, longest + 5)
  for name, values in tight.items():
    np.testing.assert_allclose(wide[name][::-1], values, rtol=1e-5, atol=2e-5, err_msg=name)
  assert a['loss'][1] == b['loss'][1] == 16
  assert float(a['loss'][0]) == pytest.approx(float(b['loss'][0]), rel=1e-5)


def test_it_is_judged_as_it_is_and_then_trained(config, tmp_path):
  c = config('lora', normalise='tokens')
  c.train.eval_start, c.train.eval_every = True, 16
  fine_tune.run(c, str(tmp_path / 'run'))
  log = [json.loads(line) for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()]
  losses = [r['loss'] for r in log if r['split'] == 'train']
  assert losses[-1] < 0.7 * losses[0]
  before, after = (r for r in log if r['split'] == 'validation')
  assert after['accuracy'] > before['accuracy']
  assert 'Results on validation' in (tmp_path / 'run' / 'report.html').read_text()


def test_classes_by_choices_zero_shot(config):
  got = judge.untrained(config(choices='good=great|bad=awful', label='class'), split='test', output=None)
  assert set(got['per_class']) == {'good', 'bad'}
