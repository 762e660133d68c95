"""Masked words: which tokens are a word, windows, masks that stay, and a run over a tiny BERT."""

from __future__ import annotations

import functools
import json
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ftlib
from ftlib import config_file, export, fine_tune, folder, judge, recipe, run, shapes, show
from ftlib.base import trees
from ftlib.base.errors import InputError
from ftlib.base.types import Head, Outputs
from ftlib.data import batches, preview, tokens
from ftlib.models import bert
from ftlib.tasks import lm, mask
from ftlib.train.step import make_train_step
from tests import tiny
from tests.tasks import alike

CHINESE = '不怕辛苦的人'
BASE = {'vocab_size': 30522, 'hidden_size': 768, 'num_hidden_layers': 12, 'intermediate_size': 3072}
BASE |= {'num_attention_heads': 12, 'max_position_embeddings': 512}


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  """The tiny BERT's, with Chinese characters for some of its unused tokens."""
  folder = tiny.bert_folder(tmp_path_factory.mktemp('chinese'))
  lines = (folder / 'vocab.txt').read_text()
  for i, char in enumerate(CHINESE):
    lines = lines.replace(f'[unused{i}]\n', f'{char}\n')
  (folder / 'vocab.txt').write_text(lines)
  return tokens.load(folder)


def examples(tokenizer, *texts, limit=16, **config):
  task = mask.build(mask.Config(**config), train=None, known=None)
  return task.examples([{'text': t} for t in texts], tokenizer, limit=limit)


def document(found, i, name):
  start, stop = found.tokens.offsets[i : i + 2]
  return (found.tokens.ids if name == 'shown' else found.per_token[name])[start:stop]


def test_words_of_several_pieces_and_chinese_characters(tokenizer):
  found = examples(tokenizer, f'good ab {CHINESE} [MASK] zz')
  pieces = tokenizer.convert_ids_to_tokens(document(found, 0, 'targets').tolist())
  assert pieces[:10] == ['[CLS]', 'good', 'a', '##b', *CHINESE]
  assert document(found, 0, 'words').tolist() == [0, 1, 1, 2, *[1] * 6, 0, 0, 0, 0, 0]  # no one guesses the unknown
  assert document(examples(tokenizer, 'good ab', whole_words=False), 0, 'words').tolist() == [0, 1, 1, 1, 0]


def encoding(text, *pieces):
  """An encoding whose words are parted by spaces alone, as SentencePiece has them."""
  offsets, word_ids, at = [], [], 0
  for piece in pieces:
    at = text.index(piece, at)
    offsets.append((at, at + len(piece)))
    word_ids.append(text[:at].count(' '))
    at += len(piece)
  count = len(pieces)
  return types.SimpleNamespace(ids=[7] * count, word_ids=word_ids, offsets=offsets, special_tokens_mask=[0] * count)


@pytest.mark.parametrize(
  ('text', 'pieces', 'words'),
  [
    ('un believ able', ('un', 'believ', 'able'), [1, 1, 1]),
    ('unbelievable film', ('un', 'believ', 'able', 'film'), [1, 2, 2, 1]),
    ('我喜欢这部电影', ('我', '喜欢', '这部', '电影'), [1, 1, 1, 1]),
    ('看iphone吧', ('看', 'ip', 'hone', '吧'), [1, 1, 2, 1]),
    ('ฉันรัก', ('ฉัน', 'รัก'), [1, 1]),
    ('映画館', ('映画', '館'), [1, 1]),
  ],
)
def test_scripts_without_spaces_have_a_word_a_token(text, pieces, words):
  task = mask.build(mask.Config(), train=None, known=None)
  assert task._words(encoding(text, *pieces), text, None) == words


def test_bytes_of_a_character_stay_together():
  e = types.SimpleNamespace(
    ids=[7, 7, 7], word_ids=[0, 0, 0], offsets=[(0, 1), (0, 1), (1, 2)], special_tokens_mask=[0] * 3
  )
  assert mask.build(mask.Config(), train=None, known=None)._words(e, '龘好', None) == [1, 2, 1]


def test_windows_hold_every_token_once(tokenizer):
  text = ' '.join(tiny.NEUTRAL + tiny.GOOD + tiny.BAD)
  found = examples(tokenizer, 'good', text, 'a film', limit=9)
  assert found.rows.tolist() == [0, *[1] * 5, 2]
  assert found.tokens.lengths.max() == 9
  inside = [document(found, i, 'targets')[1:-1] for i in range(1, 6)]
  assert np.concatenate(inside).tolist() == tokenizer(text, add_special_tokens=False)['input_ids']
  assert {document(found, i, 'targets')[0] for i in range(7)} == {tokenizer.cls_token_id}
  assert found.notes == ['rows: 3 texts make 7 windows of 9 tokens']
  assert not examples(tokenizer, 'good').notes


