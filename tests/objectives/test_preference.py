"""DPO, its variants and ORPO against their formulas in NumPy, and two answers in one row against each in its own."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftlib.base import trees
from ftlib.base.errors import InputError
from ftlib.base.settings import read
from ftlib.base.types import Head
from ftlib.data import batches
from ftlib.models import llama
from ftlib.objectives import preference
from ftlib.objectives.preference import Config
from tests import tiny

RNG = np.random.default_rng(0)
B = 7
TOKENS = RNG.integers(1, 30, (B, 2)).astype(np.float64)
LOGP = -TOKENS * RNG.uniform(0.01, 4, (B, 2))
REFERENCE = LOGP + RNG.normal(0, 3, (B, 2))


def log_sigmoid(x):
  return -np.log1p(np.exp(-x))


def formula(loss, beta, smoothing=0.0):
  """(loss [B], rewards [B, 2]) in double precision, written from the papers."""
  (c, r), (c0, r0), (nc, nr) = LOGP.T, REFERENCE.T, TOKENS.T
  if loss == 'orpo':
    pc, pr = np.exp(c / nc), np.exp(r / nr)
    ratio = (pc / (1 - pc)) / (pr / (1 - pr))
    return -c / nc - beta * log_sigmoid(np.log(ratio)), beta * np.stack([c / nc, r / nr], 1)
  ratio = np.log(np.exp(c - c0) / np.exp(r - r0))
  rewards = beta * (LOGP - REFERENCE)
  if loss == 'sigmoid':
    return -(1 - smoothing) * log_sigmoid(beta * ratio) - smoothing * log_sigmoid(-beta * ratio), rewards
  if loss == 'hinge':
    return np.maximum(0, 1 - beta * ratio), rewards
  return (ratio - 1 / (2 * beta)) ** 2, rewards


@pytest.mark.parametrize(
  'config',
  [
    Config(),
    Config(beta=0.5, label_smoothing=0.2),
    Config(loss='hinge', beta=0.3),
    Config(loss='ipo', beta=0.2),
    Config(loss='orpo', beta=0.7),
  ],
)
def test_formulas(config):
  reference = None if config.loss == 'orpo' else jnp.asarray(REFERENCE, jnp.float32)
  loss, rewards = preference.losses(config, jnp.asarray(LOGP, jnp.float32), jnp.asarray(TOKENS, jnp.float32), reference)
  want, wanted = formula(config.loss, config.beta, config.label_smoothing)
  assert want.std() > 0
  np.testing.assert_allclose(loss, want, rtol=2e-5)
  np.testing.assert_allclose(rewards, wanted, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(('loss', 'start'), [('sigmoid', np.log(2)), ('hinge', 1.0), ('ipo', 25.0)])
def test_at_the_start(loss, start):
  logp = jnp.asarray(LOGP, jnp.float32)
  got, rewards = preference.losses(Config(loss=loss), logp, jnp.asarray(TOKENS), logp)
  np.testing.assert_allclose(got, start, rtol=1e-6)
  np.testing.assert_array_equal(rewards, 0)


@pytest.mark.parametrize('loss', preference.LOSSES)
def test_its_gradient_widens_the_margin(loss):
  reference = jnp.asarray(LOGP, jnp.float32)
  total = lambda x: preference.losses(Config(loss=loss), x, jnp.asarray(TOKENS, jnp.float32), reference)[0].sum()  # noqa: E731
  down = -np.asarray(jax.grad(total)(reference))
  assert (down[:, 0] > 0).all()
  assert (down[:, 1] < 0).all()


def test_answers_that_are_certain_or_impossible():
  logp = jnp.asarray([[0.0, -1e4], [-1e4, 0.0], [-1e-5, -1e-5], [0.0, 0.0]], jnp.float32)
  for loss in preference.LOSSES:
    total = lambda x, loss=loss: preference.losses(Config(loss=loss), x, jnp.ones((4, 2)), jnp.zeros((4, 2)))[0].sum()  # noqa: E731
    value, grad = jax.value_and_grad(total)(logp)
    assert np.isfinite(value)
    assert np.isfinite(grad).all()


# --- a model


@pytest.fixture(scope='module')
def model():
  values = {**tiny.LLAMA, 'vocab_size': 48}
  made = llama.build(llama.from_hf(values), head=Head('lm'))
  return made, made.initial(jax.random.key(1))


def pairs(count=5):
  """(ids, supervised) of chosen and rejected in turns, each behind the prompt of its pair."""
  documents = []
  for _ in range(count):
    prompt = RNG.integers(3, 48, RNG.integers(2, 7)).tolist()
    for _ in range(2):
      answer = RNG.integers(3, 48, RNG.integers(1, 9)).tolist()
      documents.append((prompt + answer, [False] * len(prompt) + [True] * len(answer)))
  return documents


def examples(documents, *, packed):
  found = batches.language([d[0] for d in documents], [d[1] for d in documents])
  if not packed:
    return found
  found.extra['pairs'] = np.ones(len(documents) // 2, np.float32)
  return dataclasses.replace(found, packs=[np.array([i, i + 1]) for i in range(0, len(documents), 2)])


def batch_of(found, size, length):
  return batches.collate(found, range(len(found)), size=size, edges=(length,), pad_id=0)


def test_one_row_is_as_good_as_two(model):
  made, params = model
  documents = pairs()
  together = batch_of(examples(documents, packed=True), 6, 40)
  apart = batch_of(examples(documents, packed=False), 10, 24)
  got, tokens = log_probs(model, together)
  whole = lambda p, b: (lambda out: jax.nn.log_softmax(out.unembed(out.hidden)))(made.apply(p, b))  # noqa: E731
  logits = jax.jit(whole)(params, apart)
  own = np.take_along_axis(np.asarray(logits), apart['targets'][..., None], -1)[..., 0]
  want = (own * apart['weights']).sum(1).reshape(-1, 2)
  assert want.std() > 1
  np.testing.assert_allclose(got[:5], want, atol=1e-5, rtol=1e-5)
  np.testing.assert_array_equal(tokens[:5], [[sum(d[1]) for d in documents[i : i + 2]] for i in range(0, 10, 2)])
  np.testing.assert_array_equal(got[5], 0)  # a row of padding


def gradient(model, config, batch, params=None):
  """((mean loss, sums), gradient)."""
  made, start = model
  objective = preference.build(config, labels=[], counts=np.zeros(0))

  def mean(params, batch):
    sums = objective(lambda b, _: made.apply(params, b), batch, None)
    return sums['loss'][0] / sums['loss'][1], sums

  return jax.jit(jax.value_and_grad(mean, has_aux=True))(start if params is None else params, batch)


def log_probs(model, batch):
  made, params = model
  return jax.jit(lambda p, b: preference.log_probs(made.apply(p, b), b, chunk=64))(params, batch)


def with_reference(model, batch):
  return {**batch, 'reference': np.array(log_probs(model, batch)[0])}


@pytest.mark.parametrize('loss', preference.LOSSES)
def test_padding_does_not_count(model, loss):
  found = examples(pairs(), packed=True)
  tight, wide = (with_reference(model, batch_of(found, size, length)) for size, length in ((5, 32), (9, 40)))
  shift = RNG.normal(0, 2, (5, 2)).astype(np.float32)
  tight['reference'] += shift
  wide['reference'][:5] += shift
  (a, sums), grads = gradient(model, Config(loss=loss), tight)
  (b, more), others = gradient(model, Config(loss=loss), wide)
  assert float(sums['loss'][1]) == float(more['loss'][1]) == 5
  np.testing.assert_allclose(a, b, rtol=1e-5)
  for name in sums:
    np.testing.assert_allclose(sums[name][0], more[name][0], rtol=1e-4, atol=1e-4, err_msg=name)
  for (name, x), y in zip(trees.flatten(grads).items(), trees.flatten(others).values(), strict=True):
    np.testing.assert_allclose(x, y, atol=2e-5 * float(np.abs(x).max() + 1), err_msg=name)


@pytest.mark.parametrize('loss', preference.LOSSES)
def test_a_step_down_raises_the_margin(model, loss):
  config = Config(loss=loss)
  batch = with_reference(model, batch_of(examples(pairs(), packed=True), 5, 32))
  if loss == 'orpo':
    batch.pop('reference')
  (before, sums), grads = gradient(model, config, batch)
  if loss == 'sigmoid':
    assert float(before) == pytest.approx(np.log(2), abs=1e-6)
  norm = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(grads)))
  moved = jax.tree.map(lambda p, g: p - 0.05 / norm * g, model[1], grads)
  (after, more), _ = gradient(model, config, batch, moved)
  assert float(after) < float(before)
  assert float(more['margin'][0]) > float(sums['margin'][0])


def test_what_is_refused(model):
  with pytest.raises(InputError, match=r'label_smoothing=0\.1 is for loss=sigmoid'):
    read(Config, {'loss': 'ipo', 'label_smoothing': 0.1}, where='objective')
  with pytest.raises(InputError, match='for pairs of answers'):
    preference.build(Config(), labels=['a', 'b'], counts=np.zeros(2))
  batch = batch_of(examples(pairs(), packed=False), 10, 24)
  with pytest.raises(InputError, match=r'task\.name=preference makes them'):
    gradient(model, Config(), batch)
  with pytest.raises(InputError, match='compares with the starting model'):
    gradient(model, Config(), batch_of(examples(pairs(), packed=True), 5, 32))
  assert preference.needs_reference(Config(loss='ipo'))
  assert not preference.needs_reference(Config(loss='orpo'))
