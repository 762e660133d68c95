"""The loss of spans against its formula in NumPy: over candidates alone, as sums, padding left out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftlib.base.errors import InputError
from ftlib.base.types import Outputs
from ftlib.objectives import span
from ftlib.objectives.span import Config

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 2, (4, 7, 2)).astype(np.float32)
CANDIDATES = np.array(
  [[2, 0, 0, 1, 1, 1, 0], [2, 0, 1, 1, 0, 0, 0], [2, 0, 0, 1, 1, 1, 1], [0] * 7], np.int8
)  # the last row is padding
BATCH = {
  'starts': np.array([3, 0, 4, 0], np.int32),
  'ends': np.array([5, 0, 4, 0], np.int32),
  'weights': np.array([1, 1, 1, 0], np.float32),
  'candidates': CANDIDATES,
}


def build(**settings):
  return span.build(Config(**settings), labels=[], counts=np.zeros(0))


def formula(smoothing=0.0):
  """The losses of the three rows."""
  out = []
  for i in range(3):
    at, nll = np.flatnonzero(CANDIDATES[i]), []
    for side, target in ((0, BATCH['starts'][i]), (1, BATCH['ends'][i])):
      logits = LOGITS[i, at, side].astype(np.float64)
      logp = logits - np.log(np.exp(logits).sum())
      nll.append(-(1 - smoothing) * logp[[*at].index(target)] - smoothing * logp.mean())
    out.append(sum(nll) / 2)
  return out


@pytest.mark.parametrize('smoothing', [0.0, 0.2])
def test_formula(smoothing):
  got = build(label_smoothing=smoothing).sums(Outputs(None, logits=jnp.asarray(LOGITS)), BATCH)
  assert got['loss'][1] == got['window_accuracy'][1] == 3
  assert float(got['loss'][0]) == pytest.approx(sum(formula(smoothing)), rel=1e-5)


def test_accuracy_wants_both_ends():
  logits = np.zeros((4, 7, 2), np.float32)
  for i, (start, end) in enumerate(((3, 5), (0, 2), (4, 4))):  # the second start alone is right
    logits[i, start, 0] = logits[i, end, 1] = 5
  logits[:, 6] = 9  # no candidate but of the third row, whose start and end it is not
  got = build().sums(Outputs(None, logits=jnp.asarray(logits)), BATCH)
  assert float(got['window_accuracy'][0]) == 1


def test_gradient_is_of_candidates_alone():
  loss = lambda x: build().sums(Outputs(None, logits=x), BATCH)['loss'][0]  # noqa: E731
  gradient = np.asarray(jax.grad(loss)(jnp.asarray(LOGITS)))
  assert (gradient[CANDIDATES == 0] == 0).all()
  assert (np.abs(gradient[CANDIDATES > 0]) > 1e-6).all()


def test_divergence():
  other = RNG.normal(0, 2, LOGITS.shape).astype(np.float32)
  pair = [Outputs(None, logits=jnp.asarray(x)) for x in (LOGITS, other)]
  want = 0.0
  for i in range(3):
    at = np.flatnonzero(CANDIDATES[i])
    for side in (0, 1):
      p, q = (np.exp(x[i, at, side].astype(np.float64)) for x in (LOGITS, other))
      p, q = p / p.sum(), q / q.sum()
      want += ((p * np.log(p / q)).sum() + (q * np.log(q / p)).sum()) / 4
  assert float(build().divergence(*pair, BATCH)) == pytest.approx(want, rel=1e-5)


def test_it_is_not_for_classes():
  with pytest.raises(InputError, match=r'task.name=extract'):
    span.build(Config(), labels=['a', 'b'], counts=np.ones(2))
