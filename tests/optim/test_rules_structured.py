"""Muon, GaLore, 8-bit Adam, SAM, lookahead and L-BFGS: the papers' formulas in NumPy, and bytes of state by theory."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ftlib.base import trees
from ftlib.base.errors import InputError
from ftlib.optim import blockwise, chain, matrices
from tests.optim.numpy_rules import DECAYED, INFO, close, draw, info_of, module_and_config, nbytes, rule, walk

STACKED = info_of(
  layers__q__kernel=((2, 4, 2, 3), 'layers embed heads head_dim'),
  layers__o__kernel=((2, 3, 5), 'layers mlp embed'),
  layers__q__bias=((2, 2, 3), 'layers heads head_dim'),
  table=((6, 4), 'vocab embed'),
  lora__a=((5, 2), 'embed rank'),
)
VIEWS = {'layers/q/kernel': (2, 4, 6), 'layers/o/kernel': (2, 3, 5), 'lora/a': (1, 5, 2)}
GRADIENTS = [draw(s, STACKED) for s in range(3)]


def adam(gradients, names, *, b1, b2, eps, times=1.0):
  """Adam's directions of `names`, by the paper."""
  m, v, out = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0), []
  for t, g in enumerate(gradients, 1):
    m = {n: b1 * m[n] + (1 - b1) * g[n] for n in names}
    v = {n: b2 * v[n] + (1 - b2) * g[n].astype(float) ** 2 for n in names}
    out.append({n: times * m[n] / (1 - b1**t) / (np.sqrt(v[n] / (1 - b2**t)) + eps) for n in names})
  return out


def test_matrices_are_told_by_axis_names():
  assert {n: (*v.stack, *v.dims) for n, v in matrices.hidden(STACKED).items()} == {**VIEWS, 'lora/a': (5, 2)}
  assert set(matrices.hidden(STACKED, factors=False)) == {'layers/q/kernel', 'layers/o/kernel'}
  none = info_of(out=((4, 2), 'embed classes'), v=((3, 4, 2), 'prefix heads head_dim'), s=((2, 4), 'layers embed'))
  assert not matrices.hidden(none | info_of(convolution=((2, 4, 3, 5), 'layers embed window embed_out')))


def newton_schulz(x, steps):
  x = x / (np.linalg.norm(x) + 1e-8)
  tall = x.shape[0] > x.shape[1]
  x = x.T if tall else x
  for _ in range(steps):
    a = x @ x.T
    x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
  return x.T if tall else x


@pytest.mark.parametrize('jordan', [False, True])
def test_muon(jordan):
  """Each layer of a stack alone, heads as one side; tables and biases by adamw at a rate of their own."""
  beta, steps = 0.8, 3
  options = {'rms': 0.0, 'nesterov': False, 'factors': False} if jordan else {'rms': 0.3, 'adam_learning_rate': 2e-3}
  adams = {'b1': 0.6, 'b2': 0.7, 'eps': 1e-2}
  tx = rule('muon', STACKED, beta=beta, ns_steps=steps, learning_rate=1e-3, **adams, **options)
  views = {n: v for n, v in VIEWS.items() if not (jordan and n == 'lora/a')}
  rest = adam(GRADIENTS, set(STACKED) - set(views), times=1.0 if jordan else 2.0, **adams)
  m, wanted = dict.fromkeys(views, 0.0), []
  for t, g in enumerate(GRADIENTS, 1):
    out = {}
    for n, shape in views.items():
      m[n] = beta * m[n] + (1 - beta) * g[n]
      ahead = beta * m[n] / (1 - beta ** (t + 1)) + (1 - beta) * g[n] / (1 - beta**t)
      x = (m[n] / (1 - beta**t) if jordan else ahead).astype(float).reshape(shape)
      size = np.sqrt(max(1, shape[2] / shape[1])) if jordan else 0.3 * np.sqrt(max(shape[1:]))
      out[n] = np.stack([size * newton_schulz(layer, steps) for layer in x]).reshape(g[n].shape)
    wanted.append({**rest[t - 1], **out})
  close(walk(tx, GRADIENTS, draw(9, STACKED), steps=3)[0], wanted, tolerance=2e-4)


def test_muon_makes_singular_values_near_one():
  info = info_of(w__kernel=((6, 8), 'embed mlp'))
  (update,), _, _ = walk(rule('muon', info, rms=0.0, nesterov=False), [draw(0, info)], draw(9, info), steps=1)
  values = np.linalg.svd(update['w/kernel'] / np.sqrt(8 / 6), compute_uv=False)
  assert 0.6 < values.min() <= values.max() < 1.3


