"""What every optimizer of ftlib/optim keeps, and one from outside the package; then the schedules by hand."""

from __future__ import annotations

import functools
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ftlib.base import layout, lookup, settings, trees
from ftlib.base.errors import InputError
from ftlib.base.types import ParamInfo
from ftlib.optim import chain, schedules
from ftlib.train import state as train_state
from tests.contract import runs

OPTIMIZERS = (*lookup.names('optim'), 'tests.outside.odd_optim')
INFO = {
  'head/out/bias': ParamInfo((2,), jnp.float32, ('classes',)),
  'head/out/kernel': ParamInfo((16, 2), jnp.float32, ('embed', 'classes')),
  'layers/0/mlp/up/bias': ParamInfo((32,), jnp.float32, ('mlp',)),
  'layers/0/mlp/up/kernel': ParamInfo((16, 32), jnp.float32, ('embed', 'mlp')),
  'layers/0/mlp_norm/scale': ParamInfo((16,), jnp.float32, ('embed',)),
}
DECAYED = {n for n in INFO if n.endswith('kernel')}


@pytest.fixture(params=OPTIMIZERS)
def module(request) -> ModuleType:
  return lookup.component('optim', request.param, field='optim.name')


def make(module: ModuleType, *, steps: int = 10, info=INFO, **values) -> chain.Optimizer:
  """A constant rate of 0.1, no warmup, no decay, no clipping, unless `values` say otherwise."""
  plain = {'learning_rate': 0.1, 'schedule': 'constant', 'warmup': 0.0, 'clip_norm': 0.0}
  config = settings.read(chain.config_of(module), {**plain, **values}, where='optim')
  return chain.build(module, config, info, steps=steps)


def filled(value=None, *, seed: int = 0, info=INFO):
  """A tree of one number, or of normal ones."""
  rng = np.random.default_rng(seed)
  leaf = lambda i: rng.normal(size=i.shape) if value is None else np.full(i.shape, value)  # noqa: E731
  return trees.unflatten({n: jnp.asarray(leaf(i), jnp.float32) for n, i in info.items()})


def changes(optimizer: chain.Optimizer, gradients, *, params=None) -> list[dict[str, np.ndarray]]:
  """{name: change} of each of several steps in a row."""
  params = filled() if params is None else params
  update = jax.jit(optimizer.tx.update, compiler_options=runs.QUICK)
  state = optimizer.tx.init(params)
  out = []
  for gradient in gradients:
    updates, state = update(gradient, state, params)
    params = optax.apply_updates(params, updates)
    out.append({n: np.asarray(x) for n, x in trees.flatten(updates).items()})
  return out


def assert_changes(ours, wanted, names=INFO, **tolerance):
  for name in names:
    np.testing.assert_allclose(ours[name], wanted[name], err_msg=name, **tolerance)


def test_lowers_a_quadratic_under_jit(module):
  target = filled(seed=1)
  tx = make(module, learning_rate=0.03, steps=400, schedule='linear').tx
  loss = lambda p: sum(jnp.square(x - y).sum() for x, y in zip(*map(jax.tree.leaves, (p, target)), strict=True))  # noqa: E731

  @jax.jit
  def descend(params):
    def step(carry, _):
      params, state = carry
      value, gradient = jax.value_and_grad(loss)(params)
      updates, state = tx.update(gradient, state, params)
      return (optax.apply_updates(params, updates), state), value

    return jax.lax.scan(step, (params, tx.init(params)), None, length=400)

  (params, state), losses = descend(filled())
  assert losses[-1] < 0.01 * losses[0]
  assert all(np.isfinite(x).all() for x in jax.tree.leaves((params, state)))


