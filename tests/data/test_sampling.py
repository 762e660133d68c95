"""Rows drawn by their labels: how often, in which order; few-shot subsets; weights from a column."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from ftlib.base.errors import InputError
from ftlib.data import sampling
from ftlib.data.batches import Order
from ftlib.data.sources import Rows

LABELS = np.repeat([0, 1, 2], [80, 15, 5]).astype(np.int32)
NAMES = ['a', 'b', 'c']


@pytest.mark.parametrize(
  ('text', 'shares'),
  [
    ('balanced', [1 / 3, 1 / 3, 1 / 3]),
    ('sqrt', np.sqrt([80, 15, 5]) / np.sqrt([80, 15, 5]).sum()),
    ('c=4,b=2', np.array([80, 30, 20]) / 130),
    ('a=0', [0, 0.75, 0.25]),
  ],
)
def test_how_often(text, shares):
  rates = sampling.rates(text, LABELS, NAMES)
  assert rates.mean() == pytest.approx(1)
  np.testing.assert_allclose([rates[c == LABELS].sum() / 100 for c in range(3)], shares)
  assert all(np.ptp(rates[c == LABELS]) == 0 for c in range(3))


def test_how_often_with_several_labels():
  several = np.array([[1, 0], [1, 1], [0, 0], [1, 0]], np.int32)
  rates = sampling.rates('balanced', several, ['a', 'b'])
  np.testing.assert_allclose(rates / rates[0], [1, (1 / 3 + 1) / 2 * 3, 3, 1])


@pytest.mark.parametrize(
  ('text', 'labels', 'names', 'words'),
  [
    ('balancd', LABELS, NAMES, 'did you mean "balanced"'),
    ('balanced', LABELS.astype(np.float32), [], 'none from a list'),
    ('balanced', np.zeros((4, 2, 3), np.int32), NAMES, 'none from a list'),
    ('d=2', LABELS, NAMES, "'d' is no label"),
    ('a=-1', LABELS, NAMES, 'not negative'),
    ('a=0,b=0', LABELS[:90], NAMES, 'no training row would be drawn'),
  ],
)
def test_sampling_that_cannot_be(text, labels, names, words):
  with pytest.raises(InputError, match=rf'data\.sampling=.*{words}'):
    sampling.rates(text, labels, names)


def test_a_row_is_drawn_its_share_rounded_up_or_down():
  rates = sampling.rates('balanced', LABELS, NAMES)
  totals = np.zeros(100)
  for seed in range(300):
    times = np.bincount(sampling.drawn(rates, np.random.default_rng(seed)), minlength=100)
    assert times.sum() == 100
    assert (np.abs(times - rates) < 1).all()
    totals += times
  assert np.abs(totals / 300 - rates).max() < 4 * 0.5 / 300**0.5  # exact on average: 4 deviations
  even = sampling.drawn(np.ones(50), np.random.default_rng(0))
  np.testing.assert_array_equal(np.sort(even), range(50))


def order(**values):
  lengths = np.random.default_rng(0).integers(3, 60, 100)
  return Order(lengths, **{'batch_size': 4, 'seed': 3, 'rates': sampling.rates('balanced', LABELS, NAMES), **values})


@pytest.mark.parametrize('grouped', [True, False])
def test_an_epoch_has_as_many_rows_by_their_rates(grouped):
  here = order(grouped=grouped)
  assert here.steps_per_epoch == 25
  for epoch in range(3):
    rows = np.concatenate([here.rows(25 * epoch + i) for i in range(25)])
    assert len(rows) == 100
    assert (np.abs(np.bincount(LABELS[rows]) - 100 / 3) < [80, 15, 5]).all()
    assert (np.abs(np.bincount(rows, minlength=100) - here.rates) < 1).all()


@pytest.mark.parametrize('grouped', [True, False])
def test_copies_of_a_row_do_not_meet_in_a_batch(grouped):
  """7 copies of a row: sorting by length would put them side by side."""
  here = order(grouped=grouped)
  twice = sum(len(set(here.rows(i))) < 4 for i in range(75))
  assert twice <= 4


def test_it_is_a_pure_function_of_seed_and_step():
  one, two, other = order(), order(), order(seed=4)
  forward = [one.rows(i).tolist() for i in range(60)]
  assert [two.rows(i).tolist() for i in range(59, -1, -1)] == forward[::-1]
  assert [other.rows(i).tolist() for i in range(60)] != forward
  drawn = [sorted(row for batch in forward[i : i + 25] for row in batch) for i in (0, 25)]
  assert drawn[0] != drawn[1]  # the rest of a share is drawn anew


# --- few rows of each label


def test_few_of_each():
  labels = [NAMES[c] for c in LABELS]
  taken = sampling.few(labels, 4, 0)
  assert Counter(labels[i] for i in taken) == {'a': 4, 'b': 4, 'c': 4}
  assert taken == sorted(taken) == sampling.few(labels, 4, 0)
  assert taken != sampling.few(labels, 4, 1)
  assert len(sampling.few(labels, 5, 0)) == 15


def test_few_of_several_labels():
  rng = np.random.default_rng(0)
  sets = [[n for n in NAMES if rng.random() < 0.3] for _ in range(60)]
  taken = sampling.few(sets, 3, 0)
  counts = Counter(label for i in taken for label in sets[i])
  assert all(counts[n] >= 3 for n in NAMES)
  assert len(taken) <= 9


def test_fewer_than_few():
  with pytest.raises(InputError, match=r'(?s)data\.shots=6: 1 labels have fewer.*c: 5 rows'):
    sampling.few([NAMES[c] for c in LABELS], 6, 0)


# --- weights from a column


@pytest.mark.parametrize(('value', 'number'), [(2, 2.0), (0, 0.0), ('0.5', 0.5), (1e-3, 1e-3)])
def test_weights(value, number):
  assert sampling.weighed('w')({'w': value, 'text': 'x'}) == {'w': number, 'text': 'x'}


@pytest.mark.parametrize('value', [-1, float('nan'), float('inf'), 'much', None, True, '', [1]])
def test_values_that_are_no_weights(value):
  with pytest.raises(ValueError, match=r'"w" is .* a weight is a finite number, not negative'):
    sampling.weighed('w')({'w': value})


def test_weights_of_rows():
  np.testing.assert_array_equal(sampling.weights([{'w': 2.0}, {}], 'w'), [2, 1])  # where there is none it is 1
  np.testing.assert_array_equal(sampling.weights([{'w': 2.0}, {}], ''), [1, 1])
  sampling.check_weights([{'w': 0.0}, {'w': 1.0}], 'w')
  for rows, words in (
    ([{'weight': 1.0}], 'no such column; did you mean "weight"'),
    ([{'w8s': 1.0}, {'w8': 1.0}], 'row 1: there is no "w8"'),
    ([{'w8': 0.0}], 'all training rows have the weight 0'),
  ):
    with pytest.raises(InputError, match=words):
      sampling.check_weights(rows, 'weigth' if 'weight' in rows[0] else 'w8')
  rows = Rows([{'w': 1.0}, {}, {}], 'train', 'DIR/train.jsonl', [3, 5, 8])
  with pytest.raises(InputError, match=r'^DIR/train\.jsonl:5: there is no "w" \(task\.weight\); 2 of 3 training rows'):
    sampling.check_weights(rows, 'w')
