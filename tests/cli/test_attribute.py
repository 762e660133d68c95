"""python -m ftlib.attribute: completeness, rollout by hand from the model's own attention, what is refused."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest

from ftlib import attribute, judge, recipe, run
from ftlib.base import trees
from ftlib.base.errors import InputError
from ftlib.data import batches
from ftlib.evals import report_data, report_more
from ftlib.models import attention, inside
from ftlib.tasks import several
from tests import tiny
from tests.contract import gold_relation

IG, ROLLOUT = attribute.METHODS


@pytest.fixture(scope='module')
def opened(trained):
  """(run, own, frozen) of the trained encoder."""
  return judge.opened(str(trained.folder), 'test', 'last')[:3]


@pytest.fixture(scope='module')
def decoder(tmp_path_factory, toy_data):
  """(run, own, frozen) of a decoder with a fresh class head, grouped keys and a prompt in front."""
  folder = tiny.llama_folder(tmp_path_factory.mktemp('llama'))
  built = run.build(
    tiny.config(folder, toy_data, method='prompt', method__length=3, task__pooling='last'), split='test'
  )
  return built, *built.load()


@pytest.fixture(scope='module')
def relation(tmp_path_factory, tiny_bert):
  """(run, own, frozen) of an encoder whose fresh head reads two marked tokens."""
  folder = tmp_path_factory.mktemp('relation')
  for seed, split in enumerate(('train', 'validation', 'test')):
    rows = gold_relation.rows(8, seed)
    (folder / f'{split}.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
  c = tiny.config(tiny_bert, folder)
  c.task = recipe.component_section('task', 'relation')
  built = run.build(c, split='test')
  return built, *built.load()


@pytest.fixture(params=['opened', 'decoder'])
def model(request):
  return request.getfixturevalue(request.param)


def batch_of(built, row):
  examples = built.examples['test']
  length = int(examples.tokens.lengths[row])
  return batches.collate(examples, [row], size=1, edges=(length,), pad_id=built.tokenizer.pad_token_id)


def test_shares_sum_to_the_difference_of_logits(model):
  found = attribute.attributed(*model, 'test', [3, 17], method=IG, steps=16)
  built, own, frozen = model
  for record, row in zip(found, (3, 17), strict=True):
    weights = np.array([w for _, w in record['tokens']])
    logits = built.method.model.apply(trees.join(own, frozen), batch_of(built, row), None).logits[0]
    assert record['target'] == str(built.task.labels[int(logits.argmax())])
    assert record['value'] == pytest.approx(float(logits.max()), abs=1e-4)
    assert weights.sum() == pytest.approx(record['value'] - record['baseline'], abs=0.02 * abs(weights).sum() + 1e-3)
    assert record['completeness'] == pytest.approx(
      abs(weights.sum() - record['value'] + record['baseline']) / abs(record['value'] - record['baseline']), abs=1e-3
    )
    if not built.method.tokens:  # an encoder's special tokens stay as they are
      assert [t.strip() for t, w in record['tokens'] if w == 0] == ['[CLS]', '[SEP]']
    words = ''.join(t for t, _ in record['tokens'] if not t.strip().startswith('['))
    assert words.strip() == built.dataset.splits['test'][row]['text']
  other = {'good': 'bad', 'bad': 'good'}[found[0]['target']]
  against = attribute.attributed(*model, 'test', [3], method=IG, steps=8, target=other)[0]
  assert against['target'] == other
  assert against['value'] < found[0]['value']


def test_a_word_that_the_tokenizer_does_not_know_has_its_share(opened):
  built, own, frozen = opened
  rows = built.dataset.splits['test']
  rows = dataclasses.replace(rows, rows=[{'text': 'good xyzzy film', 'label': 'good'}])
  examples = built.task.examples(rows, built.tokenizer, limit=built.limit)
  built = dataclasses.replace(
    built, examples={'test': examples}, dataset=dataclasses.replace(built.dataset, splits={'test': rows})
  )
  (record,) = attribute.attributed(built, own, frozen, 'test', [0], method=IG, steps=4)
  shares = {text.strip(): weight for text, weight in record['tokens']}
  assert [*shares] == ['[CLS]', 'good', '[UNK]', 'film', '[SEP]']
  assert [text for text, weight in shares.items() if weight == 0] == ['[CLS]', '[SEP]']


def test_watched_attention_is_that_of_the_model(model):
  built, own, frozen = model
  params, batch = trees.join(own, frozen), batch_of(built, 0)
  plain = built.method.model.apply(params, batch, None).logits
  outputs, layers = inside.attended(built.method.model, params, batch)
  np.testing.assert_allclose(outputs.logits, plain, atol=1e-6)
  assert len(layers) == 2
  length = batch['tokens'].shape[1] + built.method.tokens
  for p_BHQL in layers:
    assert p_BHQL.shape == (1, 4, length, length)
    np.testing.assert_allclose(np.asarray(p_BHQL).sum(-1), 1, atol=1e-5)
    assert np.asarray(p_BHQL).std() > 0
  if built.method.tokens:  # a decoder sees nothing of what comes
    assert float(np.triu(np.asarray(layers[0])[0, 0], 1).max()) < 1e-6
  q, k = (jax.random.normal(jax.random.key(i), (1, 5, 4, 8)) for i in range(2))
  with attention.watched() as seen:
    attention.attention(q, k, k, np.ones((1, 1, 5, 5), bool))
  want = jax.nn.softmax(np.einsum('bqhk,blhk->bhql', q, k) / np.sqrt(8))
  np.testing.assert_allclose(seen[0], want, atol=1e-5)


@pytest.mark.parametrize('model', ['opened', 'decoder', 'relation'], indirect=True)
def test_rollout_is_of_what_the_head_reads(model):
  built, own, frozen = model
  record = attribute.attributed(*model, 'test', [2], method=ROLLOUT, steps=1)[0]
  weights = np.array([w for _, w in record['tokens']])
  assert weights.min() >= 0
  assert weights.sum() == pytest.approx(1, abs=1e-4)
  batch = batch_of(built, 2)
  _, layers = inside.attended(built.method.model, trees.join(own, frozen), batch)
  total = np.eye(layers[0].shape[2])
  for p in layers:
    total = (np.asarray(p, float)[0].mean(0) / 2 + np.eye(len(total)) / 2) @ total
  lead = built.method.tokens
  read = batch['marks'][0] if 'marks' in batch else [-1 if built.settings.task.pooling == 'last' else 0]
  onto = total[read, lead:]
  np.testing.assert_allclose(weights, (onto / onto.sum(1, keepdims=True)).mean(0), atol=2e-6)


def test_what_the_task_predicts_is_attributed(trained, opened):
  """By its threshold, and of several tasks at once among the row's own classes."""
  _, own, frozen = opened
  for threshold, label in (('0.999999', 'bad'), ('0.000001', 'good')):
    other = run.build(trained.config(task__threshold=threshold), split='test')
    for record in attribute.attributed(other, own, frozen, 'test', [3, 17], method=ROLLOUT, steps=1):
      assert record['target'] == label
  parts = several.Config(parts='a=classify; b=similarity,text=text,pair=; c=multilabel; d=classify,threshold=0.9')
  labels = ['a/x', 'a/y', 'b', 'c+x', 'c+y', 'd/x', 'd/y']
  built = types.SimpleNamespace(task=several.build(parts, train=None, known=labels))
  row = {'text': 'a film', 'label': 'x', 'labels': [], 'score': 1.0}
  got = {n: attribute._target(built, np.array([0, 1, 9, 3, 2, 0, 1.0]), '', {**row, 'task': n}) for n in 'abcd'}
  assert {n: labels[c] for n, c in got.items()} == {'a': 'a/y', 'b': 'b', 'c': 'c+x', 'd': 'd/x'}


