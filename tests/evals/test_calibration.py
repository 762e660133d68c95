"""Calibration: by hand, against scikit-learn, and a temperature that is found again."""

import numpy as np
import pytest
import sklearn.metrics as sk

from ftlib.evals import calibration


def softmax(x):
  e = np.exp(x - x.max(1, keepdims=True))
  return e / e.sum(1, keepdims=True)


def drawn(N=20000, C=3, sharp=1.0, seed=0):
  """Labels drawn from the softmax of logits, and the probabilities of logits that are `sharp` times those."""
  rng = np.random.default_rng(seed)
  logits = 2 * rng.normal(size=(N, C))
  labels = (softmax(logits).cumsum(1) > rng.random((N, 1))).argmax(1)
  return labels, softmax(logits * sharp)


def test_bins_by_hand():
  confidence, right = np.array([0.62, 0.65, 0.95, 1.0]), np.array([0, 1, 1, 1])
  got = calibration.bins(confidence, right)  # edges at 0.6, 0.667, ..., 0.933, 1
  assert got.count[9] == 2
  assert got.count[14] == 2
  assert got.error == pytest.approx((abs(1 - 1.27) + abs(2 - 1.95)) / 4)
  two = calibration.bins(confidence, right, count=2, adaptive=True)
  np.testing.assert_array_equal(two.count, [2, 2])
  np.testing.assert_allclose(two.edges, [0.62, 0.65, 1.0])
  assert two.error == got.error
  assert calibration.bins(np.array([2 / 3]), np.array([1]), count=3).count.tolist() == [0, 1, 0]  # (1/3, 2/3]
  assert calibration.bins(confidence, right, adaptive=True).count.tolist() == [1, 1, 1, 1]  # fewer rows than bins


def test_measures_against_scikit_learn():
  labels, p = drawn(N=500)
  got = calibration.measures(labels, p)
  assert got['nll'] == pytest.approx(sk.log_loss(labels, p))
  assert got['brier'] == pytest.approx(sum(sk.brier_score_loss(labels == c, p[:, c]) for c in range(3)))


def test_a_temperature_is_found_again():
  labels, honest = drawn()
  assert calibration.temperature(labels, honest) == pytest.approx(1.0, abs=0.03)
  assert calibration.measures(labels, honest)['ece'] < 0.015
  for sharp in (0.5, 3.0):
    labels, p = drawn(sharp=sharp)
    found = calibration.temperature(labels, p)
    assert found == pytest.approx(sharp, rel=0.03)
    before, after = (calibration.measures(labels, x) for x in (p, calibration.scaled(p, found)))
    assert after['ece'] < 0.015 < before['ece']
    assert after['nll'] < before['nll']
    np.testing.assert_allclose(calibration.scaled(p, found), honest, atol=0.02)
    np.testing.assert_array_equal(calibration.scaled(p, found).argmax(1), p.argmax(1))


def test_a_temperature_at_its_bound():
  labels = np.array([0, 1] * 20)
  wrong = np.where(np.eye(2)[labels] == 1, 0.1, 0.9)
  assert calibration.at_bound(calibration.temperature(labels, wrong))
  assert not calibration.at_bound(calibration.temperature(*drawn(N=200)))


def test_options_that_are_not_there_do_not_count():
  labels, p = drawn(N=4000, sharp=3.0)
  wide = np.concatenate([p, np.zeros((4000, 2))], 1)
  assert calibration.temperature(labels, wide) == pytest.approx(calibration.temperature(labels, p), rel=1e-4)
  got = calibration.scaled(wide, 8.0)
  np.testing.assert_array_equal(got[:, 3:], 0)
  np.testing.assert_allclose(got[:, :3], calibration.scaled(p, 8.0))


def test_probabilities_of_zero_stay_finite():
  p = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
  assert calibration.measures([1, 1], p)['nll'] < 100
  assert np.isfinite(calibration.scaled(p, 0.5)).all()
  assert 0.01 <= calibration.temperature([0, 1], p) <= 100  # all right and sure: any is as good
