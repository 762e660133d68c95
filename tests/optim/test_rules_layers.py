"""Optimizers that look at whole layers or at the curvature, against their papers' formulas in NumPy, step by step."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ftlib.base import lookup, trees
from ftlib.base.types import ParamInfo
from ftlib.optim import chain
from tests.optim.steps import BIAS, INFO, MOMENTS, OUT, STEPS, Q, adam, close, config_of, draws, each, rule, walk


def entries(flat) -> dict[tuple[str, int], np.ndarray]:
  q = np.asarray(flat[Q], np.float64).reshape(2, 4, 4)
  return {(Q, 0): q[0], (Q, 1): q[1], **{(n, 0): np.asarray(flat[n], np.float64) for n in (OUT, BIAS)}}


def by_entry(formula, gradients, params) -> list[dict[str, np.ndarray]]:
  """A formula (gradients, parameters, name) -> updates of one matrix or vector, over all of them, joined again."""
  gs, ws = ([entries(x) for x in steps] for steps in (gradients, params))
  found = {key: formula([g[key] for g in gs], [w[key] for w in ws], key[0]) for key in gs[0]}
  return [
    {n: np.stack([x[t] for key, x in found.items() if key[0] == n]).reshape(INFO[n].shape) for n in (Q, OUT, BIAS)}
    for t in range(len(gradients))
  ]


def lamb(low: float, high: float, decay: float):
  def formula(gs, ws, name):
    if name == BIAS:
      return [-0.1 * r for r in adam(gs, 0.6, 0.7, 0.05)]
    out = []
    for r, w in zip(adam(gs, 0.6, 0.7, 0.05), ws, strict=True):
      u = r + decay * w
      out.append(-0.1 * min(max(np.linalg.norm(w), low), high) / np.linalg.norm(u) * u)
    return out

  return formula


@pytest.mark.parametrize(('low', 'high'), [(0.0, 1e9), (3.9, 4.2)])
def test_lamb_scales_each_layer_by_its_own_norm(low, high):
  module, config = config_of('lamb', min_norm=low, max_norm=high, **MOMENTS)
  decays = lambda name: not name.endswith('bias')  # noqa: E731
  tx = module.build(config, INFO, rate=lambda _: 0.1, decay=0.3, decays=decays)
  gradients, params = draws(1), draws(0)
  norms = [np.linalg.norm(w) for p in params for w in entries(p).values()]
  assert min(norms) < 3.9 < 4.2 < max(norms)  # both bounds bite
  close(walk(tx, gradients, params), by_entry(lamb(low, high, 0.3), gradients, params))


def test_lamb_takes_a_ratio_of_one_where_a_norm_is_zero():
  module, config = config_of('lamb', min_norm=0.0)
  tx = module.build(config, INFO, rate=lambda _: 0.1, decay=0.0, decays=lambda _: True)
  zero, g = [{n: 0 * x for n, x in d.items()} for d in draws(0, steps=1)], draws(1, steps=1)
  close(walk(tx, g, zero), [{n: -0.1 * np.sign(x) for n, x in g[0].items()}])
  assert not any(x.any() for x in walk(tx, zero, draws(0, steps=1))[0].values())


def adafactor(*, decay_rate, clip, eps, momentum=0.0, scale=False, relative=False):
  def formula(gs, ws, name):
    r = c = v = m = 0
    out = []
    for t, (g, w) in enumerate(zip(gs, ws, strict=True), 1):
      b = 1 - t**-decay_rate
      s = g * g + eps
      r, c = b * r + (1 - b) * s.sum(-1), b * c + (1 - b) * s.sum(0)
      v = b * v + (1 - b) * s
      u = g / np.sqrt(np.outer(r, c) / r.sum() if name == Q else v)
      u = u / max(1, np.sqrt(np.mean(u * u)) / clip)
      u = u * max(1e-3, np.sqrt(np.mean(w * w))) if scale else u
      u = u * min(1e-2, 1 / math.sqrt(t)) if relative else u
      m = momentum * m + (1 - momentum) * u
      out.append(m)
    return out

  return formula


@pytest.mark.parametrize('momentum', [0.0, 0.4])
def test_adafactor_factors_each_matrix(momentum):
  """q is a matrix of 4 x 4 a layer; of the head 3 is below `min_dim`."""
  values = {'decay_rate': 0.6, 'clip_threshold': 0.7, 'eps': 0.02, 'momentum': momentum}
  gradients, params = draws(1), draws(0)
  wanted = by_entry(adafactor(decay_rate=0.6, clip=0.7, eps=0.02, momentum=momentum), gradients, params)
  close(walk(rule('adafactor', min_dim=4, **values), gradients, params), wanted)


def test_adafactor_with_the_papers_rate():
  """Parameters of tiny size too, where 1e-3 is the bound; and a run long enough that 1 / sqrt(t) is not 1e-2 alone."""
  gradients, params = draws(1), [{n: 1e-4 * x if n == OUT else x for n, x in d.items()} for d in draws(0)]
  wanted = by_entry(adafactor(decay_rate=0.8, clip=1, eps=1e-30, scale=True, relative=True), gradients, params)
  got = walk(rule('adafactor', min_dim=4, scale_parameter=True, relative_step=True), gradients, params)
  close([{n: 1e3 * x for n, x in d.items()} for d in got], [{n: 1e3 * x for n, x in d.items()} for d in wanted])
  tx, g = rule('adafactor', relative_step=True), trees.unflatten(gradients[0])
  late = jax.jit(lambda g: tx.update(g, tx.init(g)._replace(count=jnp.int32(39999)), g)[0]['head']['out']['bias'])(g)
  u = gradients[0][BIAS] / np.sqrt(40000**-0.8 * gradients[0][BIAS] ** 2)
  np.testing.assert_allclose(late, u / max(1, np.sqrt(np.mean(u * u))) / 200, rtol=1e-4)


def test_adafactor_is_optaxs_on_a_plain_matrix():
  info = {'kernel': ParamInfo((6, 4), jnp.float32, ('embed', 'mlp'))}
  gradients, params = draws(1, info), draws(0, info)
  theirs = optax.adafactor(0.5, min_dim_size_to_factor=4, decay_rate=0.6, clipping_threshold=0.7, eps=0.02)
  ours = rule('adafactor', info, min_dim=4, decay_rate=0.6, clip_threshold=0.7, eps=0.02, scale_parameter=True)
  wanted = [{n: -2 * x for n, x in d.items()} for d in walk(theirs, gradients, params)]
  close(walk(ours, gradients, params), wanted)


def eigenvectors(square):
  """The first bases of SOAP: small eigenvalues have those of a fixed diagonal matrix, restricted to their space."""
  values, q = np.linalg.eigh(square)
  small = values <= 1e-3 * values[-1]
  turned = np.linalg.eigh(q[:, small].T @ np.diag(np.linspace(1, 2, len(q))) @ q[:, small])[1]
  return np.concatenate([q[:, ~small][:, ::-1], q[:, small] @ turned], 1)


def iterated(square, q):
  return np.linalg.qr(square @ q + 1e-5 * np.linalg.norm(square) * q)[0]


def soap(gs, b1, b2, eps, interval, *, left: bool, right: bool):
  """Algorithm 3 of one matrix; a basis that is not kept is the identity."""
  rows, columns = gs[0].shape
  ql, qr, big_l, big_r = np.eye(rows), np.eye(columns), np.zeros((rows, rows)), np.zeros((columns, columns))
  m, v, out = 0, 0, []
  for t, g in enumerate(gs, 1):
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * (ql.T @ g @ qr) ** 2
    known = max(1, t - 1)
    u = ql.T @ (m / (1 - b1**known)) @ qr / (np.sqrt(v / (1 - b2**known)) + eps)
    out.append(ql @ u @ qr.T)
    big_l, big_r = b2 * big_l + (1 - b2) * g @ g.T, b2 * big_r + (1 - b2) * g.T @ g
    if t == 1:
      ql, qr = eigenvectors(big_l), eigenvectors(big_r)
      m = v = 0
    elif t % interval == 0:
      ql, qr = iterated(big_l, ql), iterated(big_r, qr)
    ql, qr = ql if left else np.eye(rows), qr if right else np.eye(columns)
  return out


def test_soap_turns_each_layer_and_leaves_the_head_to_adam():
  gradients, params = draws(1, steps=7), draws(0, steps=7)

  def formula(gs, ws, name):
    return soap(gs, 0.6, 0.7, 0.05, 3, left=True, right=True) if name == Q else adam(gs, 0.6, 0.7, 0.05)

  got = walk(rule('soap', interval=3, **MOMENTS), gradients, params)
  close(got, by_entry(formula, gradients, params), tolerance=1e-3)


def test_soap_does_not_follow_rounding():
  """Gradients of rank 1, 3 and 1 again: bases by formula, and the same steps where every number is rounded off."""
  info, rng = {'kernel': ParamInfo((8, 6), jnp.float32, ('embed', 'mlp'))}, np.random.default_rng(0)
  ranks = [rng.normal(size=(8, k)) @ rng.normal(size=(k, 6)) for k in (1, 1, 3, 1, 1, 3, 1)]
  gradients = [{'kernel': g.astype(np.float32)} for g in ranks]
  near = [{'kernel': (g * (1 + 1e-6 * rng.normal(size=g.shape))).astype(np.float32)} for g in ranks]
  tx, params = rule('soap', info, interval=2, b1=0.6, b2=0.7, eps=1e-8), draws(0, info, steps=7)
  got, rounded = walk(tx, gradients, params), walk(tx, near, params)
  close(rounded, got, tolerance=0.02)
  close(got, each(lambda gs: soap(gs, 0.6, 0.7, 1e-8, 2, left=True, right=True), gradients), tolerance=0.02)


@pytest.mark.parametrize(('limit', 'left', 'right'), [(5, False, True), (3, False, False)])
def test_soap_leaves_long_sides_alone(limit, left, right):
  info = {'kernel': ParamInfo((6, 4), jnp.float32, ('embed', 'mlp'))}
  gradients, params = draws(1, info), draws(0, info)

  def formula(gs):
    return soap(gs, 0.6, 0.7, 0.05, 2, left=left, right=right) if right else adam(gs, 0.6, 0.7, 0.05)

  close(
    walk(rule('soap', info, interval=2, max_dim=limit, **MOMENTS), gradients, params),
    each(formula, gradients),
    tolerance=1e-3,
  )


def test_sophia_clips_momentum_over_the_curvature_of_every_second_step():
  """Of sum(h w^2) / 2 the estimate is exactly h, whatever the signs; h changes with the step: is it looked at?"""
  tx = rule('sophia', b1=0.6, b2=0.7, gamma=0.5, eps=0.02, interval=2)
  gradients, params, curvature = draws(1), draws(0), draws(2)
  state, update = (
    tx.init(trees.unflatten(params[0])),
    jax.jit(
      lambda g, s, w, h: tx.update(g, s, w, obj_fn=lambda p: optax.tree.vdot(h, optax.tree.mul(p, p)) / 2, value=None)
    ),
  )
  m = h = dict.fromkeys(INFO, 0)
  for t in range(STEPS):
    given = [trees.unflatten(x[t]) for x in (gradients, params, curvature)]
    updates, state = update(given[0], state, *given[1:])
    m = {n: 0.6 * m[n] + 0.4 * gradients[t][n] for n in INFO}
    h = {n: 0.7 * h[n] + 0.3 * curvature[t][n] for n in INFO} if t % 2 == 0 else h
    wanted = {n: np.clip(m[n] / np.maximum(0.5 * h[n], 0.02), -1, 1) for n in INFO}
    close([trees.flatten(updates)], [wanted])
    inside = [(np.abs(x) < 1).mean() for x in wanted.values()]
    assert 0 < np.mean(inside) < 1
  assert lookup.component('optim', 'sophia', field='').NEEDS == ('obj_fn',)


def test_sophia_draws_new_signs_each_time():
  """The estimate is u * (H u): H is not diagonal here, so it depends on the signs. The loss has a backward pass of its
  own that calls itself, as gelu's in `models/layers.py`: no derivative in forward mode."""
  info = {'w': ParamInfo((16,), jnp.float32, ('embed',))}
  tx, g = rule('sophia', info, b2=0.0, interval=1), {'w': jnp.zeros(16)}
  full = np.random.default_rng(0).normal(size=(16, 16))
  full = jnp.asarray(full + full.T, jnp.float32)
  half = jax.custom_vjp(lambda w: w @ full @ w / 2)
  half.defvjp(lambda w: (half(w), w), lambda w, g: (g * (full @ w),))
  found, state = [], tx.init(g)
  look = jax.jit(lambda state: tx.update(g, state, g, obj_fn=lambda p: half(p['w']))[1])
  for _ in range(3):
    state = look(state)
    found.append(np.asarray(state.curvature['w']))
  possible = np.abs(np.asarray(full)).sum(1)
  for estimate in found:
    assert (np.abs(estimate) <= possible + 1e-4).all()
  assert np.abs(found[0] - found[1]).max() > 0.1
  assert np.abs(found[1] - found[2]).max() > 0.1


