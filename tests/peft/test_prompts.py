"""Prefixes and prompts against their formulas in NumPy, what padding and packing do to them, and PEFT's files."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose, assert_array_equal

from ftlib import run
from ftlib.base import trees
from ftlib.base.errors import InputError
from ftlib.base.types import Head
from ftlib.models import bert
from ftlib.models.attention import same_segment
from ftlib.peft import p_tuning, p_tuning_v2, prefix, prompt
from tests.tiny import CONFIG

D, N, HEADS, P = CONFIG['hidden_size'], CONFIG['num_hidden_layers'], CONFIG['num_attention_heads'], 5
K, HEAD, TABLE = D // HEADS, D * 2 + 2, 'embed/token/table'
WHOLE = {
  'prefix': (prefix, prefix.Config(length=P, hidden=7)),
  'plain prefix': (prefix, prefix.Config(length=P, reparametrise=False)),
  'p_tuning_v2': (p_tuning_v2, p_tuning_v2.Config(length=P)),
  'prompt': (prompt, prompt.Config(length=P)),
  'p_tuning': (p_tuning, p_tuning.Config(length=P, hidden=7)),
  'lstm': (p_tuning, p_tuning.Config(length=P, hidden=7, encoder='lstm')),
  'no encoder': (p_tuning, p_tuning.Config(length=P, encoder='none')),
}
COUNTS = {
  'prefix': P * D + (D + 1) * 7 + N * (7 + 1) * 2 * D,
  'plain prefix': N * P * 2 * D,
  'p_tuning_v2': N * P * 2 * D,
  'prompt': P * D,
  'p_tuning': P * D + (D + 1) * 7 + (7 + 1) * 7 + (7 + 1) * D,
  'lstm': P * D + 8 * 7 * (D + 7 + 2) + 8 * 7 * (3 * 7 + 2) + (14 + 1) * 14 + (14 + 1) * D,
  'no encoder': P * D,
}
close = functools.partial(assert_allclose, rtol=0, atol=1e-5)
each = pytest.mark.parametrize('kind', WHOLE)
deep = pytest.mark.parametrize('kind', ['prefix', 'plain prefix'])


@pytest.fixture(scope='module')
def plain():
  """The tiny model without a method."""
  return bert.build(bert.from_hf(CONFIG), head=Head('classify', 2))


def random_values(model, seed=0):
  """{name: array}: every parameter random, adapters too."""
  rng = np.random.default_rng(seed)
  return {n: (0.3 * rng.normal(size=i.shape)).astype(np.float32) for n, i in model.info().items()}


def built(kind, plain, seed=0):
  """(method, {name: array}) with random values."""
  module, config = WHOLE[kind]
  method = module.build(config, plain)
  return method, random_values(method.model, seed)


def batch(lengths=(6, 4), length=6, seed=0):
  """Rows of one document each, padded on the right."""
  rng = np.random.default_rng(seed)
  segments = (np.arange(length) < np.array(lengths)[:, None]).astype(np.int32)
  return {
    'tokens': rng.integers(5, 60, segments.shape).astype(np.int32) * segments,
    'segments': segments,
    'types': (np.arange(length) >= 3).astype(np.int32) * segments,
    'positions': np.broadcast_to(np.arange(length, dtype=np.int32), segments.shape).copy(),
    'rows': np.arange(len(lengths), dtype=np.int32),
  }


def apply(model, flat, inputs):
  return model.apply(trees.unflatten(flat), inputs)


def module_of(model, path, flat):
  """A part of the model, with its values."""
  own = trees.unflatten(
    {n.removeprefix(f'{path}/'): jnp.asarray(x) for n, x in flat.items() if n.startswith(f'{path}/')}
  )
  return nnx.merge(nnx.graphdef(model.modules()[path]), own)


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def relu(x):
  return np.maximum(x, 0)


def linear(x, flat, name):
  return np.tensordot(x, flat[f'{name}/kernel'], 1) + flat[f'{name}/bias']


# Formulas.


@deep
def test_attention_with_a_prefix_is_over_concatenated_keys_and_values(plain, kind):
  method, flat = built(kind, plain)
  inputs, site = batch(), 'layers/1/attn'
  x = np.random.default_rng(1).normal(size=(2, 6, D)).astype(np.float32)
  shared = None
  if kind == 'prefix':
    table = flat['shared/adapter/table']
    h = np.tanh(linear(table, flat, 'shared/adapter/first'))
    k_P, v_P = linear(h, flat, f'{site}/memory/adapter/second').swapaxes(0, 1)
    shared = module_of(method.model, 'shared', flat)(None)
    close(shared, h)
  else:
    k_P, v_P = flat[f'{site}/memory/adapter/k'], flat[f'{site}/memory/adapter/v']
  q, k, v = (linear(x, flat, f'{site}/{n}') for n in 'qkv')
  wanted = np.zeros_like(x)
  for row, length in enumerate((6, 4)):
    for head in range(HEADS):
      keys = np.concatenate([k_P[:, head], k[row, :length, head]])
      values = np.concatenate([v_P[:, head], v[row, :length, head]])
      y = softmax(q[row, :, head] @ keys.T / K**0.5) @ values
      wanted[row] += y @ flat[f'{site}/o/kernel'][head]
  wanted += flat[f'{site}/o/bias']
  context = bert.Context(same_segment(inputs['segments']), inputs['segments'], inputs, 0, shared)
  got = module_of(method.model, site, flat)(jnp.asarray(x), context, None)
  real = inputs['segments'] > 0
  close(got[real], wanted[real])


@deep
def test_tokens_have_the_positions_after_the_prefix(plain, kind):
  method, flat = built(kind, plain)
  inputs = batch()
  base = {n: x for n, x in flat.items() if 'adapter' not in n.split('/')}
  moved = {**inputs, 'positions': inputs['positions'] + P}
  assert_array_equal(model_start(method.model, flat, inputs), model_start(plain, base, moved))
  assert np.abs(model_start(plain, base, inputs) - model_start(plain, base, moved)).max() > 0.1


def model_start(model, flat, inputs):
  """The embedded tokens."""
  values = trees.unflatten({n: x for n, x in flat.items() if not n.startswith('layers/')})
  return nnx.merge(nnx.graphdef(model.trunk), values).start(inputs, None)[0]


def encoded(kind, flat):
  """The vectors of a prompt by its formula."""
  site = 'embed/prompt/adapter'
  if kind == 'prompt':
    return flat[f'{site}/vectors']
  x = flat[f'{site}/table']
  if kind == 'p_tuning':
    for name in ('first', 'second'):
      x = relu(linear(x, flat, f'{site}/{name}'))
    return linear(x, flat, f'{site}/out')
  if kind == 'lstm':
    for layer in (0, 1):
      ahead = lstm(x, flat, f'{site}/forward_{layer}')
      back = lstm(x[::-1], flat, f'{site}/backward_{layer}')[::-1]
      x = np.concatenate([ahead, back], 1)
    return linear(relu(linear(x, flat, f'{site}/first')), flat, f'{site}/out')
  return x


def lstm(x, flat, site):
  h = c = np.zeros(len(flat[f'{site}/state/kernel']))
  out = []
  for row in x:
    i, f, g, o = np.split(linear(row, flat, f'{site}/input') + linear(h, flat, f'{site}/state'), 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    out.append(h)
  return np.stack(out)


@pytest.mark.parametrize('kind', ['prompt', 'p_tuning', 'lstm', 'no encoder'])
def test_a_prompt_stands_in_front_of_the_embedded_tokens(plain, kind):
  method, flat = built(kind, plain)
  inputs, vectors = batch(), encoded(kind, flat)
  assert np.ptp(vectors) > 0.1
  h = np.concatenate([np.broadcast_to(vectors, (2, P, D)), flat[TABLE][inputs['tokens']]], 1)
  types = np.concatenate([np.zeros((2, P), int), inputs['types']], 1)
  h = h + flat['embed/position/table'][: P + 6] + flat['embed/type/table'][types]
  h = (h - h.mean(-1, keepdims=True)) / h.std(-1, keepdims=True)
  close(model_start(method.model, flat, inputs), h * flat['embed/norm/scale'] + flat['embed/norm/bias'])
  out = apply(method.model, flat, inputs)
  assert out.hidden.shape == (2, 6, D)  # those of the tokens
  changed = {**flat, 'embed/position/table': flat['embed/position/table'].copy()}
  changed['embed/position/table'][0] *= -1  # of the first virtual token, that is not among them
  assert np.abs(apply(method.model, changed, inputs).logits - out.logits).max() > 1e-3


@each
def test_trainable_counts(plain, kind):
  method, flat = built(kind, plain)
  own = {n for n in flat if 'adapter' in n.split('/')}
  assert {n for n in flat if method.trains(n)} == own | {'head/out/kernel', 'head/out/bias'}
  assert sum(flat[n].size for n in own) == COUNTS[kind]
  assert method.tokens == P
  assert method.merge is None


# Padding and packing.


@each
def test_padding_never_matters(plain, kind):
  method, flat = built(kind, plain)
  short, real = batch(), batch()['segments'] > 0
  wide = {n: np.pad(x, ((0, 0), (0, 3))) for n, x in short.items() if n != 'rows'}
  wide |= {'rows': short['rows'], 'positions': np.broadcast_to(np.arange(9, dtype=np.int32), (2, 9))}
  wide['tokens'] = np.where(wide['segments'] > 0, wide['tokens'], 7)  # whatever stands there
  ours, theirs = apply(method.model, flat, short), apply(method.model, flat, wide)
  close(ours.logits, theirs.logits)
  close(ours.hidden[real], theirs.hidden[:, :6][real])


def packed():
  """Two documents as one row, and each as a row of its own."""
  two = batch(lengths=(5, 4), length=5)
  one = lambda i, n: {k: x[i : i + 1] if k == 'rows' else x[i : i + 1, :n] for k, x in two.items()}  # noqa: E731
  first, second = one(0, 5), one(1, 4)
  joined = {k: np.concatenate([first[k], second[k]], 1) for k in first if k != 'rows'}
  joined['segments'] = np.array([[1] * 5 + [2] * 4], np.int32)
  return {**joined, 'rows': first['rows']}, first, second


@deep
def test_every_document_of_a_packed_row_sees_the_prefix(plain, kind):
  method, flat = built(kind, plain)
  row, *documents = packed()
  alone = [apply(method.model, flat, d).hidden for d in documents]
  close(apply(method.model, flat, row).hidden, np.concatenate(alone, 1))


def test_the_first_document_of_a_packed_row_sees_the_prompt(plain):
  method, flat = built('prompt', plain)
  row, first, second = packed()
  hidden = apply(method.model, flat, row).hidden
  close(hidden[:, :5], apply(method.model, flat, first).hidden)
  base = {n: x for n, x in flat.items() if 'adapter' not in n.split('/')}
  close(hidden[:, 5:], apply(plain, base, {**second, 'positions': second['positions'] + P}).hidden)


# How a prompt starts.


def prepared(plain, seed=0, text=(), **values):
  method = prompt.build(prompt.Config(length=P, **values), plain)
  flat = random_values(method.model, seed)
  got = method.prepare({**flat, 'text': np.array(text)}, None)
  assert list(got) == [prompt.NAME]
  return flat[TABLE], got[prompt.NAME]


def test_a_prompt_starts_as_the_vectors_of_a_text(plain):
  table, got = prepared(plain, init='text', init_text='good or bad', text=[9, 3, 60])
  assert_array_equal(got, table[[9, 3, 60, 9, 3]])
  table, got = prepared(plain, init='text', init_text='a text that is longer', text=range(1, 8))
  assert_array_equal(got, table[[1, 2, 3, 4, 5]])


def test_a_prompt_starts_as_drawn_tokens(plain):
  rows = lambda table, got: [int(np.flatnonzero((table == x).all(1))[0]) for x in got]  # noqa: E731
  ids = rows(*prepared(plain, init='vocab'))
  assert len(set(ids)) == P
  assert ids == rows(*prepared(plain, init='vocab'))  # a function of the starting values
  assert ids != rows(*prepared(plain, init='vocab', seed=1))
  assert set(rows(*prepared(plain, init='vocab', init_vocab='20:25'))) == set(range(20, 25))
  assert set(rows(*prepared(plain, init='vocab', init_vocab='20:22'))) <= {20, 21}


def test_a_run_starts_with_drawn_tokens(config):
  r = run.build(config(method='prompt', method__init='vocab', method__length=4))
  own, frozen = r.load()
  table = trees.flatten(frozen)[TABLE]
  got = np.asarray(trees.flatten(r.start(own, frozen).trainable)[prompt.NAME])
  assert all((np.asarray(table) == x).all(1).any() for x in got)


def test_a_run_starts_with_its_text(config):
  c = config(method='bitfit+prompt')
  c.method.prompt.update(init='text', init_text='great awful', length=3)
  r = run.build(c)
  own, frozen = r.load()
  good, bad = r.tokenizer.convert_tokens_to_ids(['great', 'awful'])
  assert r.tokenizer.unk_token_id not in (good, bad)
  table = np.asarray(trees.flatten(frozen)[TABLE])
  assert_array_equal(trees.flatten(r.start(own, frozen).trainable)[prompt.NAME], table[[good, bad, good]])
  odd = run.build(config(method='prompt', method__init='text', method__init_text='\u200b'))
  params = odd.load()
  with pytest.raises(InputError, match='makes no token of this text'):
    odd.start(*params)


@pytest.mark.parametrize(
  ('values', 'words'),
  [
    ({'init': 'text', 'init_text': ' '}, 'wants method.init_text'),
    ({'init_text': 'good'}, "of use with method.init='text' alone"),
    ({'init': 'text', 'init_text': 'good', 'init_vocab': '0:3'}, "of use with method.init='vocab' alone"),
    ({'init': 'vocab', 'init_vocab': '5:5'}, "'5:5' is not a range"),
    ({'init': 'vocab', 'init_vocab': '5:65'}, "'5:65' is not a range"),
    ({'init': 'vocab', 'init_vocab': '5'}, "'5' is not a range"),
    ({'init': 'vocab', 'init_vocab': 'a:b'}, "'a:b' is not a range"),
  ],
)
def test_starts_that_cannot_be(plain, values, words):
  with pytest.raises(InputError, match=words):
    prompt.build(prompt.Config(length=P, **values), plain)


# Positions.


@pytest.mark.parametrize('method', ['prefix', 'p_tuning_v2', 'prompt', 'p_tuning'])
def test_more_virtual_tokens_than_positions_are_an_error(config, method):
  for length in (40, 41):
    with pytest.raises(InputError, match=f'method.length={length}: .* the model has 40'):
      run.build(config(method=method, method__length=length))
  assert run.build(config(method=method, method__length=20)).limit == 20


# PEFT's files.


@each
def test_a_file_of_peft_computes_the_same(plain, kind):
  module, config = WHOLE[kind]
  method, flat = built(kind, plain)
  own = {n: x for n, x in flat.items() if 'adapter' in n.split('/')}
  tensors = module.to_peft_whole(config, own)
  assert {n: x.shape for n, x in tensors.items()} == {
    'prompt_embeddings': (P, 2 * N * D if 'pre' in kind or '2' in kind else D)
  }
  back = module.Config(**module.config_of_peft(module.peft_config(config)))
  read = module.build(back, plain)
  got = module.from_peft_whole(back, tensors, read.model.info())
  assert set(got) == {n for n in read.model.info() if 'adapter' in n.split('/')}
  base = {n: x for n, x in flat.items() if n not in own}
  logits = apply(read.model, {**base, **got}, batch()).logits
  close(logits, apply(method.model, flat, batch()).logits)
  assert set(module.to_peft_whole(back, got)) == set(tensors)
  close(module.to_peft_whole(back, got)['prompt_embeddings'], tensors['prompt_embeddings'])
  with pytest.raises(InputError, match='has no tensor prompt_embeddings; it has other'):
    module.from_peft_whole(back, {'other': tensors['prompt_embeddings']}, read.model.info())
  with pytest.raises(InputError, match='but the model wants'):
    module.from_peft_whole(back, {'prompt_embeddings': tensors['prompt_embeddings'][1:]}, read.model.info())


def test_the_order_in_a_file_is_layer_then_key_and_value(plain):
  _, flat = built('plain prefix', plain)
  got = prefix.to_peft_whole(WHOLE['plain prefix'][1], flat)['prompt_embeddings'].reshape(P, 2 * N, HEADS, K)
  for i in range(N):
    assert_array_equal(got[:, 2 * i], flat[f'layers/{i}/attn/memory/adapter/k'])
    assert_array_equal(got[:, 2 * i + 1], flat[f'layers/{i}/attn/memory/adapter/v'])


@pytest.mark.parametrize('module', [prefix, p_tuning_v2, prompt, p_tuning])
def test_settings_of_peft_that_cannot_be_read(module):
  assert module.config_of_peft({'num_virtual_tokens': 3, 'num_transformer_submodules': 1})['length'] == 3
  with pytest.raises(InputError, match='num_transformer_submodules=2'):
    module.config_of_peft({'num_virtual_tokens': 3, 'num_transformer_submodules': 2})
  with pytest.raises(InputError, match='num_virtual_tokens=None'):
    module.config_of_peft({})


def test_what_cannot_be_written_or_read(plain):
  half = prefix.Config(length=P, reparametrise=False, target='layers/1/attn/memory')
  flat = random_values(prefix.build(half, plain).model)
  with pytest.raises(InputError, match='PEFT puts a prefix on every layer'):
    prefix.to_peft_whole(half, flat)
  for kind in ('prefix', 'p_tuning', 'lstm'):
    module, config = WHOLE[kind]
    tensors = {'prompt_embeddings': np.zeros((P, D), np.float32)}
    with pytest.raises(InputError, match='set method'):
      module.from_peft_whole(config, tensors, built(kind, plain)[0].model.info())


def test_a_prefix_on_some_layers_alone(plain):
  config = prefix.Config(length=P, target='layers/1/attn/memory', hidden=7)
  method = prefix.build(config, plain)
  flat = random_values(method.model)
  assert not [n for n in flat if n.startswith('layers/0/attn/memory')]
  assert np.isfinite(apply(method.model, flat, batch()).logits).all()
