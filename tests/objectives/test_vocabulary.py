"""The loss over the vocabulary in chunks is the plain one, in value and gradient, with a fraction of its memory."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftlib.objectives import vocabulary

B, L, D, V = 4, 37, 16, 101
KEYS = jax.random.split(jax.random.key(0), 5)
HIDDEN = jax.random.normal(KEYS[0], (B, L, D))
TABLE = jax.random.normal(KEYS[1], (V, D))
SCALE = jax.random.normal(KEYS[2], (D,))
TARGETS = jax.random.randint(KEYS[3], (B, L), 0, V)
WEIGHTS = (jax.random.uniform(KEYS[4], (B, L)) > 0.3).astype(jnp.float32)


def head(table, scale):
  return lambda h: (h * scale.astype(h.dtype)) @ table.T.astype(h.dtype)


def plain(hidden, table, scale):
  logits = head(table, scale)(hidden).astype(jnp.float32)
  own = jnp.take_along_axis(logits, TARGETS[..., None], -1)[..., 0]
  return 3 * ((jax.nn.logsumexp(logits, -1) - own) * WEIGHTS).sum()


def summed(hidden, table, scale, chunk=32):
  return 3 * vocabulary.nll_sum(head(table, scale), hidden, TARGETS, WEIGHTS, chunk=chunk)[0]


def by_token(hidden, table, scale, chunk=32):
  return 3 * (vocabulary.token_nll(head(table, scale), hidden, TARGETS, chunk=chunk) * WEIGHTS).sum()


@pytest.mark.parametrize('fn', [summed, by_token])
@pytest.mark.parametrize('by', [(0,), (1,), (0, 2), (0, 1, 2)])
def test_value_and_gradient_are_the_plain_ones(fn, by):
  wanted, d_wanted = jax.jit(jax.value_and_grad(plain, argnums=by))(HIDDEN, TABLE, SCALE)
  got, d_got = jax.jit(jax.value_and_grad(fn, argnums=by))(HIDDEN, TABLE, SCALE)
  np.testing.assert_allclose(got, wanted, rtol=1e-5)
  for x, y in zip(d_got, d_wanted, strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5 * float(jnp.abs(y).max()))


@pytest.mark.parametrize('fn', [summed, by_token])
@pytest.mark.parametrize('chunk', [1, 4, 5, 64, 10_000])
def test_any_chunk_gives_the_same(fn, chunk):
  np.testing.assert_allclose(fn(HIDDEN, TABLE, SCALE, chunk), plain(HIDDEN, TABLE, SCALE), rtol=1e-5)


def test_correct_tokens_are_counted():
  likeliest = head(TABLE, SCALE)(HIDDEN).argmax(-1)
  targets = jnp.where(jnp.arange(L) % 3 == 0, likeliest, (likeliest + 1) % V)
  _, correct = vocabulary.nll_sum(head(TABLE, SCALE), HIDDEN, targets, WEIGHTS, chunk=40)
  assert correct == WEIGHTS[:, ::3].sum()


@pytest.mark.parametrize('differentiated', [False, True])
def test_of_equal_logits_the_first_is_the_likeliest(differentiated):
  """As argmax has it: or a head that gives all words the same would be right everywhere."""

  def right(hidden):
    return vocabulary.nll_sum(lambda h: jnp.zeros((*h.shape[:-1], 50)), hidden, TARGETS, WEIGHTS, chunk=40)

  found = jax.value_and_grad(right, has_aux=True)(HIDDEN)[0] if differentiated else right(HIDDEN)
  assert found[1] == jnp.where(TARGETS == 0, WEIGHTS, 0).sum()
  _, scored = vocabulary.token_scores(lambda h: jnp.zeros((*h.shape[:-1], 50)), HIDDEN, TARGETS)
  assert (scored == (TARGETS == 0)).all()


def test_positions_that_do_not_count_may_hold_anything():
  other = jnp.where(WEIGHTS > 0, TARGETS, 0)
  nll = functools.partial(vocabulary.nll_sum, head(TABLE, SCALE), HIDDEN, weights_BL=WEIGHTS, chunk=32)
  assert nll(targets_BL=TARGETS)[0] == nll(targets_BL=other)[0]


def test_bfloat16_hidden_states_have_gradients_of_their_own_kind():
  d_hidden, d_table = jax.grad(summed, argnums=(0, 1))(HIDDEN.astype(jnp.bfloat16), TABLE, SCALE)
  assert (d_hidden.dtype, d_table.dtype) == (jnp.bfloat16, jnp.float32)
  wanted = jax.grad(plain)(HIDDEN, TABLE, SCALE)
  assert float(jnp.abs(d_hidden - wanted).max()) < 0.05 * float(jnp.abs(wanted).max())


@pytest.mark.parametrize('fn', ['nll_sum', 'token_nll'])
def test_a_tenth_of_the_memory_at_128k(fn):
  """By the compiler's own analysis, of value and gradient: nothing is run."""
  rows, length, wide, vocab = 4, 1024, 64, 128_000
  shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((rows, length, wide), (vocab, wide))]
  ids = jnp.zeros((rows, length), jnp.int32)
  ones = jnp.ones((rows, length))

  def whole(h, table):
    logits = h @ table.T
    return (jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, ids[..., None], -1)[..., 0]).sum()

  def chunked(h, table):
    if fn == 'nll_sum':
      return vocabulary.nll_sum(lambda x: x @ table.T, h, ids, ones, chunk=128)[0]
    return vocabulary.token_nll(lambda x: x @ table.T, h, ids, chunk=128).sum()

  def peak(f):
    return jax.jit(jax.grad(f)).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

  assert peak(chunked) <= 0.1 * peak(whole)


@pytest.mark.parametrize('smoothing', [0.1, 0.5])
def test_label_smoothing_is_its_formula(smoothing):
  def formula(hidden):
    nll = -jax.nn.log_softmax(head(TABLE, SCALE)(hidden))
    own = jnp.take_along_axis(nll, TARGETS[..., None], -1)[..., 0]
    return (((1 - smoothing) * own + smoothing * nll.mean(-1)) * WEIGHTS).sum()

  def ours(hidden):
    return vocabulary.nll_sum(head(TABLE, SCALE), hidden, TARGETS, WEIGHTS, chunk=32, smoothing=smoothing)[0]

  (wanted, d_wanted), (got, d_got) = (jax.value_and_grad(f)(HIDDEN) for f in (formula, ours))
  np.testing.assert_allclose(got, wanted, rtol=1e-5)
  np.testing.assert_allclose(d_got, d_wanted, atol=1e-5 * float(jnp.abs(d_wanted).max()))
