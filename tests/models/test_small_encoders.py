"""ELECTRA, ALBERT and the BiLSTM where no reference is needed: methods, shared layers, heads, config.json."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose

from ftlib import peft_config, stored
from ftlib.base import settings, trees
from ftlib.base.errors import InputError
from ftlib.base.types import Head
from ftlib.models import albert, bilstm, electra, inside
from ftlib.peft import bitfit, houlsby, last_n, lora, prefix, prompt
from ftlib.peft.method import added

SIZES = {
  'vocab_size': 40,
  'embedding_size': 12,
  'hidden_size': 16,
  'num_hidden_layers': 3,
  'num_attention_heads': 2,
  'intermediate_size': 24,
  'max_position_embeddings': 20,
}
DROPPING = {'hidden_dropout_prob': 0.1, 'attention_probs_dropout_prob': 0.1}
FAMILIES = {
  'electra': (electra, {'model_type': 'electra', **SIZES, 'num_hidden_layers': 1}),
  'albert': (albert, {'model_type': 'albert', **SIZES, **DROPPING, 'num_hidden_groups': 2}),
  'bilstm': (bilstm, bilstm.new(vocab=40, embed=12, hidden=8, layers=2, dropout=0.1)),
}
METHODS = {
  'lora': (lora, {'target': 'attn/(q|v)$|mlp/|(forward|backward)/|^embed/project$', 'rank': 2}),
  'bitfit': (bitfit, {}),
  'houlsby': (houlsby, {'norms': '', 'reduction': 4}),
  'prefix': (prefix, {'length': 2, 'hidden': 8}),
  'prompt': (prompt, {'length': 2}),
}
RECURRENT = {'houlsby': {'target': '^layers/[01]/out$'}}  # where the slots of the BiLSTM have other names
HEAD = Head('classify', 3)
IDS = np.random.default_rng(0).integers(5, 40, (2, 6)).astype(np.int32)
LENGTHS = np.array([6, 4])
BATCH = {
  'tokens': IDS,
  'positions': np.broadcast_to(np.arange(6, dtype=np.int32), IDS.shape),
  'segments': (np.arange(6) < LENGTHS[:, None]).astype(np.int32),
  'types': np.zeros_like(IDS),
  'rows': np.arange(2, dtype=np.int32),
}
each_family = pytest.mark.parametrize('family', FAMILIES)


def drawn(model):
  """Parameters of about the size of trained ones."""
  rng = np.random.default_rng(0)
  return {n: np.float32(n.endswith('scale') + 0.2 * rng.normal(size=i.shape)) for n, i in model.info().items()}


@functools.cache
def base(family, head=HEAD):
  """(model, its parameters by name)."""
  module, values = FAMILIES[family]
  model = module.build(module.from_hf(values), head=head)
  return model, drawn(model)


def run(model, flat, key=None, **more):
  return model.apply(trees.unflatten(flat), {**BATCH, **more}, key)


@functools.cache
def plain(family):
  return np.asarray(run(*base(family)).logits)


# Methods.


def adapted(family, name):
  module, fields = METHODS[name]
  fields = {**fields, **(RECURRENT.get(name, {}) if family == 'bilstm' else {})}
  return module.build(settings.read(module.Config, fields, where='method'), base(family)[0])


@pytest.mark.parametrize('name', METHODS)
@each_family
def test_a_method_starts_as_the_base_and_can_leave_it(family, name):
  if (family, name) == ('bilstm', 'prefix'):  # keys and values are of attention
    with pytest.raises(InputError, match='matches none'):
      adapted(family, name)
    return
  method, flat = adapted(family, name), base(family)[1]
  assert any(method.trains(n) and not n.startswith('head/') for n in method.model.info())
  start = {**trees.flatten(method.model.initial(jax.random.key(1))), **flat}
  apart = np.abs(run(method.model, start).logits - plain(family)).max()
  assert apart < 2e-5 if method.identity else apart > 1e-4
  if name == 'bitfit':
    return
  full = {n: x if n in flat else drawn(method.model)[n] for n, x in start.items()}
  logits = run(method.model, full).logits
  assert np.abs(logits - plain(family)).max() > 0.01
  if name == 'lora':
    merged = trees.flatten(method.merge(trees.unflatten(full)))
    assert set(merged) == set(flat)
    assert_allclose(run(base(family)[0], merged).logits, logits, rtol=0, atol=2e-5)


def test_virtual_tokens_are_of_the_size_of_embeddings():
  for family in ('electra', 'albert'):
    info = adapted(family, 'prompt').model.info()
    assert [i.shape for n, i in info.items() if added(n)] == [(2, SIZES['embedding_size'])]
  for name, said in (('prompt', 'hidden states, 16; those here are 12'), ('prefix', 'layers that share')):
    module, config = METHODS[name][0], METHODS[name][0].Config(length=2)
    with pytest.raises(InputError, match=said):
      peft_config.of_run(module, config, base('albert')[0], base='x', save=())


# Layers that share.


def test_layers_of_a_group_share_parameters_and_adapters():
  model, _ = base('albert')
  assert model.order == (0, 0, 1)
  assert {n.split('/')[1] for n in model.info() if n.startswith('layers/')} == {'0', '1'}
  of = lambda **kw: albert.build(albert.from_hf({'model_type': 'albert', **SIZES, **kw}), head=HEAD)  # noqa: E731
  assert of(num_hidden_groups=2, inner_group_num=2).order == (0, 1, 0, 1, 2, 3)
  one = of()
  method = lora.build(lora.Config(rank=2), one)
  assert one.order == (0, 0, 0)
  assert [n for n in method.shown if not n.startswith('head/')] == ['layers/0/attn/q', 'layers/0/attn/v']
  assert stored.info_of(method, method.trains, scan=True)[1] == [(0, 1)]
  with pytest.raises(InputError, match='the model has 1 layers'):
    last_n.build(last_n.Config(layers=2), one)


@functools.cache
def trained(remat, shared):
  """(loss, gradients) in training, of layers that share or of copies of them."""
  model, flat = base('albert')
  params = trees.unflatten(flat)
  if not shared:
    model, params = model.unshared(params)
  model = dataclasses.replace(model, remat=remat)
  loss = lambda p: (model.apply(p, BATCH, jax.random.key(3)).logits ** 2).sum()  # noqa: E731
  return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize('remat', ['none', 'full'])
def test_shared_layers_compute_as_copies_of_them(remat):
  """In training: each layer has a dropout of its own, and gradients are the sums over the copies."""
  (value, grads), (want, parts) = trained(remat, True), trained('none', False)
  assert_allclose(value, want, rtol=1e-5)
  assert abs(value - (plain('albert') ** 2).sum()) > 1e-3 * value  # dropout acts
  for k, of in {'0': '01', '1': '2'}.items():
    summed = trees.flatten(jax.tree.map(lambda *x: sum(x), *(parts['layers'][i] for i in of)))
    for name, g in trees.flatten(grads['layers'][k]).items():
      assert_allclose(g, summed[name], rtol=0, atol=1e-5 * max(1, np.abs(summed[name]).max()), err_msg=name)


def test_the_attention_of_every_layer_can_be_seen():
  model, flat = base('albert')
  out, seen = inside.attended(model, trees.unflatten(flat), BATCH)
  assert [x.shape for x in seen] == [(2, 2, 6, 6)] * 3
  assert np.abs(seen[0] - seen[1]).max() > 1e-3  # one block, read by two layers
  assert_allclose(out.logits, plain('albert'), rtol=0, atol=1e-5)


# Heads.


@each_family
def test_heads_of_every_kind(family):
  model, flat = base(family)
  width = run(model, flat).hidden.shape[-1]
  module, of = FAMILIES[family][0], lambda **kw: base(family, Head(**kw))
  tag = run(*of(kind='tag', classes=5))
  assert (tag.logits.shape, tag.pooled) == ((2, 6, 5), None)
  span = of(kind='span', classes=2)
  assert run(*span).logits.shape == (2, 6, 2)
  assert span[0].hf_names()['head/out/kernel'] == 'qa_outputs.weight'
  assert of(kind='tag', classes=5)[0].hf_names()['head/out/kernel'] == 'classifier.weight'
  assert run(*of(kind='tag', classes=5, transitions=True)).transitions.shape == (6, 6)
  embed = run(*of(kind='embed', pooling='mean'))
  real = BATCH['segments'][..., None] > 0
  assert_allclose(embed.pooled, (embed.hidden * real).sum(1) / LENGTHS[:, None], rtol=0, atol=1e-5)
  marked = run(*of(kind='classify', classes=3, marks=2), marks=np.array([[0, 2], [1, 3]], np.int32))
  assert (marked.pooled.shape, marked.logits.shape) == ((2, 2 * width), (2, 3))
  if family == 'bilstm':
    with pytest.raises(InputError, match="no head of kind 'mlm'"):
      module.build(model.config, head=Head('mlm'))
  else:
    out = run(*of(kind='mlm'))
    assert out.unembed(out.hidden).shape == (2, 6, 40)


# config.json.


@pytest.mark.parametrize(
  ('family', 'more', 'said'),
  [
    ('electra', {'embedding_size': 0.5}, r'embedding_size=0\.5 is not a whole number'),
    ('electra', {'position_embedding_type': 'relative_key'}, "position_embedding_type='relative_key' is not supported"),
    ('electra', {'hidden_act': 'gleu'}, "hidden_act='gleu' is not supported; did you mean"),
    ('electra', {'tie_word_embeddings': False}, 'tie_word_embeddings=False is not supported'),
    ('electra', {'num_hidden_groups': 1}, 'num_hidden_groups=1 is not known'),
    ('electra', {'num_attention_heads': 3}, 'hidden_size=16 is not a multiple of num_attention_heads=3'),
    ('albert', {'num_hidden_groups': 4}, 'num_hidden_groups=4 of num_hidden_layers=3'),
    ('albert', {'num_hidden_groups': 0}, 'num_hidden_groups=0 of'),
    ('albert', {'inner_group_num': 0}, 'inner_group_num=0 blocks: wanted at least one'),
    ('albert', {'net_structure_type': 1}, r'net_structure_type=1 is not supported \(only 0\)'),
    ('albert', {'layers_to_keep': [1]}, r'layers_to_keep=\[1\] is not supported'),
    ('albert', {'classifier_dropout': 0.1}, 'classifier_dropout=0.1 is not known'),
    ('bilstm', {'num_hidden_layers': 0}, 'are at least 1'),
    ('bilstm', {'hidden_size': '8'}, "hidden_size='8' is not a whole number"),
    ('bilstm', {'layers': 2}, 'layers=2 is not known'),
  ],
)
def test_what_is_not_implemented_is_an_error(family, more, said):
  module, values = FAMILIES[family]
  with pytest.raises(InputError, match=said) as e:
    module.from_hf({**values, **more}, where='m/config.json')
  assert 'm/config.json' in str(e.value)


def test_published_config_files_are_read():
  summary = {
    'summary_type': 'first',
    'summary_use_proj': True,
    'summary_activation': 'gelu',
    'summary_last_dropout': 0.1,
  }
  c = electra.from_hf({'model_type': 'electra', **SIZES, **summary, 'generator_size': '0.25'})
  assert (c.embedding, c.embed, c.project, c.pooler, c.head_dense) == (12, 16, True, False, 'gelu')
  assert not electra.from_hf({'model_type': 'electra', **SIZES, 'embedding_size': 16}).project
  odd = {'down_scale_factor': 1, 'gap_size': 0, 'layers_to_keep': [], 'net_structure_type': 0, 'num_memory_blocks': 0}
  c = albert.from_hf({'model_type': 'albert', **SIZES, **odd, 'hidden_dropout_prob': 0, 'classifier_dropout_prob': 0.2})
  assert (c.activation, c.dropout, c.head_dropout, c.groups, c.inner) == ('gelu_new', 0, 0.2, 1, 1)
