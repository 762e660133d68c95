"""Long texts: the tokenizer's own truncation and windows are met, special tokens stay, windows pool to rows."""

from __future__ import annotations

import numpy as np
import pytest

from ftlib.base.errors import InputError
from ftlib.data import tokens, windows
from ftlib.data.windows import Cut
from tests import tiny

WORDS = tiny.GOOD + tiny.BAD + tiny.NEUTRAL


@pytest.fixture(scope='module')
def tokenizer(tiny_bert):
  return tokens.load(tiny_bert)


def texts(*counts, seed=0):
  rng = np.random.default_rng(seed)
  return [' '.join(rng.choice(WORDS, n)) for n in counts]


def made(tokenizer, a, b=None, *, limit=16, **cut):
  extra = {'labels': np.arange(len(a)), 'weights': np.ones(len(a), np.float32)}
  return windows.examples(tokenizer, a, b, extra, limit=limit, cut=Cut(**cut))


def documents(found):
  t = found.tokens
  return [t.ids[i:j].tolist() for i, j in zip(t.offsets, t.offsets[1:])]


def plain(tokenizer, text):
  return tokenizer(text, add_special_tokens=False)['input_ids']


COUNTS = (3, 14, 15, 40, 1, 28, 29)


@pytest.mark.parametrize('stride', [0, 3, 13])
def test_windows_are_those_of_the_tokenizer(tokenizer, stride):
  a = texts(*COUNTS)
  found = made(tokenizer, a, truncate='windows', stride=stride)
  wanted = tokenizer(a, truncation=True, max_length=16, stride=stride, return_overflowing_tokens=True)
  tokenizer.backend_tokenizer.no_truncation()  # which that call has switched on
  assert documents(found) == wanted['input_ids']
  assert found.windows.tolist() == wanted['overflow_to_sample_mapping']
  np.testing.assert_array_equal(found.extra['labels'], found.windows)
  assert found.tokens.truncated == 4
  np.testing.assert_array_equal(windows.of_rows(found, 'labels'), range(len(a)))


@pytest.mark.parametrize('long_first', [True, False])
def test_windows_of_a_pair_are_those_of_the_tokenizer(tokenizer, long_first):
  a, b = texts(25, 4, 3), texts(4, 5, 6, seed=1)
  pair = (a, b) if long_first else (b, a)
  found = made(tokenizer, *pair, truncate='windows', stride=2)
  how = 'only_first' if long_first else 'only_second'
  wanted = tokenizer(*pair, truncation=how, max_length=16, stride=2, return_overflowing_tokens=True)
  tokenizer.backend_tokenizer.no_truncation()
  assert documents(found) == wanted['input_ids']
  types = np.concatenate([np.asarray(t) for t in wanted['token_type_ids']])
  np.testing.assert_array_equal(found.tokens.types, types)
  assert found.windows.tolist() == wanted['overflow_to_sample_mapping']


def test_both_texts_of_a_pair_may_be_long(tokenizer):
  a, b = texts(30), texts(20, seed=1)
  first, *rest = documents(made(tokenizer, a, b, limit=17, truncate='windows', stride=1))
  one, two = plain(tokenizer, a[0]), plain(tokenizer, b[0])
  assert first == [2, *one[:7], 3, *two[:7], 3]
  assert all(d[-8:] == [*two[:7], 3] for d in rest)
  assert rest[-1][-9 - 5 : -9] == one[-5:] or rest[-1][1] == one[6 * len(rest)]
  covered = {t for d in [first, *rest] for t in d[1 : d.index(3)]}
  assert covered == set(one)


def test_no_row_is_too_long(tokenizer):
  short = texts(3, 4)
  for how in ('head', 'both', 'windows'):
    found = made(tokenizer, short, truncate=how, stride=2)
    assert found.windows is None
    assert (documents(found), found.tokens.truncated) == (documents(made(tokenizer, short)), 0)


@pytest.mark.parametrize(
  ('how', 'share', 'head'), [('head', 0.25, 0), ('both', 0.25, 4), ('both', 0.5, 7), ('tail', 0.5, 14)]
)
def test_which_part_is_kept(tokenizer, how, share, head):
  a = texts(40, 5)
  found = made(tokenizer, a, truncate=how, head_share=share)
  ids = plain(tokenizer, a[0])
  assert documents(found)[0] == [2, *ids[:head], *ids[len(ids) - (14 - head) :], 3]
  assert documents(found)[1] == [2, *plain(tokenizer, a[1]), 3]
  assert (found.tokens.truncated, found.windows) == (1, None)


@pytest.mark.parametrize('how', ['head', 'both'])
@pytest.mark.parametrize('counts', [(40, 3), (3, 40), (40, 30), (6, 8), (7, 7)])
def test_the_longer_text_of_a_pair_is_cut(tokenizer, how, counts):
  a, b = texts(counts[0]), texts(counts[1], seed=1)
  (document,) = documents(made(tokenizer, a, b, truncate=how))
  (usual,) = documents(made(tokenizer, a, b))
  assert len(document) == len(usual) == 16
  assert abs(document.index(3) - usual.index(3)) <= (min(counts) > 6)  # both long: who gets the odd token may differ
  one, two = plain(tokenizer, a[0]), plain(tokenizer, b[0])
  if how == 'head':
    assert document[document.index(3) - 1] == one[-1]
  assert document[-2] == two[-1]


def test_decoders_too(tmp_path):
  tokenizer = tokens.load(tiny.llama_folder(tmp_path))
  text = ' '.join(WORDS)
  ids = tokenizer(text)['input_ids']
  found = documents(made(tokenizer, [text], truncate='windows', stride=2, limit=10))
  assert [t for i, d in enumerate(found) for t in d[2 * (i > 0) :]] == ids
  assert documents(made(tokenizer, [text], truncate='head', limit=10)) == [ids[-10:]]


@pytest.mark.parametrize(('pair', 'room'), [(False, 14), (True, 6)])
def test_a_stride_that_leaves_no_room(tokenizer, pair, room):
  a = texts(40)
  with pytest.raises(InputError, match=rf'task\.stride={room}: a window has room for {room} tokens'):
    made(tokenizer, a, a if pair else None, truncate='windows', stride=room)


W = np.array([0, 1, 1, 1, 2, 2])
P = np.array([[0.9, 0.1], [0.6, 0.4], [0.6, 0.4], [0.05, 0.95], [0.8, 0.2], [0.3, 0.7]])


def test_pooling():
  np.testing.assert_allclose(windows.pooled(W, P, 'mean'), [[0.9, 0.1], P[1:4].mean(0), [0.55, 0.45]])
  np.testing.assert_allclose(windows.pooled(W, P, 'max'), [[0.9, 0.1], [0.6, 0.95], [0.8, 0.7]])
  vote = windows.pooled(W, P, 'vote')
  np.testing.assert_allclose(vote[0], [(1 + 0.9) / 2, 0.1 / 2])
  np.testing.assert_array_equal(vote.argmax(1), [0, 0, 0])  # 2 of 3; one each, of which the mean decides
  np.testing.assert_array_equal(windows.pooled(W, P, 'mean').argmax(1), [0, 1, 0])
  np.testing.assert_allclose(vote.sum(1), 1)
