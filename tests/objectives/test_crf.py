"""The CRF against every sequence written out, and the loss of tags against PyTorch's formula."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftlib.base import label_weights
from ftlib.base.errors import InputError
from ftlib.base.types import Outputs
from ftlib.objectives import crf, tagging

B, L, C = 4, 6, 3
MASK = np.array([[0, 1, 0, 1, 1, 0], [1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0]], bool)


@pytest.fixture(scope='module')
def chain():
  """(logits, table, tags): three rows with words here and there, and one without any."""
  rng = np.random.default_rng(0)
  logits, table = rng.normal(size=(B, L, C)) * 2, rng.normal(size=(C + 1, C + 1))
  return logits.astype(np.float32), table.astype(np.float32), rng.integers(0, C, (B, L)).astype(np.int32)


def enumerated(logits_LC, mask_L, table):
  """{sequence: score} of the words of a row."""
  emissions = logits_LC[mask_L].astype(np.float64)
  out = {}
  for path in itertools.product(range(C), repeat=len(emissions)):
    steps = sum(table[a, b] for a, b in itertools.pairwise((C, *path, C))) if path else 0.0
    out[path] = steps + sum(e[t] for e, t in zip(emissions, path))
  return out


@pytest.fixture(scope='module')
def every(chain):
  logits, table, _ = chain
  return [enumerated(logits[b], MASK[b], table) for b in range(B)]


def test_partition_and_likelihood_are_those_of_all_sequences(chain, every):
  logits, table, tags = chain
  wanted = [np.logaddexp.reduce(list(e.values())) for e in every]
  np.testing.assert_allclose(jax.jit(crf.log_partition)(logits, MASK, table), wanted, rtol=1e-5, atol=1e-5)
  paths = [tuple(tags[b][MASK[b]].tolist()) for b in range(B)]
  nll = [z - e[p] for z, e, p in zip(wanted, every, paths)]
  np.testing.assert_allclose(jax.jit(crf.nll)(logits, tags, MASK, table), nll, rtol=1e-4, atol=1e-5)


def test_best_sequence_is_the_best_of_all(chain, every):
  logits, table, _ = chain
  got = np.asarray(jax.jit(crf.best)(logits, MASK, table))
  for b in range(B):
    assert tuple(got[b][MASK[b]].tolist()) == max(every[b], key=every[b].get)
  assert not got[~MASK].any()


def test_marginals_are_sums_over_all_sequences(chain, every):
  logits, table, _ = chain
  got = np.asarray(jax.jit(crf.marginals)(logits, MASK, table))
  for b in range(B):
    total = np.logaddexp.reduce(list(every[b].values()))
    wanted = np.zeros((L, C))
    for path, score in every[b].items():
      wanted[np.flatnonzero(MASK[b]), list(path)] += np.exp(score - total)
    np.testing.assert_allclose(got[b], wanted, atol=1e-5)


def test_what_is_forbidden_is_not_said(chain):
  logits, table, _ = chain
  table = table.copy()
  table[0, 1] = table[C, 2] = table[2, C] = crf.FORBIDDEN
  got = np.asarray(crf.best(logits, MASK, table))
  for b in range(B):
    path = [C, *got[b][MASK[b]].tolist(), C]
    assert not {(0, 1), (C, 2), (2, C)} & {*itertools.pairwise(path)}
  assert np.isfinite(crf.log_partition(logits, MASK, table)).all()


def test_sub_words_and_padding_change_no_gradient(chain):
  logits, table, tags = chain

  def loss(logits, table, tags, mask):
    return crf.nll(logits, tags, mask, table).sum()

  grads = jax.grad(loss, (0, 1))(logits, table, tags, MASK)
  wide = [np.pad(x, [(0, 0), (2, 3)] + [(0, 0)] * (x.ndim - 2), constant_values=1) for x in (logits, tags)]
  mask = np.pad(MASK, [(0, 0), (2, 3)])
  again = jax.grad(loss, (0, 1))(wide[0] * 1.0, table, wide[1], mask)
  np.testing.assert_allclose(again[0][:, 2:-3], grads[0], atol=1e-6)
  np.testing.assert_allclose(again[1], grads[1], atol=1e-6)
  assert not np.asarray(again[0])[~mask].any()
  assert np.abs(grads[1]).max() > 0.1


def test_documents_of_a_row_are_sequences_of_their_own(chain):
  logits, table, tags = chain
  apart = np.asarray(crf.nll(logits, tags, MASK, table))
  packed = [x.reshape(1, B * L, *x.shape[2:]) for x in (logits, tags, MASK)]
  segments = np.repeat(np.arange(1, B + 1), L)[None]
  together = crf.nll(*packed, table, segments)
  np.testing.assert_allclose(together, [apart.sum()], rtol=1e-5)
  assert abs(float(crf.nll(*packed, table)[0]) - apart.sum()) > 0.1


def batch(tags, weights):
  segments = jnp.ones((B, L), jnp.int32)
  return {
    'segments': segments,
    'targets': jnp.asarray(tags),
    'weights': jnp.asarray(weights),
    'chain': jnp.asarray(MASK),
  }


def built(**values):
  return tagging.build(tagging.Config(**values), labels=['O', 'B-X', 'I-X'], counts=np.array([70, 20, 10]))


def test_cross_entropy_and_focal_loss_are_their_formulas(chain):
  logits, _, tags = chain
  weights = MASK * 1.0
  outputs = Outputs(None, logits=jnp.asarray(logits))
  log_p = np.asarray(jax.nn.log_softmax(logits), np.float64)[MASK]
  y = tags[MASK]
  for values, w in (
    ({}, [1, 1, 1]),
    ({'class_weights': 'balanced', 'label_smoothing': 0.2}, [100 / 210, 100 / 60, 100 / 30]),
    ({'class_weights': 'effective', 'effective_beta': 0.0}, [1, 1, 1]),
    ({'class_weights': 'effective', 'effective_beta': 0.9}, label_weights.effective(np.array([70, 20, 10]), 0.9)),
    ({'focal_gamma': 2.0}, [1, 1, 1]),
    ({'focal_gamma': 0.5, 'class_weights': 'I-X=3', 'label_smoothing': 0.2}, [1, 1, 3]),
  ):
    w, s = np.array(w), values.get('label_smoothing', 0)
    nll = -log_p * (1 - np.exp(log_p)) ** values.get('focal_gamma', 0)  # Lin et al. 2017
    wanted = ((1 - s) * nll[np.arange(len(y)), y] * w[y] + s / C * (nll * w).sum(1)).sum(), w[y].sum()
    got = built(**values).sums(outputs, batch(tags, weights))
    np.testing.assert_allclose(got['loss'], wanted, rtol=1e-5)
    right = (log_p.argmax(1) == y).sum()
    np.testing.assert_allclose(got['token_accuracy'], (right, len(y)))


def test_words_that_do_not_count_change_nothing(chain):
  logits, _, tags = chain
  weights = MASK * 1.0
  odd = np.where(MASK[..., None], logits, np.nan)
  plain, other = (built().sums(Outputs(None, logits=jnp.asarray(x)), batch(tags, weights)) for x in (logits, odd))
  assert float(plain['loss'][0]) == float(other['loss'][0])


def test_divergence_counts_as_the_loss_does(chain):
  logits, _, tags = chain
  objective = built(class_weights='I-X=3', r_drop=1.0)
  here, there = (Outputs(None, logits=jnp.asarray(x)) for x in (logits, logits[::-1].copy()))
  data = batch(tags, MASK * 1.0)
  p, q = (np.asarray(jax.nn.log_softmax(o.logits), np.float64) for o in (here, there))
  apart = ((np.exp(p) - np.exp(q)) * (p - q)).sum(-1) / 2 * np.array([1, 1, 3])[tags] * MASK
  np.testing.assert_allclose(objective.divergence(here, there, data), apart.sum(), rtol=1e-4)
  assert float(objective.divergence(here, here, data)) == 0


def test_a_crf_is_trained_by_its_likelihood_over_its_words(chain):
  logits, table, tags = chain
  outputs = Outputs(None, logits=jnp.asarray(logits), transitions=jnp.asarray(table))
  got = built().sums(outputs, batch(tags, MASK * 1.0))
  assert float(got['loss'][0]) == pytest.approx(float(crf.nll(logits, tags, MASK, table).sum()), rel=1e-5)
  assert float(got['loss'][1]) == MASK.sum()
  with pytest.raises(InputError, match=r'objective\.label_smoothing=0\.1 with task\.crf=true'):
    built(label_smoothing=0.1).sums(outputs, batch(tags, MASK * 1.0))


def test_a_task_without_tags_is_refused():
  with pytest.raises(InputError, match='has none'):
    tagging.build(tagging.Config(), labels=[], counts=np.zeros(0))
