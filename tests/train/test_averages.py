"""Averages of the parameters by hand: the exponential one with its warmup, and the equal one over the last part."""

import jax.numpy as jnp
import numpy as np
import pytest

from ftlib.train import averages

VALUES = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)  # parameters after each of 12 updates


def averaged(rule):
  """The average after each update, which began as the parameters at the start."""
  average, out = {'w': jnp.zeros(3)}, []
  for t, value in enumerate(VALUES, 1):
    average = rule(average, {'w': jnp.asarray(value)}, jnp.int32(t))
    out.append(np.asarray(average['w']))
  return np.stack(out)


@pytest.mark.parametrize('decay', [0.3, 0.999])
def test_the_exponential_average(decay):
  wanted, out = np.zeros(3), []
  for t, value in enumerate(VALUES, 1):
    d = min(decay, (1 + t) / (10 + t))
    wanted = d * wanted + (1 - d) * value
    out.append(wanted)
  (rule,) = averages.rules(ema=decay, swa_start=None, steps=12).values()
  np.testing.assert_allclose(averaged(rule), out, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(('start', 'before'), [(0.0, 0), (0.75, 9), (0.5, 6), (0.99, 11)])
def test_the_equal_mean_begins_after_its_share_of_the_run(start, before):
  (rule,) = averages.rules(ema=0.0, swa_start=start, steps=12).values()
  found = averaged(rule)
  np.testing.assert_array_equal(found[:before], VALUES[:before])  # the parameters themselves, to the bit
  for t in range(before, 12):
    np.testing.assert_allclose(found[t], VALUES[before : t + 1].mean(0), rtol=1e-5, atol=1e-6)


def test_none_is_kept_unless_asked_for():
  assert averages.rules(ema=0.0, swa_start=None, steps=5) == {}
  assert list(averages.rules(ema=0.9, swa_start=0.0, steps=5)) == ['ema', 'swa']


@pytest.mark.parametrize('name', ['ema', 'swa'])
def test_what_does_not_move_is_its_own_average_to_the_bit(name):
  rule = averages.rules(ema=0.999, swa_start=0.1, steps=20)[name]
  value = {'w': jnp.asarray(VALUES[0])}
  average = value
  for t in range(1, 20):
    average = rule(average, value, jnp.int32(t))
  np.testing.assert_array_equal(average['w'], value['w'])
