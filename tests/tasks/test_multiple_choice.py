"""Multiple choice: options of different number, what a row of a batch holds, and what is wrong with data."""

from __future__ import annotations

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftlib import recipe, run
from ftlib.base import trees
from ftlib.base.errors import InputError
from ftlib.base.types import Head, Outputs
from ftlib.data import batches, preparation, tokens
from ftlib.data.labels import Columns
from ftlib.data.preparation import load
from ftlib.models import bert
from ftlib.tasks import multiple_choice
from ftlib.tasks.multiple_choice import Config
from ftlib.tasks.task import unlabelled
from tests import tiny


@pytest.fixture(scope='module')
def tokenizer(tiny_bert):
  return tokens.load(tiny_bert)


ROWS = [
  {'question': 'was it good', 'options': ['good film', 'bad'], 'label': 0},
  {'question': 'the plot', 'options': ['dull', 'a warm movie', 'cold and grim', 'weak'], 'label': 2},
  {'question': 'it is', 'options': ['fine', 'poor', 'awful'], 'label': 1},
]


def task(rows=ROWS, known=None, **settings):
  return multiple_choice.build(Config(**settings), train=rows, known=known)


def prepared(folder, rows, **settings):
  (folder / 'train.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
  columns = Columns(*multiple_choice.columns(Config(**settings)))
  return load(preparation.Config(path=str(folder)), **columns._asdict())


def test_a_row_holds_its_options_behind_the_question(tokenizer):
  own = task()
  assert own.labels == ['A', 'B', 'C', 'D']
  assert own.counts.tolist() == [1, 1, 1, 0]
  assert own.head == Head('classify', 1, '', documents=4)
  examples = own.examples(ROWS, tokenizer, limit=40)
  assert [len(p) for p in examples.packs] == [2, 4, 3]
  batch = batches.collate(examples, range(3), size=4, edges=(40,), pad_id=0)
  assert batch['options'].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0]]
  assert batch['labels'][:3].tolist() == [0, 2, 1]
  for r, row in enumerate(ROWS):
    for k, option in enumerate(row['options'], 1):
      mine = batch['segments'][r] == k
      want = tokenizer(row['question'], option)
      assert batch['tokens'][r][mine].tolist() == want['input_ids']
      assert batch['types'][r][mine].tolist() == want['token_type_ids']
      assert batch['positions'][r][mine].tolist() == [*range(mine.sum())]


def test_with_a_context_question_and_option_are_the_second_text(tokenizer):
  rows = [{'text': 'the film was good', 'q': 'was it', 'a': 'good', 'b': 'bad', 'c': '', 'label': 1}]
  own = task(rows, question='q', context='text', options='a,b,c')
  examples = own.examples(rows, tokenizer, limit=40)
  ids = examples.tokens.ids[: examples.tokens.offsets[1]]
  assert ids.tolist() == tokenizer('the film was good', 'was it good')['input_ids']
  assert len(examples.tokens) == 2
  cut = own.examples(rows, tokenizer, limit=8)
  assert tokenizer.decode(cut.tokens.ids[:8]) == '[CLS] the film [SEP] was it good [SEP]'
  assert cut.tokens.truncated == 1  # of rows
  least = own.examples(rows, tokenizer, limit=5)
  assert tokenizer.decode(least.tokens.ids[:5]) == '[CLS] [SEP] it good [SEP]'  # the option last of all


def test_an_option_has_the_score_that_it_has_alone(tokenizer):
  """Neither the other options of its row nor padding change its logit."""
  own = task(pooling='cls')
  examples = own.examples(ROWS, tokenizer, limit=40)
  config = bert.from_hf(tiny.CONFIG)
  together = bert.build(config, head=Head('classify', 1, 'cls', documents=4))
  alone = bert.build(config, head=Head('classify', 1, 'cls'))
  flat = trees.flatten(together.initial(jax.random.key(0)))
  params = trees.unflatten(flat)
  batch = batches.collate(examples, range(3), size=3, edges=(48,), pad_id=0)
  got = jax.jit(functools.partial(together.apply, params))(batch, None).logits
  assert got.shape == (3, 4, 1)
  one = batches.collate(apart(examples), range(9), size=9, edges=(16,), pad_id=0)
  want = np.asarray(jax.jit(functools.partial(alone.apply, params))(one, None).logits)[:, 0]
  assert want.std() > 0.01
  np.testing.assert_allclose(np.asarray(got)[batch['options'] > 0][:, 0], want, atol=2e-6)