def test_state_is_shaped_and_laid_out_as_the_parameters(module):
  mesh = layout.build(runs.MESH, batch=8)
  optimizer = make(module, weight_decay=0.1, clip_norm=1.0)
  create = functools.partial(train_state.create, kept={}, tx=optimizer.tx, seed=0)
  places = train_state.shardings(jax.eval_shape(create, filled()), INFO, mesh)
  made = jax.jit(create, out_shardings=places)(filled())

  @functools.partial(jax.jit, out_shardings=places)
  def step(s):
    updates, opt = optimizer.tx.update(s.trainable, s.opt, s.trainable)
    return train_state.TrainState(s.step + 1, optax.apply_updates(s.trainable, updates), opt, s.key)

  after = step(made)
  assert jax.tree.structure(after) == jax.tree.structure(made)
  whole = 0
  for (path, old), new in zip(jax.tree_util.tree_leaves_with_path(made.opt), jax.tree.leaves(after.opt), strict=True):
    name = trees.path_name(path)
    assert (old.shape, old.dtype) == (new.shape, new.dtype), name
    assert np.isfinite(new).all(), name
    owner = next((n for n in INFO if name.endswith(f'/{n}')), None)
    if owner is None:
      assert new.size == 1, f'{name} belongs to no parameter'
    elif new.shape == INFO[owner].shape:
      whole += 1
      assert new.dtype == np.float32
      for leaf in (old, new):
        assert leaf.sharding.is_equivalent_to(mesh.param(INFO[owner]), leaf.ndim), name
  assert whole % len(INFO) == 0  # a state for each parameter, or none
  kernel = after.trainable['layers']['0']['mlp']['up']['kernel']
  assert {s.data.shape for s in kernel.addressable_shards} == {(16, 16)}


def test_decay_is_decoupled_and_spares_biases_and_gains(module):
  params = filled()
  for decay in (0.0, 0.5):
    (change,) = changes(make(module, weight_decay=decay), [filled(0)], params=params)
    wanted = {n: -0.1 * decay * x if n in DECAYED else np.zeros_like(x) for n, x in trees.flatten(params).items()}
    assert_changes(change, wanted, rtol=1e-6)


def test_what_is_not_decayed_is_a_pattern(module):
  params = filled(1)
  (change,) = changes(make(module, weight_decay=0.5, no_decay=''), [filled(0)], params=params)
  assert all((x < 0).all() for x in change.values())
  (change,) = changes(make(module, weight_decay=0.5, no_decay='^layers/'), [filled(0)], params=params)
  assert {n for n, x in change.items() if (x < 0).any()} == {'head/out/kernel', 'head/out/bias'}
  with pytest.raises(InputError, match=r'optim\.no_decay.*no regular expression'):
    make(module, weight_decay=0.5, no_decay='(bias')


def test_groups_have_rates_and_decays_of_their_own(module):
  """Each group moves as if the whole tree had its settings."""
  gradients = [filled(seed=s) for s in (1, 2, 3)]
  groups = {'head': {'pattern': '^head/', 'learning_rate': 1.0}, 'norms': {'pattern': 'norm/', 'weight_decay': 0.3}}
  grouped = make(module, weight_decay=0.1, no_decay='bias$', groups=groups)
  head = {n for n in INFO if n.startswith('head/')}
  members = {g: set(names) for g, names in grouped.members.items()}
  assert members == {'head': head, 'norms': {'layers/0/mlp_norm/scale'}, 'default': set(INFO) - head - members['norms']}
  assert {g: float(s(0)) for g, s in grouped.schedules.items()} == pytest.approx(
    {'head': 1, 'norms': 0.1, 'default': 0.1}
  )
  shared = {'weight_decay': 0.1, 'no_decay': 'bias$'}
  alone = {
    'head': make(module, **{**shared, 'learning_rate': 1.0}),
    'norms': make(module, **{**shared, 'weight_decay': 0.3}),
    'default': make(module, **shared),
  }
  # one step: later ones start from parameters that moved at other rates, which decay sees
  (ours,) = changes(grouped, gradients[:1])
  for group, names in members.items():
    (wanted,) = changes(alone[group], gradients[:1])
    assert_changes(ours, wanted, names, rtol=1e-6)
  undecayed = make(module, groups={'head': groups['head']})
  ours, theirs = changes(undecayed, gradients), changes(make(module), gradients)
  for step in range(3):
    assert_changes(ours[step], {n: x * (10 if n in head else 1) for n, x in theirs[step].items()}, rtol=1e-5)


