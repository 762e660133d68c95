"""Twenty steps on eight fake devices against one: the same losses, with dropout on and the state really sharded."""

import jax
import numpy as np
import pytest

from ftlib import run as runs
from ftlib.base import trees

STEPS = 20


def train(config):
  """(losses, last state, frozen, run) of STEPS steps."""
  run = runs.build(config)
  trainable, frozen = run.load()
  state = run.start(trainable, frozen)
  losses = []
  for i in range(STEPS):
    state, sums = run.train_step(state, frozen, run.batch(i)[1])
    losses.append(float(sums['loss'][0] / sums['loss'][1]))
  return np.asarray(losses), state, frozen, run


@pytest.fixture(scope='module', params=['lora', 'full'])
def both(request, tiny_bert, toy_data):
  from tests import tiny

  make = lambda shape: tiny.config(  # noqa: E731
    tiny_bert, toy_data, method=request.param, mesh__shape=shape, train__steps=STEPS, optim__learning_rate=1e-3
  )
  return request.param, train(make('data=1')), train(make('data=2,fsdp=4'))


def test_losses_are_equal_to_1e_5(both):
  _, (one, *_), (eight, *_) = both
  assert one[0] - one[-1] > 0 or one.std() > 1e-3  # something was learnt: equal losses are not equal by standing still
  np.testing.assert_allclose(eight, one, rtol=0, atol=1e-5)


def test_parameters_are_equal(both):
  _, (_, one, *_), (_, eight, *_) = both
  for (name, a), b in zip(trees.flatten(one.trainable).items(), trees.flatten(eight.trainable).values(), strict=True):
    if name.endswith('attn/k/bias'):
      continue  # softmax does not see it: its gradient is rounding noise, which Adam scales up to a full step
    np.testing.assert_allclose(jax.device_get(b), jax.device_get(a), rtol=0, atol=2e-4, err_msg=name)


def test_parameters_and_optimizer_state_are_cut_in_four(both):
  method, _, (_, state, frozen, run) = both
  tree = state.trainable if method == 'full' else frozen
  kernel = trees.flatten(tree)['layers/0/mlp/up/kernel']
  assert kernel.sharding.spec == run.layout.param(run.info['layers/0/mlp/up/kernel']).spec
  assert {s.data.size for s in kernel.addressable_shards} == {kernel.size // 4}
  moments = [
    x for path, x in jax.tree_util.tree_leaves_with_path(state.opt) if trees.path_name(path).endswith('attn/q/kernel')
  ] or [x for path, x in jax.tree_util.tree_leaves_with_path(state.opt) if trees.path_name(path).endswith('adapter/a')]
  assert moments
  for x in moments:
    assert {s.data.size for s in x.addressable_shards} == {x.size // 4}


def test_the_batch_is_cut_in_eight(both):
  _, _, (_, _, _, run) = both
  batch = run.batch(0)[1]
  assert len({str(s.index) for s in batch['tokens'].addressable_shards}) == 8