def test_muon_keeps_one_momentum_a_matrix():
  whole, rest = 2 * 4 * 6 + 2 * 3 * 5 + 5 * 2, 2 * 6 + 6 * 4
  counts = 4 + 4 + 3 * 4  # two counters, three coefficients
  assert nbytes(rule('muon', STACKED), STACKED) == 4 * (whole + 2 * rest) + counts
  assert nbytes(rule('muon', STACKED, moments='bfloat16'), STACKED) == 2 * whole + (2 + 4) * rest + counts


def test_galore():
  """Two steps in one subspace, one in the next: the subspace is that of NumPy's singular vectors, then Adam in it."""
  rank, scale, adams = 2, 1.5, {'b1': 0.6, 'b2': 0.7, 'eps': 1e-2}
  tx = rule('galore', STACKED, rank=rank, scale=scale, update_proj_gap=2, **adams)
  updates, states, _ = walk(tx, GRADIENTS, draw(9, STACKED), steps=3)
  views = {n: v for n, v in VIEWS.items() if n != 'lora/a'}
  bases = [matrices.named(s.inner_states['kernels'].inner_state.projector) for s in states]
  low = []
  for t, g in enumerate(GRADIENTS):
    at = GRADIENTS[t // 2 * 2]
    out = {}
    for n, shape in views.items():
      left = shape[1] <= shape[2]
      p = bases[t][n]
      assert p.shape == (2, min(shape[1:]), rank)
      for layer in range(2):
        u, _, vt = np.linalg.svd(at[n].reshape(shape)[layer].astype(float))
        best = u[:, :rank] if left else vt[:rank].T
        np.testing.assert_allclose(p[layer] @ p[layer].T, best @ best.T, atol=1e-4)
        np.testing.assert_allclose(p[layer].T @ p[layer], np.eye(rank), atol=1e-5)
      x = g[n].reshape(shape)
      out[n] = p.swapaxes(1, 2) @ x if left else x @ p
    low.append(out)
  wanted = adam(GRADIENTS, set(STACKED) - set(views), **adams)
  for t, r in enumerate(adam(low, views, **adams)):
    for n, shape in views.items():
      p = bases[t][n]
      full = p @ r[n] if shape[1] <= shape[2] else r[n] @ p.swapaxes(1, 2)
      wanted[t][n] = scale * full.reshape(STACKED[n].shape)
  close(updates, wanted, tolerance=2e-4)


def test_galore_keeps_a_projector_and_low_moments():
  info = info_of(l__kernel=((3, 64, 4, 8), 'layers embed heads head_dim'), b__bias=((32,), 'mlp'))
  rank = 4
  theory = 3 * rank * (32 + 2 * 64) + 2 * 32  # the shorter side is that of the heads
  assert nbytes(rule('galore', info, rank=rank), info) == 4 * theory + 3 * 4  # three counters
  assert nbytes(rule('galore', info, rank=32), info) == 8 * (3 * 64 * 32 + 32) + 3 * 4  # a full rank is Adam


def test_tables_of_eight_bits():
  signed, unsigned = (blockwise.table('dynamic', signed=s) for s in (True, False))
  for table in (signed, unsigned):
    assert table.shape == (256,)
    assert (np.diff(table) > 0).all()
    assert table[-1] == 1
  np.testing.assert_allclose(signed[128:131], [5.5e-7, 3.25e-6, 7.75e-6], rtol=1e-5)  # one value, then two a decade up
  np.testing.assert_allclose(unsigned[:3], [0, 3.25e-7, 7.75e-7], rtol=1e-5)
  np.testing.assert_allclose(-signed[0], signed[-2])
  np.testing.assert_allclose([signed[-2], unsigned[-2]], [1 - 0.45 / 64, 1 - 0.45 / 128], rtol=1e-6)
  assert signed[127] == 0
  np.testing.assert_allclose(blockwise.table('linear', signed=True)[[0, 127, 254]], [-1, 0, 1])
  np.testing.assert_allclose(blockwise.table('linear', signed=False)[[0, 51, 255]], [0, 0.2, 1])


@pytest.mark.parametrize('kind', ['dynamic', 'linear'])
@pytest.mark.parametrize('signed', [True, False])
def test_the_nearest_value_is_found_without_a_search(kind, signed):
  """As by a search: everywhere, at every edge and next to it, from zeros of both signs to beyond the ends."""
  rng, values = np.random.default_rng(0), blockwise.table(kind, signed=signed)
  edges = (values[1:] + values[:-1]) / 2
  x = [rng.uniform(-1.1, 1.1, 5000), rng.choice([-1, 1], 5000) * 10 ** rng.uniform(-12, 0.1, 5000), [0.0, -0.0]]
  x += [edges, np.nextafter(edges, np.float32(2)), np.nextafter(edges, np.float32(-2)), values]
  x = np.concatenate(x).astype(np.float32)
  np.testing.assert_array_equal(blockwise.nearest(jnp.asarray(x), values), np.searchsorted(edges, x))


def test_blocks_are_of_256_numbers_with_a_scale_each():
  values = blockwise.table('dynamic', signed=True)
  x = np.zeros((2, 600), np.float32)
  x[:, :256], x[0, 300], x[1, 599] = 5.0, 0.01, -7.0
  codes, scales = blockwise.encode(jnp.asarray(x), values)
  assert (codes.shape, codes.dtype) == ((2, 600), np.uint8)
  np.testing.assert_allclose(scales, [[5, 0.01, 0], [5, 0, 7]])
  back = np.asarray(blockwise.decode(codes, scales, values))
  np.testing.assert_allclose(back, x, rtol=0.01)
  positive = blockwise.table('dynamic', signed=False)
  small = jnp.asarray([[1.0, 1e-12, 0.0]])
  back = blockwise.decode(*blockwise.encode(small, positive), positive)
  np.testing.assert_allclose(back, [[1.0, positive[1], 0.0]])  # above 0 stays above 0


def stored(x, table):
  """What is left of [N, size] after 8 bits, block by block and number by number."""
  out = np.zeros_like(x)
  for row, i in np.ndindex(x.shape[0], -(-x.shape[1] // 256)):
    block = x[row, i * 256 : (i + 1) * 256]
    scale = np.abs(block).max()
    codes = np.abs(block[:, None] / scale - table).argmin(1)
    if table[0] == 0:
      codes[(codes == 0) & (block > 0)] = 1
    out[row, i * 256 : (i + 1) * 256] = table[codes] * scale
  return out


@pytest.mark.parametrize('table', ['dynamic', 'linear'])
def test_adam8bit(table):
  info = info_of(l__kernel=((2, 20, 30), 'layers embed mlp'), b__bias=((30,), 'mlp'))
  gradients = [draw(s, info) for s in range(3)]
  b1, b2, eps = 0.6, 0.7, 1e-2
  tx = rule('adam8bit', info, b1=b1, b2=b2, eps=eps, table=table, min_size=100)
  tables = [blockwise.table(table, signed=s) for s in (True, False)]
  wanted = adam(gradients, ['b/bias'], b1=b1, b2=b2, eps=eps)  # too small for codes
  m, v = np.zeros((2, 600), np.float32), np.zeros((2, 600), np.float32)
  for t, g in enumerate(gradients, 1):
    g = g['l/kernel'].reshape(2, 600)
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
    wanted[t - 1]['l/kernel'] = (m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)).reshape(2, 20, 30)
    m, v = stored(m, tables[0]), stored(v, tables[1])
  updates, states, _ = walk(tx, gradients, draw(9, info), steps=3)
  close(updates, wanted)
  state = states[-1]
  assert {x['l']['kernel'].dtype for x in (state.mu, state.nu)} == {np.dtype(np.uint8)}
  assert trees.flatten(state.mu_scales)['l/kernel'].shape == (2, 3)
  plain = adam(gradients, info, b1=b1, b2=b2, eps=eps)[-1]['l/kernel']
  off = np.linalg.norm(updates[-1]['l/kernel'] - plain) / np.linalg.norm(plain)
  assert (0 < off < 0.02) if table == 'dynamic' else off > 0


def test_adam8bit_keeps_two_bytes_and_an_eighth_of_a_bit_more():
  info = info_of(l__kernel=((3, 64, 100), 'layers embed mlp'), b__bias=((100,), 'mlp'))
  size, blocks = 3 * 6400, 3 * 25
  assert nbytes(rule('adam8bit', info), info) == 2 * size + 2 * 4 * blocks + 8 * 100 + 4
  assert 2 * 4 * blocks / size == 8 / 256


def cubic(params, _):
  return jax.tree.map(lambda p: p**3 + 0.1, params)


@pytest.mark.parametrize('adaptive', [False, True])
def test_sam_is_the_two_pass_formula(adaptive):
  """Momentum of 0.5 inside; the first gradient decides where the second is taken, and the second alone is used."""
  rho, start = 0.4, draw(9)
  tx = rule('sam', rho=rho, adaptive=adaptive, inner='sgd', inner_options={'momentum': 0.5})
  step = lambda t, params: cubic(params, 0)  # noqa: E731
  updates, _, _ = walk(tx, step, start, apply=False, steps=2, extra=lambda _: {'grad_fn': cubic})
  g = {n: w.astype(float) ** 3 + 0.1 for n, w in start.items()}
  t = {n: np.abs(w) if adaptive else 1.0 for n, w in start.items()}
  norm = np.sqrt(sum(((t[n] * g[n]) ** 2).sum() for n in g))
  there = {n: start[n] + rho * t[n] ** 2 * g[n] / norm for n in g}
  second = {n: w**3 + 0.1 for n, w in there.items()}
  close(updates, [second, {n: 1.5 * x for n, x in second.items()}])
  flat = lambda params, _: jax.tree.map(jnp.zeros_like, params)  # noqa: E731
  (still,), _, _ = walk(tx, [{n: 0 * x for n, x in start.items()}], start, steps=1, extra=lambda _: {'grad_fn': flat})
  assert all((x == 0).all() for x in still.values())  # no direction, no division by 0


@pytest.mark.parametrize(
  ('values', 'words'),
  [
    ({'inner': 'adamv'}, "optim.inner='adamv' is no component"),
    ({'inner': 'lookahead'}, "optim.inner='lookahead' has its learning rate in its rule, so it cannot be inside sam"),
    ({'inner': 'sophia'}, "optim.inner='sophia' needs more than the gradient, so it cannot be inside sam"),
    ({'inner_options': {'bb1': 0.5}}, 'unknown config key optim.inner_options.bb1; did you mean "b1"?'),
    ({'inner_options': {'b1': 2.0}}, 'optim.inner_options.b1=2.0 is out of range'),
    ({'inner': 'sgd', 'inner_options': {'learning_rate': 0.1}}, 'optim.inner_options.learning_rate is shared'),
  ],
)
def test_what_cannot_be_inside(values, words):
  with pytest.raises(InputError) as e:
    rule('sam', **values)
  assert words in str(e.value)


def test_what_draws_by_the_seed_cannot_be_inside(monkeypatch):
  monkeypatch.setattr('ftlib.optim.adamw.SEEDED', True, raising=False)
  with pytest.raises(InputError, match=r"optim\.inner='adamw' needs more than the gradient"):
    rule('sam')


def test_lookahead():
  """Two steps of momentum, then half the way back; decay and rate are of the fast steps."""
  k, alpha, decay, rates = 2, 0.25, 0.3, lambda t: 0.1 * (t + 1)
  options = {'sync_period': k, 'alpha': alpha, 'inner': 'sgd', 'inner_options': {'momentum': 0.5}}
  tx = rule('lookahead', rate=rates, decay=decay, **options)
  module, _ = module_and_config('lookahead')
  gradients, start = [draw(s) for s in range(5)], draw(9)
  fast, slow, trace, wanted, slows = dict(start), dict(start), dict.fromkeys(start, 0.0), [], []
  for t, g in enumerate(gradients):
    trace = {n: 0.5 * trace[n] + g[n] for n in g}
    fast = {n: fast[n] - rates(t) * (trace[n] + decay * DECAYED(n) * fast[n]) for n in g}
    if (t + 1) % k == 0:
      slow = {n: slow[n] + alpha * (fast[n] - slow[n]) for n in g}
      fast = dict(slow)
    wanted.append(fast)
    slows.append(slow)
  _, states, params = walk(tx, gradients, start, steps=5)
  close(params, wanted)
  close([trees.flatten(module.averaged(s, trees.unflatten(p))) for s, p in zip(states, params, strict=True)], slows)


LOGISTIC = info_of(out__kernel=((5, 3), 'embed classes'), out__bias=((3,), 'classes'))


def logistic(params):
  """Mean cross entropy of 60 rows with a little ridge, so that there is one optimum."""
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(60, 5)) * [2, 1, 1, 0.5, 1], rng.integers(0, 3, 60)
  logits = jnp.asarray(x, jnp.float32) @ params['out']['kernel'] + params['out']['bias']
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(y)).mean()
  return loss + 1e-2 * sum(jnp.square(p).sum() for p in jax.tree.leaves(params))


