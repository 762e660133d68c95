"""Norms by group against numpy, the curvature and the landscape of functions that are known, and what is off is off."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftlib.train import diagnostics, probes, state
from ftlib.train.step import make_train_step
from tests.train import linear

GROUPS = {'top': ['head/kernel'], 'rest': ['layers/0:2/mlp/kernel']}


@pytest.fixture(scope='module')
def taken():
  """[(state before, state after, sums) of four steps], of which the second and fourth are shown."""
  built = linear.optimizer('sgd', momentum=0.9, weight_decay=0.1, no_decay='')
  fn = make_train_step(linear.apply, linear.objective, built.tx, groups=GROUPS, shown=lambda step: step % 2 == 0)
  step, out = jax.jit(fn), []
  now = state.create(linear.parameters(), {}, tx=built.tx, seed=0)
  for i in range(4):
    after, sums = step(now, {}, linear.batch(i))
    out.append((now, after, sums))
    now = after
  return out


def test_norms_are_those_of_numpy(taken):
  now, after, sums = taken[3]
  assert not np.asarray(taken[2][2]['groups']).any()  # not shown
  found = diagnostics.named(sums['groups'], [*GROUPS])
  assert len(found) == len(GROUPS) * len(diagnostics.QUANTITIES)
  key, batch = jax.random.fold_in(now.key, 3), linear.batch(3)

  def mean(params):
    total, weight = linear.objective(lambda b, k: linear.apply(params, b, k), batch, key)['loss']
    return total / weight

  gradient, before, new = map(linear.flat, (jax.grad(mean)(now.trainable), now.trainable, after.trainable))
  for group, (name,) in GROUPS.items():
    g, u, p = gradient[name], new[name] - before[name], new[name]
    norms = [float(np.linalg.norm(x)) for x in (g, u, p)]
    wanted = [*norms, norms[1] / norms[2], norms[1] / norms[0], (np.sign(g) == -np.sign(u)).mean(), 0.0]
    ours = [found[f'{quantity}/{group}'] for quantity in diagnostics.QUANTITIES]
    np.testing.assert_allclose(ours, wanted, rtol=2e-4)
  whole = np.hypot(found['grad_norm/top'], found['grad_norm/rest'])
  np.testing.assert_allclose(whole, sums['grad_norm'], rtol=1e-5)


def test_zeros_and_signs_are_shares():
  gradient = {'head': {'kernel': jnp.asarray([1.0, -2.0, 0.0, 3.0])}}
  update = {'head': {'kernel': jnp.asarray([-1.0, -1.0, 1.0, -1.0])}}
  params = {'head': {'kernel': jnp.asarray([0.0, 2.0, 0.0, 0.0])}}
  found = diagnostics.named(diagnostics.table(gradient, update, params, {'g': ['head/kernel']}), ['g'])
  assert found['zeros/g'] == 0.75
  assert found['sign_agreement/g'] == pytest.approx(2 / 3)
  assert (found['update_norm/g'], found['param_norm/g'], found['update_ratio/g']) == (2.0, 2.0, 1.0)
  nothing = jax.tree.map(jnp.zeros_like, gradient)
  still = diagnostics.named(diagnostics.table(nothing, nothing, nothing, {'g': ['head/kernel']}), ['g'])
  assert still['effective_rate/g'] == still['sign_agreement/g'] == 0.0
  assert still['zeros/g'] == 1.0


def test_switched_off_they_leave_no_trace():
  """The step as it is without: no table among its results, and none of its operations."""
  tx = linear.optimizer().tx
  start = state.create(linear.parameters(), {}, tx=tx, seed=0)
  make = lambda **kw: make_train_step(linear.apply, linear.objective, tx, **kw)  # noqa: E731
  text = lambda **kw: str(jax.make_jaxpr(make(**kw))(start, {}, linear.batch(0)))  # noqa: E731
  plain = text()
  assert plain == text(groups=None, shown=lambda step: step % 3 == 0)
  assert plain != text(groups=GROUPS)


def test_the_probe_is_unbiased_and_exact_where_the_hessian_is_diagonal():
  """f = x' A x / 2: z' A z for signs z; over all four z of two entries its mean is the trace."""
  loss = lambda p: 1.5 * jnp.square(p['a']).sum() - 2.0 * jnp.square(p['b']).sum()  # noqa: E731
  params = {'a': jnp.ones(5), 'b': jnp.full(3, 7.0)}
  for i in range(3):
    np.testing.assert_allclose(probes.hessian_trace(loss, params, jax.random.key(i)), 3 * 5 - 4 * 3, rtol=1e-6)
  matrix = jnp.asarray([[2.0, 0.7], [0.7, -1.0]])
  crossed = lambda p: 0.5 * p['x'] @ matrix @ p['x']  # noqa: E731
  keys = jax.random.split(jax.random.key(0), 64)
  found = np.asarray(jax.vmap(lambda k: probes.hessian_trace(crossed, {'x': jnp.zeros(2)}, k))(keys))
  np.testing.assert_allclose(sorted({round(float(x), 4) for x in found}), [1 - 1.4, 1 + 1.4], rtol=1e-4)


@pytest.fixture
def bowl():
  """(probe, state after an update of (0.3, -0.4) to (3, 4)) on the loss c |p|^2 with c = 2 of the batch."""
  loss = lambda trainable, rest, batch: batch['c'] * jnp.square(trainable['w'] - rest['bias']).sum()  # noqa: E731
  probe = probes.Probe(loss, lambda: {'c': jnp.float32(2.0)})
  at = lambda *w: state.TrainState(jnp.int32(7), {'w': jnp.asarray(w)}, (), jax.random.key(0))  # noqa: E731
  return probe, at(2.7, 4.4), at(3.0, 4.0)


def test_the_landscape_along_the_last_update(bowl):
  probe, before, after = bowl
  frozen = {'bias': jnp.zeros(2)}
  assert probe.landscape(after, frozen) is None  # there was no update yet
  probe.before(before)
  found = probe.landscape(after, frozen)
  unit = np.asarray([0.3, -0.4]) / 0.5 * 5.0
  x = np.linspace(-probes.REACH, probes.REACH, 11)
  wanted = [2 * np.square(np.asarray([3.0, 4.0]) + d * unit).sum() for d in x]
  np.testing.assert_allclose(found['distance'], x, atol=1e-7)
  np.testing.assert_allclose(found['loss'], wanted, rtol=1e-5)
  assert found['update'] == pytest.approx(0.5 / 5.0, rel=1e-4)
  probe.before(after)
  assert probe.landscape(after, frozen) is None  # an update of nothing has no direction


def test_the_curvature_follows_the_step(bowl):
  probe, _, after = bowl
  found = probe.measure(after, {'bias': jnp.zeros(2)})
  assert found == {'hessian_trace': pytest.approx(8.0), 'mean_curvature': pytest.approx(4.0)}
