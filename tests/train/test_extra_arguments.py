"""What an optimizer's update can ask for besides the gradient: it is what it is called, and costs nothing unasked."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ftlib.base import trees
from ftlib.optim import fields
from ftlib.train import state
from ftlib.train.step import make_train_step
from tests.train import linear

FROZEN = {'bias': jnp.asarray([0.3, -0.2])}
RATE = 0.05
NEEDS = frozenset({*fields.EXTRA, 'rate_scale'})  # all that there is


def penalty(trainable):
  return 0.1 * sum(jnp.square(x).sum() for x in jax.tree.leaves(trainable))


def taught(fn):
  """An optimizer whose update is `fn(gradients, params, **extra)`, negated and times `RATE`."""

  def update(gradients, opt, params, **extra):
    return jax.tree.map(lambda d: -RATE * d, fn(gradients, params, **extra)), opt

  return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def begin(tx):
  return state.create(linear.parameters(), {}, tx=tx, seed=1)


def moved(tx, *, micro=2, **options):
  """{name: the direction that was stepped in} of one step."""
  step = jax.jit(make_train_step(linear.apply, linear.objective, tx, micro=micro, **options))
  start = begin(tx)
  after, sums = step(start, FROZEN, linear.batch(0))
  was, now = linear.flat(start.trainable), linear.flat(after.trainable)
  return {n: (was[n] - now[n]) / RATE for n in was}, sums


def mean_loss(params, *, key):
  """Of the batch at once, the penalty with it."""
  sums = linear.objective(lambda b, k: linear.apply({**params, **FROZEN}, b, k), linear.batch(0), key)
  return sums['loss'][0] / sums['loss'][1] + penalty(params)


@pytest.mark.parametrize('micro', [1, 2])
def test_they_are_what_they_are_called(micro):
  """Loss and gradient by function, here and elsewhere, are those of this batch, with this step's dropout."""
  seen = {}

  def direction(gradients, params, **extra):
    assert set(extra) == NEEDS
    other = jax.tree.map(lambda p: 0.5 * p, params)
    seen.update(
      value=extra['value'],
      again=extra['value_fn'](params),
      elsewhere=extra['obj_fn'](other),
      scale=extra['rate_scale'],
      slope=jax.grad(extra['value_fn'])(other),
      grad=extra['grad'],
      steep=extra['grad_fn'](other, 0),
    )
    return gradients

  start = begin(tx := taught(direction))
  step = make_train_step(linear.apply, linear.objective, tx, micro=micro, penalty=penalty, needs=NEEDS)
  after, out = jax.jit(lambda s, b: (step(s, FROZEN, b)[0], dict(seen)))(start, linear.batch(0))
  key = jax.random.fold_in(start.key, 0)
  other = jax.tree.map(lambda p: 0.5 * p, start.trainable)
  here, there = mean_loss(start.trainable, key=key), mean_loss(other, key=key)
  np.testing.assert_allclose([out['value'], out['again'], out['elsewhere']], [here, here, there], rtol=1e-5)
  assert out['scale'] == 1
  assert abs(here - mean_loss(start.trainable, key=None)) > 1e-3  # dropout is on
  wanted = linear.flat(jax.grad(lambda p: mean_loss(p, key=key))(other))
  stepped = linear.flat(jax.tree.map(lambda a, b: (a - b) / RATE, start.trainable, after.trainable))
  for name, x in wanted.items():
    np.testing.assert_allclose(linear.flat(out['steep'])[name], x, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(linear.flat(out['slope'])[name], x, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(linear.flat(out['grad'])[name], stepped[name], rtol=1e-3, atol=1e-5)


def test_sharpness_aware_minimisation_by_hand():
  """p - rate g(p + 0.1 g(p) / |g(p)|), through optax's own (opaque mode)."""
  adversary = optax.chain(optax.contrib.normalize(), optax.sgd(0.1))
  tx = optax.contrib.sam(optax.sgd(RATE), adversary, sync_period=2, opaque_mode=True)
  got, _ = moved(tx, needs=frozenset({'grad_fn'}))
  key = jax.random.fold_in(jax.random.key(1), 0)
  slope = jax.grad(
    lambda p: (lambda s: s['loss'][0] / s['loss'][1])(
      linear.objective(lambda b, k: linear.apply({**p, **FROZEN}, b, k), linear.batch(0), key)
    )
  )
  params = linear.parameters()
  first = slope(params)
  uphill = jax.tree.map(lambda p, g: p + 0.1 * g / optax.tree.norm(first), params, first)
  second = linear.flat(slope(uphill))
  for name, x in got.items():
    np.testing.assert_allclose(x, second[name], rtol=1e-3, atol=1e-5)
    assert abs(second[name] - linear.flat(first)[name]).max() > 1e-3


def test_what_waits_is_held_where_it_is():
  """Functions of the parameters see only those that are active; gradients of the others are zero."""
  seen = {}

  def direction(gradients, params, *, value_fn, grad_fn, grad):
    other = trees.join({'head': params['head']}, jax.tree.map(lambda p: 100 + p, {'layers': params['layers']}))
    seen.update(here=value_fn(params), there=value_fn(other), far=grad_fn(other, 1), grad=grad)
    return gradients

  tx = taught(direction)
  needs = frozenset({'value_fn', 'grad_fn', 'grad'})
  active = lambda name: name.startswith('head/')  # noqa: E731
  step = make_train_step(linear.apply, linear.objective, tx, active=active, needs=needs)
  _, out = jax.jit(lambda s, b: (step(s, FROZEN, b)[0], dict(seen)))(begin(tx), linear.batch(0))
  assert out['here'] == out['there']
  for tree in (out['far'], out['grad']):
    found = linear.flat(tree)
    assert not found['layers/0:2/mlp/kernel'].any()
    assert found['head/kernel'].all()


def test_unasked_they_cost_nothing():
  """What an update does not call leaves no trace in the step."""
  tx = taught(lambda gradients, params, **extra: gradients)
  text = {}
  for needs in ((), ('value_fn', 'grad_fn', 'obj_fn'), ('value',)):
    step = make_train_step(linear.apply, linear.objective, tx, micro=2, penalty=penalty, needs=frozenset(needs))
    text[needs] = str(jax.make_jaxpr(step)(begin(tx), FROZEN, linear.batch(0)))
  assert text[()] == text['value_fn', 'grad_fn', 'obj_fn']
  assert text[()] != text['value',]  # the comparison sees a difference


def test_a_rule_that_takes_no_extra_arguments_gets_none():
  moved(optax.sgd(RATE))
