"""XLNet, DeBERTa and ModernBERT without a reference: methods, packed rows, heads, scans, dropout, attention."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from ftlib import peft_config, stored
from ftlib.base import lookup, rng, settings, trees
from ftlib.base.errors import InputError
from ftlib.base.types import Head
from ftlib.evals import attribution
from ftlib.models import deberta, heads, inside, modernbert, stack, xlnet
from ftlib.models.attention import attention, relative, same_segment
from ftlib.peft import bitfit, houlsby, lora, prefix, prompt
from ftlib.peft.method import added

SIZES = {'hidden_size': 32, 'num_hidden_layers': 3, 'num_attention_heads': 4, 'intermediate_size': 48}
COMMON = {'vocab_size': 50, 'initializer_range': 0.3, 'pad_token_id': 0}
FAMILIES = {
  'xlnet': (xlnet, {'model_type': 'xlnet', 'd_model': 32, 'n_layer': 3, 'n_head': 4, 'd_inner': 48, **COMMON}),
  'deberta': (
    deberta,
    {
      'model_type': 'deberta-v2',
      **SIZES,
      **COMMON,
      'relative_attention': True,
      'position_biased_input': False,
      'position_buckets': 8,
      'max_position_embeddings': 32,
      'share_att_key': True,
      'pos_att_type': 'p2c|c2p',
      'norm_rel_ebd': 'layer_norm',
      'conv_kernel_size': 3,
    },
  ),
  'modernbert': (modernbert, {'model_type': 'modernbert', **SIZES, **COMMON, 'local_attention': 4}),
}
METHODS = {
  'lora': (lora, {'target': 'attn/|mlp/|conv/'}),
  'bitfit': (bitfit, {'target': 'bias$'}),
  'houlsby': (houlsby, {'norms': ''}),
  'prefix': (prefix, {'length': 3, 'hidden': 16}),
  'prompt': (prompt, {'length': 3}),
}
ON_ALL = ('adalora', 'dora', 'hira', 'loha', 'lokr', 'lora_fa', 'miss', 'oft', 'vera')  # methods for any projection
LENGTHS, WIDE = (9, 6, 7), 22  # documents, and a row that holds all of them; one shape for all tests
each_family = pytest.mark.parametrize('family', FAMILIES)
close = functools.partial(assert_allclose, rtol=0, atol=2e-5)


def pooling(family):
  module, values = FAMILIES[family]
  return heads.pooling(module, module.from_hf(values))


def drawn(model):
  """Parameters of about the size of trained ones."""
  draw = np.random.default_rng(0)
  near = lambda n: float(n.endswith('scale'))  # noqa: E731
  return {n: np.float32(near(n) + 0.2 * draw.normal(size=i.shape)) for n, i in model.info().items()}


@functools.cache
def base(family, head):
  """(model, its parameters by name)."""
  module, values = FAMILIES[family]
  model = module.build(module.from_hf(values), head=head)
  return model, drawn(model)


def batch(wide=WIDE):
  """A document a row, of two texts and a last token of a type of its own."""
  at, lengths = np.arange(wide), np.array(LENGTHS)
  tokens = np.random.default_rng(1).integers(5, 50, (len(lengths), WIDE))[:, :wide]
  real = at < lengths[:, None]
  types = np.where(at < 3, 0, 1) + (at == lengths[:, None] - 1)
  out = {'tokens': np.where(real, tokens, 0), 'types': np.where(real, types, 0), 'segments': real}
  out |= {'positions': np.broadcast_to(at, real.shape), 'rows': np.arange(len(lengths))}
  return {n: x.astype(np.int32) for n, x in out.items()}


def packed(rows):
  """The documents of rows one behind another in the first row; the others are empty."""
  places = [(i, r) for i, n in enumerate(LENGTHS) for r in range(n)]
  first = {n: [rows[n][i, r] for i, r in places] for n in ('tokens', 'types', 'positions')}
  first['segments'] = [i + 1 for i, _ in places]
  return {**rows, **{n: np.array([x, *[[0] * WIDE] * 2], np.int32) for n, x in first.items()}}


COMPILED = {}  # a third of the time that operations one by one take


def run(model, flat, inputs, key=None):
  _, fn = COMPILED.setdefault(id(model), (model, jax.jit(model.apply)))
  return fn(trees.unflatten(flat), inputs, key)


@functools.cache
def plain(family):
  model, flat = base(family, Head('classify', 3, pooling(family)))
  return run(model, flat, batch())


# Methods.


@functools.cache
def adapted(family, name):
  """(method, all parameters as at step 0, all with adapters that do something)."""
  model, flat = base(family, Head('classify', 3, pooling(family)))
  module, fields = METHODS[name]
  method = module.build(settings.read(module.Config, fields, where='method'), model)
  names = [n for n in method.model.info() if added(n)]
  start = {**trees.flatten(method.model.initial(jax.random.key(1), names)), **flat}
  full = {n: x if not added(n) else drawn(method.model)[n] for n, x in start.items()}
  return method, start, full


@pytest.mark.parametrize('name', METHODS)
@each_family
def test_a_method_starts_as_the_base_and_can_leave_it(family, name):
  method, start, full = adapted(family, name)
  trained = [n for n in method.model.info() if method.trains(n) and not n.startswith('head/')]
  assert trained or (family, name) == ('modernbert', 'bitfit')  # which has no bias but the head's
  apart = np.abs(run(method.model, start, batch()).logits - plain(family).logits).max()
  assert apart < 2e-5 if method.identity else apart > 1e-4
  if name != 'bitfit':
    assert np.abs(run(method.model, full, batch()).logits - plain(family).logits).max() > 0.01


@pytest.mark.parametrize('name', [n for n in lookup.names('peft') if n not in ('together', *METHODS)])
@each_family
def test_every_other_method_finds_its_place(family, name):
  """By shapes alone, with dropout: on all projections where it is for these, which are not all of [B, L, D]."""
  module, model = lookup.component('peft', name, field=''), base(family, Head('classify', 3, pooling(family)))[0]
  known = module.Config.__dataclass_fields__
  wanted = {'rank': 2, 'init_rank': 4, 'target_rank': 2, 'layers': 1, 'length': 3, 'hidden': 16, 'reduction': 4}
  wanted |= {'dropout': 0.1, 'block_size': 8} | (
    {'target': 'attn/|mlp/|conv/'} if known.get('target') and name in ON_ALL else {}
  )
  fields = {k: v for k, v in wanted.items() if k in known}
  method = module.build(settings.read(module.Config, fields, where='method'), model)
  flat = {n: jax.ShapeDtypeStruct(i.shape, i.dtype) for n, i in method.model.info().items()}
  out = jax.eval_shape(method.model.apply, trees.unflatten(flat), batch(), jax.random.key(0))
  assert out.logits.shape == (3, 3)


@pytest.mark.parametrize('name', ['prefix', 'prompt'])
@each_family
def test_padding_changes_nothing_of_an_adapted_row(family, name):
  method, _, full = adapted(family, name)
  want = run(method.model, full, batch())
  got = run(method.model, full, batch(wide=9))
  close(got.logits, want.logits)
  assert got.hidden.shape[1] == 9


@pytest.mark.parametrize('name', ['lora', 'prefix'])
@each_family
def test_packed_documents_are_as_each_alone_with_an_adapter(family, name):
  method, _, full = adapted(family, name)
  want, got = (run(method.model, full, x).hidden for x in (batch(), packed(batch())))
  close(got[0], np.concatenate([h[:n] for h, n in zip(want, LENGTHS)]))


@each_family
def test_a_prefix_is_seen(family):
  method, _, full = adapted(family, 'prefix')
  other = {n: 2 * x if added(n) else x for n, x in full.items()}
  one, two = (run(method.model, x, batch()).hidden for x in (full, other))
  assert np.abs(one - two)[batch()['segments'] > 0].min(-1).max() > 0
  assert (np.abs(one - two).max(-1)[batch()['segments'] > 0] > 1e-3).all()  # by every token


@each_family
def test_lora_merges_into_what_it_was_put_on(family):
  method, _, full = adapted(family, 'lora')
  model, flat = base(family, Head('classify', 3, pooling(family)))
  merged = trees.flatten(method.merge(trees.unflatten(full)))
  assert set(merged) == set(flat)
  want = run(method.model, full, batch()).logits
  assert_allclose(run(model, merged, batch()).logits, want, rtol=0, atol=1e-4 * np.abs(want).max())


def test_peft_has_no_form_of_an_adapter_on_a_bare_parameter():
  for target, good in (('attn/q$', False), ('mlp/up$', True)):
    method = lora.build(lora.Config(target=target), base('xlnet', Head('classify', 3, 'last'))[0])
    settings_of = functools.partial(peft_config.of_run, lora, lora.Config(), method.model, base='x', save=())
    if good:
      assert settings_of()['target_modules'][0] == 'transformer.layer.0.ff.layer_1'
    else:
      with pytest.raises(InputError, match='transformers holds these as bare parameters:\n  layers/0/attn/q\n'):
        settings_of()


# Heads.


@each_family
def test_documents_of_a_row_are_pooled_each(family):
  model, flat = base(family, Head('classify', 3, pooling(family)))
  several = FAMILIES[family][0].build(model.config, head=Head('classify', 3, pooling(family), documents=4))
  out = run(several, flat, packed(batch()))
  close(out.logits[0, :3], plain(family).logits)
  assert out.logits.shape == (3, 4, 3)


@each_family
def test_marked_tokens_are_read_one_behind_another(family):
  model, flat = base(family, Head('classify', 3, pooling(family), marks=2))
  marks = np.array([[1, 4], [0, 2], [3, 3]], np.int32)
  out = run(model, flat, {**batch(), 'marks': marks})
  read = np.concatenate([np.take_along_axis(np.asarray(out.hidden), marks[:, [k], None], 1)[:, 0] for k in (0, 1)], 1)
  close(out.logits, read @ flat['head/out/kernel'] + flat['head/out/bias'])
  assert sorted(n for n in flat if n.startswith('head/')) == ['head/out/bias', 'head/out/kernel']


@each_family
def test_what_a_family_says_nothing_by_is_not_pooled(family):
  module, wrong = FAMILIES[family][0], 'cls' if family == 'xlnet' else 'last'
  with pytest.raises(InputError, match=r'set task\.pooling to (last|cls) or mean'):
    module.build(base(family, Head())[0].config, head=Head('classify', 3, wrong))
  assert base(family, Head('embed', 0, 'mean'))[0].info().keys() == base(family, Head())[0].info().keys()


@each_family
def test_a_table_of_tags_comes_with_its_head(family):
  model, flat = base(family, Head('tag', 3, transitions=True))
  out = run(model, flat, batch())
  assert (out.logits.shape, out.transitions.shape) == ((3, WIDE, 3), (4, 4))
  assert_array_equal(out.transitions, flat['head/transitions'])
  assert {n for n in flat if n.startswith('head/')} <= set(model.hf_names())


# How it is computed.


@each_family
def test_scanned_layers_equal_unrolled_ones(family):
  method, start, _ = adapted(family, 'bitfit')
  _, runs = stored.info_of(method, method.trains, scan=True)
  assert runs == ([(0, 3)] if family == 'xlnet' else [(0, 1), (1, 3)])
  got = jax.jit(method.model.apply)(stack.stack(trees.unflatten(start), runs), batch()).logits
  close(got, run(method.model, start, batch()).logits)


RATES = {  # rate -> how many masks a step of three layers draws at it, beside one a layer inside of attention
  'xlnet': {'dropout': 11, 'summary_last_dropout': 1},
  'deberta': {'hidden_dropout_prob': 8, 'attention_probs_dropout_prob': 0, 'cls_dropout': 1},
  'modernbert': {'attention_dropout': 3, 'embedding_dropout': 1, 'mlp_dropout': 3, 'classifier_dropout': 1},
}


@each_family
def test_dropout_is_where_transformers_has_it(family, monkeypatch):
  module, values = FAMILIES[family]
  rates = {name: (k + 1) / 32 for k, name in enumerate(RATES[family])}
  model = module.build(module.from_hf({**values, **rates}), head=Head('classify', 3, pooling(family)))
  masks, sites = [], []
  keep, at = rng.Stream.keep, rng.Stream.at
  monkeypatch.setattr(rng.Stream, 'keep', lambda s, shape, rate: (masks.append(rate), keep(s, shape, rate))[1])
  monkeypatch.setattr(rng.Stream, 'at', lambda s, name: (sites.append(name), at(s, name))[1])
  flat = {n: jax.ShapeDtypeStruct(i.shape, i.dtype) for n, i in model.info().items()}
  jax.eval_shape(model.apply, trees.unflatten(flat), batch(), jax.random.key(0))
  known = [m for m in masks if isinstance(m, float)]
  assert {name: known.count(rate) for name, rate in rates.items()} == RATES[family]
  assert len(masks) - len(known) == sites.count('attn/probabilities') == 3
  assert model.blocks[0].attn.rate == next(rates[n] for n in ('attention_probs_dropout_prob', *rates) if n in rates)
  assert all(sites.count(name) in (1, 3) for name in sites)  # a name of its own for each, in the trunk or a layer


def test_relative_scores_are_those_of_the_distances():
  draw = np.random.default_rng(0)
  x, table = draw.normal(size=(2, 5, 3, 4)), draw.normal(size=(10, 3, 4))
  want = [[np.einsum('bhk,hk->bh', x[:, i], table[5 - i + j]) for j in range(5)] for i in range(5)]
  close(relative(jnp.float32(x), jnp.float32(table)), np.array(want).transpose(2, 3, 0, 1))


def test_attention_with_a_bias_has_the_derivatives_of_its_formula():
  draw = np.random.default_rng(0)
  q, k, v, out = draw.normal(size=(4, 2, 5, 3, 4)).astype(np.float32)
  bias = draw.normal(size=(2, 3, 5, 4)).astype(np.float32)  # the first key is a memory's
  mask = same_segment(jnp.array([[1] * 5, [1, 1, 1, 2, 2]]))
  stream = rng.Stream.start(jax.random.key(0), jnp.arange(2))

  def formula(q, k, v, mask, *, scale, bias_BHQT, rate, stream):
    scores = jnp.einsum('bqhk,blhk->bhql', q, k) * scale + jnp.pad(bias_BHQT, ((0, 0), (0, 0), (0, 0), (1, 0)))
    weights = jax.nn.softmax(jnp.where(mask, scores, -1e30))
    keep = stream.keep(weights.shape, rate)
    return jnp.einsum('bhql,blhk->bqhk', jnp.where(keep, weights / (1 - rate), 0), v)

  def loss(fn, q, k, v, bias):
    return (fn(q, k, v, mask, scale=0.3, bias_BHQT=bias, rate=0.4, stream=stream) * out).sum()

  (a, ours), (b, theirs) = (
    jax.jit(jax.value_and_grad(functools.partial(loss, f), argnums=(0, 1, 2, 3)))(q, k, v, bias)
    for f in (attention, formula)
  )
  assert_allclose(a, b, rtol=1e-5)
  for x, y in zip(ours, theirs, strict=True):
    close(x, y)


def test_what_is_pooled_follows_config_json():
  module, values = FAMILIES['modernbert']
  assert [heads.pooling(module, module.from_hf({**values, **x})) for x in ({}, {'classifier_pooling': 'mean'})] == [
    'cls',
    'mean',
  ]
  assert pooling('xlnet') == 'last'


def test_a_window_is_half_to_either_side():
  module, values = FAMILIES['modernbert']
  config = module.from_hf({**values, 'num_hidden_layers': 1, 'layer_types': ['sliding_attention']})
  model = module.build(config, head=Head())
  flat, one = drawn(model), batch()
  other = {**one, 'tokens': one['tokens'].copy()}
  other['tokens'][0, 4] += 1
  moved = np.abs(run(model, flat, other).hidden - run(model, flat, one).hidden).max(-1)[0] > 1e-6
  assert_array_equal(np.flatnonzero(moved), [2, 3, 4, 5, 6])


def test_distances_have_buckets_that_grow():
  config = deberta.from_hf({**FAMILIES['deberta'][1], 'position_buckets': 8, 'max_position_embeddings': 32})
  got = dict(zip(range(40, -41, -1), deberta.distances(40, config) - 8))
  assert [got[d] for d in (0, 1, 3, 4, 5, 8, 15, 16, 31, 32, 40)] == [0, 1, 3, 4, 5, 6, 6, 7, 7, 7, 7]
  assert [got[-d] for d in (1, 4, 5, 31)] == [-1, -4, -5, -7]
  assert got[-40] == -8  # beyond the span, where only one side has a row more
  plain_ = dataclasses.replace(config, log=False, buckets=6)
  assert_array_equal(deberta.distances(8, plain_), [11, 11, 11, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0, 0])


# What attribution reads.


@each_family
def test_every_layer_tells_its_attention(family):
  """Shares of the tokens of a row, of which padding has none; ModernBERT's local layers see two tokens on each side."""
  model, flat = base(family, Head('classify', 3, pooling(family)))
  out, seen = inside.attended(model, trees.unflatten(flat), batch())
  close(out.logits, plain(family).logits)
  assert [p.shape for p in seen] == [(len(LENGTHS), 4, WIDE, WIDE)] * 3
  for k, p_BHQL in enumerate(map(np.asarray, seen)):
    for own_HQL, length in zip(p_BHQL, LENGTHS):
      close(own_HQL[:, :length, :length].sum(2), 1)
      far = np.abs(np.subtract.outer(np.arange(length), np.arange(length))) > 2
      local = family == 'modernbert' and k > 0  # of its layers the first, the fourth, ... see all
      assert (own_HQL[:, :length, :length][:, far].max() == 0) == local
  shares = attribution.rollout([np.asarray(p)[1, :, : LENGTHS[1], : LENGTHS[1]] for p in seen])
  close(shares.sum(1), 1)
  assert shares.std() > 0.01


@each_family
def test_noise_on_embeddings_stands_for_other_tokens(family):
  (model, flat), inputs = base(family, Head('classify', 3, pooling(family))), batch()
  blank = {**inputs, 'tokens': np.where(np.arange(WIDE) % 2, 0, inputs['tokens']).astype(np.int32)}
  x, x0 = (inside.embedded(model, trees.unflatten(flat), b) for b in (inputs, blank))
  want = run(model, flat, blank).logits
  assert np.abs(want - plain(family).logits).max() > 0.01
  close(run(model, flat, {**inputs, 'embedding_noise': x0 - x}).logits, want)
