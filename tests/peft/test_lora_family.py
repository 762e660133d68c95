"""LoRA, LoRA-FA and DoRA against their papers' formulas, written plainly on matrices [inputs, outputs]."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose, assert_array_equal

from ftlib import run
from ftlib.base import trees
from ftlib.base.errors import InputError
from ftlib.base.rng import Stream
from ftlib.base.types import Head
from ftlib.models import bert
from ftlib.models.layers import Axis, Embed, Proj, normal
from ftlib.peft import dora, lora, lora_fa
from tests import tiny

SHAPES = [((6,), (8,)), ((3, 2), (4, 2)), ((12,), (4, 2))]
CLASSES = {lora: lora.Lora, lora_fa: lora_fa.LoraFa, dora: dora.Dora}
CASES = {
  'lora': (lora, {'rank': 3}),
  'rslora': (lora, {'rank': 4, 'scaling': 'rsqrt'}),
  'pissa': (lora, {'rank': 3, 'init': 'pissa'}),
  'lora_fa': (lora_fa, {'rank': 3}),
  'dora': (dora, {'rank': 3}),
  'dora_olora': (dora, {'rank': 4, 'init': 'olora', 'scaling': 'rsqrt'}),
}
each_case = pytest.mark.parametrize('case', CASES)
D, F, N, V = (tiny.CONFIG[k] for k in ('hidden_size', 'intermediate_size', 'num_hidden_layers', 'vocab_size'))
HEAD = 2 * D + 2


@pytest.fixture(scope='module')
def model():
  return bert.build(bert.from_hf(tiny.CONFIG), head=Head('classify', 2))


def filled(case, shape=SHAPES[0], *, bias=True, **fields):
  """A projection with the adapter, every parameter random; its values by name; the scale."""
  module, own = CASES[case]
  config = module.Config(**{'alpha': 2.0, **own, **fields})
  ins, outs = (tuple(Axis(f'{side}{i}', n) for i, n in enumerate(s)) for side, s in zip(('in', 'out'), shape))
  site = Proj(ins, outs, init=normal(1.0), bias=bias)
  site.adapter = nnx.data(CLASSES[module](site, 7, config, config.rank, config.alpha))
  rng = np.random.default_rng(0)
  leaves = {'/'.join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(nnx.state(site))}
  values = {n: rng.normal(size=leaf.get_value().shape).astype(np.float32) for n, leaf in leaves.items()}
  scale = config.alpha / (config.rank if config.scaling == 'alpha/rank' else math.sqrt(config.rank))
  return nnx.merge(nnx.graphdef(site), jax.tree.map(jnp.asarray, trees.unflatten(values))), values, scale


def changed(values, scale, ins, outs):
  """(the adapted kernel [inputs, outputs], m / norm or 1), by the papers' formulas in float64."""
  p = {n.removeprefix('adapter/'): v.astype(np.float64) for n, v in values.items()}
  kernel = p['kernel'].reshape(ins, outs)
  product = lambda a, b: p[a].reshape(ins, -1) @ p[b].reshape(-1, outs)  # noqa: E731
  kernel = kernel + scale * (product('a', 'b') - (product('a0', 'b0') if 'a0' in p else 0))
  gain = p['m'].reshape(outs) / np.linalg.norm(kernel, axis=0) if 'm' in p else np.ones(outs)
  return kernel * gain, gain


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('shape', SHAPES)
@each_case
def test_the_formula(case, shape, bias):
  site, values, scale = filled(case, shape, bias=bias)
  ins, outs = map(math.prod, shape)
  kernel, _ = changed(values, scale, ins, outs)
  x = np.random.default_rng(1).normal(size=(2, 3, ins)).astype(np.float32)
  wanted = x @ kernel + (values['bias'].reshape(-1) if bias else 0)
  y = site(jnp.asarray(x.reshape(2, 3, *shape[0])))
  assert y.shape == (2, 3, *shape[1])
  assert_allclose(np.asarray(y).reshape(2, 3, outs), wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
  merged, same = site.adapter.merged(site.kernel[...], None if site.bias is None else site.bias[...])
  assert_allclose(np.asarray(merged).reshape(ins, outs), kernel, rtol=0, atol=1e-5 * np.abs(kernel).max())
  assert same is None if not bias else np.array_equal(same, values['bias'])


@each_case
def test_the_formula_under_dropout(case):
  """What the update reads is dropped; in DoRA all that differs from the pretrained product, as in PEFT."""
  site, values, scale = filled(case, dropout=0.4)
  kernel = changed(values, scale, 6, 8)[0]
  x = np.random.default_rng(1).normal(size=(2, 3, 6)).astype(np.float32)
  stream = Stream.start(jax.random.key(0), jnp.arange(2))
  seen = np.asarray(site.adapter.dropped(jnp.asarray(x), stream))
  assert set(np.unique(np.round(seen / x, 4))) == {0, np.float32(1.6667)}
  wanted = x @ values['kernel'] + seen @ (kernel - values['kernel']) + values['bias']
  assert_allclose(site(jnp.asarray(x), stream), wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())


@each_case
def test_in_bfloat16(case):
  site, values, scale = filled(case)
  x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3, 6)), jnp.bfloat16)
  y = site(x)
  assert y.dtype == jnp.bfloat16
  wanted = np.asarray(x, np.float32) @ changed(values, scale, 6, 8)[0] + values['bias']
  assert_allclose(np.asarray(y, np.float32), wanted, rtol=0, atol=0.03 * np.abs(wanted).max())


