"""What every optimizer of ftlib/optim keeps, and one from outside the package.

A file gives a direction, to which decay and rate are added (`rule.py`), unless it is RATED; what follows from the first
is not asked of the second. What groups, schedules and decays do around a rule is in `tests/optim`.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ftlib import optimizer_contract
from ftlib.base import layout, trees
from ftlib.base.types import ParamInfo
from ftlib.io import checkpoint
from ftlib.optim import chain, fields
from ftlib.optimizer_trial import Subject
from ftlib.train import state as train_state
from ftlib.train.step import make_train_step
from tests.contract import optimizers, runs
from tests.contract.optimizers import DECAYED, INFO, OPTIMIZERS, changes, close, filled, make, walk

FROZEN = {'trunk/kernel': ParamInfo((16, 16), jnp.float32, ('embed', 'embed_out'))}
FACTORS = (1.0, 10.0, 100.0, 1000.0, 10_000.0)  # of a file's own learning rate


@pytest.fixture(params=OPTIMIZERS)
def name(request) -> str:
  return request.param


def rated(name: str) -> bool:
  return getattr(optimizers.component(name), 'RATED', False)


def test_lowers_a_quadratic_under_jit(name):
  """At its own learning rate, or a power of ten of it, falling to zero over 200 steps."""
  info = {n: INFO[n] for n in ('head/out/kernel', 'layers/0:2/mlp_norm/scale')}
  params, target = filled(info=info), filled(seed=1, info=info)
  own = {f.name: f.default for f in dataclasses.fields(fields.config_of(optimizers.component(name)))}['learning_rate']
  optimizer = make(name, learning_rate=own, schedule='plateau', steps=200, info=info)
  loss = lambda p: sum(jnp.square(x - y).sum() for x, y in zip(*map(jax.tree.leaves, (p, target)), strict=True))  # noqa: E731

  def descend(factor):
    def step(carry, t):
      params, state = carry
      value, gradient = jax.value_and_grad(loss)(params)
      every = {'value': value, 'grad': gradient, 'value_fn': loss, 'obj_fn': loss, 'rate_scale': factor * (1 - t / 200)}
      every['grad_fn'] = lambda p, i=None: jax.grad(loss)(p)
      updates, state = optimizer.tx.update(gradient, state, params, **{n: every[n] for n in optimizer.needs})
      return (optax.apply_updates(params, updates), state), None

    (last, state), _ = jax.lax.scan(step, (params, optimizer.tx.init(params)), jnp.arange(200))
    return loss(optimizer.averaged(state, last)), state

  descend = jax.jit(jax.vmap(descend))
  losses, states = descend(jnp.asarray(FACTORS))
  best = int(jnp.nanargmin(losses))
  assert losses[best] < 0.01 * loss(params), losses
  assert all(np.isfinite(x[best]).all() for x in jax.tree.leaves(states) if jnp.issubdtype(x.dtype, jnp.floating))


def test_a_training_step_on_a_mesh(name):
  """State lies as its parameter and keeps its shapes and dtypes. Of what is frozen there is none, and it stays as it
  is; so does what waits for its stage, with its state."""
  mesh, waits = layout.build(runs.MESH, batch=8), lambda n: n.startswith('head/')
  searches = fields.searches(optimizers.component(name))
  optimizer = make(name, weight_decay=0.1, clip_norm=0.0 if searches else 1.0, stage=lambda n: int(waits(n)))
  create = functools.partial(train_state.create, kept={}, tx=optimizer.tx, seed=0)
  places = train_state.shardings(jax.eval_shape(create, filled()), INFO, mesh)
  made = jax.jit(create, out_shardings=places)(filled())
  options = {'needs': optimizer.needs, 'active': lambda n: not waits(n)}
  train = make_train_step(optimizers.apply, optimizers.objective, optimizer.staged[0], **options)
  step = jax.jit(train, out_shardings=(places, mesh.replicated))
  frozen = jax.device_put(filled(info=FROZEN), mesh.replicated)
  after, sums = step(made, frozen, jax.device_put(optimizers.batch(), mesh.batch))
  assert sums['skipped'] == 0
  assert trees.digest(frozen) == trees.digest(filled(info=FROZEN))
  still = [(trees.split(s.trainable, waits)[0], {**s.opt['default-1'], 'step': 0}) for s in (made, after)]
  assert trees.digest(still[0]) == trees.digest(still[1])
  assert set(trees.flatten(after.trainable)) == set(INFO)
  assert jax.tree.structure(after) == jax.tree.structure(made)
  for (path, old), new in zip(jax.tree_util.tree_leaves_with_path(made.opt), jax.tree.leaves(after.opt), strict=True):
    at = trees.path_name(path)
    assert 'trunk' not in at
    assert (old.shape, old.dtype) == (new.shape, new.dtype), at
    assert old.dtype != np.float64, at
    assert not jnp.issubdtype(old.dtype, jax.dtypes.prng_key), f'{at}: keep jax.random.key_data of it'
    assert not jnp.issubdtype(new.dtype, jnp.floating) or (np.isfinite(new) | ~np.isfinite(old)).all(), at
    owner = next((n for n in INFO if at.endswith(f'/{n}') and new.shape == INFO[n].shape), None)
    wanted = mesh.replicated if owner is None else mesh.param(INFO[owner])
    assert all(leaf.sharding.is_equivalent_to(wanted, leaf.ndim) for leaf in (old, new)), at
  kernel = after.trainable['layers']['0:2']['mlp']['up']['kernel']
  assert {s.data.shape for s in kernel.addressable_shards} == {(2, 16, 16)}


@functools.cache
def standard(name: str, info: str = 'INFO') -> chain.Optimizer:
  """Warmup over 2 steps to 0.1, a decay of 0.5, moments in bfloat16."""
  values = {'schedule': 'constant', 'warmup_steps': 2, 'weight_decay': 0.5, 'moments': 'bfloat16'}
  return make(name, info=getattr(optimizers, info), **values)


@pytest.mark.slow
def test_passes_every_check_of_the_command(name):
  """What `python -m ftlib.optim.check` tries, but its times."""
  subject = Subject(optimizers.component(name))
  found = [optimizer_contract.found(check, subject) for check in optimizer_contract.CHECKS if check != 'time']
  assert not [f for f in found if f.mend]


def test_decay_spares_biases_and_gains(name):
  """Without gradients, matrices shrink and nothing else moves: exactly by rate times decay past a direction."""
  change = changes(standard(name), [filled(0.0)] * 3, hold=True)[2]
  flat = trees.flatten(filled())
  assert all((change[n] == 0).all() for n in set(INFO) - DECAYED)
  if rated(name):
    assert all((change[n] * flat[n] < 0).all() for n in DECAYED)
  else:
    close(change, {n: -0.1 * 0.5 * flat[n] for n in DECAYED}, rtol=1e-6)


def test_parameters_go_downhill_and_nowhere_at_a_rate_of_zero(name):
  gradient = filled(seed=1)
  steps = changes(standard(name), [gradient] * 4, params=filled(0.0))
  for n, g in trees.flatten(gradient).items():
    assert not steps[0][n].any(), n
    assert (sum(step[n] for step in steps) * g).sum() < 0, n


def test_a_layer_moves_the_same_stacked_or_not(name):
  gradients = [filled(seed=s) for s in range(3)]
  apart = lambda tree: trees.unflatten(optimizers.unstacked(trees.flatten(tree)))  # noqa: E731
  stacked = changes(standard(name), gradients)
  alone = changes(standard(name, 'UNSTACKED'), list(map(apart, gradients)), params=apart(filled()))
  for step in (1, 2):
    close(optimizers.unstacked(stacked[step]), alone[step], rtol=2e-3, atol=1e-5)  # rounded moments may differ by a bit


def test_a_group_can_be_any_part_of_the_tree(name):
  """Its optimizer sees that part alone: a matrix, or only what is none. Traced, not computed."""
  groups = {'head': {'pattern': 'kernel$', 'learning_rate': 0.3}, 'norms': {'pattern': 'norm/'}}
  optimizer, params = make(name, weight_decay=0.1, groups=groups), filled()
  state = jax.eval_shape(optimizer.tx.init, params)
  step = lambda s: optimizer.tx.update(params, s, params, **optimizers.extras(optimizer.needs, params, params))  # noqa: E731
  updates, after = jax.eval_shape(step, state)
  about = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
  assert about(updates) == about(params)
  assert about(after) == about(state)


def test_a_file_redefines_only_what_has_a_usual_value(name):
  """A field of a file's own must not take the name of a shared one that means something else."""
  own, shared = ({f.name for f in dataclasses.fields(c)} for c in (optimizers.component(name).Config, fields.Common))
  assert own & shared <= {'learning_rate', 'weight_decay', 'schedule', 'warmup', 'clip_norm'}


def test_all_go_on_from_a_checkpoint_as_if_not_interrupted(tmp_path):
  """Two steps, a checkpoint of all their states in one, and a third: equal bits."""
  gradients = [filled(seed=s) for s in range(2)]
  short = {name.replace('.', '_'): name for name in OPTIMIZERS}
  walked = {key: walk(standard(name), gradients)[1:] for key, name in short.items()}
  with checkpoint.Checkpoints(tmp_path) as saver:
    saver.save(2, walked, {})
  with checkpoint.Checkpoints(tmp_path) as saver:
    restored = saver.restore(jax.eval_shape(lambda: walked)).state
  assert trees.digest(restored) == trees.digest(walked)
  for key, name in short.items():
    third = [
      optimizers.update(standard(name), filled(seed=2), state, params) for params, state in (walked[key], restored[key])
    ]
    assert trees.digest(third[0]) == trees.digest(third[1]), name
