"""Language models over a tiny Llama: packing leaks nothing and changes no loss, accumulation and resuming neither."""

from __future__ import annotations

import functools
import json
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftlib import fine_tune, folder, judge, recipe, run, show
from ftlib.base import trees
from ftlib.base.errors import InputError
from ftlib.data import batches, packing
from ftlib.train.step import make_train_step
from tests import tiny
from tests.tasks import alike

WINDOW = 64


@pytest.fixture(scope='module')
def llama(tmp_path_factory):
  return tiny.llama_folder(tmp_path_factory.mktemp('llama'))


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """Conversations whose answer follows from a word of the question, and the same rows as plain text."""
  folder = tmp_path_factory.mktemp('talks')
  for seed, (name, count) in enumerate((('train', 64), ('validation', 16), ('test', 12))):
    rng, lines = random.Random(seed), []
    for row in tiny.rows(count, seed):
      answer = rng.choice(tiny.GOOD if row['label'] == 'good' else tiny.BAD)
      talk = [{'role': 'user', 'content': row['text'][:30]}, {'role': 'assistant', 'content': answer}]
      lines.append(json.dumps({'messages': talk, 'text': row['text'], 'label': row['label']}))
    (folder / f'{name}.jsonl').write_text('\n'.join(lines) + '\n')
  return folder


@pytest.fixture(scope='module')
def config(llama, data):
  def make(*, task='sft', method='lora', **values):
    c = recipe.recipe(task=task, method=method, optim='adamw')
    small = tiny.config(llama, data, **{'train__max_length': WINDOW, 'train__steps': 6, **values})
    for section in ('model', 'data', 'train', 'mesh', 'checkpoint'):
      c[section] = small[section]
    c.optim.learning_rate = 1e-2
    return c

  return make


@pytest.fixture(scope='module', params=['sft', 'lm'])
def task(request):
  return request.param


@pytest.fixture(scope='module')
def built(config):
  return run.build(config(train__packing=True))


@pytest.mark.parametrize('method', ['houlsby', 'gradual', 'last_n', 'lora+norm'])
def test_what_trains_where_there_is_no_head(config, method):
  """The patterns that the methods have for a head are found nowhere here; others must be."""
  made = config(method=method)
  built = run.build(made)
  assert not [n for n in built.info if n.startswith(('head/', 'pooler/', 'mlm/'))]
  assert built.method.stages is None or built.method.stages.of('layers/1/attn/q/kernel') == 0
  for section in (made.method.lora, made.method.norm) if '+' in method else (made.method,):
    section.also = '^(head|haed)/'
    with pytest.raises(InputError, match=r'haed.* matches none of the'):
      run.build(made)
    section.also = '^head/'


@pytest.mark.parametrize('method', ['lora', 'prefix'])
def test_packed_rows_have_the_loss_of_padded_ones(config, built, method):
  """The same documents, packed and each a row of its own; every document sees a prefix."""
  built = built if method == 'lora' else run.build(config(method=method, train__packing=True))
  own, frozen = built.load()
  train = built.examples['train']
  assert train.packs
  assert len(train) < len(train.unpacked) / 1.5
  apply = functools.partial(built.method.model.apply, trees.join(own, frozen))
  pad = built.tokenizer.pad_token_id
  packs = [0, 1, 2]
  packed = batches.collate(train, packs, size=4, edges=built.edges, pad_id=pad)
  numbers = train.documents(packs)
  padded = batches.collate(train.unpacked, numbers, size=len(numbers), edges=(WINDOW,), pad_id=pad)
  loss = jax.jit(lambda b: built.objective(apply, b, None))
  a, b = loss(packed), loss(padded)
  for name in a:
    assert float(a[name][1]) == float(b[name][1]) > 0
    assert float(a[name][0]) == pytest.approx(float(b[name][0]), rel=1e-5), name


