"""Intervals by resampling: against scipy, against theory, and what they leave out."""

import numpy as np
import pytest
import scipy.stats

from ftlib.evals import bootstrap


def mean_of(values):
  return lambda counts: {'mean': float(counts @ values / counts.sum())}


def test_draws_are_seeded_and_whole():
  a, b, other = (list(bootstrap.draws(20, samples=n, seed=s)) for n, s in ((5, 3), (3, 3), (3, 4)))
  np.testing.assert_array_equal(a[:3], b)
  assert not np.array_equal(b, other)
  assert all(c.sum() == 20 and c.min() >= 0 for c in a)
  within = np.arange(20) % 4 == 1
  for counts in bootstrap.draws(20, samples=5, seed=0, within=within):
    assert counts.sum() == 5
    assert not counts[~within].any()


def test_as_scipy_has_it():
  values = np.random.default_rng(0).gamma(2.0, size=150)
  got = bootstrap.intervals(mean_of(values), 150, samples=4000)
  want = scipy.stats.bootstrap((values,), np.mean, n_resamples=4000, method='percentile', rng=1).confidence_interval
  assert (got.samples, got.level) == (4000, 0.95)
  np.testing.assert_allclose(got.bounds['mean'], want, rtol=0.02)


def test_nineteen_of_twenty_hold_the_mean():
  """200 data sets of 60 numbers, all resampled at once."""
  values = np.random.default_rng(1).normal(size=(60, 200))
  found = bootstrap.intervals(lambda counts: dict(enumerate(counts @ values / 60)), 60, samples=400)
  held = np.mean([low <= 0 <= high for low, high in found.bounds.values()])
  assert 0.89 <= held <= 0.98
  narrow = bootstrap.intervals(lambda counts: dict(enumerate(counts @ values / 60)), 60, samples=400, level=0.5)
  assert 0.4 <= np.mean([low <= 0 <= high for low, high in narrow.bounds.values()]) <= 0.6


def test_what_says_nothing_has_no_interval():
  rows = np.arange(10)

  def counted(counts):
    return {'same': 1.0, 'rare': None if counts[0] == 0 else 1.0 + counts[1], 'usual': float(counts @ rows)}

  found = bootstrap.intervals(counted, 10, samples=50)
  assert (set(found.bounds), found.without) == ({'usual'}, ['same', 'rare'])
  assert bootstrap.intervals(counted, 10, samples=0) == ({}, 0, 0.95, [])


def test_an_interval_holds_its_value_and_has_a_width():
  """Every sample lacks some of 30 classes of two rows; hardly one lacks all of four rows."""

  def counted(counts):
    there = counts.reshape(30, 2).any(1)
    return {'macro': float(there.mean()), 'recall': float(counts[:4].any()), 'accuracy': float(counts[:50].sum() / 60)}

  found = bootstrap.intervals(counted, 60, samples=300).bounds
  assert set(found) == {'accuracy'}


def test_time_is_kept_unless_samples_are_asked_for(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(bootstrap.time, 'perf_counter', lambda: now[0])

  def slow(seconds):
    def counted(counts):
      now[0] += seconds
      return {'mean': float(counts[0])}

    return counted

  assert bootstrap.intervals(slow(0.001), 5).samples == bootstrap.SAMPLES
  assert bootstrap.intervals(slow(0.02), 5, seconds=10).samples == pytest.approx(500, abs=2)
  before = now[0]
  assert bootstrap.intervals(slow(1.0), 5, seconds=10) == ({}, 0, 0.95, [])
  assert now[0] - before <= 2  # given up at once
  assert bootstrap.intervals(slow(1.0), 5, samples=30, seconds=10).samples == 30
