"""Groups of parameters: who is in which, what each takes from the run, what they share and what waits."""

from __future__ import annotations

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ftlib.base import settings, trees
from ftlib.base.errors import InputError
from ftlib.optim import chain, fields
from tests.contract.optimizers import INFO, changes, close, component, extras, filled, make, walk

HEAD, KERNEL, NORM = 'head/out/kernel', 'layers/0:2/mlp/up/kernel', 'layers/0:2/mlp_norm/scale'
UP = 'mlp/up/kernel'


def outside(**members) -> types.ModuleType:
  """A file of sgd without momentum, changed by `members`."""

  @dataclasses.dataclass(frozen=True)
  class Config:
    learning_rate: float = settings.setting(0.5, above=0)

  module = types.ModuleType('my_lab.plain')
  module.__file__ = 'my_lab/plain.py'
  given = {'Config': Config, 'build': lambda config, info: optax.identity(), **members}
  vars(module).update(given)
  return module


def test_the_first_group_that_matches_takes_a_name():
  groups = {'up': {'pattern': 'mlp/up/kernel'}, 'layers': {'pattern': '^layers/'}, 'rest': {'pattern': ''}}
  members = make('sgd', groups=groups).members
  assert members == {'up': [KERNEL], 'layers': [NORM], 'rest': ['head/out/bias', HEAD]}  # none is left for `default`


@pytest.mark.parametrize(
  ('groups', 'words'),
  [
    ({'head': {'pattern': 'no/such'}}, "optim.groups.head.pattern='no/such' matches none of the 6 trainable"),
    ({'head': {'pattern': '(x'}}, 'optim.groups.head.pattern'),
    ({'default': {'pattern': 'head'}}, 'call the group something else'),
    ({'all': {'pattern': ''}, 'head': {'pattern': 'head'}}, 'optim.groups.head is empty'),
    ({'head': {'pattern': 'head', 'learning_rte': 1.0}}, 'did you mean "learning_rate"'),
    ({'head': {'pattern': 'head', 'clip_norm': 1.0}}, 'unknown config key optim.groups.head.clip_norm'),
    ({'head': {'pattern': 'head', 'learning_rate': 0.0}}, 'optim.groups.head.learning_rate'),
    ({'head': {'pattern': 'head', 'learning_rate': -1.0}}, 'optim.groups.head.learning_rate=-1.0 is out of range'),
    ({'head': {'pattern': 'head', 'weight_decay': -1.0}}, 'optim.groups.head.weight_decay'),
    ({'head': {'pattern': 3}}, 'optim.groups.head.pattern'),
    ({'low': {'pattern': '^layers/0/'}}, "='^layers/0/' takes some layers of the stack layers/0:2/mlp/up/kernel"),
    ({'up': {'pattern': UP, 'no_decay': '/1/'}}, "optim.groups.up.no_decay='/1/' takes some layers of the stack"),
    ({'head': {'pattern': 'head', 'schedule': 'cosin'}}, 'did you mean "cosine"?'),
    ({'head': {'pattern': 'head', 'warmup_steps': 10}}, 'optim.groups.head: 10 warmup steps, but the run has 10'),
    ({'head': {'pattern': 'head', 'no_decay': '(x'}}, "optim.groups.head.no_decay='(x' is no regular expression"),
    ({'head': {'pattern': 'head', 'optimizer': 'adamv'}}, "optim.groups.head.optimizer='adamv' is no component"),
    ({'head': {'pattern': 'head', 'optimizer': 'adamv'}}, 'did you mean "adam"?'),
    ({'head': {'pattern': 'head', 'optimizer': 'no_lab.opt'}}, 'cannot be imported: No module named'),
    ({'head': {'pattern': 'head', 'optimizer': 'tests.tiny'}}, 'lacks Config and build'),
    ({'head': {'pattern': 'head', 'optimizer': 'adamw', 'options': {'b3': 0.9}}}, 'optim.groups.head.options.b3'),
    ({'head': {'pattern': 'head', 'optimizer': 'adamw', 'options': {'b1': 1.5}}}, 'options.b1=1.5 is out of range'),
    ({'head': {'pattern': 'head', 'options': {'b1': 0.9}}}, 'unknown config key optim.groups.head.options.b1'),
    ({'head': {'pattern': 'head', 'optimizer': 'lbfgs', 'options': {'clip_norm': 1.0}}}, 'set optim.clip_norm'),
  ],
)
def test_groups_that_cannot_be(groups, words):
  with pytest.raises(InputError) as e:
    make('sgd', groups=groups)
  assert words in str(e.value)