def test_doras_norm_is_a_constant_in_the_backward_pass():
  """Section 4.3, equation 11: with the norm held, the gradients are those of a fixed gain."""
  site, values, scale = filled('dora')
  x, cotangent = (np.random.default_rng(i).normal(size=(5, n)).astype(np.float32) for i, n in ((1, 6), (2, 8)))
  graph, state = nnx.split(site)
  loss = lambda s: (nnx.merge(graph, s)(jnp.asarray(x)) * cotangent).sum()  # noqa: E731
  got = jax.grad(loss)(state)['adapter']
  kernel, gain = changed(values, scale, 6, 8)
  g = cotangent * gain
  a, b = values['adapter/a'], values['adapter/b']
  assert_allclose(got['a'].get_value(), scale * x.T @ (g @ b.T), rtol=1e-4, atol=1e-5)
  assert_allclose(got['b'].get_value(), scale * (x @ a).T @ g, rtol=1e-4, atol=1e-5)
  assert_allclose(got['m'].get_value(), (cotangent * (x @ kernel)).sum(0) / values['adapter/m'], rtol=1e-4, atol=1e-5)


def prepared(module, model, config):
  """(method, all parameters by name after the method has prepared its own, the starting ones)."""
  method = module.build(config, model)
  before = trees.flatten(method.model.initial(jax.random.key(0)))
  return method, {**before, **({} if method.prepare is None else method.prepare(before, None))}, before


def batch():
  rows = np.random.default_rng(0).integers(5, V, (3, 8)).astype(np.int32)
  plain = {'tokens': rows, 'segments': np.ones_like(rows), 'types': np.zeros_like(rows)}
  return {**plain, 'positions': np.tile(np.arange(8, dtype=np.int32), (3, 1)), 'rows': np.arange(3, dtype=np.int32)}


ALL = 'attn/(q|v|o)$|mlp/(up|down)$'


