"""What is done around a rule, by hand: decays, clipping, noise, centralisation; and two rules by hand."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ftlib.base import trees
from ftlib.base.errors import InputError
from ftlib.base.types import ParamInfo
from ftlib.optim import around
from tests.contract.optimizers import INFO, UNSTACKED, changes, close, filled, make, unstacked, walk

HEAD, KERNEL = 'head/out/kernel', 'layers/0:2/mlp/up/kernel'
SGD = {'momentum': 0.0}


def sgd(gradient, params=None, **values):
  """{name: change} of one step of plain sgd at a rate of 0.1."""
  return changes(make('sgd', **SGD, **values), [gradient], params=params)[0]


def test_weight_decay_is_past_the_rule_and_l2_before_it():
  """A sign's size does not change by what is added to the gradient; with a decoupled decay the step does."""
  flat = trees.flatten(filled())
  decayed = {n: 0.5 * x if n.endswith('kernel') else np.zeros_like(x) for n, x in flat.items()}
  sign = 'tests.outside.odd_optim'
  (l2,) = changes(make(sign, l2=0.5), [filled(0.0)])
  close(l2, {n: -0.1 * np.sign(x) for n, x in decayed.items()}, rtol=1e-6)
  (decoupled,) = changes(make(sign, weight_decay=0.5), [filled(0.0)])
  close(decoupled, {n: -0.1 * x for n, x in decayed.items()}, rtol=1e-6)


def test_what_is_not_decayed_is_a_pattern():
  for field in ('weight_decay', 'l2', 'l1'):
    assert all((x < 0).all() for x in sgd(filled(0.0), filled(1.0), no_decay='', **{field: 0.5}).values())
    change = sgd(filled(0.0), filled(1.0), no_decay='^layers/', **{field: 0.5})
    assert {n for n, x in change.items() if (x < 0).any()} == {HEAD, 'head/out/bias'}, field
  with pytest.raises(InputError, match=r'optim\.no_decay.*no regular expression'):
    make('sgd', weight_decay=0.5, no_decay='(bias')


def test_l2_sp_pulls_to_where_the_run_began():
  """Nothing at first; later the distance from the start. Only then is the start stored, apart from the parameters."""
  optimizer = make('sgd', **SGD, l2_sp=0.5)
  steps, _, state = walk(optimizer, [filled(1.0), filled(0.0)])
  close(steps[0], {n: np.full(i.shape, -0.1) for n, i in INFO.items()}, rtol=1e-6)
  wanted = {n: np.full(i.shape, 0.1 * 0.5 * 0.1 if n.endswith('kernel') else 0.0) for n, i in INFO.items()}
  close(steps[1], wanted, rtol=1e-4, atol=1e-8)
  assert trees.digest(state['default']['start']) == trees.digest(filled())
  start = filled()
  assert all(
    a is not b
    for a, b in zip(
      trees.flatten(optimizer.tx.init(start)['default']['start']).values(), trees.flatten(start).values(), strict=True
    )
  )
  assert 'start' not in make('sgd', **SGD).tx.init(start)['default']


def test_l1_sets_numbers_to_zero_at_the_rate_of_the_step():
  """p - rate g, then the rate times l1 nearer to zero, or there."""
  params, gradient = filled(), filled(seed=1)
  _, got, _ = walk(make('sgd', **SGD, l1=5.0), [gradient], params=params)
  for name, p in trees.flatten(params).items():
    stepped = np.asarray(p - 0.1 * trees.flatten(gradient)[name])
    wanted = np.sign(stepped) * np.maximum(np.abs(stepped) - 0.5, 0) if name.endswith('kernel') else stepped
    np.testing.assert_allclose(trees.flatten(got)[name], wanted, atol=1e-6)
    assert name != KERNEL or (trees.flatten(got)[name] == 0).sum() == (wanted == 0).sum() > 100
  _, got, _ = walk(make('sgd', **SGD, l1=5.0, schedule='linear', warmup_steps=2), [gradient], params=params)
  assert trees.digest(got) == trees.digest(params)  # the first step's rate is 0


def test_clipping_is_by_the_global_norm():
  gradient = filled()
  norm = float(optax.tree.norm(gradient))
  close(sgd(gradient, clip_norm=norm / 10), {n: -0.01 * x for n, x in trees.flatten(gradient).items()}, rtol=1e-5)
  close(sgd(gradient, clip_norm=norm * 2), sgd(gradient), rtol=1e-6)
  one, two = (sgd(gradient, clip_norm=norm / 10, groups=g) for g in ({}, {'head': {'pattern': '^head/'}}))
  close(two, one, rtol=1e-6)  # a group has no norm of its own


def test_clipping_by_value():
  got = sgd(filled(), clip='value', clip_norm=0.3)
  close(got, {n: -0.1 * np.clip(x, -0.3, 0.3) for n, x in trees.flatten(filled()).items()}, rtol=1e-6)


