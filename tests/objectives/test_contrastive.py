"""In-batch negatives: the formula, padding, texts that stand twice; cosines as scores."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftlib.base import layout
from ftlib.base.errors import InputError
from ftlib.base.types import Outputs
from ftlib.objectives import contrastive, cosine

B, D = 5, 7


def vectors(count=2, seed=0):
  return np.random.default_rng(seed).normal(size=(B, count, D)).astype(np.float32)


def numbered(count=2):
  return np.arange(B * count, dtype=np.int32).reshape(B, count)


def sums(pooled, *, texts=None, weights=None, **config):
  objective = contrastive.build(contrastive.Config(**config), labels=[], counts=np.zeros(0))
  batch = {'texts': numbered(pooled.shape[1]) if texts is None else texts}
  batch['weights'] = np.ones(len(pooled), np.float32) if weights is None else weights
  return objective(lambda *_: Outputs(None, jnp.asarray(pooled)), batch, None)


def naive(pooled, *, t, symmetric=False, left_out=(), rows=range(B)):
  """Row by row; `left_out`: (row, column) that is no negative."""
  u = pooled / np.linalg.norm(pooled, axis=-1, keepdims=True)
  total = 0.0
  for i in rows:
    others = [u[i, 0] @ u[j, 1] for j in rows if (i, j) not in left_out]
    others += [u[i, 0] @ u[j, d] for d in range(2, u.shape[1]) for j in rows if (i, j, d) not in left_out]
    loss = np.log(np.exp(np.array(others) / t).sum()) - u[i, 0] @ u[i, 1] / t
    if symmetric:
      back = [u[j, 0] @ u[i, 1] for j in rows if (j, i) not in left_out]
      loss = (loss + np.log(np.exp(np.array(back) / t).sum()) - u[i, 0] @ u[i, 1] / t) / 2
    total += loss
  return total


@pytest.mark.parametrize('symmetric', [False, True])
@pytest.mark.parametrize('count', [2, 3])
def test_it_is_the_formula(count, symmetric):
  pooled = vectors(count)
  got = sums(pooled, temperature=0.3, symmetric=symmetric)
  assert got['loss'][0] == pytest.approx(naive(pooled, t=0.3, symmetric=symmetric), rel=1e-5)
  assert got['loss'][1] == B


def test_padding_is_no_negative_and_has_no_slope():
  pooled, weights = vectors(3), np.array([1, 1, 1, 0, 0], np.float32)
  got = sums(pooled, weights=weights, temperature=0.3)
  assert got['loss'][0] == pytest.approx(naive(pooled, t=0.3, symmetric=True, rows=range(3)), rel=1e-5)
  assert got['loss'][1] == got['batch_accuracy'][1] == 3
  pooled[3:] = 0  # as a row without documents has them
  grad = jax.jit(jax.grad(lambda x: sums(x, weights=weights, temperature=0.3)['loss'][0]))(pooled)
  assert np.isfinite(grad).all()
  assert np.abs(grad[:3]).min() > 0
  assert (np.asarray(grad[3:]) == 0).all()


def test_what_is_right_for_a_row_is_no_negative_of_it():
  pooled, texts = vectors(3), numbered(3)
  texts[1, 1] = texts[0, 1]  # the same answer to two texts
  texts[3, 0] = texts[2, 0]  # two answers to the same text
  texts[4, 2] = texts[0, 1]  # a hard negative of one row, and the answer of another
  same = {(0, 1), (1, 0), (2, 3), (3, 2), (0, 4, 2), (1, 4, 2)}
  got = sums(pooled, texts=texts, temperature=0.3)
  assert got['loss'][0] == pytest.approx(naive(pooled, t=0.3, symmetric=True, left_out=same), rel=1e-5)


def test_rows_are_compared_over_all_devices():
  """Rows dealt out to four devices: the loss and its slope are those of the whole batch."""
  place = layout.build('data=4', batch=8).batch
  pooled = np.random.default_rng(3).normal(size=(8, 2, D)).astype(np.float32)
  texts = np.arange(16, dtype=np.int32).reshape(8, 2)
  fn = jax.jit(jax.value_and_grad(lambda x, t: sums(x, texts=t, temperature=0.3)['loss'][0]))
  value, grad = fn(jax.device_put(pooled, place), jax.device_put(texts, place))
  want, slope = fn(pooled, texts)
  assert float(value) == pytest.approx(float(want), rel=1e-5)
  np.testing.assert_allclose(grad, slope, atol=1e-5)


def test_accuracy_is_of_the_nearest():
  pooled = vectors(2)
  pooled[:, 1] = pooled[:, 0]
  assert sums(pooled)['batch_accuracy'][0] == B
  assert sums(pooled)['loss'][0] < sums(vectors(2))['loss'][0]
  pooled[:, 1] = np.roll(pooled[:, 0], 1, axis=0)
  assert sums(pooled)['batch_accuracy'][0] == 0


def test_cosines_by_hand_and_at_zero():
  pooled = jnp.asarray([[[3.0, 0], [2, 2]], [[0, 0], [1, 1]]])
  np.testing.assert_allclose(cosine.cosine(pooled), [2**-0.5, 0], atol=1e-6)
  assert np.isfinite(jax.grad(lambda x: cosine.cosine(x).sum())(pooled)).all()


def test_squared_error_of_the_cosine():
  pooled, rows = jnp.asarray(vectors(2)), np.array([1, 1, 0.5, 1, 0], np.float32)
  wanted = np.linspace(0, 1, B).astype(np.float32)
  objective = cosine.build(cosine.Config(), labels=[], counts=np.zeros(0))
  got = objective(lambda *_: Outputs(None, pooled), {'cosines': wanted, 'weights': rows}, None)
  error = np.asarray(cosine.cosine(pooled)) - wanted
  assert got['loss'] == (pytest.approx((error**2 * rows).sum()), 3.5)
  assert got['mae'][0] == pytest.approx((abs(error) * rows).sum())
  far = objective.divergence(Outputs(None, pooled), Outputs(None, pooled[::-1]), {'weights': rows})
  apart = np.asarray(cosine.cosine(pooled)) - np.asarray(cosine.cosine(pooled[::-1]))
  assert far == pytest.approx((apart**2 * rows).sum(), rel=1e-5)


def test_bad_input():
  for module, name in ((cosine, 'embed'), (contrastive, 'retrieve')):
    with pytest.raises(InputError, match='labels'):
      module.build(module.Config(), labels=['a'], counts=np.zeros(1))
    objective = module.build(module.Config(), labels=[], counts=np.zeros(0))
    with pytest.raises(InputError, match=f'task.name={name} makes them'):
      objective(lambda *_: Outputs(None, jnp.asarray(vectors())), {'weights': np.ones(B)}, None)