@pytest.mark.parametrize('init', ['kaiming', 'gaussian', 'orthogonal', 'pissa', 'olora'])
@pytest.mark.parametrize('module', [lora, dora, lora_fa])
def test_every_start_is_the_pretrained_model(model, module, init):
  if module is lora_fa and init not in ('kaiming', 'gaussian'):
    return
  method, flat, _ = prepared(module, model, module.Config(rank=4, init=init, target=ALL))
  base = model.apply(trees.unflatten({n: x for n, x in flat.items() if '/adapter/' not in n}), batch()).logits
  ours = method.model.apply(trees.unflatten(flat), batch()).logits
  if init == 'orthogonal':  # a b is 0 but for rounding
    assert_allclose(ours, base, rtol=0, atol=1e-5)
  else:
    assert_array_equal(ours, base)
  name = 'layers/1/mlp/up/adapter'
  a, b = (np.asarray(flat[f'{name}/{n}']) for n in 'ab')
  if init == 'kaiming':
    assert 0.9 * D**-0.5 < np.abs(a).max() < D**-0.5
  elif init == 'gaussian':
    assert_allclose(a.std(), 1 / 4, rtol=0.2)
  else:
    assert np.abs(a).max() > 1e-3
    assert np.abs(b).max() > 1e-3
  if module is dora:
    kernel = np.asarray(flat['layers/1/attn/o/kernel']).reshape(D, D)
    assert_allclose(flat['layers/1/attn/o/adapter/m'], np.linalg.norm(kernel, axis=0), rtol=1e-6)


@pytest.mark.parametrize('scaling', ['alpha/rank', 'rsqrt'])
def test_pissa_takes_the_first_singular_vectors(model, scaling):
  method, flat, _ = prepared(lora, model, lora.Config(rank=4, init='pissa', target='attn/o$', scaling=scaling))
  w = np.asarray(flat['layers/0/attn/o/kernel']).reshape(D, D)
  own = {n: np.asarray(flat[f'layers/0/attn/o/adapter/{n}']) for n in ('a', 'b', 'a0', 'b0')}
  u, s, vt = np.linalg.svd(w)
  scale = 16 / (4 if scaling == 'alpha/rank' else 2)
  product = scale * own['a'].reshape(D, 4) @ own['b'].reshape(4, D)
  assert_allclose(product, (u[:, :4] * s[:4]) @ vt[:4], atol=1e-5)
  assert_allclose(np.linalg.norm(own['a'].reshape(D, 4), axis=0), np.sqrt(s[:4] / scale), rtol=1e-4)
  assert_array_equal(own['a'], own['a0'])
  assert not any(method.trains(f'layers/0/attn/o/adapter/{n}') for n in ('a0', 'b0'))


def test_olora_takes_the_qr(model):
  _, flat, _ = prepared(lora, model, lora.Config(rank=4, init='olora', target='mlp/up$'))
  w = np.asarray(flat['layers/0/mlp/up/kernel'])
  b = np.asarray(flat['layers/0/mlp/up/adapter/b'])
  assert_allclose(b @ b.T, np.eye(4), atol=1e-5)
  assert_allclose(w @ b.T, flat['layers/0/mlp/up/adapter/a'], atol=1e-4)  # R = Q' W' of W' = Q R


def test_ranks_and_alphas_by_pattern(model):
  fields = {'rank': 4, 'alpha': 8.0, 'rank_pattern': '^layers/0/attn/q=2;q$=6', 'alpha_pattern': '/v$=3.5'}
  method = lora.build(lora.Config(**fields), model)
  ranks = {n: method.model.info()[f'{n}/adapter/a'].shape[-1] for n in method.shown if n.startswith('layers')}
  assert list(ranks.values()) == [2, 4, 6, 4]  # the first that is found counts
  sites = method.model.sites()
  assert [sites[n].adapter.scale for n in ranks] == [8 / 2, 3.5 / 4, 8 / 6, 3.5 / 4]
  target = lora.build(lora.Config(target=r'^layers/[1-9]/attn/(q|v)$'), model)
  assert target.shown[:2] == ['layers/1/attn/q', 'layers/1/attn/v']


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    ({'rank_pattern': 'q$'}, "method.rank_pattern='q\\$': 'q\\$' is not pattern=number with a whole number"),
    ({'rank_pattern': 'q$=2.5'}, 'with a whole number from 1 on'),
    ({'rank_pattern': 'q$=0'}, 'with a whole number from 1 on'),
    ({'alpha_pattern': 'q$=x'}, 'with a number above 0'),
    ({'alpha_pattern': 'mlp=3'}, "method.alpha_pattern='mlp' matches none of the 4 sites it acts on"),
    ({'rank_pattern': '(q=3'}, 'no regular expression'),
    ({'rank_pattern': 'q$=33'}, 'method.rank=33 is larger than a matrix of 32 x 32'),
    ({'embeddings': 'embed/no'}, "method.embeddings='embed/no' matches none"),
    ({'embeddings': 'embed/type'}, 'larger than a matrix of 2 x 32'),
    ({'init': 'orthogonal', 'rank': 3}, 'needs an even rank, not 3'),
  ],
)
def test_what_does_not_fit_is_an_error(model, fields, words):
  with pytest.raises(InputError, match=words):
    lora.build(lora.Config(**fields), model)