@pytest.mark.parametrize('rates', [lambda _: 1.0, lambda t: 1.0 * (t > 0)])
def test_lbfgs_reaches_the_optimum_of_a_logistic_regression(rates):
  """The loss is strongly convex, so a small gradient is nearness. A first step at a rate of 0 teaches nothing, and does
  not stop it."""
  tx = rule('lbfgs', LOGISTIC, rate=rates)
  grad = jax.grad(logistic)
  extra = lambda p: {'value': logistic(p), 'grad': grad(p), 'value_fn': logistic}  # noqa: E731
  start = draw(9, LOGISTIC)
  _, states, params = walk(tx, lambda t, p: grad(p), start, steps=15, extra=extra)
  norms = [float(optax.tree.norm(grad(trees.unflatten(p)))) for p in (start, params[-1])]
  assert norms[1] < 1e-3 * norms[0], norms
  values = [float(logistic(trees.unflatten(p))) for p in params]
  assert all(b <= a + 1e-6 for a, b in itertools.pairwise(values))
  assert int(states[-1].count) == 15


@pytest.mark.parametrize('field', ['l2', 'l2_sp'])
def test_lbfgs_searches_by_the_loss_with_its_l2(field):
  """At the optimum of both the gradient is the pull's opposite; l2_sp pulls to the start."""
  tx = chain.build(*module_and_config('lbfgs', **{field: 0.3}), LOGISTIC, steps=20).tx
  grad, start = jax.grad(logistic), draw(9, LOGISTIC)
  extra = lambda p: {'value': logistic(p), 'grad': grad(p), 'value_fn': logistic}  # noqa: E731
  last = walk(tx, lambda t, p: grad(p), start, steps=20, extra=extra)[2][-1]
  left = trees.flatten(grad(trees.unflatten(last)))
  origin = start if field == 'l2_sp' else dict.fromkeys(start, 0)
  np.testing.assert_allclose(left['out/kernel'], -0.3 * (last['out/kernel'] - origin['out/kernel']), atol=1e-4)
  np.testing.assert_allclose(left['out/bias'], 0, atol=1e-4)