def test_no_gradient_crosses_a_document(built):
  """What one document loses does not depend on the other documents of its row, at all."""
  own, frozen = built.load()
  params = trees.join(own, frozen)
  batch = batches.collate(built.examples['train'], [0], size=1, edges=built.edges, pad_id=0)
  segments = batch['segments'][0]
  assert segments.max() >= 2
  table = params['embed']['token']['table'][batch['tokens'][0]]
  shown_ = {**batch, 'tokens': np.arange(WINDOW, dtype=np.int32)[None]}  # every position has a vector of its own

  def loss(table, one):
    embed = {**params['embed'], 'token': {**params['embed']['token'], 'table': table}}
    outputs = built.method.model.apply({**params, 'embed': embed}, shown_, None)
    logits = outputs.hidden @ params['embed']['token']['table'].T
    nll = -jax.nn.log_softmax(logits)[0, jnp.arange(WINDOW), batch['targets'][0]]
    return (nll * (segments == one)).sum()

  table = jnp.zeros((params['embed']['token']['table'].shape[0], table.shape[1])).at[:WINDOW].set(table)
  grad = jax.jit(jax.grad(loss), static_argnums=1)
  for one in (1, 2):
    moved = np.abs(np.asarray(grad(table, one))[:WINDOW]).sum(-1)
    assert (moved[segments != one] == 0).all()
    assert (moved[segments == one][:-1] > 0).all()


def test_accumulation_changes_nothing(built):
  own, frozen = built.load()
  _, batch, counted = built.batch(0)
  assert counted == int((batch['segments'] > 0).sum())
  make = functools.partial(make_train_step, built.method.model.apply, built.objective, built.optimizer.tx)
  found = []
  for micro in (1, 4):
    state, sums = jax.jit(make(micro=micro))(built.start(own, frozen), frozen, batch)
    found.append((jax.device_get(trees.flatten(state.trainable)), jax.device_get(sums)))
  for name, value in found[0][0].items():
    np.testing.assert_allclose(found[1][0][name], value, atol=2e-6, err_msg=name)
  assert float(found[1][1]['loss'][1]) == float(found[0][1]['loss'][1])
  assert float(found[1][1]['loss'][0]) == pytest.approx(float(found[0][1]['loss'][0]), rel=1e-5)


@pytest.mark.parametrize('of', ['sft', 'lm', 'generate'])
def test_a_run_that_goes_on_is_one_that_never_stopped(config, of, tmp_path):
  whole, again = alike.stopped_and_not(run.build(config(task=of)), run.build(config(task=of)), tmp_path)
  assert all(np.array_equal(a, b) for a, b in zip(whole, again, strict=True))


