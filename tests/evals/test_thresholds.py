"""Tuned thresholds are the best that there are, and the nearest to 0.5 among these."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.metrics as sk

from ftlib.base.errors import InputError
from ftlib.evals import thresholds

SCORES = {'f1': lambda y, z: sk.f1_score(y, z, zero_division=0), 'mcc': sk.matthews_corrcoef}


@pytest.mark.parametrize('measure', thresholds.MEASURES)
@pytest.mark.parametrize('digits', [1, 6])
def test_no_other_threshold_is_better(measure, digits):
  rng = np.random.default_rng(digits)
  for share in (0.1, 0.5, 0.9):
    y = rng.random(40) < share
    y[:2] = True, False
    p = np.round(np.clip(rng.random(40) * 0.6 + 0.3 * y, 0, 1), digits).astype(np.float32)  # with 1 digit, many equal
    (found,) = thresholds.best(y[:, None], p[:, None], measure)
    got = SCORES[measure](y, p >= found)
    cuts = [*np.unique(p), 1.1]
    values = np.array([SCORES[measure](y, p >= t) for t in cuts])
    assert got == pytest.approx(values.max())
    assert not np.isin(found, p)  # between the scores, so that a little noise changes nothing
    alike = [t for t, v in zip(cuts, values, strict=True) if v == values.max()]
    lowest = max([x for x in np.unique(p) if x < min(alike)], default=0.0)
    assert lowest < found <= max(alike)


def test_of_equals_the_nearest_to_a_half_is_taken():
  y = np.array([1, 1, 0, 0], bool)
  got = thresholds.best(np.stack([y, y], 1), np.array([[0.9, 0.6], [0.8, 0.4], [0.1, 0.2], [0.05, 0.1]]), 'f1')
  np.testing.assert_allclose(got, [0.45, 0.3])  # the middle of the gap
  two = np.array([[1], [0], [0], [1]])  # the first alone, or all: an F1 of 2/3
  np.testing.assert_allclose(thresholds.best(two, np.array([[0.9], [0.8], [0.6], [0.4]]), 'f1'), [0.2])
  np.testing.assert_allclose(thresholds.best(two, np.array([[0.7], [0.6], [0.2], [0.1]]), 'f1'), [0.65])


def test_equal_scores_are_predicted_together():
  """Down to the first of the five the F1 would be 1, but the others come with it."""
  y = np.array([[1], [1], [0], [0], [0], [0]])
  np.testing.assert_allclose(thresholds.best(y, np.array([[0.9]] + [[0.5]] * 5), 'f1'), [0.7])


def test_labels_that_say_nothing_keep_a_half():
  y = np.array([[0, 1], [0, 1]])
  np.testing.assert_array_equal(thresholds.best(y, np.array([[0.2, 0.3], [0.1, 0.9]]), 'f1'), [0.5, 0.5])


def test_where_thresholds_come_from():
  p = {'probabilities': np.zeros((3, 2), np.float32)}
  known = np.array([0.2, 0.7])
  assert thresholds.of('0.3', known, p) == 0.3
  assert thresholds.of('tuned', known, p) is known
  own = thresholds.attached(p, np.array([0.1, 0.9]))
  assert own['thresholds'].shape == (3, 2)
  np.testing.assert_array_equal(thresholds.of('tuned', known, own)[1], [0.1, 0.9])
  with pytest.raises(InputError, match='and there are none here'):
    thresholds.of('tuned', None, p)


@pytest.mark.parametrize('text', ['0', '1', '-0.5', 'nan', 'best', '', '0,5'])
def test_a_threshold_that_is_none(text):
  with pytest.raises(InputError, match=r'task\.threshold=.*wanted a number between 0 and 1, or tuned'):
    thresholds.read(text)