def test_the_program(copied, monkeypatch, capsys):
  flags = types.SimpleNamespace(workdir=str(copied), split='test', checkpoint='last', rows=['1', '4'])
  flags.method, flags.target, flags.steps = IG, '', 8
  monkeypatch.setattr('absl.flags.FLAGS', flags)
  attribute.main()
  said = capsys.readouterr().out
  assert '--- row 1: ' in said
  assert 'off by 0.' in said
  rows = [json.loads(line) for line in (copied / 'eval' / 'test_attribution.jsonl').read_text().splitlines()]
  assert [r['row'] for r in rows] == [1, 4]
  split = next(s for s in report_data.read(copied).splits if s.name == 'test')
  page = report_more.attributed(split)
  assert page.count('class="tokens"') == 2
  assert all(t.strip() in page for t, _ in rows[0]['tokens'] if t.strip() and '[' not in t)
  for changes, words in (
    ({'rows': []}, 'give the rows that are meant'),
    ({'rows': ['x']}, '--rows=x: wanted numbers'),
    ({'rows': ['24']}, 'test has the rows 0 to 23, and no 24'),
    ({'method': 'rolout'}, 'did you mean "rollout"'),
    ({'target': 'godo'}, 'did you mean "good"'),
    ({'steps': 0}, '--steps=0'),
    ({'split': 'tset'}, 'did you mean "test"'),
  ):
    monkeypatch.setattr('absl.flags.FLAGS', types.SimpleNamespace(**{**vars(flags), **changes}))
    with pytest.raises(InputError, match=words):
      attribute.main()


def test_colours_follow_the_sign():
  record = {'row': 0, 'target': 'good', 'tokens': [['fine', 0.5], [' dull', -1.0], [' a', 0.0]]}
  said = attribute.shown(record, colour=True)
  assert '\x1b[48;2;183;208;228mfine' in said  # half the way to blue
  assert '\x1b[48;2;214;130;88m dull' in said
  assert '\x1b[48;2;255;255;255m a' in said
  assert '+0.5000  fine' in attribute.shown(record, colour=False)
