"""Random bits: uniform, uncorrelated along every axis, and a function of (key, step, row, site, position) alone.

Bounds are 4 standard deviations of what uniform independent bits would give; a check over many numbers at once uses 5.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftlib.base import rng
from ftlib.base.rng import Stream

SHAPE = (64, 4, 20, 21)  # rows, heads, queries, keys: 107,520 words
SIGMAS, SIGMAS_OF_MANY = 4.0, 5.0
RATES = (0.01, 0.1, 0.5, 0.9)


def stream(kind: str, *, step: int = 0, seed: int = 7, rows=None) -> Stream:
  key = jax.random.fold_in(jax.random.key(seed), step)
  return Stream.start(key, jnp.arange(SHAPE[0]) if rows is None else jnp.asarray(rows), kind=kind)


@functools.cache
def words(kind: str, *, step: int = 0, site: str = 'attn', layer: int = 0) -> np.ndarray:
  return np.asarray(stream(kind, step=step).layer(layer).at(site).bits(SHAPE))


def unit(bits: np.ndarray) -> np.ndarray:
  """Uniform words as numbers of mean 0 and variance 1."""
  return (bits / 2.0**32 - 0.5) * np.sqrt(12)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
  """In standard deviations of what independent words give."""
  return float((unit(a) * unit(b)).mean() * np.sqrt(a.size))


def differing_bits(a: np.ndarray, b: np.ndarray) -> float:
  """Deviation of the share of bits that differ from a half, in standard deviations."""
  count = int(np.bitwise_count(a ^ b).sum(dtype=np.int64))
  return (count - 16 * a.size) / np.sqrt(8 * a.size)


@pytest.mark.parametrize('kind', rng.KINDS)
def test_words_are_uniform(kind):
  u = words(kind).ravel() / 2.0**32
  assert abs(u.mean() - 0.5) < SIGMAS * np.sqrt(1 / 12 / u.size)
  assert abs(u.var() - 1 / 12) < SIGMAS * np.sqrt(1 / 180 / u.size)  # fourth central moment 1/80, less 1/144
  repeats = u.size**2 / 2**33  # expected; a Poisson number
  assert u.size - len(np.unique(words(kind))) < repeats + SIGMAS * np.sqrt(repeats)


@pytest.mark.parametrize('kind', rng.KINDS)
@pytest.mark.parametrize('byte', range(4))
def test_bytes_follow_a_chi_square_law(kind, byte):
  counts = np.bincount(words(kind).ravel() >> (8 * byte) & 255, minlength=256)
  expected = counts.sum() / 256
  assert abs(((counts - expected) ** 2 / expected).sum() - 255) < SIGMAS * np.sqrt(2 * 255)


@pytest.mark.parametrize('kind', rng.KINDS)
def test_every_bit_is_balanced_and_independent_of_every_other(kind):
  bits = (words(kind).ravel()[:, None] >> np.arange(32, dtype=np.uint32) & 1).astype(np.float32) * 2 - 1
  n = len(bits)
  assert np.abs(bits.sum(0)).max() < SIGMAS_OF_MANY * np.sqrt(n)
  pairs = bits.T @ bits - n * np.eye(32)
  assert np.abs(pairs).max() < SIGMAS_OF_MANY * np.sqrt(n)


@pytest.mark.parametrize('kind', rng.KINDS)
@pytest.mark.parametrize('axis', range(len(SHAPE)))
@pytest.mark.parametrize('lag', [1, 2, 16])
def test_no_serial_correlation_along_an_axis(kind, axis, lag):
  """Axis 0 is consecutive rows."""
  w = np.moveaxis(words(kind), axis, 0)
  if lag < len(w):
    assert abs(correlation(w[lag:], w[:-lag])) < SIGMAS
    assert abs(differing_bits(w[lag:], w[:-lag])) < SIGMAS


@pytest.mark.parametrize('kind', rng.KINDS)
@pytest.mark.parametrize(
  'other',
  [{'layer': 1}, {'layer': 2}, {'layer': 31}, {'site': 'mlp'}, {'site': 'attm'}, {'step': 1}, {'step': 2}],
  ids=lambda o: '-'.join(f'{k}={v}' for k, v in o.items()),
)
def test_layers_sites_and_steps_are_independent(kind, other):
  one, two = words(kind), words(kind, **other)
  assert abs(correlation(one, two)) < SIGMAS
  assert abs(differing_bits(one, two)) < SIGMAS
  assert abs(correlation(one[1:], two[:-1])) < SIGMAS  # nor shifted by a row


def test_rows_have_seeds_of_their_own():
  """Row numbers reach the seed by bijections: no two rows of a batch ever share a mask."""
  seeds = np.asarray(stream('hash', rows=np.arange(200_000)).at('x').layer(3).seed_B)
  assert len(np.unique(seeds)) == len(seeds)


@pytest.mark.parametrize('kind', rng.KINDS)
@pytest.mark.parametrize('rate', RATES)
def test_keep_has_the_rate_and_dropout_the_mean(kind, rate):
  s = stream(kind).at('keep')
  keep = np.asarray(s.keep(SHAPE, rate))
  assert abs(keep.mean() - (1 - rate)) < SIGMAS * np.sqrt(rate * (1 - rate) / keep.size)
  dropped = np.asarray(rng.dropout(jnp.ones(SHAPE), rate, s))
  assert abs(dropped.mean() - 1) < SIGMAS * np.sqrt(rate / (1 - rate) / keep.size)
  assert set(np.unique(dropped)) == {np.float32(0), np.float32(1 / (1 - rate))}
  np.testing.assert_array_equal(dropped > 0, keep)
  per_row = keep.reshape(len(keep), -1).mean(1)
  assert np.abs(per_row - (1 - rate)).max() < SIGMAS_OF_MANY * np.sqrt(rate * (1 - rate) * len(keep) / keep.size)


def test_a_traced_rate_and_jit_give_the_same_mask():
  s = stream('hash')
  plain = np.asarray(s.keep(SHAPE, 0.1))
  np.testing.assert_array_equal(jax.jit(lambda s, r: s.keep(SHAPE, r))(s, 0.1), plain)
  x = jnp.linspace(-1, 1, plain.size).reshape(SHAPE)
  traced = jax.jit(rng.dropout)(x, jnp.float32(0.1), s)
  np.testing.assert_allclose(traced, rng.dropout(x, 0.1, s), rtol=1e-6)
  np.testing.assert_array_equal(rng.dropout(x, jnp.float32(0), s), x)


def test_dropout_leaves_alone_what_it_should():
  x = jnp.ones((2, 3))
  assert rng.dropout(x, 0.5, None) is x
  assert rng.dropout(x, 0.0, stream('hash', rows=[0, 1])) is x
  assert rng.dropout(x.astype(jnp.bfloat16), 0.5, stream('hash', rows=[0, 1])).dtype == jnp.bfloat16


def test_masks_do_not_depend_on_padding():
  """The mask of (row, head, query, key) is the same in a longer batch."""
  s = stream('hash')
  short, long = s.bits((64, 4, 16, 16)), s.bits((64, 6, 40, 24))
  np.testing.assert_array_equal(long[:, :4, :16, :16], short)
  np.testing.assert_array_equal(s.bits((64, 40, 32))[:, :16, :8], s.bits((64, 16, 8)))


@pytest.mark.parametrize('kind', rng.KINDS)
def test_masks_follow_the_row_number_and_not_its_place(kind):
  whole = np.asarray(stream(kind).at('x').bits((64, 5, 7)))
  rows = [63, 0, 17, 18]
  np.testing.assert_array_equal(stream(kind, rows=rows).at('x').bits((4, 5, 7)), whole[rows])


def test_the_order_of_names_and_layers_matters():
  s = stream('hash')
  paths = [s.at('a').at('b'), s.at('b').at('a'), s.at('a'), s, s.layer(0), s.layer(0).layer(1), s.layer(1).layer(0)]
  paths += [s.at('a').layer(0), s.layer(0).at('a')]
  seeds = np.concatenate([p.seed_B for p in paths])
  assert len(np.unique(seeds)) == len(seeds)


def test_a_traced_layer_number_is_the_same_layer():
  s = stream('hash')
  _, scanned = jax.lax.scan(lambda c, i: (c, s.layer(i).seed_B), 0, jnp.arange(3))
  np.testing.assert_array_equal(scanned, np.stack([s.layer(i).seed_B for i in range(3)]))


def test_names_are_stable():
  """A changed number would change every run's dropout, and every adapter's starting values."""
  assert rng.salt('123456789') == 0xCBF43926  # CRC-32's published check value
  assert int(rng.mix(jnp.uint32(1))) == 0x514E28B7  # MurmurHash3's fmix32(1)
  a, b = (jax.random.key_data(rng.key_for(jax.random.key(0), n)) for n in ('a', 'b'))
  assert not np.array_equal(a, b)