def test_what_a_group_leaves_out_is_the_runs_or_its_files():
  groups = {
    'own': {'pattern': 'norm/', 'optimizer': 'adamw', 'options': {'b2': 0.5}, 'l2': 0.3, 'warmup': 0.5},
    'same': {'pattern': '^head/', 'options': {'momentum': 0.5}, 'schedule': 'cosine'},
    'file': {'pattern': UP, 'optimizer': 'sgd'},
  }
  run = {'learning_rate': 0.2, 'weight_decay': 0.1, 'momentum': 0.7, 'nesterov': True, 'warmup_steps': 2}
  parts = make('sgd', groups=groups, **run).parts
  own, same = parts['own'].config, parts['same'].config
  assert {g: part.optimizer for g, part in parts.items()} == {'own': 'adamw', 'same': 'sgd', 'file': 'sgd'}
  assert (own.b1, own.b2, own.l2, own.learning_rate, own.weight_decay) == (0.9, 0.5, 0.3, 0.2, 0.1)
  assert (own.warmup, own.warmup_steps) == (0.5, None)
  assert (same.momentum, same.nesterov, same.schedule, same.warmup_steps) == (0.5, True, 'cosine', 2)
  assert parts['file'].config.momentum == 0.7  # the run's own optimizer by its name
  other = make('adamw', groups={'m': {'pattern': UP, 'optimizer': 'sgd'}}, learning_rate=0.2).parts['m'].config
  assert other.learning_rate == component('sgd').Config.learning_rate  # sgd has a usual rate of its own


def test_each_group_has_its_optimizer_rate_schedule_and_decay():
  """sgd with momentum 0.5 on the head, falling to zero; adamw on the rest, whose gains decay too."""
  groups = {
    'head': {
      'pattern': '^head/',
      'optimizer': 'sgd',
      'options': {'momentum': 0.5},
      'learning_rate': 1.0,
      'schedule': 'linear',
    },
    'norms': {'pattern': 'norm/', 'weight_decay': 0.5, 'no_decay': '', 'learning_rate': 0.01},
  }
  got = changes(make('adamw', groups=groups, steps=4, eps=1e-3), [filled(2.0)] * 3, params=filled(1.0), hold=True)
  adam = 2 / (2 + 1e-3)
  for t, (rate, momentum) in enumerate(((1.0, 2.0), (0.75, 3.0), (0.5, 3.5))):
    wanted = {
      HEAD: -rate * momentum,
      'head/out/bias': -rate * momentum,
      NORM: -0.01 * (adam + 0.5),
      KERNEL: -0.1 * adam,
    }
    close(got[t], {n: np.full(INFO[n].shape, x) for n, x in wanted.items()}, rtol=1e-4)


def test_a_plateau_lowers_its_own_groups_alone():
  """The loop's factor reaches the groups whose schedule is 'plateau', and rules with their rate inside as well."""
  optimizer = make(
    'sgd', momentum=0.0, groups={'head': {'pattern': '^head/', 'schedule': 'plateau', 'learning_rate': 1.0}}
  )
  assert optimizer.needs == {'rate_scale'}
  (got,) = changes(optimizer, [filled(1.0)], rate_scale=0.25)
  close(got, {n: np.full(INFO[n].shape, -0.25 if n.startswith('head/') else -0.1) for n in INFO}, rtol=1e-6)
  assert make('sgd').needs == frozenset()

  def rated(config, info, *, rate, decay, decays):
    return optax.stateless(lambda g, p: jax.tree.map(lambda g: -rate(99) * g, g))

  inside = make(outside(RATED=True, build=rated), schedule='plateau', warmup_steps=2)
  steps = changes(inside, [filled(1.0)] * 3, rate_scale=0.25)
  for step, factor in zip(steps, (0, 0.5, 1), strict=True):  # of the run's step, whichever the file asks for
    close(step, {n: np.full(INFO[n].shape, -0.1 * 0.25 * factor) for n in INFO}, rtol=1e-6)


def test_a_rule_with_its_rate_inside_refuses_what_comes_after():
  module = outside(RATED=True, build=lambda config, info, *, rate, decay, decays: optax.identity())
  with pytest.raises(InputError, match=r'optim.l1 does not go with the optimizer my_lab.plain, which has its rate'):
    make(module, l1=0.1)
  with pytest.raises(InputError, match=r'a learning rate for each layer .* does not go with'):
    make(module, layer_decay=0.5)


def test_functions_that_a_rule_needs_are_of_its_own_parameters():
  """`value_fn` and `grad_fn` take the group's parameters, the others being where they are."""
  seen = {}

  def update(gradients, state, params, *, value_fn, grad_fn, grad, value, **rest):
    moved = jax.tree.map(lambda p: p + 1, params)
    seen.update(value=value, loss=value_fn(moved), own=grad_fn(moved, 0), grad=grad, rest=rest)
    return gradients, state

  def build(config, info):
    seen['info'] = set(info)
    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)

  needs = ('value', 'grad', 'value_fn', 'grad_fn')
  optimizer = make(outside(NEEDS=needs, build=build), groups={'rest': {'pattern': '^layers/', 'optimizer': 'sgd'}})
  assert optimizer.needs == set(needs)
  params, gradient = filled(), filled(seed=1)
  given = extras(optimizer.needs, gradient, params)
  loss = lambda p: sum(jnp.square(x).sum() for x in jax.tree.leaves(p))  # noqa: E731
  given |= {'value_fn': loss, 'grad_fn': lambda p, i: jax.grad(loss)(p)}
  optimizer.tx.update(gradient, optimizer.tx.init(params), params, **given)
  head = {HEAD, 'head/out/bias'}
  wanted = {n: x + 1 if n in head else x for n, x in trees.flatten(params).items()}
  assert seen['info'] == head
  assert not seen['rest']
  np.testing.assert_allclose(seen['loss'], loss(wanted), rtol=1e-6)
  close(trees.flatten(seen['own']), {n: 2 * wanted[n] for n in head}, rtol=1e-6)
  assert set(trees.flatten(seen['grad'])) == head
  with pytest.raises(InputError, match="NEEDS names 'hessian', which is none of value, grad"):
    make(outside(NEEDS=('hessian',)))