def test_masks_of_evaluation_follow_from_the_document_alone(tokenizer):
  texts = [r['text'] for r in tiny.rows(60, 1)]
  found, other = examples(tokenizer, *texts), examples(tokenizer, 'a film', *texts[::-1])
  for i in range(60):
    for name in ('shown', 'weights'):
      np.testing.assert_array_equal(document(found, i, name), document(other, 60 - i, name))
    hidden = document(found, i, 'weights') > 0
    assert 1 <= hidden.sum() <= len(hidden) // 3
    assert not hidden[[0, -1]].any()
    same = document(found, i, 'shown') == document(found, i, 'targets')
    assert same[~hidden].all()
  hidden, masked = found.per_token['weights'] > 0, found.tokens.ids == tokenizer.mask_token_id
  assert 0.1 < hidden[found.per_token['words'] > 0].mean() < 0.25
  assert 0.6 < masked[hidden].mean() < 0.95
  assert not masked[~hidden].any()


def test_tokenizers_without_a_mask_token_are_refused(tmp_path):
  with pytest.raises(InputError, match=r'no mask token.*task\.name=lm'):
    examples(tokens.load(tiny.chat_tokenizer(tmp_path, size=300)), 'good')


# A run.


@pytest.fixture(scope='module')
def config(tiny_bert, toy_data):
  def make(method='full', **values):
    c = recipe.recipe(task='mask', method=method, optim='adamw')
    small = tiny.config(tiny_bert, toy_data, **{'train__max_length': 24, 'train__steps': 24, **values})
    for section in ('model', 'data', 'train', 'mesh', 'checkpoint'):
      c[section] = small[section]
    c.optim.learning_rate = 1e-2
    return c

  return make


@pytest.fixture(scope='module')
def built(config):
  return run.build(config(train__packing=True))


def test_a_missing_head_trains_under_every_method(built, config):
  assert (
    {n for n in built.train_info if n.startswith('mlm/')} == {n for n in built.info if n.startswith('mlm/')} != set()
  )
  frozen = run.build(config('lora'))
  assert {n.split('/')[0] for n in frozen.train_info} == {'layers', 'mlm'}
  assert not [n for n in built.info if n.startswith(('head/', 'pooler/'))]


def test_packed_rows_have_the_loss_of_padded_ones(built):
  own, frozen = built.load()
  train, params = built.examples['train'], trees.join(own, frozen)
  assert len(train) < len(train.unpacked) / 1.3
  apply = functools.partial(built.method.model.apply, params)
  packed = batches.collate(train, [0, 1, 2], size=4, edges=built.edges, pad_id=0)
  numbers = train.documents([0, 1, 2])
  padded = batches.collate(train.unpacked, numbers, size=len(numbers), edges=(24,), pad_id=0)
  a, b = (jax.jit(lambda x: built.objective(apply, x, None))(x) for x in (packed, padded))
  for name in a:
    assert float(a[name][1]) == float(b[name][1]) > 3
    assert float(a[name][0]) == pytest.approx(float(b[name][0]), rel=1e-5), name


def test_accumulation_changes_nothing(built):
  own, frozen = built.load()
  _, batch, _ = built.batch(0)
  make = functools.partial(make_train_step, built.method.model.apply, built.objective, built.optimizer.tx)
  found = []
  for micro in (1, 4):
    state, sums = jax.jit(make(micro=micro))(built.start(own, frozen), frozen, batch)
    found.append((jax.device_get(trees.flatten(state.trainable)), jax.device_get(sums)))
  assert float(found[0][1]['loss'][1]) == float(found[1][1]['loss'][1]) > 10
  for name, value in found[0][0].items():
    np.testing.assert_allclose(found[1][0][name], value, atol=1e-5, err_msg=name)


def test_a_run_that_goes_on_is_one_that_never_stopped(config, built, tmp_path):
  whole, again = alike.stopped_and_not(built, run.build(config(train__packing=True)), tmp_path)
  assert all(np.array_equal(a, b) for a, b in zip(whole, again, strict=True))


def test_padding_and_order_do_not_change_a_prediction(built):
  tight, wide = alike.tight_and_wide(built)
  assert tight['counted'].min() >= 1
  for name, values in tight.items():
    np.testing.assert_allclose(wide[name], values, rtol=1e-5, atol=2e-5, err_msg=name)


def test_metrics_know_better_from_worse(built):
  batch = batches.collate(built.examples['test'], range(24), size=24, edges=built.edges, pad_id=0)
  right = jax.nn.one_hot(batch['targets'], built.method.model.config.vocab)

  def judged(hidden):
    got = built.task.predict(Outputs(hidden, unembed=lambda h: h), batch)
    return built.task.metrics(built.examples['test'], {n: np.asarray(x) for n, x in got.items()})

  best, worse = judged(right * 50), judged(jnp.roll(right, 1, -1) * 3)
  assert best == {'perplexity': pytest.approx(1), 'bits_per_token': pytest.approx(0, abs=1e-6), 'accuracy': 1.0}
  for name, higher in built.task.metric_names.items():
    assert (worse[name] < best[name]) is higher, name


