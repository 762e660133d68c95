"""Batches: the best buckets, every row once an epoch, a pure function of seed and step, exact collation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ftlib.data import batches
from ftlib.data.batches import Examples, Order, buckets, collate
from ftlib.data.tokens import Tokens


def padding(lengths: np.ndarray, edges: tuple[int, ...]) -> int:
  """Padding tokens where every row is padded to the smallest edge that holds it."""
  return int(sum(min(e for e in edges if e >= n) - n for n in lengths))


def best_by_hand(lengths: np.ndarray, count: int, multiple: int) -> int:
  top = -(-int(lengths.max()) // multiple) * multiple
  inner = range(multiple, top, multiple)
  choices = itertools.chain.from_iterable(itertools.combinations(inner, k) for k in range(count))
  return min(padding(lengths, (*c, top)) for c in choices)


@pytest.mark.parametrize('seed', range(12))
@pytest.mark.parametrize('count', [1, 2, 3, 4])
def test_buckets_are_optimal(seed, count):
  rng = np.random.default_rng(seed)
  lengths = np.concatenate([rng.integers(1, 30, 20), rng.geometric(0.05, 20).clip(max=70)])
  edges = buckets(lengths, count=count)
  assert len(edges) <= count
  assert all(e % 8 == 0 for e in edges)
  assert edges == tuple(sorted(set(edges)))
  assert edges[-1] == -(-lengths.max() // 8) * 8
  assert padding(lengths, edges) == best_by_hand(lengths, count, 8)


@pytest.mark.parametrize(
  ('lengths', 'count', 'multiple', 'edges'),
  [
    ([1], 4, 8, (8,)),
    ([8, 8, 8], 4, 8, (8,)),
    ([9], 1, 8, (16,)),
    ([0], 2, 8, (8,)),  # an empty row still has a shape
    ([3, 17], 4, 1, (3, 17)),
    ([5, 60], 1, 8, (64,)),
  ],
)
def test_buckets_at_the_edges(lengths, count, multiple, edges):
  assert buckets(np.asarray(lengths), count=count, multiple=multiple) == edges


LENGTHS = np.random.default_rng(0).integers(3, 60, 1003)


@pytest.mark.parametrize('grouped', [True, False])
@pytest.mark.parametrize('size', [16, 1003, 2000, 1])
def test_every_epoch_holds_each_row_once(grouped, size):
  order = Order(LENGTHS, size, seed=3, grouped=grouped)
  n = order.steps_per_epoch
  assert n == -(-1003 // size)
  for epoch in range(3):
    parts = [order.rows(step) for step in range(epoch * n, (epoch + 1) * n)]
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(1003))
    assert sum(len(p) < size for p in parts) <= 1


@pytest.mark.parametrize('grouped', [True, False])
def test_order_is_a_pure_function_of_seed_and_step(grouped):
  one, two = (Order(LENGTHS, 16, seed=3, grouped=grouped) for _ in range(2))
  n = one.steps_per_epoch
  forward = {s: one.rows(s) for s in range(3 * n)}
  for step in (2 * n + 5, 0, n, n - 1, 3 * n - 1, 1):  # as a resumed run asks, and out of order
    np.testing.assert_array_equal(two.rows(step), forward[step])


@pytest.mark.parametrize('grouped', [True, False])
def test_epochs_and_seeds_differ(grouped):
  whole = lambda order, epoch: np.concatenate([order.rows(epoch * 63 + i) for i in range(63)])  # noqa: E731
  a, b = Order(LENGTHS, 16, seed=3, grouped=grouped), Order(LENGTHS, 16, seed=4, grouped=grouped)
  by_chance = 1003 / 1003  # rows in the same place in two random permutations
  for x, y in ((whole(a, 0), whole(a, 1)), (whole(a, 0), whole(b, 0)), (whole(a, 1), whole(b, 0))):
    assert (x == y).sum() < by_chance + 10
  firsts = {tuple(a.rows(63 * e)) for e in range(5)}
  assert len(firsts) == 5


def test_grouping_saves_padding_and_keeps_batches_in_random_order():
  grouped, plain = Order(LENGTHS, 16, seed=0), Order(LENGTHS, 16, seed=0, grouped=False)
  waste = lambda o: sum(int((LENGTHS[r].max() - LENGTHS[r]).sum()) for r in map(o.rows, range(63)))  # noqa: E731
  assert waste(grouped) < 0.1 * waste(plain)
  means = np.asarray([LENGTHS[grouped.rows(i)].mean() for i in range(63)])
  assert abs(np.corrcoef(means[1:], means[:-1])[0, 1]) < 4 / np.sqrt(62)
  now, later = ({frozenset(grouped.rows(i)) for i in range(e * 63, e * 63 + 63)} for e in (0, 1))
  assert len(now & later) <= 2  # other rows together in the next epoch


def examples() -> Examples:
  rows = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15, 16, 17], [18, 19]]
  types = [[0, 0, 1], [0], [0] * 4 + [1] * 5, [0, 0]]
  flat = lambda x: np.asarray([t for r in x for t in r], np.int32)  # noqa: E731
  offsets = np.cumsum([0] + [len(r) for r in rows])
  extra = {'labels': np.asarray([1, 0, 2, 1], np.int32), 'weights': np.asarray([1, 2, 3, 4], np.float32)}
  return Examples(Tokens(flat(rows), flat(types), offsets), {**extra, 'vectors': np.arange(8.0).reshape(4, 2)})


def test_collate_is_exact():
  batch = collate(examples(), [3, 0], size=3, edges=(8, 16), pad_id=99)
  pad = [99] * 5
  np.testing.assert_array_equal(batch['tokens'], [[18, 19, 99, *pad], [5, 6, 7, *pad], [99] * 8])
  np.testing.assert_array_equal(batch['types'], [[0] * 8, [0, 0, 1, 0, 0, 0, 0, 0], [0] * 8])
  np.testing.assert_array_equal(batch['segments'], [[1, 1] + [0] * 6, [1, 1, 1] + [0] * 5, [0] * 8])
  np.testing.assert_array_equal(batch['positions'], [list(range(8))] * 3)
  np.testing.assert_array_equal(batch['rows'], [0, 1, 2])
  np.testing.assert_array_equal(batch['labels'], [1, 1, 0])
  np.testing.assert_array_equal(batch['weights'], [4, 1, 0])  # padding counts nothing
  np.testing.assert_array_equal(batch['vectors'], [[6, 7], [0, 1], [0, 0]])
  whole = ('tokens', 'types', 'segments', 'positions', 'rows', 'labels')
  assert {n: x.dtype for n, x in batch.items()} == {
    **dict.fromkeys(whole, np.dtype(np.int32)),
    'weights': np.dtype(np.float32),
    'vectors': np.dtype(np.float64),
  }


@pytest.mark.parametrize(('rows', 'length'), [([1], 8), ([0, 1, 3], 8), ([2], 16), ([1, 2], 16)])
def test_collate_takes_the_smallest_bucket(rows, length):
  assert collate(examples(), rows, size=4, edges=(8, 16, 24), pad_id=0)['tokens'].shape == (4, length)


@pytest.mark.parametrize(('start', 'stop'), [(0, 9), (4, 9), (8, 9), (9, 9), (5, 3)])
def test_feed_starts_anywhere_and_keeps_order(start, stop):
  got = list(batches.feed(lambda step: (step, np.full(3, step)), start, stop))
  assert [s for s, _ in got] == list(range(start, stop))
  assert all((x == s).all() for s, x in got)


def test_feed_brings_the_makers_error():
  def make(step):
    if step == 2:
      raise ValueError('row 17 is odd')
    return step

  stream = batches.feed(make, 0, 5)
  with pytest.raises(Exception, match='row 17 is odd'):
    list(stream)