def test_averages_are_of_each_groups_own_state():
  """A file's `averaged` sees its state and parameters; groups without one are as they were."""

  def build(config, info):
    return optax.GradientTransformation(
      lambda p: {'sum': jax.tree.map(jnp.zeros_like, p)}, lambda g, s, p=None: (g, {'sum': g})
    )

  module = outside(
    build=build, averaged=lambda state, params: jax.tree.map(lambda s, p: 10 * s + p, state['sum'], params)
  )
  optimizer = make('sgd', groups={'head': {'pattern': '^head/', 'weight_decay': 0.0}})
  assert trees.digest(optimizer.averaged(optimizer.tx.init(filled()), filled())) == trees.digest(filled())
  optimizer = make(
    module, groups={'layers': {'pattern': '^layers/', 'optimizer': 'sgd'}}, stage=lambda n: int(n == HEAD)
  )
  _, params, state = walk(optimizer, [filled(1.0)])
  got, flat = trees.flatten(optimizer.averaged(state, params)), trees.flatten(params)
  close(got, {n: x + 10 * n.startswith('head/') for n, x in flat.items()}, rtol=1e-6)


def test_what_waits_does_not_move_and_then_has_the_runs_rate():
  """Stage 1 begins at step 2: Adam counts from there, and the schedule does not."""
  optimizer = make(
    'adamw', schedule='linear', steps=4, groups={'head': {'pattern': '^head/'}}, stage=lambda n: int('mlp/' in n)
  )
  assert set(optimizer.tx.init(filled())) == {'head', 'default', 'default-1'}
  params = filled()
  state = optimizer.tx.init(params)
  for tx in (optimizer.staged[0],) * 2:
    updates, state = tx.update(filled(1.0), state, params)
    flat = trees.flatten(updates)
    assert not flat[KERNEL].any()
    assert all(flat[n].all() for n in flat if n != KERNEL)
  assert optax.tree.norm(state['default-1']['rule'].mu) == 0
  updates, state = optimizer.staged[1].update(filled(1.0), state, params)
  np.testing.assert_allclose(trees.flatten(updates)[KERNEL], -0.1 * 0.5, rtol=1e-5)
  assert int(state['default-1']['rule'].count) == 1
  assert int(state['default']['rule'].count) == 3


def test_layers_below_the_top_learn_slower():
  """The top layer and the head at the rate, each layer below at half of the one above, embeddings below layer 0."""
  info = {**INFO, 'embed/token/table': dataclasses.replace(INFO[HEAD], axes=('vocab', 'embed'))}
  (got,) = changes(make('sgd', layer_decay=0.5, info=info), [filled(1.0, info=info)], params=filled(info=info))
  for name, factor in ((HEAD, 1), ('head/out/bias', 1), ('embed/token/table', 0.25)):
    np.testing.assert_allclose(got[name], -0.1 * factor, rtol=1e-6)
  for name in (KERNEL, NORM):
    np.testing.assert_allclose(got[name][0], -0.05, rtol=1e-6)
    np.testing.assert_allclose(got[name][1], -0.1, rtol=1e-6)


def test_a_field_of_another_type_is_an_error():
  @dataclasses.dataclass(frozen=True)
  class Config:
    clip: bool = True

  with pytest.raises(InputError, match=r'my_lab/plain.py: Config.clip means something else in every optimizer'):
    fields.config_of(outside(Config=Config))


def test_the_plan_of_a_run():
  """Rates of all groups, at few steps of a long run and each of a short one."""
  optimizer = make('sgd', steps=1000, schedule='linear', groups={'head': {'pattern': '^head/', 'schedule': 'constant'}})
  plan = optimizer.planned(1000, points=11)
  assert set(plan) == {'head', 'default'}
  assert plan['head'] == [[t, pytest.approx(0.1)] for t, _ in plan['default']]
  assert plan['default'][0] == [0, pytest.approx(0.1)]
  assert plan['default'][-1] == [999, pytest.approx(0.1 / 1000, rel=1e-3)]
  assert len(plan['default']) == 11
  assert [t for t, _ in optimizer.planned(3)['head']] == [0, 1, 2]
  assert isinstance(optimizer, chain.Optimizer)