def test_a_batch_follows_from_its_step_alone(config, built):
  again = run.build(config(train__packing=True))
  for step in (5, 0, 3):
    rows, batch, _ = built.batch(step)
    others, other, _ = again.batch(step)
    np.testing.assert_array_equal(rows, others)
    for name in batch:
      np.testing.assert_array_equal(batch[name], other[name], err_msg=name)
  steps = built.order.steps_per_epoch
  seen = np.concatenate([built.examples['train'].documents(built.order.rows(i)) for i in range(steps)])
  assert sorted(seen.tolist()) == [*range(64)]
  assert steps == -(-len(built.examples['train']) // 16)


def test_evaluation_is_of_rows_not_of_packs(built):
  own, frozen = built.load()
  metrics, predictions = built.evaluate(own, frozen, 'train')
  assert len(predictions['nll']) == 64
  assert predictions['counted'].sum() == built.examples['train'].per_token['weights'].sum()
  assert metrics['loss'] == pytest.approx(np.log(metrics['perplexity']), rel=1e-5)
  assert metrics['loss'] == pytest.approx(predictions['nll'].sum() / predictions['counted'].sum(), rel=1e-5)


def test_metrics_know_better_from_worse(built):
  """Of the gold tokens, and of others."""
  vocab = built.method.model.config.vocab
  batch = batches.collate(built.examples['test'], range(12), size=12, edges=built.edges, pad_id=0)
  onehot = jax.nn.one_hot(batch['targets'], vocab)
  from ftlib.base.types import Outputs

  def judged(hidden):
    got = built.task.predict(Outputs(hidden, unembed=lambda h: h), batch)
    return built.task.metrics(built.examples['test'], {n: np.asarray(x) for n, x in got.items()})

  right, wrong = judged(onehot * 50), judged(jnp.roll(onehot, 1, -1) * 3)
  assert right == {'perplexity': pytest.approx(1), 'bits_per_token': pytest.approx(0, abs=1e-6), 'accuracy': 1.0}
  assert right.keys() == built.task.metric_names.keys()
  for name, higher in built.task.metric_names.items():
    assert (wrong[name] < right[name]) is higher, name


def test_it_trains_and_is_evaluated(config, task, tmp_path, capsys):
  method = 'lora' if task == 'sft' else 'full'
  c = config(
    task=task, method=method, train__steps=24, train__eval_every=8, train__packing=task == 'sft', data__limit=48
  )
  fine_tune.run(c, str(tmp_path / 'run'))
  out = capsys.readouterr().out
  assert ('packing' in out) is (task == 'sft')
  assert 'of the training tokens' in out
  log = [json.loads(line) for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()]
  losses = [r['loss'] for r in log if r['split'] == 'train']
  assert losses[-1] < 0.8 * losses[0]
  metrics = judge.run(str(tmp_path / 'run'), split='test', checkpoint='best')
  best = json.loads((tmp_path / 'run' / 'summary.json').read_text())['best_metric']
  assert best['name'] == 'perplexity'
  assert best['value'] == min(r['perplexity'] for r in log if r['split'] == 'validation')
  records = [
    json.loads(line) for line in (tmp_path / 'run' / 'eval' / 'test_predictions.jsonl').read_text().splitlines()
  ]
  assert len(records) == 12
  mean = sum(r['loss'] * r['tokens'] for r in records) / sum(r['tokens'] for r in records)
  assert metrics['loss'] == pytest.approx(mean, rel=1e-4)
  assert 'Results on test' in (tmp_path / 'run' / 'report.html').read_text()


def test_padding_and_order_do_not_change_a_prediction(built):
  tight, wide = alike.tight_and_wide(built)
  for name, values in tight.items():
    np.testing.assert_allclose(wide[name], values, rtol=1e-5, atol=2e-5, err_msg=name)


def test_preview_shows_the_answers(built):
  text = show.preview(built, 2, colour=False)
  answers = [built.dataset.splits['train'][i]['messages'][1]['content'] for i in (0, 1)]
  assert all(f'[[{a}<|im_end|>]]' in text for a in answers)
  assert text.count('[[') == 2
  assert 'train.jsonl:1: ' in text
  with pytest.raises(InputError, match='--preview=0'):
    show.preview(built, 0, colour=False)


def test_bad_input(config, llama, data, tmp_path):
  c = recipe.recipe(task='classify', method='full', optim='adamw')
  c.model.pretrained, c.data.path, c.train.packing, c.mesh.shape = str(llama), str(data), True, 'data=1'
  c.task.pooling = 'mean'
  with pytest.raises(InputError, match=r'train.packing=true is for tasks that predict tokens'):
    run.build(c)
  with pytest.raises(InputError, match=r'virtual tokens'):
    run.build(config(method='prompt', train__packing=True))
  short = tiny.llama_folder(tmp_path, vocab_size=320)
  tiny.chat_tokenizer(short, size=400)
  c = config()
  c.model.pretrained = str(short)
  with pytest.raises(InputError, match=r'tokenizer has 3\d\d tokens, the model 320 embeddings'):
    run.build(c)


def test_waste_is_in_the_summary(built, tmp_path):
  share = packing.waste(built.examples['train'])
  assert f'{share:.2%} of their tokens wasted' in show.summary(built, tmp_path)


def test_rows_that_were_dropped_move_no_other(config, data, tmp_path):
  """Records, previews and answers are those of the rows that are left."""
  talks = [json.loads(line) for line in (data / 'train.jsonl').read_text().splitlines()[:40]]
  for i, talk in enumerate(talks):
    talk['id'] = f'row {i}'
  talks[7]['messages'][0]['content'] = 'the film was long ' * 40
  for name in ('train', 'validation', 'test'):
    (tmp_path / f'{name}.jsonl').write_text('\n'.join(map(json.dumps, talks)) + '\n')
  c = config(data__path=str(tmp_path))
  c.task.truncate = 'drop'
  r = run.build(c)
  metrics, predictions = r.evaluate(*r.load(), 'validation')
  folder.write_evaluation(tmp_path, r, 'validation', metrics, predictions, 1)
  records = [json.loads(line) for line in (tmp_path / 'eval' / 'validation_predictions.jsonl').read_text().splitlines()]
  assert [x['id'] for x in records] == [f'row {i}' for i in range(40) if i != 7]
  assert ['train.jsonl:10' in line for line in show.preview(r, 9, colour=False).splitlines() if '---' in line][8]
