"""Integrated gradients and rollout on functions and matrices whose answer is known."""

import numpy as np
import pytest

from ftlib.evals import attribution


def test_gradients_along_the_path_sum_to_the_difference():
  """f(x) = sum_l a_l |x_l|^2 + product of the first two tokens' sums, a polynomial: exact with a few points."""
  rng = np.random.default_rng(0)
  x, x0, a = rng.normal(size=(4, 3)), rng.normal(size=(4, 3)), rng.normal(size=4)
  f = lambda y: (a * (y**2).sum(1)).sum() + y[0].sum() * y[1].sum()  # noqa: E731

  def gradient(alphas):
    y = x0 + alphas[:, None, None] * (x - x0)
    g = 2 * a[:, None] * y
    g[:, 0] += y[:, 1].sum(1)[:, None]
    g[:, 1] += y[:, 0].sum(1)[:, None]
    return g

  got = attribution.integrated_gradients(gradient, x, x0, steps=2)
  assert got.sum() == pytest.approx(f(x) - f(x0))
  np.testing.assert_allclose(got[2:], a[2:] * ((x[2:] ** 2).sum(1) - (x0[2:] ** 2).sum(1)))  # no other token in it
  assert attribution.integrated_gradients(gradient, x, x, steps=2).tolist() == [0, 0, 0, 0]


def test_rollout_by_hand():
  first = np.array([[[0.5, 0.5], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]])  # mean of the heads: [[.75, .25], [0, 1]]
  second = np.array([[[0.0, 1.0], [1.0, 0.0]]])
  one = np.array([[0.875, 0.125], [0.0, 1.0]])
  two = np.array([[0.5, 0.5], [0.5, 0.5]])
  np.testing.assert_allclose(attribution.rollout([first, second]), two @ one)


def test_rollout_leaves_out_what_is_no_token():
  own = np.array([[0.5, 0.5], [0.25, 0.75]])
  wide = np.concatenate([np.full((2, 3), 0.2), own * 0.4], 1)  # three keys of a prefix in front
  np.testing.assert_allclose(attribution.rollout([wide[None]]), attribution.rollout([own[None]]))
  layers = [np.random.default_rng(s).dirichlet(np.ones(5), (2, 5)) for s in range(3)]
  got, whole = attribution.rollout(layers, lead=2), attribution.rollout(layers)
  assert got.shape == (3, 3)
  np.testing.assert_allclose(got, whole[2:, 2:] / whole[2:, 2:].sum(1, keepdims=True))
