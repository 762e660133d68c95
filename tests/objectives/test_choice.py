"""The loss over options against its formula in NumPy: absent options, heads and log-probabilities."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftlib.base.errors import InputError
from ftlib.base.types import Outputs
from ftlib.objectives import choice
from ftlib.objectives.choice import Config

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 2, (4, 3, 1)).astype(np.float32)
BATCH = {
  'options': np.array([[1, 1, 1], [1, 1, 0], [1, 1, 1], [0, 0, 0]], np.float32),  # the last row is padding
  'labels': np.array([2, 0, 1, 0], np.int32),
  'asked': np.array([1, 1, 1, 0], np.float32),
}


def build(**settings):
  return choice.build(Config(**settings), labels=[], counts=np.zeros(0))


def shares(logits, i):
  at = np.flatnonzero(BATCH['options'][i])
  p = np.exp(logits[i, at, 0].astype(np.float64))
  return p / p.sum()


@pytest.mark.parametrize('smoothing', [0.0, 0.3])
def test_formula(smoothing):
  got = build(label_smoothing=smoothing).sums(Outputs(None, logits=jnp.asarray(LOGITS)), BATCH)
  logp = [np.log(shares(LOGITS, i)) for i in range(3)]
  want = [-(1 - smoothing) * p[BATCH['labels'][i]] - smoothing * p.mean() for i, p in enumerate(logp)]
  right = sum(p.argmax() == BATCH['labels'][i] for i, p in enumerate(logp))
  assert (float(got['loss'][1]), float(got['accuracy'][0]), float(got['accuracy'][1])) == (3, right, 3)
  assert float(got['loss'][0]) == pytest.approx(sum(want), rel=1e-5)


def test_gradient_leaves_absent_options_alone():
  loss = lambda x: build(label_smoothing=0.1).sums(Outputs(None, logits=x), BATCH)['loss'][0]  # noqa: E731
  gradient = np.asarray(jax.grad(loss)(jnp.asarray(LOGITS)))[..., 0]
  assert (gradient[BATCH['options'] == 0] == 0).all()
  assert (np.abs(gradient[BATCH['options'] > 0]) > 1e-6).all()


def test_divergence():
  other = RNG.normal(0, 2, LOGITS.shape).astype(np.float32)
  pair = [Outputs(None, logits=jnp.asarray(x)) for x in (LOGITS, other)]
  want = 0.0
  for i in range(3):
    p, q = shares(LOGITS, i), shares(other, i)
    want += ((p * np.log(p / q)).sum() + (q * np.log(q / p)).sum()) / 2
  assert float(build().divergence(*pair, BATCH)) == pytest.approx(want, rel=1e-5)


def test_log_probabilities_of_documents():
  """Two options of 2 and 1 tokens behind a prompt of one, and divisors."""
  hidden = RNG.normal(0, 1, (1, 5, 5)).astype(np.float32)
  batch = {
    'segments': np.array([[1, 1, 1, 2, 2]]),
    'targets': np.array([[3, 1, 0, 4, 0]], np.int32),
    'weights': np.array([[1, 1, 0, 1, 0]], np.float32),
    'options': np.array([[2.0, 5.0, 0.0]], np.float32),
    'labels': np.array([1], np.int32),
    'asked': np.ones(1, np.float32),
  }
  outputs = Outputs(jnp.asarray(hidden), unembed=lambda h: h)
  logp = hidden[0] - np.log(np.exp(hidden[0]).sum(-1, keepdims=True))
  want = np.array([(logp[0, 3] + logp[1, 1]) / 2, logp[3, 4] / 5])
  scores, there = choice.scores(outputs, batch)
  np.testing.assert_array_equal(there, [[True, True, False]])
  np.testing.assert_allclose(scores[0, :2], want, rtol=1e-5)
  assert scores[0, 2] < -1e20
  got = build().sums(outputs, batch)
  assert float(got['loss'][0]) == pytest.approx(np.log(np.exp(want).sum()) - want[1], rel=1e-5)


def test_it_is_for_options():
  with pytest.raises(InputError, match='multiple_choice or score'):
    build().sums(Outputs(None, logits=jnp.asarray(LOGITS)), {'labels': BATCH['labels']})