def test_the_first_group_that_matches_takes_a_name(module):
  groups = {'up': {'pattern': 'mlp/up/kernel'}, 'layers': {'pattern': '^layers/'}, 'rest': {'pattern': ''}}
  members = make(module, groups=groups).members
  assert members['up'] == ['layers/0/mlp/up/kernel']
  assert members['layers'] == ['layers/0/mlp/up/bias', 'layers/0/mlp_norm/scale']
  assert set(members) == {'up', 'layers', 'rest'}  # none is left for `default`


@pytest.mark.parametrize(
  ('groups', 'words'),
  [
    ({'head': {'pattern': 'no/such'}}, "optim.groups.head.pattern='no/such' matches none of the 5 trainable"),
    ({'head': {'pattern': '(x'}}, 'optim.groups.head.pattern'),
    ({'default': {'pattern': 'head'}}, 'call the group something else'),
    ({'all': {'pattern': ''}, 'head': {'pattern': 'head'}}, 'optim.groups.head is empty'),
    ({'head': {'pattern': 'head', 'learning_rte': 1.0}}, 'did you mean "learning_rate"'),
    ({'head': {'pattern': 'head', 'learning_rate': 0.0}}, 'optim.groups.head.learning_rate'),
    ({'head': {'pattern': 'head', 'weight_decay': -1.0}}, 'optim.groups.head.weight_decay'),
    ({'head': {'pattern': 3}}, 'optim.groups.head.pattern'),
  ],
)
def test_groups_that_cannot_be(module, groups, words):
  with pytest.raises(InputError) as e:
    make(module, groups=groups)
  assert words in str(e.value)


def test_the_schedule_advances_with_the_steps(module):
  """Warmup from 0 over 2 steps, then down to 0 at step 6: the update of step t has the rate of step t."""
  gradients = [filled(1.0)] * 7
  values = {'schedule': 'linear', 'warmup_steps': 2, 'learning_rate': 1.0, 'steps': 6}
  scheduled = changes(make(module, **values), gradients)
  constant = changes(make(module, learning_rate=1.0), gradients)
  for t, factor in enumerate((0, 0.5, 1, 0.75, 0.5, 0.25, 0)):
    assert_changes(scheduled[t], {n: factor * x for n, x in constant[t].items()}, rtol=1e-5, atol=1e-7)
    assert all((x != 0).all() for x in constant[t].values())


def test_clipping_is_by_the_global_norm(module):
  gradient = filled()
  norm = float(optax.tree.norm(gradient))
  (ours,) = changes(make(module, clip_norm=norm / 10), [gradient])
  (wanted,) = changes(make(module), [jax.tree.map(lambda g: g / 10, gradient)])
  assert_changes(ours, wanted, rtol=1e-5)
  (ours,) = changes(make(module, clip_norm=norm * 2), [gradient])
  (wanted,) = changes(make(module), [gradient])
  assert_changes(ours, wanted, rtol=1e-6)


def test_a_parameter_moves_by_its_own_gradient_sign(module):
  (change,) = changes(make(module), [filled(1.0)])
  assert all((x < 0).all() for x in change.values())


def test_clipping_and_momentum_by_hand():
  sgd = lookup.component('optim', 'sgd', field='optim.name')
  two = [filled(1.0), filled(2.0)]
  for nesterov, wanted in ((False, (-0.1, -0.1 * 2.5)), (True, (-0.1 * 1.5, -0.1 * (2 + 0.5 * 2.5)))):
    got = changes(make(sgd, momentum=0.5, nesterov=nesterov), two)
    for step in range(2):
      assert_changes(got[step], {n: np.full(i.shape, wanted[step]) for n, i in INFO.items()}, rtol=1e-6)
  one = {'head/out/bias': INFO['head/out/bias']}
  (got,) = changes(
    make(sgd, momentum=0.0, clip_norm=1.0, info=one), [filled(3.0, info=one)], params=filled(0.0, info=one)
  )
  np.testing.assert_allclose(got['head/out/bias'], -0.1 / np.sqrt(2), rtol=1e-6)


