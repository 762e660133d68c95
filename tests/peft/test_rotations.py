"""oft, miss, ia3 and adalora against their papers' formulas, written plainly in NumPy with every parameter random."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.nn import initializers

from ftlib.base import settings, trees
from ftlib.base.errors import InputError
from ftlib.base.types import Head
from ftlib.models import bert, stack
from ftlib.models.layers import Axis, Proj
from ftlib.peft import adalora, ia3, miss, oft
from ftlib.peft.parts import adalora_budget
from tests import tiny

EMBED, HEADS, SIZE = Axis('embed', 12), Axis('heads', 2), Axis('head_dim', 6)
SITES = {
  'one': ((EMBED,), (Axis('mlp', 8),)),
  'heads out': ((EMBED,), (HEADS, SIZE)),
  'heads in': ((HEADS, SIZE), (Axis('embed', 10),)),
}
close = functools.partial(np.testing.assert_allclose, rtol=0, atol=2e-5)


def rotation(skew, size, terms=0):
  """R [inputs, inputs] of x -> x R."""
  blocks = []
  for row in np.asarray(skew, np.float64):
    q = np.zeros((size, size))
    q[np.triu_indices(size, 1)] = row
    q -= q.T
    one = np.eye(size)
    series = [np.linalg.matrix_power(q, i) for i in range(terms)]
    if terms:
      blocks.append(series[0] + 2 * sum(series[1:-1]) + (2 if terms == 2 else 1) * series[-1])
    else:
      blocks.append((one - q) @ np.linalg.inv(one + q))
  out = np.zeros((size * len(blocks),) * 2)
  for i, block in enumerate(blocks):
    out[i * size : (i + 1) * size, i * size : (i + 1) * size] = block
  return out


def of_oft(x, w, b, p, config):
  size = len(w) // config.blocks if config.blocks else config.block_size
  return x @ rotation(p['skew'], size, config.neumann_terms) @ w + b


def of_miss(x, w, b, p, config):
  d = p['d'].reshape(config.rank, -1)
  shards = [x[:, i : i + config.rank] for i in range(0, x.shape[1], config.rank)]
  return x @ w + b + sum(s @ d[: s.shape[1]] for s in shards)


def of_ia3(x, w, b, p, config):
  return p['out_scale'].reshape(-1) * (x @ w + b) if 'out_scale' in p else (x * p['in_scale'].reshape(-1)) @ w + b


def of_adalora(x, w, b, p, config):
  q, e, p = p['a'].reshape(-1, 4).T, np.diag(p['e']), p['b'].reshape(4, -1).T  # of the paper's W + P E Q
  return x @ (w.T + config.alpha / (4 + 1e-5) * p @ e @ q).T + b


CASES = {
  'oft': (lambda s, c: oft.Oft(s, 'here', c), oft.Config(block_size=4), of_oft),
  'oft one block': (lambda s, c: oft.Oft(s, 'here', c), oft.Config(blocks=1), of_oft),
  'oft 2 terms': (lambda s, c: oft.Oft(s, 'here', c), oft.Config(blocks=3, neumann_terms=2), of_oft),
  'oft 5 terms': (lambda s, c: oft.Oft(s, 'here', c), oft.Config(blocks=3, neumann_terms=5), of_oft),
  'oft 7 terms': (lambda s, c: oft.Oft(s, 'here', c), oft.Config(block_size=3, neumann_terms=7), of_oft),
  'miss': (lambda s, c: miss.Miss(s, 'here', 1, c), miss.Config(rank=4), of_miss),
  'miss with a remainder': (lambda s, c: miss.Miss(s, 'here', 1, c), miss.Config(rank=5), of_miss),
  'ia3 outputs': (lambda s, c: ia3.Outputs(s), ia3.Config(), of_ia3),
  'ia3 inputs': (lambda s, c: ia3.Inputs(s), ia3.Config(), of_ia3),
  'adalora': (lambda s, c: adalora.AdaLora(s, 'here', 1, c), adalora.Config(init_rank=4, target_rank=2), of_adalora),
}


def shapes(module):
  return {'/'.join(map(str, path)): leaf.get_value().shape for path, leaf in nnx.to_flat_state(nnx.state(module))}


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('axes', SITES)
@pytest.mark.parametrize('case', CASES)
def test_formula_and_merge(case, axes, bias):
  make, config, formula = CASES[case]
  ins, outs = SITES[axes]
  site = Proj(ins, outs, init=initializers.zeros, bias=bias)
  site.adapter = nnx.data(make(site, config))
  rng = np.random.default_rng(0)
  flat = {n: (0.5 * rng.normal(size=s)).astype(np.float32) for n, s in shapes(site).items()}
  x = rng.normal(size=(2, 3, *(a.size for a in ins))).astype(np.float32)
  y = nnx.merge(nnx.graphdef(site), trees.unflatten(flat))(x)
  w = flat['kernel'].reshape(-1, np.prod([a.size for a in outs]))
  b = flat['bias'].reshape(-1) if bias else 0
  own = {n.removeprefix('adapter/'): v for n, v in flat.items() if n.startswith('adapter/')}
  close(np.reshape(y, (6, -1)), formula(x.reshape(6, -1), w, b, own, config))
  kernel, given = flat['kernel'], flat.get('bias')
  merged, new = nnx.merge(nnx.graphdef(site.adapter), own).merged(jnp.asarray(kernel), given)
  assert (merged.shape, merged.dtype) == (kernel.shape, kernel.dtype)
  assert (new is None) == (given is None)
  plain = np.tensordot(x, merged, axes=len(ins)) + (0 if new is None else np.asarray(new))
  close(y, plain)
  half = nnx.merge(nnx.graphdef(site), trees.unflatten(flat))(x.astype(jnp.bfloat16))
  assert half.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.asarray(half, np.float32), y, rtol=0, atol=0.05 * np.abs(y).max())


@pytest.mark.parametrize('case', CASES)
def test_to_peft_and_back(case):
  module = {'oft': oft, 'miss': miss, 'ia3': ia3, 'adalora': adalora}[case.split()[0]]
  make, config, _ = CASES[case]
  for ins, outs in SITES.values():
    site = Proj(ins, outs, init=initializers.zeros)
    own = {n: np.random.default_rng(1).normal(size=s).astype(np.float32) for n, s in shapes(make(site, config)).items()}
    back = module.from_peft(config, module.to_peft(config, own, site), site)
    assert {n: v.shape for n, v in back.items()} == shapes(make(site, config))
    for name in set(own) - {n for n in own if n in adalora.AdaLora.KEPT}:
      np.testing.assert_array_equal(back[name], own[name])
  values = module.peft_config(config)
  again = module.Config(**module.config_of_peft({**values, 'bias': 'none', 'peft_version': '0.21.2'}))
  assert module.peft_config(again) == values


@pytest.fixture(scope='module')
def model():
  return bert.build(bert.from_hf(tiny.CONFIG), head=Head('classify', 2))


@pytest.mark.parametrize(
  ('module', 'values', 'words'),
  [
    (oft, {'block_size': 24}, r'method\.block_size=24 does not fit the 32 inputs of layers/0/attn/q; .*\[2, 4, 8, 16'),
    (oft, {'blocks': 5}, r'method\.blocks=5 does not fit the 32 inputs of layers/0/attn/q; .*\[1, 2, 4, 8, 16\]'),
    (oft, {'blocks': 32}, r'method\.blocks=32 does not fit'),
    (oft, {'neumann_terms': 1}, 'neumann_terms=1 leaves'),
    (miss, {'rank': 33}, r'method\.rank=33 is larger than the 32 inputs of layers/0/attn/q'),
    (ia3, {'feedforward': 'nowhere'}, "method.feedforward='nowhere' matches none"),
    (ia3, {'target': 'mlp'}, 'both match\n.*layers/0/mlp/down'),
    (adalora, {'init_rank': 33}, r'method\.init_rank=33 is larger than the 32 x 32 of layers/0/attn/q'),
    (adalora, {'target_rank': 13}, 'target_rank=13 is above init_rank=12'),
    (adalora, {'tinit': 700}, 'tinit=700 and tfinal=300 leave no step of total_steps=1000'),
  ],
)
def test_numbers_that_do_not_fit(model, module, values, words):
  with pytest.raises(InputError, match=words):
    module.build(settings.read(module.Config, values, where='method'), model)


@pytest.mark.parametrize(
  ('module', 'values', 'count'),
  [
    (oft, {}, 2 * 2 * 32 * 31 // 2),
    (oft, {'block_size': 8, 'target': 'mlp/down'}, 2 * 64 * 7 // 2),
    (miss, {'rank': 5}, 2 * 2 * 5 * 32),
    (ia3, {}, 2 * (32 + 32 + 64)),
    (ia3, {'feedforward': ''}, 2 * (32 + 32)),
    (adalora, {'target': 'mlp'}, 2 * 2 * 12 * (32 + 64 + 1)),
  ],
)
def test_counts(model, module, values, count):
  method = module.build(module.Config(**{'also': '', **values}), model)
  assert sum(i.size for n, i in method.model.info().items() if method.trains(n)) == count


@pytest.mark.parametrize('blocks', [1, 4])
def test_a_rotation_is_orthogonal(blocks):
  site = Proj((EMBED,), (HEADS, SIZE), init=initializers.zeros)
  module = oft.Oft(site, 'here', oft.Config(blocks=blocks))
  skew = np.random.default_rng(0).normal(size=module.skew.get_value().shape).astype(np.float32)
  r = np.asarray(nnx.merge(nnx.graphdef(module), {'skew': skew}).rotation())
  close(r @ r.swapaxes(1, 2), np.broadcast_to(np.eye(12 // blocks), r.shape))


# AdaLoRA's budget.

PLAN = adalora.Config(
  init_rank=4, target_rank=2, total_steps=12, tinit=2, tfinal=3, interval=2, target='attn/(q|o)$', also=''
)


def allocation(model, config, rng, *, stacked):
  """`(method, trainable, kept)` with random values of what trains."""
  method = adalora.build(config, model)
  info = {n: i for n, i in method.model.info().items() if '/adapter/' in n}
  flat = {n: np.asarray(i.init(jax.random.key(0), i.shape, i.dtype)) for n, i in info.items()}
  flat |= {n: rng.normal(size=i.shape).astype(np.float32) for n, i in info.items() if method.trains(n)}
  tree = stack.stack(trees.unflatten(flat), [(0, 2)]) if stacked else trees.unflatten(flat)
  return method, *trees.split(tree, lambda n: method.trains(trees.canonical(n)))


def unstacked(tree):
  return {n: np.asarray(x) for n, x in trees.flatten(stack.unstack(tree)).items()}


@pytest.mark.parametrize('stacked', [False, True])
def test_the_budget_goes_to_the_most_important_triples(model, stacked):
  rng = np.random.default_rng(3)
  method, trainable, kept = allocation(model, PLAN, rng, stacked=stacked)
  sites = ['layers/0/attn/o', 'layers/0/attn/q', 'layers/1/attn/o', 'layers/1/attn/q']
  adjust = jax.jit(method.adjust(12))
  s = {n: np.zeros(x.shape) for n, x in unstacked(trainable).items()}
  u = {n: np.zeros(x.shape) for n, x in s.items()}
  mask = {n: np.ones(4) for n in sites}
  left = []
  for step in range(12):
    trainable = jax.tree.map(lambda x: x + rng.normal(size=x.shape).astype(np.float32), trainable)
    grads = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), trainable)
    before, g = unstacked(trainable), unstacked(grads)
    trainable, kept = adjust(trainable, kept, grads, jnp.int32(step))
    if step < 9:  # equations 9 and 10
      for n, x in before.items():
        s[n] = 0.85 * s[n] + 0.15 * np.abs(x * g[n])
        u[n] = 0.85 * u[n] + 0.15 * np.abs(np.abs(x * g[n]) - s[n])
    score = {}
    for n in sites:  # equations 8 and 11
      a, e, b = (s[f'{n}/adapter/{k}'] * u[f'{n}/adapter/{k}'] for k in 'aeb')
      score[n] = e + a.reshape(-1, 4).mean(0) + b.reshape(4, -1).mean(1)
    if step in (4, 6, 8, 9):
      count = int(8 + 8 * (1 - (step - 2) / 7) ** 3)  # equation 12, of 4 sites
      best = np.sort(np.concatenate(list(score.values())))[-count]
      mask = {n: (x >= best).astype(float) for n, x in score.items()}
    after, saved = unstacked(trainable), unstacked(kept)
    for n in sites:
      np.testing.assert_array_equal(saved[f'{n}/adapter/mask'], mask[n], err_msg=f'{n} after step {step}')
      for k in 'aeb':
        np.testing.assert_allclose(saved[f'{n}/adapter/{k}_sensitivity'], s[f'{n}/adapter/{k}'], rtol=1e-5)
        np.testing.assert_allclose(saved[f'{n}/adapter/{k}_uncertainty'], u[f'{n}/adapter/{k}'], rtol=1e-3, atol=1e-6)
      now = mask[n] if step in (4, 6, 8) or step >= 9 else 1
      np.testing.assert_array_equal(after[f'{n}/adapter/e'], before[f'{n}/adapter/e'] * now)
      np.testing.assert_array_equal(after[f'{n}/adapter/a'], before[f'{n}/adapter/a'])
    left.append(int(sum(m.sum() for m in mask.values())))
  assert left == [16, 16, 16, 16, 10, 10, 8, 8, 8, 8, 8, 8]


def test_budgets_follow_equation_12():
  config = dataclasses.replace(PLAN, init_rank=12, target_rank=8, total_steps=1000, tinit=100, tfinal=300, interval=100)
  exact = [480, 480] + [320 + 160 * (1 - (t - 100) / 600) ** 3 for t in range(200, 701, 100)]
  assert adalora_budget.budgets(config, 40).tolist() == [int(x) for x in exact]


@pytest.mark.parametrize('stacked', [False, True])
def test_the_penalty_is_the_distance_from_orthogonal(model, stacked):
  method, trainable, _ = allocation(model, PLAN, np.random.default_rng(0), stacked=stacked)
  norms = []
  for n, x in unstacked(trainable).items():
    if n.endswith(('/a', '/b')):
      m = x.reshape(-1, 4) if n.endswith('/a') else x.reshape(4, -1).T
      norms.append(np.linalg.norm(m.T @ m - np.eye(4)))
  np.testing.assert_allclose(method.penalty(trainable), 0.5 * np.mean(norms), rtol=1e-5)
  exact = trees.map_named(lambda n, x: jnp.broadcast_to(_straight(n, x.shape), x.shape), trainable)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(jax.grad(method.penalty)(exact)))
  np.testing.assert_allclose(method.penalty(exact), 0, atol=1e-5)


def _straight(name, shape):
  if name.endswith('/a'):
    return np.eye(32, 4).reshape(shape[-3:] if shape[-2] != 32 else shape[-2:])
  return np.eye(4, 32).reshape(shape[-3:] if shape[-1] != 32 else shape[-2:]) if name.endswith('/b') else np.zeros(4)
