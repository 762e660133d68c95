"""Masks that are drawn in the step: what they follow from, and the loss over them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftlib.base import layout
from ftlib.base.errors import InputError
from ftlib.base.types import Outputs
from ftlib.objectives import masked

B, L, V, D = 6, 40, 30, 8
CONFIG = masked.Config()
drawn = jax.jit(masked.drawn, static_argnums=2)


def batch(rows=B, length=L, *, seed=0):
  rng = np.random.default_rng(seed)
  words = np.full((rows, length), 1, np.int32)
  words[:, 2::5] = 2
  words[:, 0] = 0
  words[-1, 30:] = 0  # padding
  targets = rng.integers(5, V, (rows, length)).astype(np.int32)
  targets[words == 0] = 0
  return {
    'tokens': np.where(words == 0, 1, targets).astype(np.int32),
    'targets': targets,
    'words': words,
    'weights': (rng.random((rows, length)) < 0.2).astype(np.float32) * (words > 0),
    'rows': np.arange(rows, dtype=np.int32),
    'mask_token': np.full(rows, 4, np.int32),
    'vocabulary': np.full(rows, V, np.int32),
  }


def test_masks_follow_from_key_row_and_position():
  key, whole = jax.random.key(3), batch()
  found = drawn(whole, key, CONFIG)
  assert found['weights'].sum() > 10
  np.testing.assert_array_equal(found['tokens'], drawn(whole, key, CONFIG)['tokens'])
  other = drawn(whole, jax.random.key(4), CONFIG)
  assert (np.asarray(other['weights']) != found['weights']).any()
  assert (np.asarray(found['weights'][0]) != found['weights'][1]).any()
  part = {n: x[[4, 1]] for n, x in whole.items()}  # rows of a micro-batch
  for name in ('tokens', 'weights'):
    np.testing.assert_array_equal(drawn(part, key, CONFIG)[name], np.asarray(found[name])[[4, 1]])
  wide = {n: np.pad(x, [(0, 0), (0, 9)]) if x.ndim > 1 else x for n, x in whole.items()}
  np.testing.assert_array_equal(drawn(wide, key, CONFIG)['weights'][:, :L], found['weights'])
  same = np.asarray(found['weights']) == 0
  np.testing.assert_array_equal(np.asarray(found['tokens'])[same], whole['tokens'][same])


def test_rows_on_several_devices_are_masked_as_on_one():
  place, whole = layout.build('data=3', batch=B).batch, batch()
  find = jax.jit(lambda x: masked.drawn(x, jax.random.key(3), CONFIG)['tokens'])
  np.testing.assert_array_equal(find(jax.device_put(whole, place)), find(whole))


def test_the_batch_s_own_masks_are_replaced():
  """What evaluation masks is seen in training, unless it is drawn again."""
  there = batch()
  fixed = {**there, 'tokens': np.where(there['weights'] > 0, 4, there['tokens'])}
  found = drawn(fixed, jax.random.key(0), CONFIG)
  seen = (there['weights'] > 0) & (np.asarray(found['weights']) == 0)
  assert seen.any()
  np.testing.assert_array_equal(np.asarray(found['tokens'])[seen], there['targets'][seen])


def outputs(batch, table):
  hidden = jax.nn.one_hot(batch['tokens'], V) @ table[:, :D]
  return Outputs(hidden, unembed=lambda h: h @ table[:, :D].T)


@pytest.mark.parametrize('key', [None, jax.random.key(0)])
def test_the_loss_is_cross_entropy_at_masked_tokens(key):
  table = jnp.asarray(np.random.default_rng(1).normal(size=(V, V)), jnp.float32)
  objective, there, seen = masked.build(CONFIG, labels=[], counts=np.zeros(0)), batch(), []

  def loss(table):
    def apply(inputs, k):
      seen.append({n: np.asarray(inputs[n]) for n in ('weights', 'targets', 'tokens')})
      return outputs(inputs, table)

    return objective(apply, there, key)['loss']

  (total, weight), grad = jax.value_and_grad(loss, has_aux=True)(table)
  inputs = seen[0]
  assert weight == inputs['weights'].sum() > 5
  assert (inputs['tokens'] == there['tokens']).all() == (key is None)

  def plain(table):
    logits = (jax.nn.one_hot(inputs['tokens'], V) @ table[:, :D]) @ table[:, :D].T
    nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), inputs['targets'][..., None], 2)[..., 0]
    return (nll * inputs['weights']).sum()

  want, slope = jax.value_and_grad(plain)(table)
  assert total == pytest.approx(float(want), rel=1e-5)
  np.testing.assert_allclose(grad, slope, atol=1e-4)


def test_every_step_has_masks_of_its_own():
  objective, seen = masked.build(CONFIG, labels=[], counts=np.zeros(0)), []

  def apply(inputs, k):
    seen.append(np.asarray(inputs['weights']))
    return outputs(inputs, jnp.ones((V, V)))

  for key in (0, 1, 0):
    objective(apply, batch(), jax.random.key(key))
  assert (seen[0] != seen[1]).any()
  np.testing.assert_array_equal(seen[0], seen[2])


def test_no_row_has_more_than_there_is_room_for():
  assert masked.room(128, 0.15) < 128 / 2.5
  assert masked.room(4, 0.15) == 4
  config = masked.Config(rate=0.9)
  found = drawn(batch(), jax.random.key(0), config)
  assert np.asarray(found['weights']).sum(1).max() <= masked.room(L, 0.9)


def test_bad_input():
  with pytest.raises(InputError, match='this task has labels'):
    masked.build(CONFIG, labels=['a'], counts=np.zeros(1))
  with pytest.raises(InputError, match=r'task\.name=mask tells it'):
    masked.build(CONFIG, labels=[], counts=np.zeros(0))(None, {'tokens': 0}, None)
  with pytest.raises(ValueError, match='sum to 1 at most'):
    masked.Config(keep=0.6, random=0.5)