def test_adam_by_hand():
  adamw = lookup.component('optim', 'adamw', field='optim.name')
  got = changes(make(adamw, b1=0.5, b2=0.75, eps=1e-3), [filled(2.0), filled(-1.0)])
  m, v = 0.5 * 0.5 * 2 - 0.5 * 1, 0.75 * 0.25 * 4 + 0.25 * 1
  second = (m / (1 - 0.25)) / (np.sqrt(v / (1 - 0.75**2)) + 1e-3)
  for change, wanted in zip(got, (-0.1 * 2 / (2 + 1e-3), -0.1 * second), strict=True):
    assert_changes(change, {n: np.full(i.shape, wanted) for n, i in INFO.items()}, rtol=1e-5)


@pytest.mark.parametrize(
  ('name', 'options', 'wanted'),
  [  # peak 2, 4 steps of warmup, 12 in all: steps 0, 1, 3, 4, 8, 10, 12, 20
    ('linear', {}, (0, 0.5, 1.5, 2, 1, 0.5, 0, 0)),
    ('linear', {'final': 0.5}, (0, 0.5, 1.5, 2, 1.5, 1.25, 1, 1)),
    ('cosine', {}, (0, 0.5, 1.5, 2, 1, 1 - 0.5**0.5, 0, 0)),
    ('cosine', {'final': 0.1}, (0, 0.5, 1.5, 2, 1.1, 0.2 + 0.9 * (1 - 0.5**0.5), 0.2, 0.2)),
    ('constant', {}, (0, 0.5, 1.5, 2, 2, 2, 2, 2)),
    ('polynomial', {'power': 2.0}, (0, 0.5, 1.5, 2, 0.5, 0.125, 0, 0)),
    ('polynomial', {'power': 1.0}, (0, 0.5, 1.5, 2, 1, 0.5, 0, 0)),
    ('slanted', {'cut_frac': 1 / 3, 'ratio': 4.0}, (0.5, 0.875, 1.625, 2, 1.25, 0.875, 0.5, 0.5)),
    ('slanted', {'cut_frac': 0.01, 'ratio': 1.0}, (2, 2, 2, 2, 2, 2, 2, 2)),
  ],
)
def test_schedules_by_hand(name, options, wanted):
  schedule = schedules.build(name, peak=2.0, warmup=4, total=12, **options)
  got = [float(schedule(t)) for t in (0, 1, 3, 4, 8, 10, 12, 20)]
  np.testing.assert_allclose(got, wanted, atol=1e-6)
  traced = jax.jit(jax.vmap(schedule))(jnp.asarray([0, 1, 3, 4, 8, 10, 12, 20]))
  np.testing.assert_allclose(traced, wanted, atol=1e-6)


def test_every_schedule_is_tried():
  assert set(schedules.NAMES) == {'linear', 'cosine', 'constant', 'polynomial', 'slanted'}
  for name in schedules.NAMES:
    assert float(schedules.build(name, peak=3.0, warmup=0, total=1)(0)) == 3.0  # the only step of a run has a rate


@pytest.mark.parametrize(
  ('ratio', 'steps', 'total', 'count'), [(0.1, None, 100, 10), (0.06, None, 8, 0), (0.0, None, 5, 0), (0.5, 3, 100, 3)]
)
def test_warmup_is_a_ratio_or_a_number(ratio, steps, total, count):
  assert schedules.warmup_steps(ratio=ratio, steps=steps, total=total) == count


@pytest.mark.parametrize('values', [{'warmup_steps': 10}, {'warmup_steps': 11}, {'warmup': 0.96}])
def test_warmup_that_fills_the_run_is_an_error(values):
  adamw = lookup.component('optim', 'adamw', field='optim.name')
  with pytest.raises(InputError, match='warmup steps, but the run has 10'):
    make(adamw, steps=10, **values)