@pytest.mark.parametrize('values', [{'noise': 0.1}, {'centralize': True}, {'clip_norm': 1.0}])
def test_lbfgs_refuses_what_changes_the_gradient_alone(values):
  with pytest.raises(InputError, match=f'optim.{next(iter(values))}.* lbfgs, which searches by the loss'):
    chain.build(*module_and_config('lbfgs', **values), LOGISTIC, steps=20)


def test_lbfgs_decays_past_the_line_search():
  zero = {n: np.zeros(i.shape, np.float32) for n, i in INFO.items()}
  tx = rule('lbfgs', rate=lambda _: 0.5, decay=0.2)
  flat = lambda params: 0.0 * sum(x.sum() for x in jax.tree.leaves(params))  # noqa: E731
  still = lambda p: {'value': flat(p), 'grad': jax.grad(flat)(p), 'value_fn': flat}  # noqa: E731
  start = draw(9)
  (update,), _, _ = walk(tx, [zero], start, steps=1, extra=still)
  close([update], [{n: -0.5 * 0.2 * DECAYED(n) * x for n, x in start.items()}])


def test_the_second_gradient_is_treated_as_the_first():
  """Clipped by value and with L2 added, at the parameters where it is taken."""
  values = {'clip': 'value', 'clip_norm': 0.5, 'l2': 0.1, 'schedule': 'constant', 'warmup': 0.0, 'learning_rate': 1.0}
  options = {'inner': 'sgd', 'inner_options': {'momentum': 0.0}, 'rho': 0.4}
  tx = chain.build(*module_and_config('sam', **values, **options), INFO, steps=9).tx
  start, steep = draw(9), lambda params, *_: jax.tree.map(lambda p: 10 * p, params)
  updates, _, _ = walk(tx, lambda t, p: steep(p), start, steps=1, extra=lambda _: {'grad_fn': steep})
  treated = lambda at: {n: np.clip(10 * w, -0.5, 0.5) + 0.1 * DECAYED(n) * w for n, w in at.items()}  # noqa: E731
  first = treated(start)
  norm = np.sqrt(sum((g**2).sum() for g in first.values()))
  second = treated({n: start[n] + 0.4 * first[n] / norm for n in start})
  close(updates, [{n: -g for n, g in second.items()}])
