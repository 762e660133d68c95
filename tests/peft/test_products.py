"""VeRA, LoHa, LoKr and HiRA against their formulas, written plainly on matrices [inputs, outputs]."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose, assert_array_equal

from ftlib.base import trees
from ftlib.base.errors import InputError
from ftlib.base.rng import Stream
from ftlib.base.types import Head
from ftlib.models import bert
from ftlib.models.layers import Axis, Proj, normal
from ftlib.peft import hira, loha, lokr, vera
from tests.tiny import CONFIG

SHAPES = [((6,), (8,)), ((2, 6), (4, 2)), ((12,), (4, 2))]
CASES = {
  'vera': (vera, {'rank': 5, 'seed': 3}),
  'loha': (loha, {'rank': 3, 'alpha': 2.0}),
  'lokr': (lokr, {'rank': 1, 'alpha': 0.5}),
  'lokr_both': (lokr, {'rank': 1, 'alpha': 0.5, 'factor': 4, 'decompose_both': True}),
  'lokr_whole': (lokr, {'rank': 6, 'alpha': 9.0}),
  'hira': (hira, {'rank': 4}),
}
each_case = pytest.mark.parametrize('case', CASES)


def adapter_of(case, site):
  module, fields = CASES[case]
  config = module.Config(**fields)
  return {
    vera: lambda: vera.Vera(site, 1, (20, 16), config),
    loha: lambda: loha.Loha(site, config),
    lokr: lambda: lokr.Lokr(site, config),
    hira: lambda: hira.Hira(site, 1, config),
  }[module]()


def filled(case, shape, *, bias=True, seed=0):
  """A projection with the adapter, every parameter random; its values by name."""
  ins, outs = (tuple(Axis(f'{side}{i}', n) for i, n in enumerate(s)) for side, s in zip(('in', 'out'), shape))
  site = Proj(ins, outs, init=normal(1.0), bias=bias)
  site.adapter = nnx.data(adapter_of(case, site))
  rng = np.random.default_rng(seed)
  leaves = {'/'.join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(nnx.state(site))}
  values = {n: rng.normal(size=leaf.get_value().shape).astype(np.float32) for n, leaf in leaves.items()}
  return nnx.merge(nnx.graphdef(site), jax.tree.map(jnp.asarray, trees.unflatten(values))), values


def delta(case, values, ins, outs):
  """The change of the kernel [inputs, outputs], by the paper's formula in float64."""
  p = {n.removeprefix('adapter/'): v.astype(np.float64) for n, v in values.items()}
  fields = CASES[case][1]
  left = lambda name: p[name].reshape(ins, -1)  # noqa: E731
  right = lambda name: p[name].reshape(-1, outs)  # noqa: E731
  if case == 'vera':
    a, b = vera.projections(fields['seed'], fields['rank'], 20, 16)
    return (np.diag(p['b'].reshape(-1)) @ b[:, :outs].T @ np.diag(p['d']) @ a[:ins].T).T
  if case == 'loha':
    return fields['alpha'] / fields['rank'] * (left('a1') @ right('b1')) * (left('a2') @ right('b2'))
  if case == 'hira':
    return p['kernel'].reshape(ins, outs) * (left('a') @ right('b'))
  w1 = p['w1'] if 'w1' in p else p['a1'] @ p['b1']
  w2 = p['w2'] if 'w2' in p else p['a2'] @ p['b2']
  (m, n), (l, k) = w1.shape[:1] + w2.shape[:1], w1.shape[1:] + w2.shape[1:]
  out = np.zeros((ins, outs))
  for i in range(ins):
    for o in range(outs):
      out[i, o] = w1[i // n, o // k] * w2[i % n, o % k]
  assert m * n == ins
  assert l * k == outs
  return fields['alpha'] / fields['rank'] * out


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('shape', SHAPES)
@each_case
def test_the_formula(case, shape, bias):
  site, values = filled(case, shape, bias=bias)
  ins, outs = map(math.prod, shape)
  changed = values['kernel'].reshape(ins, outs) + delta(case, values, ins, outs)
  x = np.random.default_rng(1).normal(size=(2, 3, ins)).astype(np.float32)
  wanted = x @ changed + (values['bias'].reshape(-1) if bias else 0)
  y = site(jnp.asarray(x.reshape(2, 3, *shape[0])))
  assert_allclose(y, wanted.reshape(2, 3, *shape[1]), rtol=1e-4, atol=1e-4)
  one = site(jnp.asarray(x[:, 0].reshape(2, *shape[0])))  # as the head's: no tokens
  assert_allclose(one, wanted[:, 0].reshape(2, *shape[1]), rtol=1e-4, atol=1e-4)
  kernel, b = site.adapter.merged(site.kernel[...], None if site.bias is None else site.bias[...])
  assert_allclose(kernel, changed.reshape(*shape[0], *shape[1]), rtol=1e-4, atol=1e-4)
  assert (b is None) != bias
  if bias:
    assert_array_equal(b, values['bias'])


@each_case
def test_the_formula_in_bfloat16(case):
  site, values = filled(case, SHAPES[1])
  x = np.random.default_rng(1).normal(size=(2, 3, 12)).astype(np.float32)
  wanted = x @ (values['kernel'].reshape(12, 8) + delta(case, values, 12, 8)) + values['bias'].reshape(-1)
  y = site(jnp.asarray(x.reshape(2, 3, 2, 6), jnp.bfloat16))
  assert y.dtype == jnp.bfloat16
  assert_allclose(np.asarray(y, np.float32).reshape(2, 3, 8), wanted, atol=0.03 * np.abs(wanted).max(), rtol=0)


@each_case
def test_small_changes_are_not_rounded_away_in_bfloat16(case):
  """Of a kernel of ones, where the next number is 1.0078; the rows of x sum to zero, and so does x W."""
  site, values = filled(case, SHAPES[1], bias=False)
  values['kernel'] = np.ones_like(values['kernel'])
  scaled = {'vera': 'b', 'loha': 'a1', 'hira': 'a', 'lokr': 'w1', 'lokr_whole': 'w1', 'lokr_both': 'a1'}[case]
  values[f'adapter/{scaled}'] *= np.float32(1e-5)
  site = nnx.merge(nnx.graphdef(site), jax.tree.map(jnp.asarray, trees.unflatten(values)))
  x = np.eye(12, dtype=np.float32) - np.eye(12, k=1, dtype=np.float32)
  x[-1, 0] = -1
  y = site(jnp.asarray(x.reshape(12, 2, 6), jnp.bfloat16))
  wanted = x @ delta(case, values, 12, 8)
  assert 0 < np.abs(wanted).max() < 2**-9
  assert_allclose(np.asarray(y, np.float32).reshape(12, 8), wanted, atol=0.03 * np.abs(wanted).max(), rtol=0)


@pytest.mark.parametrize('case', ['vera', 'hira'])
def test_dropout_falls_on_what_the_update_reads_alone(case):
  module, fields = CASES[case]
  site, values = filled(case, SHAPES[0])
  ins, outs = map(math.prod, SHAPES[0])
  config = module.Config(**fields, dropout=0.5)
  site.adapter = nnx.data(vera.Vera(site, 1, (20, 16), config) if module is vera else hira.Hira(site, 1, config))
  site = nnx.merge(nnx.graphdef(site), trees.unflatten(values))
  x = np.random.default_rng(1).normal(size=(2, 3, ins)).astype(np.float32)
  stream = Stream.start(jax.random.key(0), jnp.arange(2))
  update = np.asarray(site(x, stream)) - (x @ values['kernel'] + values['bias'])
  kept = stream.at(f'{case}/1').keep(x.shape, 0.5)
  assert 0 < np.asarray(kept).mean() < 1
  assert_allclose(update, 2 * np.where(kept, x, 0) @ delta(case, values, ins, outs), rtol=1e-3, atol=1e-3)
  assert_allclose(site(x), x @ (values['kernel'] + delta(case, values, ins, outs)) + values['bias'], atol=1e-4)


# What trains.


@pytest.fixture(scope='module')
def model():
  return bert.build(bert.from_hf(CONFIG), head=Head('classify', 2))


D, F, N = CONFIG['hidden_size'], CONFIG['intermediate_size'], CONFIG['num_hidden_layers']
ALL = 'attn/(q|v|o)$|mlp/(up|down)$'


@pytest.mark.parametrize(
  ('module', 'fields', 'count'),
  [
    (vera, {}, N * 2 * (256 + D)),
    (vera, {'target': ALL, 'rank': 7}, N * (5 * 7 + 3 * D + F + D)),
    (loha, {}, N * 2 * 2 * 8 * (D + D)),
    (loha, {'target': ALL, 'rank': 2}, N * 2 * 2 * (3 * (D + D) + 2 * (D + F))),
    (lokr, {}, N * 2 * (4 * 4 + 8 * 8)),  # 32 = 4 * 8, and 8 is no less than 8 / 2
    (lokr, {'rank': 2}, N * 2 * (4 * 4 + 2 * (8 + 8))),
    (lokr, {'rank': 1, 'decompose_both': True}, N * 2 * (4 + 4 + 8 + 8)),
    (lokr, {'rank': 4, 'factor': 2}, N * 2 * (2 * 2 + 4 * (16 + 16))),
    (lokr, {'rank': 1, 'target': ALL}, N * (3 * (4 * 4 + 16) + 2 * (4 * 8 + 16))),  # 64 = 8 * 8
    (hira, {}, N * 2 * 32 * (D + D)),
    (hira, {'rank': 3, 'target': ALL}, N * 3 * (3 * (D + D) + 2 * (D + F))),
  ],
)
def test_trainable_counts(model, module, fields, count):
  method = module.build(module.Config(**fields, also=''), model)
  assert sum(math.prod(i.shape) for n, i in method.model.info().items() if method.trains(n)) == count
  assert sum(math.prod(i.shape) for n, i in method.model.info().items() if '/adapter/' in n) == count  # nothing kept


@pytest.mark.parametrize('module', [loha, hira])
def test_a_rank_above_the_matrix(model, module):
  with pytest.raises(InputError, match=r'method\.rank=33 is larger than a matrix of 32 x 32'):
    module.build(module.Config(rank=33), model)


# LoKr's split.


@pytest.mark.parametrize(
  ('size', 'factor', 'parts'),
  [
    (256, -1, (16, 16)),
    (128, -1, (8, 16)),
    (127, -1, (1, 127)),
    (384, -1, (16, 24)),
    (128, 4, (4, 32)),
    (32, 16, (16, 2)),
    (384, 5, (4, 96)),
    (384, 100, (16, 24)),
    (2, -1, (1, 2)),
  ],
)
def test_split(size, factor, parts):
  assert lokr.split(size, factor) == parts


def test_a_factor_of_nothing():
  with pytest.raises(ValueError, match='factor=0 divides nothing'):
    lokr.Config(factor=0)


# VeRA's matrices.


def test_the_matrices_are_of_the_seed_and_uniform():
  a, b = vera.projections(0, 64, 600, 500)
  assert a.shape == (600, 64)
  assert b.shape == (64, 500)
  assert a.dtype == b.dtype == np.float32
  for m, bound in ((a, math.sqrt(6 / 600)), (b, math.sqrt(6 / 64))):
    assert 0.999 * bound < np.abs(m).max() <= bound * 1.0001
    assert abs(m.mean()) < 0.01 * bound
    assert_allclose(m.var(), bound**2 / 3, rtol=0.02)
  vera.projections.cache_clear()
  assert_array_equal(vera.projections(0, 64, 600, 500)[1], b)
  assert not np.array_equal(vera.projections(1, 64, 600, 500)[0], a)


def test_sites_share_corners_of_the_same_matrices(model):
  method = vera.build(vera.Config(rank=4, target=ALL, also=''), model)
  sites = method.model.sites()
  a, b = vera.projections(0, 4, F, F)
  for name in method.shown:
    ours_a, ours_b = sites[name].adapter.frozen()
    ins, outs = (math.prod(x.size for x in axes) for axes in (sites[name].ins, sites[name].outs))
    assert_array_equal(ours_a.reshape(ins, 4), a[:ins])
    assert_array_equal(ours_b.reshape(4, outs), b[:, :outs])


def test_matrices_of_another_seed_are_refused(model):
  config = vera.Config(rank=4)
  site = vera.build(config, model).model.sites()['layers/0/attn/q']
  saved = vera.shared_to_peft(config, site)
  assert {n: x.shape for n, x in saved.items()} == {'base_model.vera_A': (4, D), 'base_model.vera_B': (D, 4)}
  vera.shared_from_peft(config, saved, site)
  vera.shared_from_peft(config, {}, site)
  vera.shared_from_peft(config, {n: x.astype(jnp.bfloat16) for n, x in saved.items()}, site)
  other = vera.build(dataclasses.replace(config, seed=1), model).model.sites()['layers/0/attn/q']
  with pytest.raises(InputError, match='is not what projection_prng_key=0 gives'):
    vera.shared_from_peft(config, vera.shared_to_peft(config, other), site)
  with pytest.raises(InputError, match='is not what projection_prng_key=0 gives'):
    vera.shared_from_peft(config, {'base_model.vera_A': np.zeros((4, D + 1), np.float32)}, site)


# PEFT's names and settings (live in tests/parity/test_peft_products.py).


@pytest.mark.parametrize('shape', SHAPES)
@each_case
def test_there_and_back(case, shape):
  module, fields = CASES[case]
  config = module.Config(**fields)
  site, values = filled(case, shape)
  ours = {n.removeprefix('adapter/'): v for n, v in values.items() if n.startswith('adapter/')}
  back = module.from_peft(config, module.to_peft(config, ours, site), site)
  assert set(back) == set(ours)
  for name, value in ours.items():
    assert_array_equal(back[name], value)


@each_case
def test_settings_there_and_back(case):
  module, fields = CASES[case]
  config = module.Config(**fields, target='', also='')
  assert module.Config(**module.config_of_peft(module.peft_config(config)), target='', also='') == config
  defaults = module.Config(**module.config_of_peft({}))
  assert defaults == module.Config()  # PEFT's defaults are ours