def test_sophias_signs_follow_from_the_seed_of_the_run():
  info = {'w': ParamInfo((16,), jnp.float32, ('embed',))}
  full = np.random.default_rng(0).normal(size=(16, 16))
  full, zero = jnp.asarray(full + full.T, jnp.float32), {'w': jnp.zeros(16)}

  def curvature(seed: int) -> np.ndarray:
    tx = chain.build(*config_of('sophia', b2=0.0), info, steps=3, seed=seed).tx
    after = tx.update(zero, tx.init(zero), zero, obj_fn=lambda p: p['w'] @ full @ p['w'] / 2)[1]
    return np.asarray(after['default']['rule'].curvature['w'])

  found = [curvature(seed) for seed in (0, 1, 1)]
  assert np.abs(found[0] - found[1]).max() > 0.1
  np.testing.assert_array_equal(found[1], found[2])


def test_sophias_signs_are_of_a_layer():
  """The curvature of two layers, each with a Hessian that is not diagonal, is the same stacked and apart."""
  full = np.random.default_rng(0).normal(size=(5, 5))
  full = jnp.asarray(full + full.T, jnp.float32)
  layer = lambda w: w @ full @ w / 2  # noqa: E731
  stacked = {'layers/3:5/w': ParamInfo((2, 5), jnp.float32, ('layers', 'embed'))}
  alone = {f'layers/{i}/w': ParamInfo((5,), jnp.float32, ('embed',)) for i in (3, 4)}

  def curvature(together: bool):
    info, loss = (stacked, jax.vmap(layer)) if together else (alone, layer)
    tx = rule('sophia', info, b2=0.0, interval=1)
    zero = trees.unflatten({n: jnp.zeros(i.shape) for n, i in info.items()})
    obj_fn = lambda p: sum(jnp.sum(loss(w)) for w in trees.flatten(p).values())  # noqa: E731
    update = jax.jit(lambda g: tx.update(g, tx.init(g), g, obj_fn=obj_fn)[1].curvature)
    return trees.flatten(update(zero))

  (ours,), theirs = curvature(True).values(), curvature(False)
  np.testing.assert_allclose(ours, [theirs['layers/3/w'], theirs['layers/4/w']], rtol=1e-5)
  assert np.abs(ours[0] - ours[1]).max() > 0.1
