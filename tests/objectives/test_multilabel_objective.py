"""Binary cross-entropy and its options against their formulas in numpy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftlib.base import rng, settings
from ftlib.base.errors import InputError
from ftlib.base.types import Outputs
from ftlib.objectives import classification, multilabel

KEY = jax.random.key(0)
NAMES = ['a', 'b', 'c']
LOGITS = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32) * 2
Y = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0], [1, 1, 1]], np.int32)
BATCH = {'labels': Y, 'weights': np.array([1, 2, 1, 0.5, 0], np.float32)}
COUNTS = np.array([[3, 1], [2, 2], [4, 0]])


def build(**values):
  return multilabel.build(settings.read(multilabel.Config, values, where='objective'), labels=NAMES, counts=COUNTS)


def given(logits):
  return lambda batch, key: Outputs(jnp.zeros((5, 1, 1)), logits=jnp.asarray(logits))


def formula(logits, *, positive=(1, 1, 1), smoothing=0.0, gamma=0.0):
  """(sum over rows of the mean over labels, sum of the weights), in float64."""
  p = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
  y = Y * (1 - smoothing) + smoothing / 2
  loss = -np.asarray(positive) * y * (1 - p) ** gamma * np.log(p) - (1 - y) * p**gamma * np.log(1 - p)
  return (loss.mean(1) * BATCH['weights']).sum(), BATCH['weights'].sum()


@pytest.mark.parametrize(
  ('values', 'terms'),
  [
    ({}, {}),
    ({'pos_weight': 'a=2,c=0.5'}, {'positive': (2, 1, 0.5)}),
    ({'pos_weight': 'balanced'}, {'positive': (3, 1, 1)}),  # c, which no row has, is left as it is
    ({'pos_weight': 'effective', 'effective_beta': 0.5}, {'positive': ((1 - 0.5**3) / (1 - 0.5), 1, 1)}),
    ({'pos_weight': 'effective', 'effective_beta': 0.0}, {}),
    ({'label_smoothing': 0.2, 'pos_weight': 'b=3'}, {'smoothing': 0.2, 'positive': (1, 3, 1)}),
    ({'focal_gamma': 2.0}, {'gamma': 2.0}),
    ({'focal_gamma': 0.5, 'label_smoothing': 0.1}, {'gamma': 0.5, 'smoothing': 0.1}),
  ],
)
def test_it_is_its_formula(values, terms):
  got = build(**values)(given(LOGITS), BATCH, None)
  np.testing.assert_allclose(got['loss'], formula(LOGITS, **terms), rtol=1e-5)
  right = (((LOGITS > 0) == Y).mean(1) * BATCH['weights']).sum()
  np.testing.assert_allclose(got['label_accuracy'], (right, BATCH['weights'].sum()), rtol=1e-6)


@pytest.mark.parametrize('gamma', [0.0, 0.5, 2.0])
def test_sure_answers_have_finite_slopes(gamma):
  sure = np.where(Y, 200.0, -200.0).astype(np.float32)
  for logits, far in ((sure, False), (-sure, True)):
    slope = jax.grad(lambda x: build(focal_gamma=gamma)(given(x), BATCH, None)['loss'][0])(logits)
    wanted = np.where(Y, -1, 1) / 3 * BATCH['weights'][:, None] * far
    np.testing.assert_allclose(slope, wanted, atol=1e-6)


def test_r_drop_is_its_formula():
  logits = lambda key: LOGITS + 0.5 * jax.random.normal(key, LOGITS.shape)  # noqa: E731
  apply = lambda batch, key: Outputs(jnp.zeros((5, 1, 1)), logits=logits(key))  # noqa: E731
  got = build(r_drop=0.7)(apply, BATCH, KEY)
  a, b = (np.asarray(logits(k), np.float64) for k in (KEY, rng.key_for(KEY, 'r_drop')))
  p, q = 1 / (1 + np.exp(-a)), 1 / (1 + np.exp(-b))
  kl = lambda p, q: p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))  # noqa: E731
  apart = (((kl(p, q) + kl(q, p)) / 2).mean(1) * BATCH['weights']).sum()
  plain = (formula(a)[0] + formula(b)[0]) / 2
  np.testing.assert_allclose(got['loss'], (plain + 0.7 * apart, 4.5), rtol=1e-5)
  np.testing.assert_allclose(got['divergence'], (apart, 4.5), rtol=1e-4)


@pytest.mark.parametrize(
  ('text', 'words'),
  [('d=1', "'d' is no label"), ('a=x', "'x' is no number"), ('a=-1', 'not negative'), ('a', "'a' is no label=weight")],
)
def test_bad_positive_weights(text, words):
  with pytest.raises(InputError, match=rf'objective\.pos_weight=.*{words}'):
    build(pos_weight=text)


def test_it_is_for_several_labels():
  with pytest.raises(InputError, match='any number of labels'):
    multilabel.build(multilabel.Config(), labels=NAMES, counts=np.array([1, 2, 3]))


# --- what classification has for noisy and rare labels


def classes(**values):
  config = settings.read(classification.Config, values, where='objective')
  return classification.build(config, labels=NAMES, counts=np.array([100, 10, 1]))


CLASSES = {'labels': np.array([0, 1, 2, 1, 0]), 'weights': np.array([1, 1, 1, 1, 0], np.float32)}


def softmax(x):
  e = np.exp(np.asarray(x, np.float64) - np.max(x, -1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize(
  ('values', 'loss'),
  [
    ({'loss': 'gce'}, lambda p: (1 - p**0.7) / 0.7),
    ({'loss': 'gce', 'gce_q': 1.0}, lambda p: 1 - p),
    ({'loss': 'sce'}, lambda p: -0.1 * np.log(p) + 4 * (1 - p)),
    ({'loss': 'sce', 'sce_alpha': 2.0, 'sce_beta': 0.5}, lambda p: -2 * np.log(p) + 2 * (1 - p)),
    ({'loss': 'gce', 'focal_gamma': 2.0}, lambda p: (1 - p) ** 2 * (1 - p**0.7) / 0.7),
  ],
)
def test_losses_for_noisy_labels(values, loss):
  got = classes(**values)(given(LOGITS), CLASSES, None)['loss']
  own = softmax(LOGITS)[np.arange(4), CLASSES['labels'][:4]]
  np.testing.assert_allclose(got, (loss(own).sum(), 4), rtol=1e-5)


def test_a_row_that_is_surely_wrong_says_little():
  """The slope of cross-entropy is 1 there; of the others it goes to 0, which is what they are for."""
  wrong = np.zeros((5, 3), np.float32)
  wrong[np.arange(5), (CLASSES['labels'] + 1) % 3] = 12.0
  slopes = {
    name: np.abs(jax.grad(lambda x, n=name: classes(loss=n, sce_alpha=0.0)(given(x), CLASSES, None)['loss'][0])(wrong))
    for name in ('ce', 'gce', 'sce')
  }
  assert slopes['ce'].max() > 0.99
  assert slopes['gce'].max() < 1e-3
  assert slopes['sce'].max() < 1e-3


@pytest.mark.parametrize('beta', [0.0, 0.9, 0.999])
def test_weights_by_the_effective_number_of_rows(beta):
  counts = np.array([100, 10, 1])
  got = classification.class_weights('effective', NAMES, counts, beta)
  wanted = (1 - beta) / (1 - beta**counts)
  np.testing.assert_allclose(got, wanted * 3 / wanted.sum(), rtol=1e-9)
  assert (got == 1).all() == (beta == 0)
  _, weight = classes(class_weights='effective', effective_beta=beta)(given(LOGITS), CLASSES, None)['loss']
  np.testing.assert_allclose(weight, got[CLASSES['labels'][:4]].sum(), rtol=1e-5)
