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


def test_attention_draws_the_same_mask_again_in_the_backward_pass():
  q, k, v, out = np.random.default_rng(0).normal(size=(4, B, L, H, K)).astype(np.float32)
  segments = jnp.asarray([[1] * L, [1, 1, 1, 1, 0, 0], [1, 1, 2, 2, 2, 0]])
  mask = same_segment(segments)

  def loss(fn, q, k, v):
    return (fn(q, k, v, mask, rate=0.3, stream=stream()) * out).sum()

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


def filled(m):
  """Normal parameters: an adapter does something."""
  r = np.random.default_rng(0)
  return trees.unflatten({n: np.float32(0.2 * r.normal(size=i.shape)) for n, i in m.info().items()})


def inputs(size: int = B):
  ones = np.ones((size, L), np.int32)
  positions = np.broadcast_to(np.arange(L, dtype=np.int32), (size, L))
  tokens = np.random.default_rng(0).integers(5, 40, (size, L))
  return {'tokens': tokens, 'types': 0 * ones, 'segments': ones, 'positions': positions, 'rows': np.arange(size)}


def test_every_site_has_a_mask_of_its_own(monkeypatch):
  """Two layers: a mask for embeddings and head each, three a layer, and one for each adapter."""
  names, shapes, layers = collections.Counter(), collections.Counter(), []
  at, keep, layer = rng.Stream.at, rng.Stream.keep, rng.Stream.layer
  monkeypatch.setattr(rng.Stream, 'at', lambda s, name: (names.update([name]), at(s, name))[1])
  monkeypatch.setattr(rng.Stream, 'keep', lambda s, shape, rate: (shapes.update([shape]), keep(s, shape, rate))[1])
  monkeypatch.setattr(rng.Stream, 'layer', lambda s, index: (layers.append(index), layer(s, index))[1])
  made = model(dict.fromkeys(RATES, 0.1), method_rate=0.1)
  jax.eval_shape(made.apply, filled(made), inputs(), jax.random.key(1))
  hidden, pooled, scores = (B, L, D), (B, D), (B, H, L, L)
  assert shapes == {hidden: 1 + 2 * 2 + 2 * 2, scores: 2, pooled: 1}
  adapters = [n for n in names if n.startswith('lora/')]
  assert len(adapters) == 2
  own = dict.fromkeys(('attn/probabilities', 'attn/out', 'mlp/out', *adapters), 2)
  assert names == {**own, 'embed': 1, 'head/out': 1}
  assert layers == [0, 1]


@pytest.mark.parametrize(
  ('rates', 'method_rate'), [*(({r: 0.5}, None) for r in RATES), ({}, 0.5)], ids=[*RATES, 'method.dropout']
)
def test_each_rate_acts_and_in_training_alone(rates, method_rate):
  none, some = model({}, method_rate=None if method_rate is None else 0.0), model(rates, method_rate=method_rate)
  params, batch = filled(none), inputs()
  without, dropped = (jax.jit(lambda key, m=m: m.apply(params, batch, key).logits) for m in (none, some))
  plain, noisy = np.asarray(without(None)), np.asarray(dropped(jax.random.key(1)))
  np.testing.assert_array_equal(dropped(None), plain)
  np.testing.assert_allclose(without(jax.random.key(1)), plain, atol=1e-5)
  assert np.abs(noisy - plain).max() > 1e-3
  assert np.abs(noisy - dropped(jax.random.key(2))).max() > 1e-3
