"""Focal loss and R-Drop against their formulas in numpy, on logits of a few rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftlib.base import rng, settings
from ftlib.base.errors import InputError
from ftlib.base.types import Outputs
from ftlib.objectives import classification, language, regression

KEY = jax.random.key(0)
LABELS = ['a', 'b', 'c']
LOGITS = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
BATCH = {'labels': np.array([0, 1, 2, 1, 0]), 'weights': np.array([1, 1, 1, 1, 0], np.float32)}
WEIGHTS = np.array([1.0, 3.0, 0.5])


def build(module=classification, labels=LABELS, **values):
  config = settings.read(module.Config, values, where='objective')
  return module.build(config, labels=labels, counts=np.array([2, 2, 1]))


def given(logits):
  return lambda batch, key: Outputs(jnp.zeros((5, 1, 1)), logits=jnp.asarray(logits))


def noisy(apart: float = 0.5):
  """A model whose logits differ by the key, as with dropout; `logits(key)` gives them."""
  logits = lambda key: LOGITS + apart * jax.random.normal(key, LOGITS.shape)  # noqa: E731
  return lambda batch, key: Outputs(jnp.zeros((5, 1, 1)), logits=logits(key)), logits


def log_softmax(x):
  x = np.asarray(x, np.float64)
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


def kl(p, q):
  return (np.exp(p) * (p - q)).sum(-1)


def focal(logits, gamma, *, smoothing=0.0, weights=(1, 1, 1)):
  """(sum of the losses, sum of the weights) of the rows that count."""
  logp, weights = log_softmax(logits), np.asarray(weights)
  total = weight = 0.0
  for i in np.flatnonzero(BATCH['weights']):
    loss_C = [-((1 - np.exp(x)) ** gamma) * x * w for x, w in zip(logp[i], weights, strict=True)]
    y = BATCH['labels'][i]
    total += (1 - smoothing) * loss_C[y] + smoothing * np.mean(loss_C)
    weight += weights[y]
  return total, weight


@pytest.mark.parametrize('gamma', [0.5, 2.0])
@pytest.mark.parametrize(
  'others', [{}, {'label_smoothing': 0.2, 'class_weights': 'a=1,b=3,c=0.5'}], ids=['alone', 'with the others']
)
def test_focal_loss_is_its_formula(gamma, others):
  got = build(focal_gamma=gamma, **others)(given(LOGITS), BATCH, None)['loss']
  values = {'smoothing': 0.2, 'weights': WEIGHTS} if others else {}
  np.testing.assert_allclose(got, focal(LOGITS, gamma, **values), rtol=1e-5)


def test_no_gamma_is_cross_entropy():
  got = build()(given(LOGITS), BATCH, None)['loss']
  np.testing.assert_allclose(got, focal(LOGITS, 0.0), rtol=1e-6)


@pytest.mark.parametrize('gamma', [0.5, 1.0, 3.0])
def test_a_row_that_is_surely_right_has_no_gradient(gamma):
  """At probability 1 a root has an infinite derivative."""
  sure = np.zeros((5, 3), np.float32)
  sure[np.arange(5), BATCH['labels']] = 60.0
  slope = jax.grad(lambda x: build(focal_gamma=gamma)(given(x), BATCH, None)['loss'][0])(sure)
  np.testing.assert_allclose(slope, np.zeros_like(sure), atol=1e-9)


@pytest.mark.parametrize('weights', ['', 'a=1,b=3,c=0.5'])
def test_r_drop_is_its_formula(weights):
  apply, logits = noisy()
  got = build(r_drop=0.7, class_weights=weights)(apply, BATCH, KEY)
  p, q = (log_softmax(logits(k)) for k in (KEY, rng.key_for(KEY, 'r_drop')))
  real, y = BATCH['weights'] > 0, BATCH['labels']
  w = (WEIGHTS if weights else np.ones(3))[y] * real
  apart = ((kl(p, q) + kl(q, p)) / 2 * w).sum()
  nll = -((p + q) / 2)[np.arange(5), y] * w
  np.testing.assert_allclose(got['loss'], (nll.sum() + 0.7 * apart, w.sum()), rtol=1e-5)
  np.testing.assert_allclose(got['divergence'], (apart, w.sum()), rtol=1e-5)
  assert apart > 0.01


def test_r_drop_of_scores_is_the_squared_difference():
  apply, logits = noisy()
  batch = {**BATCH, 'labels': np.linspace(0, 1, 5, dtype=np.float32)}
  got = build(regression, labels=[], r_drop=2.0)(apply, batch, KEY)
  a, b = (np.asarray(logits(k))[:, 0] for k in (KEY, rng.key_for(KEY, 'r_drop')))
  rows = BATCH['weights']
  apart = (((a - b) ** 2) * rows).sum()
  mse = (((a - batch['labels']) ** 2 + (b - batch['labels']) ** 2) / 2 * rows).sum()
  np.testing.assert_allclose(got['loss'], (mse + 2 * apart, 4), rtol=1e-5)


@pytest.mark.parametrize('chunk', [2, 100])
def test_r_drop_of_tokens_is_its_formula(chunk):
  """By chunks of positions, and with its gradient by the output matrix."""
  table = jax.random.normal(jax.random.key(1), (7, 4))
  weights = np.array([[1, 1, 0], [0, 2, 1]], np.float32)
  batch = {'targets': np.array([[1, 2, 0], [0, 6, 3]]), 'weights': weights}
  hidden = lambda key: jax.random.normal(key, (2, 3, 4))  # noqa: E731
  keys = KEY, rng.key_for(KEY, 'r_drop')

  def ours(table):
    apply = lambda _, key: Outputs(hidden(key), unembed=lambda h: h @ table.T)  # noqa: E731
    return build(language, labels=[], r_drop=0.3, chunk=chunk)(apply, batch, KEY)['loss'][0]

  def formula(table):
    p, q = (jax.nn.log_softmax(hidden(k) @ table.T) for k in keys)
    apart = ((jnp.exp(p) * (p - q) + jnp.exp(q) * (q - p)).sum(-1) / 2 * weights).sum()
    nll = -jnp.take_along_axis((p + q) / 2, batch['targets'][..., None], -1)[..., 0]
    return (nll * weights).sum() + 0.3 * apart

  (got, d_got), (wanted, d_wanted) = (jax.value_and_grad(f)(table) for f in (ours, formula))
  np.testing.assert_allclose(got, wanted, rtol=1e-5)
  np.testing.assert_allclose(d_got, d_wanted, atol=1e-5)


def test_evaluation_is_one_pass():
  calls = []

  def apply(batch, key):
    calls.append(key)
    return given(LOGITS)(batch, key)

  got = build(r_drop=1.0)(apply, BATCH, None)
  assert calls == [None]
  assert set(got) == set(build()(given(LOGITS), BATCH, None))


def test_halves_of_a_batch_add_up():
  """Sums, not means: accumulation may cut a batch as it likes."""
  apply = lambda batch, key: Outputs(  # noqa: E731
    jnp.zeros((1, 1, 1)), logits=LOGITS[batch['rows']] + (key is not KEY) * batch['rows'][:, None] * np.arange(3.0)
  )
  batch = {**BATCH, 'rows': np.arange(5)}
  objective = build(r_drop=0.5, focal_gamma=1.0, class_weights='a=1,b=3,c=0.5')
  whole = objective(apply, batch, KEY)
  parts = [objective(apply, {n: x[s] for n, x in batch.items()}, KEY) for s in (slice(0, 2), slice(2, 5))]
  for name, sums in whole.items():
    np.testing.assert_allclose(sums, np.sum([p[name] for p in parts], axis=0), rtol=1e-5)


@pytest.mark.parametrize(
  ('module', 'field'),
  [(classification, 'r_drop'), (classification, 'focal_gamma'), (regression, 'r_drop'), (language, 'r_drop')],
)
def test_a_negative_weight_is_an_error(module, field):
  with pytest.raises(InputError, match=rf'objective\.{field}=-1\.0 is out of range'):
    build(module, **{field: -1.0})