@pytest.mark.parametrize('kind', ['block', 'adaptive'])
def test_clipping_by_parts_does_not_know_of_stacks(kind):
  """Each layer is a block of its own; the units of a matrix are its outputs, as optax has it for plain matrices."""
  gradient, params, limit = filled(seed=1), filled(), {'block': 3.0, 'adaptive': 0.5}[kind]
  apart = [trees.unflatten(unstacked(trees.flatten(t))) for t in (gradient, params)]
  got = unstacked(sgd(gradient, params, clip=kind, clip_norm=limit))
  if kind == 'block':
    scale = lambda x: min(1, limit / np.linalg.norm(x))  # noqa: E731
    wanted = {n: x * scale(x) for n, x in trees.flatten(apart[0]).items()}
  else:
    rule = optax.adaptive_grad_clip(limit)
    wanted = trees.flatten(rule.update(apart[0], rule.init(apart[1]), apart[1])[0])
  close(got, {n: -0.1 * x for n, x in wanted.items()}, rtol=1e-5)
  clipped = {n for n, x in trees.flatten(apart[0]).items() if not np.allclose(got[n], -0.1 * x)}
  assert 0 < len(clipped) < len(UNSTACKED) + (kind == 'adaptive')


def test_heads_are_one_side_of_a_matrix():
  """The output projection [heads, head_dim, embed] has `embed` units of heads * head_dim inputs."""
  info = {'o': ParamInfo((2, 3, 4), jnp.float32, ('heads', 'head_dim', 'embed'))}
  gradient = filled(info=info)
  flat = np.asarray(gradient['o'])
  np.testing.assert_allclose(around.centralized(gradient['o'], info['o']), flat - flat.mean((0, 1)), atol=1e-6)
  clip = around.clipper('adaptive', 0.1, info)
  got = np.asarray(clip(gradient, filled(1.0, info=info))['o'])
  np.testing.assert_allclose(np.sqrt((got**2).sum((0, 1))), 0.1 * np.sqrt(6), rtol=1e-5)


def test_centralised_gradients_of_matrices_have_no_mean_over_the_inputs():
  got = sgd(filled(), centralize=True)
  for name, g in trees.flatten(filled()).items():
    wanted = g - g.mean(-2, keepdims=True) if name.endswith('kernel') else g
    np.testing.assert_allclose(got[name], -0.1 * wanted, atol=1e-6)
  table = ParamInfo((8, 4), jnp.float32, ('vocab', 'embed'))
  assert around.centralized(jnp.ones((8, 4)), table).all()


def test_noise_is_of_the_seed_the_step_and_the_layer():
  """Variance noise / (1 + t)^0.55, another draw each step and parameter, the same whether layers are stacked."""
  values = {**SGD, 'learning_rate': 1.0, 'noise': 0.25}
  steps = changes(make('sgd', seed=3, **values), [filled(0.0)] * 3)
  again = changes(make('sgd', seed=3, **values), [filled(0.0)] * 3)
  other = changes(make('sgd', seed=4, **values), [filled(0.0)])
  apart = changes(
    make('sgd', seed=3, info=UNSTACKED, **values), [filled(0.0, info=UNSTACKED)], params=filled(info=UNSTACKED)
  )
  close(unstacked(steps[0]), apart[0], rtol=1e-6)
  for t in range(3):
    close(steps[t], again[t], rtol=0)
    x = np.concatenate([x.ravel() for x in steps[t].values()])
    np.testing.assert_allclose(x.std(), 0.5 * (1 + t) ** -0.275, rtol=0.1)
    assert abs(x.mean()) < 0.1
  draws = [steps[0][KERNEL][0], steps[0][KERNEL][1], steps[1][KERNEL][0], other[0][KERNEL][0]]
  assert np.abs(np.corrcoef([d.ravel() for d in draws]) - np.eye(4)).max() < 0.2
  # optax's own has the same scale
  theirs = optax.add_noise(0.25, 0.55, key=0)
  state = theirs.init(filled())
  for t in range(2):
    got, state = theirs.update(filled(0.0), state)
    np.testing.assert_allclose(jnp.std(got['layers']['0:2']['mlp']['up']['kernel']), steps[t][KERNEL].std(), rtol=0.1)


def test_clipping_and_momentum_by_hand():
  two = [filled(1.0), filled(2.0)]
  for nesterov, wanted in ((False, (-0.1, -0.1 * 2.5)), (True, (-0.1 * 1.5, -0.1 * (2 + 0.5 * 2.5)))):
    got = changes(make('sgd', momentum=0.5, nesterov=nesterov), two)
    for step in range(2):
      close(got[step], {n: np.full(i.shape, wanted[step]) for n, i in INFO.items()}, rtol=1e-6)
  one = {'head/out/bias': INFO['head/out/bias']}
  (got,) = changes(make('sgd', **SGD, clip_norm=1.0, info=one), [filled(3.0, info=one)], params=filled(0.0, info=one))
  np.testing.assert_allclose(got['head/out/bias'], -0.1 / np.sqrt(2), rtol=1e-6)


def test_adam_by_hand():
  got = changes(make('adamw', b1=0.5, b2=0.75, eps=1e-3), [filled(2.0), filled(-1.0)])
  m, v = 0.5 * 0.5 * 2 - 0.5 * 1, 0.75 * 0.25 * 4 + 0.25 * 1
  second = (m / (1 - 0.25)) / (np.sqrt(v / (1 - 0.75**2)) + 1e-3)
  for change, wanted in zip(got, (-0.1 * 2 / (2 + 1e-3), -0.1 * second), strict=True):
    close(change, {n: np.full(i.shape, wanted) for n, i in INFO.items()}, rtol=1e-5)
