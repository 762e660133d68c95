"""Rows with several labels dealt out to splits: iterative stratification, worked out by hand and over many rows."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from ftlib.data import splitting
from ftlib.data.preparation import Config, load

SHARES = np.array([0.8, 0.1, 0.1])


def rows_of(count, seed=0):
  """Rows of common and rare labels, some with none."""
  rng = np.random.default_rng(seed)
  chance = np.array([0.5, 0.3, 0.1, 0.03, 0.01, 0.005])
  return [[f'l{k}' for k in np.flatnonzero(rng.random(6) < chance)] for _ in range(count)]


def shares(rows, split_of, s):
  total, own = (
    Counter(label for row in found for label in row)
    for found in (rows, [rows[i] for i in np.flatnonzero(split_of == s)])
  )
  return {label: own[label] / n for label, n in total.items()}


def test_every_label_has_its_share_in_every_split():
  rows = rows_of(2000)
  found = splitting.dealt(rows, SHARES, 0)
  assert np.bincount(found).tolist() == [1600, 200, 200]
  total = Counter(label for row in rows for label in row)
  for s, share in enumerate(SHARES):
    for label, got in shares(rows, found, s).items():
      assert abs(got - share) * total[label] <= 1.0 + 1e-9, (s, label)  # at chance l3 and l4 are several rows off
  bare = [i for i, row in enumerate(rows) if not row]
  assert np.abs(np.bincount(found[bare], minlength=3) / len(bare) - SHARES).max() < 0.02


def test_it_follows_from_the_seed():
  rows = rows_of(300)
  one, same, other = (splitting.by_labels(rows, SHARES, seed) for seed in (1, 1, 2))
  assert one.tolist() == same.tolist() != other.tolist()


def test_the_rarest_label_is_dealt_first_and_to_whom_it_lacks_most():
  """Two of 'b' beside 'a': one to each half, and then the four of 'a' alone, two to each."""
  rows = [['a', 'b'], ['a'], ['a', 'b'], ['a'], ['a'], ['a'], [], []]
  found = splitting.by_labels(rows, np.array([0.5, 0.5]), 0)
  assert {*found[[0, 2]]} == {0, 1}
  for at in ([1, 3, 4, 5], [6, 7]):
    assert np.bincount(found[at]).tolist() == [len(at) // 2] * 2


def test_the_work_does_not_grow_with_the_square_of_the_labels():
  class Name(str):
    """A label that counts how often it is looked at to find the next one."""

    seen = 0

    def __str__(self):
      Name.seen += 1
      return str.__str__(self)

  rows = [[Name(f'l{i}'), Name(f'l{(i + 1) % 200}')] for i in range(200)]
  splitting.by_labels(rows, SHARES, 0)
  assert Name.seen <= 200 + 400  # each label once, and once more for each row that it goes with


def test_a_label_of_one_row_is_trained_on():
  rows = [['a'] for _ in range(50)] + [['b'], ['a', 'c']]
  for seed in range(5):
    found = splitting.by_labels(rows, np.array([0.1, 0.9]), seed)
    assert found[50:].tolist() == [0, 0]
    assert (found == 0).sum() == 5


def test_some_rows_are_exactly_so_many():
  rows = rows_of(400)
  taken = splitting.some(rows, 37, 0)
  assert len(taken) == 37 == len({*taken})
  assert {label for i in taken for label in rows[i]} == {label for row in rows for label in row}
  assert len(splitting.some([0] * 30 + [1, 2, 3], 2, 0)) == 2


def test_groups_stay_whole_and_labels_near_their_shares():
  rows = rows_of(1200)
  groups = np.arange(1200) // 4
  found = splitting.by_group(groups.tolist(), rows, SHARES, 0, column='author')
  assert all(len({*found[groups == g]}) == 1 for g in range(300))
  for s, share in enumerate(SHARES):
    for label in ('l0', 'l1', 'l2', 'l3'):
      assert shares(rows, found, s)[label] == pytest.approx(share, abs=0.05), (s, label)


def test_one_file_of_rows_with_several_labels(tmp_path):
  rows = [{'text': f'text {i}', 'labels': labels} for i, labels in enumerate(rows_of(200))]
  (tmp_path / 'all.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
  data = load(Config(path=str(tmp_path / 'all.jsonl'), limit=50), texts=['text'], label='labels', kind='labels')
  assert {n: len(r) for n, r in data.splits.items()} == {'train': 50, 'validation': 20, 'test': 20}
  everywhere = [{label for row in split for label in row['labels']} for split in data.splits.values()]
  assert everywhere[0] == {label for row in rows for label in row['labels']}
  assert all({'l0', 'l1', 'l2'} <= found for found in everywhere)
