"""Sparse fine-tuning against its formula, its choices against plain numpy, and its integers through a whole run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.nn import initializers

from ftlib import export, fine_tune, judge, run
from ftlib.base import trees
from ftlib.base.errors import InputError
from ftlib.base.types import Head
from ftlib.models import bert, stack
from ftlib.models.layers import Axis, Proj
from ftlib.peft import sparse
from tests import tiny

D, F, N = (tiny.CONFIG[k] for k in ('hidden_size', 'intermediate_size', 'num_hidden_layers'))
HEAD = 2 * D + 2
ONE = (Axis('embed', 12),), (Axis('mlp', 10),)
TWO_OUT = (Axis('embed', 12),), (Axis('heads', 2), Axis('head', 5))
TWO_IN = (Axis('heads', 2), Axis('head', 6)), (Axis('embed', 10),)


def site_of(axes, **values):
  """A `Proj` with its adapter, and random numbers for all of it: (module, numbers)."""
  site = Proj(*axes, init=initializers.zeros)
  site.adapter = nnx.data(sparse.Sparse(site, sparse.Config(**values)))
  rng = np.random.default_rng(0)
  shape, count = site.kernel.get_value().shape, site.adapter.values.get_value().shape[0]
  numbers = {
    'kernel': rng.normal(size=shape).astype(np.float32),
    'bias': rng.normal(size=shape[len(axes[0]) :]).astype(np.float32),
    'adapter': {
      'values': rng.normal(size=count).astype(np.float32),
      'indices': np.sort(rng.permutation(np.prod(shape))[:count]).astype(np.int32),
    },
  }
  return site, numbers


def changed(numbers):
  """The kernel with the values added, entry by entry."""
  flat = numbers['kernel'].reshape(-1).astype(np.float64)
  for i, v in zip(numbers['adapter']['indices'], numbers['adapter']['values'], strict=True):
    flat[i] += v
  return flat.reshape(numbers['kernel'].shape)


@pytest.mark.parametrize('axes', [ONE, TWO_OUT, TWO_IN], ids=['one', 'two_out', 'two_in'])
@pytest.mark.parametrize('density', [1e-6, 0.2, 1.0])
def test_formula(axes, density):
  site, numbers = site_of(axes, density=density)
  assert numbers['adapter']['values'].size == max(1, round(density * 120))
  x = np.random.default_rng(1).normal(size=(3, 7, *(a.size for a in axes[0]))).astype(np.float32)
  want = np.tensordot(x, changed(numbers), axes=len(axes[0])) + numbers['bias']
  module = nnx.merge(nnx.graphdef(site), numbers)
  np.testing.assert_allclose(module(x), want, atol=1e-5)
  kernel, bias = module.adapter.merged(numbers['kernel'], numbers['bias'])
  np.testing.assert_allclose(kernel, changed(numbers), atol=1e-6)
  np.testing.assert_array_equal(bias, numbers['bias'])


def test_gradients_are_those_of_the_whole_kernel_at_the_indices():
  site, numbers = site_of(TWO_OUT, density=0.2)
  x = np.random.default_rng(1).normal(size=(3, 7, 12)).astype(np.float32)
  graph = nnx.graphdef(site)
  loss = lambda values, kernel, x: jnp.sum(  # noqa: E731
    jnp.sin(nnx.merge(graph, {**numbers, 'kernel': kernel, 'adapter': {**numbers['adapter'], 'values': values}})(x))
  )
  plain = lambda kernel, x: jnp.sum(jnp.sin(jnp.tensordot(x, kernel, 1) + numbers['bias']))  # noqa: E731
  values, kernel, d_x = jax.grad(loss, (0, 1, 2))(numbers['adapter']['values'], numbers['kernel'], x)
  d_kernel, d_plain = jax.grad(plain, (0, 1))(changed(numbers).astype(np.float32), x)
  np.testing.assert_allclose(values, d_kernel.reshape(-1)[numbers['adapter']['indices']], atol=1e-5)
  np.testing.assert_allclose(kernel, d_kernel, atol=1e-5)  # the choices by gradient go by this one
  np.testing.assert_allclose(d_x, d_plain, atol=1e-5)


def test_the_backward_pass_keeps_no_second_kernel():
  site, numbers = site_of(ONE, density=0.2)
  graph, x = nnx.graphdef(site), np.ones((3, 12), np.float32)
  call = lambda v, x: nnx.merge(graph, {**numbers, 'adapter': {**numbers['adapter'], 'values': v}})(x)  # noqa: E731
  _, back = jax.vjp(call, numbers['adapter']['values'], x)
  kernels = [leaf for leaf in jax.tree.leaves(back) if np.shape(leaf) == (12, 10)]
  assert all(np.array_equal(k, numbers['kernel']) for k in kernels)


def test_a_value_too_small_for_a_bfloat16_kernel_counts():
  site, numbers = site_of(ONE, density=1.0)
  numbers['kernel'] = jnp.ones((12, 10), jnp.bfloat16)
  numbers['adapter']['values'] = np.full(120, 1e-3, np.float32)
  y = nnx.merge(nnx.graphdef(site), numbers)(np.ones((1, 12), np.float32)) - numbers['bias']
  np.testing.assert_allclose(y, 12 * 1.001, rtol=1e-6)


# Which entries.


def build(config, **values):
  return run.build(config(method='sparse', **{f'method__{k}': v for k, v in values.items()}))


def indices(state):
  """{site: indices}, layers unstacked."""
  flat = trees.flatten(stack.unstack(jax.device_get(state.kept)))
  return {n.removesuffix('/adapter/indices'): x for n, x in flat.items()}


def top(score, count):
  return sorted(sorted(range(score.size), key=lambda i: (-score.reshape(-1)[i], i))[:count])


@pytest.mark.parametrize('choose', ['fisher', 'magnitude', 'gradient', 'movement'])
def test_choices(config, choose):
  r = build(config, choose=choose, density=0.03, rows=40)
  flat = trees.flatten(r.method.model.initial(jax.random.key(0)))
  rng, asked = np.random.default_rng(0), []
  known = {n: rng.normal(size=x.shape).astype(np.float32) for n, x in flat.items() if n.endswith('kernel')}
  known['layers/0/attn/q/kernel'] = np.zeros_like(known['layers/0/attn/q/kernel'])  # all alike: the first are taken

  def gradient(names, *, rows, squared=False):
    asked.append((rows, squared))
    return {n: known[n] ** 2 if squared else known[n] for n in names}

  new = r.method.prepare(flat, gradient)
  assert asked == ([] if choose == 'magnitude' else [(40, choose == 'fisher')])
  assert set(new) == {f'{site}/adapter/indices' for site in r.method.model.sites() if site.startswith('layers/')}
  for name, got in new.items():
    kernel = name.replace('adapter/indices', 'kernel')
    w, g = np.asarray(flat[kernel]), known[kernel]
    score = {'fisher': g**2, 'magnitude': abs(w), 'gradient': abs(g), 'movement': -w * g}[choose]
    assert got.dtype == np.int32
    assert got.tolist() == top(score, round(0.03 * w.size)), name


@pytest.mark.parametrize('choose', ['fisher', 'movement'])
def test_choices_of_a_run_go_by_its_rows(config, choose):
  """Against gradients of the pretrained model without a method, row by row."""
  rows = 16
  r, plain = build(config, choose=choose, density=0.02, rows=rows), run.build(config(method='full'))
  got = indices(r.start(*r.load()))
  params = stack.unstack(trees.join(*plain.load()))
  loss = lambda p, b: -jax.nn.log_softmax(plain.method.model.apply(p, b).logits)[0, b['labels'][0]]  # noqa: E731
  grad, each = jax.jit(jax.grad(loss)), []
  for i in range(rows):
    each.append(trees.flatten(jax.device_get(grad(params, plain._collated(plain.examples['train'], np.array([i]), 1)))))
  for site, found in got.items():
    g = np.stack([e[f'{site}/kernel'] for e in each])
    w = np.asarray(trees.flatten(params)[f'{site}/kernel'])
    score = (g**2).mean(0) if choose == 'fisher' else -w * g.mean(0)
    assert found.tolist() == top(score, round(0.02 * w.size)), site


def test_the_parameters_are_no_part_of_the_program(config, recwarn):
  """As constants of it they would be compiled, several times as large as the model."""
  r, usual = build(config, rows=2), jax.config.jax_captured_constants_warn_bytes
  params = r.load()
  size = trees.nbytes(params[1])
  jax.config.update('jax_captured_constants_warn_bytes', size // 4)
  try:
    r.start(*params)
  finally:
    jax.config.update('jax_captured_constants_warn_bytes', usual)
  assert not [str(w.message) for w in recwarn if 'constants' in str(w.message)]


def test_random_entries_are_a_sample_without_repetition(config):
  first, again, other = (
    indices(r.start(*r.load()))
    for r in (
      run.build(config(method='sparse', method__choose='random', method__density=0.1, seed=s)) for s in (0, 0, 1)
    )
  )
  assert len(first) == 6 * N
  for site, x in first.items():
    size = D * F if '/mlp/' in site else D * D
    assert x.dtype == np.int32
    assert len(x) == round(0.1 * size) == len(set(x.tolist()))
    assert (np.diff(x) > 0).all()
    assert x[0] >= 0
    assert x[-1] < size
    assert abs(x.mean() / size - 0.5) < 5 * (12 * len(x)) ** -0.5  # of the whole range
    np.testing.assert_array_equal(x, again[site])
    assert not np.array_equal(x, other[site])
  assert len({x.tobytes() for x in first.values()}) == len(first)  # neither sites nor layers share a sample


# How much there is of it.


@pytest.mark.parametrize(
  ('values', 'of'), [({}, lambda i, o: round(0.005 * i * o)), ({'rank': 3}, lambda i, o: 3 * (i + o))]
)
def test_counts(config, values, of):
  r = build(config, **values)
  assert sum(i.size for i in r.train_info.values()) == N * (4 * of(D, D) + 2 * of(D, F)) + HEAD


@pytest.mark.parametrize(
  ('values', 'words'),
  [
    ({'density': 0.0}, 'must be above 0'),
    ({'density': 1.5}, 'must be at most 1'),
    ({'rank': 17}, 'rank=17 stands for 1088 entries of a matrix of 32 x 32, which has 1024'),
    ({'choose': 'movers'}, "method.choose=movers with method.of=''"),
    ({'of': 'runs/full'}, "method.choose=fisher with method.of='runs/full'"),
    ({'choose': 'fischer'}, 'did you mean "fisher"'),
  ],
)
def test_bad_numbers(config, values, words):
  with pytest.raises(InputError, match=words):
    build(config, **values)


def test_optimizer_state_is_a_fiftieth_of_full_fine_tuning():
  """MiniLM-L6's sizes, embeddings left out: Adam's two moments, at a density of half a percent."""
  sizes = {'hidden_size': 384, 'intermediate_size': 1536, 'num_hidden_layers': 6, 'num_attention_heads': 12}
  arch = bert.from_hf({**tiny.CONFIG, **sizes, 'vocab_size': 30522, 'max_position_embeddings': 512})
  method = sparse.build(sparse.Config(density=0.005), bert.build(arch, head=Head('classify', 2)))
  info = method.model.info()
  state_of = lambda names: trees.nbytes(  # noqa: E731
    jax.eval_shape(optax.adam(1e-3).init, {n: jax.ShapeDtypeStruct(info[n].shape, info[n].dtype) for n in names})
  )
  own, base = [n for n in info if method.trains(n)], [n for n in info if 'adapter' not in n.split('/')]
  assert state_of(own) < 0.0025 * state_of(base)
  assert state_of(own) < 0.02 * state_of([n for n in base if not n.startswith('embed/')])


def test_movers_are_those_of_a_finished_run(tmp_path, config):
  """The entries that full fine-tuning moved most, whatever the frozen ones are rounded to; all start at zero."""
  whole = {'method': 'full', 'train__steps': 2, 'train__eval_every': 2}
  fine_tune.run(config(**whole), str(tmp_path / 'full'))
  full = run.build(config(**whole))
  before = trees.flatten(full.load()[0])
  after = trees.flatten(judge.restored(full, tmp_path / 'full', 'best')[0])
  values = {'choose': 'movers', 'of': str(tmp_path / 'full'), 'density': 0.05}
  for dtype in ('float32', 'bfloat16'):
    method = {f'method__{k}': v for k, v in values.items()}
    r = run.build(config(method='sparse', precision__frozen=dtype, **method))
    state = r.start(*r.load())
    for site, found in indices(state).items():
      moved = abs(np.asarray(after[f'{site}/kernel']) - np.asarray(before[f'{site}/kernel']))
      assert found.tolist() == top(moved, round(0.05 * moved.size)), site
    assert not any(np.any(x) for n, x in trees.flatten(state.trainable).items() if n.endswith('values'))


def test_a_run_that_did_not_train_them_has_no_movers(tmp_path, config):
  fine_tune.run(config(method='head', train__steps=1, train__eval_every=1), str(tmp_path / 'head'))
  r = build(config, choose='movers', of=str(tmp_path / 'head'))
  with pytest.raises(InputError, match='did not train 12 of the matrices chosen from'):
    r.start(*r.load())
  r = build(config, choose='movers', of=str(tmp_path / 'none'))
  with pytest.raises(InputError, match='there is no such folder'):
    r.start(*r.load())


# Integers beside floating-point numbers, through a whole run.


@pytest.mark.slow
def test_indices_survive_saving_resuming_and_export(tmp_path, config):
  values = {'method': 'sparse', 'method__density': 0.05, 'precision__frozen': 'bfloat16', 'model__layers': 'scan'}
  short = {'train__eval_every': 2, 'checkpoint__metric': 'loss'}
  built = run.build(config(train__steps=2, **values, **short))
  chosen = indices(built.start(*built.load()))
  assert {x.dtype for x in chosen.values()} == {np.dtype(np.int32)}
  for steps in (2, 4):
    fine_tune.run(config(train__steps=steps, **values, **short), str(tmp_path / 'run'))
    own, _, step = judge.restored(built, tmp_path / 'run', 'last')
    assert step == steps
    got = trees.flatten(stack.unstack(jax.device_get(own)))
    for site, x in chosen.items():
      np.testing.assert_array_equal(got[f'{site}/adapter/indices'], x)
      assert got[f'{site}/adapter/indices'].dtype == np.int32
      assert np.abs(got[f'{site}/adapter/values']).min() > 0
  assert export.export(tmp_path / 'run', tmp_path / 'out') < 1e-4
