"""Words are masked whole, in the shares that are asked for."""

from __future__ import annotations

import numpy as np
import pytest

from ftlib.base import masking
from ftlib.base.rng import mix

WORDS = np.tile(np.array([0, 1, 2, 2, 1, 1, 2, 0], np.int32), (4000, 1))


def bits(shape, seed=0):
  return mix(np.arange(seed, seed + np.prod(shape), dtype=np.uint32) * np.uint32(0x9E3779B9) + np.uint32(1)).reshape(
    shape
  )


def test_a_word_is_chosen_whole_or_not_at_all_with_its_probability():
  hidden = np.asarray(masking.chosen(WORDS, bits(WORDS.shape), 0.15))
  assert not hidden[:, [0, 7]].any()
  np.testing.assert_array_equal(hidden[:, 2:4], hidden[:, 1:2].repeat(2, 1))
  np.testing.assert_array_equal(hidden[:, 6], hidden[:, 5])
  assert hidden[:, [1, 4, 5]].mean(0) == pytest.approx(0.15, abs=0.02)  # 4000 draws: a deviation is 0.0056
  both = (hidden[:, 1] & hidden[:, 4]).mean()
  assert both == pytest.approx(0.15**2, abs=0.01)  # words are drawn apart


def test_each_token_by_itself_where_each_is_a_word():
  words = np.where(WORDS == masking.LATER, masking.FIRST, WORDS)
  hidden = np.asarray(masking.chosen(words, bits(WORDS.shape), 0.15))
  assert (hidden[:, 1] & ~hidden[:, 2]).any()


def test_documents_of_a_row_one_behind_another():
  flat = np.asarray(masking.chosen(WORDS.ravel(), bits(WORDS.size), 0.3))
  rows = np.asarray(masking.chosen(WORDS, bits(WORDS.size).reshape(WORDS.shape), 0.3))
  np.testing.assert_array_equal(flat, rows.ravel())


def test_what_is_seen_in_place_of_masked_tokens():
  tokens, hidden = np.full(20000, 7, np.int32), np.arange(20000) % 2 == 0
  seen = np.asarray(
    masking.replaced(tokens, hidden, bits(20000, 5), mask=np.int32(3), vocabulary=np.uint32(50), keep=0.1, random=0.2)
  )
  assert (seen[~hidden] == 7).all()
  seen = seen[hidden]
  assert (seen == 3).mean() == pytest.approx(0.7 + 0.2 / 50, abs=0.02)
  assert (seen == 7).mean() == pytest.approx(0.1 + 0.2 / 50, abs=0.02)
  assert {*seen.tolist()} == {*range(50)}
