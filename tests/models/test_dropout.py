"""Dropout where the papers have it, with masks of their own, and the same mask in the backward pass."""

from __future__ import annotations

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftlib.base import rng, trees
from ftlib.base.types import Head
from ftlib.models import bert
from ftlib.models.attention import attention, same_segment
from ftlib.peft import lora
from tests.tiny import CONFIG

B, L, H, K = 3, 6, 4, 8
D = H * K
RATES = ('hidden_dropout_prob', 'attention_probs_dropout_prob', 'classifier_dropout')


def stream(seed: int = 0) -> rng.Stream:
  return rng.Stream.start(jax.random.key(seed), jnp.arange(B))


def plain_attention(q, k, v, mask, *, rate, stream):
  """Softmax of the scaled scores, dropped, times the values; differentiated by JAX."""
  scores = jnp.einsum('bqhk,blhk->bhql', q, k) / np.sqrt(q.shape[-1])
  weights = jax.nn.softmax(jnp.where(mask, scores, -1e30))
  keep = stream.keep(weights.shape, rate)
  return jnp.einsum('bhql,blhk->bqhk', jnp.where(keep, weights / (1 - rate), 0), v)


@pytest.mark.parametrize('rate', [0.1, 0.6])
def test_attention_draws_the_same_mask_again_in_the_backward_pass(rate):
  q, k, v, out = (jax.random.normal(jax.random.key(i), (B, L, H, K)) for i in range(4))
  segments = jnp.asarray([[1] * L, [1, 1, 1, 1, 0, 0], [1, 1, 2, 2, 2, 0]])
  mask = same_segment(segments)

  def loss(fn, q, k, v):
    return (fn(q, k, v, mask, rate=rate, stream=stream()) * out).sum()

  both = [
    jax.jit(jax.value_and_grad(functools.partial(loss, f), argnums=(0, 1, 2))) for f in (attention, plain_attention)
  ]
  (ours, gradients), (theirs, wanted) = (f(q, k, v) for f in both)
  np.testing.assert_allclose(ours, theirs, rtol=1e-5)
  for x, y in zip(gradients, wanted, strict=True):
    np.testing.assert_allclose(x, y, atol=1e-5)


def model(rates: dict[str, float], *, method_rate: float | None = None):
  plain = bert.build(bert.from_hf({**CONFIG, **dict.fromkeys(RATES, 0.0), **rates}), head=Head('classify', 2))
  if method_rate is None:
    return plain
  return lora.build(lora.Config(dropout=method_rate), plain).model


def inputs(size: int = B):
  ones = np.ones((size, L), np.int32)
  positions = np.broadcast_to(np.arange(L, dtype=np.int32), (size, L))
  tokens = np.random.default_rng(0).integers(5, 40, (size, L))
  return {'tokens': tokens, 'types': 0 * ones, 'segments': ones, 'positions': positions, 'rows': np.arange(size)}


def test_every_site_has_a_mask_of_its_own(monkeypatch):
  """Two layers: one mask for embeddings and head, three a layer, and one for each adapter."""
  drawn = []
  keep = rng.Stream.keep
  monkeypatch.setattr(
    rng.Stream, 'keep', lambda s, shape, rate: (drawn.append((s.seed_B, shape)), keep(s, shape, rate))[1]
  )
  made = model(dict.fromkeys(RATES, 0.1), method_rate=0.1)
  with jax.disable_jit():
    made.apply(made.initial(jax.random.key(0)), inputs(), jax.random.key(1))
  hidden, pooled, scores = (B, L, D), (B, D), (B, H, L, L)
  assert collections.Counter(s for _, s in drawn) == {hidden: 1 + 2 * 2 + 2 * 2, scores: 2, pooled: 1}
  seeds = np.concatenate([np.asarray(s) for s, _ in drawn])
  assert len(np.unique(seeds)) == B * len(drawn)


@pytest.mark.parametrize(
  ('rates', 'method_rate'), [*(({r: 0.5}, None) for r in RATES), ({}, 0.5)], ids=[*RATES, 'method.dropout']
)
def test_each_rate_acts_and_in_training_alone(rates, method_rate):
  without, made = model({}, method_rate=None if method_rate is None else 0.0), model(rates, method_rate=method_rate)
  params = trees.map_named(lambda n, x: x + 0.1 if n.endswith('/adapter/b') else x, without.initial(jax.random.key(0)))
  logits = lambda m, key: np.asarray(jax.jit(m.apply)(params, inputs(), key).logits)  # noqa: E731
  np.testing.assert_array_equal(logits(made, None), logits(without, None))
  np.testing.assert_allclose(logits(without, jax.random.key(1)), logits(without, None), atol=1e-6)
  noisy = logits(made, jax.random.key(1))
  assert np.abs(noisy - logits(without, None)).max() > 1e-3
  assert np.abs(noisy - logits(made, jax.random.key(2))).max() > 1e-3