def test_an_embedding(model):
  config = lora.Config(rank=4, alpha=6.0, embeddings='embed/(token|type)$', rank_pattern='embed/type=2')
  method, flat, _ = prepared(lora, model, config)
  assert_array_equal(
    method.model.apply(trees.unflatten(flat), batch()).logits,
    model.apply(trees.unflatten({n: x for n, x in flat.items() if '/adapter/' not in n}), batch()).logits,
  )
  rng = np.random.default_rng(0)
  flat |= {n: rng.normal(size=x.shape).astype(np.float32) for n, x in flat.items() if '/adapter/' in n}
  merged = trees.flatten(method.merge(trees.unflatten(flat)))
  for name, scale in (('embed/token', 6 / 4), ('embed/type', 6 / 2)):
    table = flat[f'{name}/table'] + scale * flat[f'{name}/adapter/a'] @ flat[f'{name}/adapter/b']
    assert_allclose(merged[f'{name}/table'], table, rtol=0, atol=1e-5)
  assert set(merged) == set(model.info())
  logits = method.model.apply(trees.unflatten(flat), batch()).logits
  assert_allclose(model.apply(trees.unflatten(merged), batch()).logits, logits, rtol=0, atol=1e-5)
  own = [n for n in method.model.info() if method.trains(n)]
  assert sum(method.model.info()[n].size for n in own) == N * 2 * 4 * 2 * D + 4 * (V + D) + 2 * (2 + D) + HEAD


@pytest.mark.parametrize(
  ('module', 'fields', 'count'),
  [
    (lora, {}, N * 2 * 8 * 2 * D),
    (lora, {'target': ALL}, N * 8 * (3 * 2 * D + 2 * (D + F))),
    (lora, {'init': 'pissa'}, N * 2 * 8 * 2 * D),
    (lora_fa, {}, N * 2 * 8 * D),
    (dora, {}, N * 2 * (8 * 2 * D + D)),
    (dora, {'init': 'olora'}, N * 2 * (8 * 2 * D + D)),
  ],
)
def test_trainable_counts(model, module, fields, count):
  method = module.build(module.Config(**fields), model)
  assert sum(i.size for n, i in method.model.info().items() if method.trains(n)) == count + HEAD


def test_lora_plus_is_a_group_of_the_optimizer(tiny_bert, toy_data):
  groups = {'b': {'pattern': 'adapter/b$', 'learning_rate': 0.16}}
  c = tiny.config(tiny_bert, toy_data, optim__groups=groups, optim__learning_rate=0.01, optim__warmup=0.0)
  c.optim.clip_norm, c.optim.schedule, c.model.layers = 0.0, 'constant', 'scan'
  built = run.build(c)
  assert built.optimizer.members['b'] == [n for n in built.train_info if n.endswith('adapter/b')]
  ones = trees.unflatten({n: jnp.ones(i.shape) for n, i in built.train_info.items()})
  step = trees.flatten(built.optimizer.tx.update(ones, built.optimizer.tx.init(ones), ones)[0])
  rates = {n: float(-x.mean()) for n, x in step.items()}
  assert rates == pytest.approx({n: 0.16 if n.endswith('adapter/b') else 0.01 for n in rates}, rel=1e-2)