def apart(examples):
  return batches.Examples(examples.tokens, {})


def test_options_that_a_row_has_not_are_never_chosen():
  own = task()
  extra = {'options': np.array([[1, 1, 0, 0], [1, 1, 1, 1]], np.float32)}
  logits = jnp.asarray([[-9.0, -8, 5, 6], [0, 1, 2, 3]])[..., None]
  got = np.asarray(own.predict(Outputs(None, logits=logits), extra)['probabilities'])
  assert got[0].tolist() == pytest.approx([1 / (1 + np.e), np.e / (1 + np.e), 0, 0])
  assert got[1].argmax() == 3


def test_measures():
  got = multiple_choice.score(np.array([0, 2]), np.array([[0.25, 0.75, 0], [0.1, 0.4, 0.5]]), 3)
  assert got['accuracy'] == 0.5
  assert got['log_loss'] == pytest.approx(-(np.log(0.25) + np.log(0.5)) / 2)
  assert got['confusion'] == [[0, 1, 0], [0, 0, 0], [0, 0, 1]]


def test_records():
  own = task()
  p = np.array([[0.9, 0.1, 0, 0], [0.1, 0.2, 0.3, 0.4], [0.1, 0.8, 0.1, 0]])
  records = [*own.records(ROWS, {'probabilities': p})]
  assert [(r['label'], r['prediction'], r['answer']) for r in records] == [
    ('A', 'A', 'good film'),
    ('C', 'D', 'weak'),
    ('B', 'B', 'poor'),
  ]
  columns = Columns(*multiple_choice.columns(own.config))
  asked = [columns.row(row) for row in unlabelled(own, ROWS, columns)]
  assert [r['label'] for r in own.records(asked, {'probabilities': p})] == [None] * 3


def test_rows_of_arc(tmp_path):
  choices = {'text': ['good', 'bad', 'fine'], 'label': ['1', '2', '3']}
  rows = [{'question': f'it is {w}', 'options': choices, 'label': '3'} for w in tiny.NEUTRAL]
  data = prepared(tmp_path, rows)
  row = data.splits['train'][0]
  assert (row['options'], row['label']) == (['good', 'bad', 'fine'], 2)


@pytest.mark.parametrize(
  ('change', 'fault'),
  [
    ({'label': 2}, r"train.jsonl:4: the label '2' names none of the 2 options"),
    ({'label': 'C'}, r"train.jsonl:4: the label 'C' names none"),
    ({'options': ['one']}, r'train.jsonl:4: there is one option'),
    ({'options': 'good'}, r'train.jsonl:4: "options" is the str .*options are a list of texts'),
    ({'options': ['good', '']}, r'train.jsonl:4: option 2 of 2 is empty'),
    ({'question': ' '}, r'train.jsonl:4: "question" is empty'),
    ({'label': None}, r'train.jsonl:4: "label" is null'),
  ],
)
def test_faulty_rows(tmp_path, change, fault):
  rows = [{'question': f'it is {w}', 'options': ['good', 'bad'], 'label': 1} for w in tiny.NEUTRAL[:10]]
  rows[3] |= change
  with pytest.raises(InputError, match=fault):
    prepared(tmp_path, rows)


def test_more_options_than_the_run_has(tokenizer):
  own = task(ROWS[:1])
  with pytest.raises(InputError, match=r'row 2: 4 options, but the run has 2 .*task.most=4'):
    own.examples(ROWS, tokenizer, limit=40)
  assert len(task(ROWS[:1], most=4).labels) == 4
  assert task(None, known=['A', 'B', 'C']).labels == ['A', 'B', 'C']
  with pytest.raises(InputError, match=r'task.most=3: a training row has 4'):
    task(most=3)


def test_virtual_tokens_are_refused(tiny_bert, tmp_path):
  for name in ('train', 'validation'):
    (tmp_path / f'{name}.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in ROWS))
  c = recipe.recipe(task='multiple_choice', method='prompt', optim='adamw')
  c.model.pretrained, c.data.path, c.mesh.shape = str(tiny_bert), str(tmp_path), 'data=1'
  with pytest.raises(InputError, match='virtual tokens'):
    run.build(c)
