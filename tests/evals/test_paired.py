"""Two models on the same rows: exact tests, and differences that are real or are not."""

import numpy as np
import pytest
import scipy.stats

from ftlib.evals import bootstrap, counted, paired


def accuracy(a, b):
  """The Counted over 2N rows of two models that are right where `a` and `b` are."""
  both = np.concatenate([a, b]).astype(float)
  return counted.sums(np.stack([both, np.ones(len(both))], 1), lambda s: {'accuracy': s[0] / s[1], 'odd': None})


def test_mcnemar_is_exact():
  a, b = np.array([1] * 12 + [0] * 3 + [1] * 40), np.array([0] * 12 + [1] * 3 + [1] * 40)
  got = paired.mcnemar(a, b)
  assert (got['only_here'], got['only_there']) == (12, 3)
  tail = sum(scipy.stats.binom.pmf(k, 15, 0.5) for k in range(4))
  assert got['p'] == pytest.approx(2 * tail)
  assert paired.mcnemar(a, a) == {'only_here': 0, 'only_there': 0, 'p': 1.0}


def test_a_difference_that_is_there():
  rng = np.random.default_rng(0)
  a, b = rng.random(300) < 0.9, rng.random(300) < 0.7
  got = paired.compared(accuracy(a, b), 300, samples=400)
  one = got['metrics']['accuracy']
  assert got['metrics'].keys() == {'accuracy'}
  assert (one['here'], one['there']) == (pytest.approx(a.mean()), pytest.approx(b.mean()))
  assert one['difference'] == pytest.approx(a.mean() - b.mean())
  assert 0 < one['interval'][0] < one['difference'] < one['interval'][1]
  assert one['p_bootstrap'] == pytest.approx(2 / 401)
  assert one['p_randomization'] == pytest.approx(1 / 401)
  back = paired.compared(accuracy(b, a), 300, samples=400)['metrics']['accuracy']
  assert back['interval'] == pytest.approx([-x for x in one['interval'][::-1]])


def test_randomization_approaches_the_exact_test():
  """Of an accuracy both count the same: how the rows that are right in one alone could have fallen."""
  a, b = np.array([1] * 9 + [0] * 4 + [1] * 20), np.array([0] * 9 + [1] * 4 + [1] * 20)
  got = paired.compared(accuracy(a, b), 33, samples=4000)['metrics']['accuracy']
  assert got['p_randomization'] == pytest.approx(paired.mcnemar(a, b)['p'], abs=0.025)


def test_no_difference():
  a = np.random.default_rng(0).random(50) < 0.6
  one = paired.compared(accuracy(a, a), 50, samples=50)['metrics']['accuracy']
  assert one == {'here': one['there'], 'there': one['there'], 'difference': 0.0, 'interval': [0.0, 0.0]} | {
    'p_bootstrap': 1.0,
    'p_randomization': 1.0,
  }


def test_rows_that_go_together_are_drawn_together():
  """Two models that are right on nearly the same rows differ by little in every sample."""
  a = np.random.default_rng(0).random(400) < 0.5
  b = a.copy()
  b[:8] = ~b[:8]
  one = paired.compared(accuracy(a, b), 400, samples=300)['metrics']['accuracy']
  alone = bootstrap.intervals(lambda counts: {'accuracy': counts @ a / counts.sum()}, 400, samples=300)
  wide = np.diff(alone.bounds['accuracy'])[0]
  assert np.diff(one['interval'])[0] < 0.35 * wide


def test_without_time_there_is_no_p(monkeypatch):
  monkeypatch.setattr(bootstrap, 'FEWEST', 10**6)
  got = paired.compared(accuracy(np.ones(5), np.arange(5) % 2), 5, seconds=0.0)
  assert got['samples'] == 0
  assert got['metrics']['accuracy'].keys() == {'here', 'there', 'difference'}