def test_scanned_layers_with_alphas_of_their_own(tiny_bert, toy_data):
  """Equal shapes, other scales: such layers are not one stack."""
  logits = []
  for layers in ('unroll', 'scan'):
    fields = {'method__alpha_pattern': '^layers/1/=64', 'method__init': 'gaussian', 'model__layers': layers}
    built = run.build(tiny.config(tiny_bert, toy_data, **fields))
    own, frozen = built.load()
    flat = trees.flatten(trees.join(own, frozen))
    flat |= {n: jnp.full(x.shape, 0.05) for n, x in flat.items() if n.endswith('adapter/b')}
    logits.append(built.method.model.apply(trees.unflatten(flat), batch()).logits)
  assert_allclose(logits[1], logits[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize('case', [*CASES, 'gaussian'])
def test_to_peft_and_back(case, model):
  module, fields = CASES.get(case, (lora, {'rank': 3, 'init': 'gaussian', 'embeddings': 'embed/token'}))
  config = module.Config(**fields, target='attn/(q|o)$', rank_pattern='/q$=5', alpha_pattern='layers/1=4.5')
  method = module.build(config, model)
  slots = {**method.model.sites(), **method.model.sites(Embed)}
  names = {n: f'bert.{n.replace("/", ".")}' for n in method.shown if not n.startswith('head')}
  doubled = 2 if 'olora' in case or case == 'pissa' else 1
  rng = np.random.default_rng(0)
  for site in names:
    info = {n.rpartition('/')[2]: i for n, i in method.model.info().items() if n.startswith(f'{site}/adapter/')}
    leaves = {n: rng.normal(size=i.shape).astype(np.float32) for n, i in info.items()}
    tensors = module.to_peft(config, leaves, slots[site])
    assert next(iter(tensors.values())).shape[0] == doubled * slots[site].adapter.a.get_value().shape[-1]
    back = module.from_peft(config, tensors, slots[site])
    assert {n: x.shape for n, x in back.items()} == {n: x.shape for n, x in leaves.items()}
    assert all(np.array_equal(back[n], leaves[n]) for n in leaves)
  values = {**module.peft_config(config), **module.peft_patterns(config, names)}
  read = module.Config(
    **module.config_of_peft(values),
    **module.patterns_of_peft(values, names),
    target=config.target,
    **({'embeddings': config.embeddings} if module is lora else {}),
  )
  again = module.build(read, model).model
  scales = lambda m: {n: s.adapter.scale for n, s in {**m.sites(), **m.sites(Embed)}.items() if s.adapter}  # noqa: E731
  assert scales(again) == pytest.approx(scales(method.model))
  if doubled == 1:
    assert {n: i.shape for n, i in again.info().items()} == {n: i.shape for n, i in method.model.info().items()}
    same = dataclasses.asdict(read) | {k: getattr(config, k) for k in ('rank_pattern', 'alpha_pattern')}
    assert same == dataclasses.asdict(config)


@pytest.mark.parametrize(
  ('values', 'words'),
  [
    ({'bias': 'all'}, "bias = 'all'"),
    ({'init_lora_weights': 'pissa_niter_4'}, 'convert it with path_initial_model_for_weight_conversion'),
    ({'use_dora': True}, 'use_dora = True'),
    ({'lora_bias': True, 'layer_replication': [[0, 1]]}, r'lora_bias = True\n.*layer_replication'),
    ({'of_tomorrow': 3}, 'of_tomorrow = 3'),
  ],
)
def test_settings_of_peft_that_are_not_here(values, words):
  with pytest.raises(InputError, match=words):
    lora.config_of_peft({'r': 4, 'lora_alpha': 8, 'peft_type': 'LORA', **values})