@pytest.mark.parametrize('of_lm', [False, True])
def test_records_have_the_ids_of_their_rows(built, of_lm):
  predictions = {n: np.ones(2, np.float32) for n in ('nll', 'correct', 'counted')}
  task = lm.build(lm.Config(), train=[], known=None) if of_lm else built.task
  found = task.records([{'text': 'a', 'id': 'x'}, {'text': 'b'}], predictions)
  assert [record['id'] for record in found] == ['x', 1]


def test_it_trains_and_is_evaluated(config, tmp_path, capsys):
  c = config(train__packing=True, train__steps=40, train__eval_every=20)
  fine_tune.run(c, str(tmp_path / 'run'))
  assert 'masked words of texts' in capsys.readouterr().out
  log = [json.loads(line) for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()]
  losses = [r['loss'] for r in log if r['split'] == 'train']
  assert np.mean(losses[-3:]) < 0.8 * losses[0]
  metrics = judge.run(str(tmp_path / 'run'), split='test', checkpoint='best')
  lines = (tmp_path / 'run' / 'eval' / 'test_predictions.jsonl').read_text().splitlines()
  records = [json.loads(line) for line in lines]
  assert len(records) == 24
  mean = sum(r['loss'] * r['tokens'] for r in records) / sum(r['tokens'] for r in records)
  assert metrics['loss'] == pytest.approx(mean, rel=1e-4)
  assert metrics['perplexity'] == pytest.approx(np.exp(mean), rel=1e-4)


@pytest.fixture(scope='module')
def adapted(config, tmp_path_factory):
  """A run of two steps."""
  where = tmp_path_factory.mktemp('adapted') / 'run'
  fine_tune.run(config(train__steps=2, train__eval_every=2), str(where))
  return where


def test_a_task_starts_from_the_run(adapted, tiny_bert, toy_data):
  """By its folder: the encoder's parameters, not the head's."""
  settings = {'model__adapter': str(adapted), 'model__adapter_parts': 'encoder,adapter', 'method': 'full'}
  second = run.build(tiny.config(tiny_bert, toy_data, **settings))
  first, plain = run.build(folder.stored(adapted)[0]), run.build(tiny.config(tiny_bert, toy_data, method='full'))
  wanted, _, _ = judge.restored(first, adapted, 'best')
  wanted, got, before = (trees.flatten(x) for x in (wanted, second.load()[0], plain.load()[0]))
  shared = set(wanted) & set(got)
  assert {n for n in wanted if n not in shared} == {n for n in wanted if n.startswith('mlm/')}
  for name in shared:
    np.testing.assert_array_equal(got[name], wanted[name], err_msg=name)
  assert sum(np.abs(wanted[n] - before[n]).max() > 1e-3 for n in shared) > 20


def test_one_config_has_both_runs(adapted, tiny_bert, toy_data):
  file = pathlib.Path(ftlib.__file__).parent.parent / 'configs' / 'adapt_then_classify.py'
  made = lambda text: config_file.load(f'{file}:data={toy_data},model={tiny_bert}{text}')  # noqa: E731
  assert recipe.read(made('')).names['task'] == 'mask'
  second = made(f',first={adapted}')
  second.mesh.shape = 'data=1'
  built = run.build(second)
  assert built.settings.names['task'] == 'classify'
  assert any('start from' in note for note in built.notes)


def test_an_export_is_a_base_of_the_same_words(adapted, config, toy_data, tmp_path):
  assert export.export(adapted, tmp_path / 'out') < 1e-4
  values = json.loads((tmp_path / 'out' / 'config.json').read_text())
  assert values['architectures'] == ['BertForMaskedLM']
  assert 'id2label' not in values
  assert 'AutoModelForMaskedLM' in (tmp_path / 'out' / 'README.md').read_text()
  c = config()
  c.model.pretrained = str(tmp_path / 'out')
  assert run.build(c).match.fresh == []
  classify = run.build(tiny.config(tmp_path / 'out', toy_data))
  assert {n.split('/')[0] for n in classify.match.fresh} == {'head', 'pooler'}


def test_preview_marks_what_is_masked(built):
  there = built.examples['train']
  for i in range(5):
    marked = [supervised for _, supervised in preview.pieces(there, built.tokenizer, i)]
    assert marked == (document(there, i, 'weights') > 0).tolist()
  assert '[MASK]' in show.preview(built, 20, colour=False)


def test_its_size_is_known_without_data(tiny_bert):
  """The step is traced with the shapes of its batches; BERT base has the parameters of BertForMaskedLM."""
  s = recipe.read(recipe.recipe(task='mask', method='full', optim='adamw'))
  values = json.loads((tiny_bert / 'config.json').read_text())
  found = shapes.of(s, values)
  assert {'words', 'mask_token', 'vocabulary', 'targets', 'weights'} <= set(found.batch)
  assert found.kept_bytes() > 0
  base = bert.build(bert.from_hf({**tiny.CONFIG, **BASE}), head=Head('mlm'))
  assert sum(i.size for i in base.info().values()) == 109_514_298
