"""Mixout against its formula, its masks wherever they are drawn, and a run that mixes in its pretrained values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftlib import run
from ftlib.base import layout, rng, trees
from ftlib.base.errors import InputError
from ftlib.train import mixout

KEY = jax.random.key(3)
NAMES = [f'layers/{i}/attn/q/kernel' for i in range(3)]
RNG = np.random.default_rng(0)
VALUE, START = (RNG.normal(size=(8, 6)).astype(np.float32) for _ in range(2))


def test_it_is_the_formula():
  joined = mixout.mixing(0.3, trees.members)
  frozen = {mixout.START: trees.unflatten({NAMES[0]: START}), 'other': jnp.ones(2)}
  trainable = trees.unflatten({NAMES[0]: VALUE, 'layers/0/attn/q/bias': START})
  apart = trees.flatten(joined(trainable, frozen, KEY))
  key = rng.key_for(KEY, 'mixout')
  mask = np.asarray(mixout.mask(key, NAMES[:1], VALUE.shape, 0.3)).astype(np.float32)
  wanted = (mask * VALUE + (1 - mask) * START - 0.3 * START) / (1 - 0.3)
  np.testing.assert_allclose(apart.pop(NAMES[0]), wanted, rtol=1e-5, atol=1e-6)
  assert set(apart) == {'layers/0/attn/q/bias', 'other'}  # untouched, and the start values are gone
  np.testing.assert_array_equal(apart['layers/0/attn/q/bias'], START)
  slope = jax.grad(lambda own: trees.flatten(joined(own, frozen, KEY))[NAMES[0]].sum())(trainable)
  np.testing.assert_allclose(trees.flatten(slope)[NAMES[0]], mask / 0.7, rtol=1e-6)


def test_the_mean_over_masks_is_the_value():
  """Of the last entry as of all: 4000 steps."""
  keys = jax.random.split(KEY, 4000)
  keep = jax.vmap(lambda k: mixout.mask(k, NAMES[:1], VALUE.shape, 0.3))(keys)
  np.testing.assert_allclose(keep.mean(0), 0.7, atol=4 * (0.21 / 4000) ** 0.5)
  together = jax.vmap(lambda m: mixout.mixed(VALUE, START, m, 0.3))(keep)
  np.testing.assert_allclose(together.mean(0), VALUE, atol=4 * np.abs(VALUE - START).max() * (0.3 / 0.7 / 4000) ** 0.5)


def test_masks_follow_the_name_of_a_layer_and_not_its_stack():
  stacked = mixout.mask(KEY, NAMES, (3, 8, 6), 0.5)
  alone = [mixout.mask(KEY, [n], (8, 6), 0.5) for n in NAMES]
  for ours, theirs in zip(stacked, alone, strict=True):
    np.testing.assert_array_equal(ours, theirs)
  assert (alone[0] != alone[1]).mean() > 0.2
  assert (alone[0] != mixout.mask(jax.random.key(4), NAMES[:1], (8, 6), 0.5)).mean() > 0.2


def test_masks_are_the_same_on_eight_devices():
  mesh = layout.build('data=4,fsdp=2', batch=8)
  draw = lambda key: mixout.mask(key, NAMES[:1], (8, 6), 0.5)  # noqa: E731
  split = jax.jit(draw, out_shardings=mesh.batch)(jax.device_put(KEY, mesh.replicated))
  assert len(split.sharding.device_set) == 8
  np.testing.assert_array_equal(split, draw(KEY))


def test_a_run_starts_as_without_and_goes_on_otherwise(config):
  """At the pretrained values every mix with them is them; after a step it is another model."""
  values = {'model__layers': 'scan', 'optim__warmup': 0.0, 'optim__learning_rate': 0.3}
  r = run.build(config(method='full', train__mixout=0.5, **values))
  own, frozen = r.load()
  state = r.start(own, frozen)
  loss = jax.jit(lambda params, *given: r.objective(functools.partial(r.method.model.apply, params), *given)['loss'])
  plain, mixed = [], []
  for i in range(2):
    batch, key = r.batch(i)[1], jax.random.fold_in(state.key, state.step)
    plain.append(np.divide(*loss(state.own, batch, key)))
    state, sums = r.train_step(state, frozen, batch)
    mixed.append(np.divide(*sums['loss']))
  assert mixed[0] == pytest.approx(plain[0], rel=1e-5)
  assert abs(mixed[1] - plain[1]) > 1e-2
  assert (len(r.train_step.shapes), r.train_step.seconds > 0) == (1, True)


def test_methods_that_add_parameters_have_nothing_to_mix(config):
  with pytest.raises(InputError, match=r'train\.mixout=0\.5 is for pretrained matrices .* method\.name=lora'):
    run.build(config(train__mixout=0.5))


@pytest.mark.parametrize('rate', [1.0, -0.1])
def test_a_rate_out_of_range_is_an_error(config, rate):
  with pytest.raises(InputError, match=r'train\.mixout=.* is out of range'):
    run.build(config(method='full', train__mixout=rate))
