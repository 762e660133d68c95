"""Rows of examples taken several times and put together: documents, windows, pairs, what is kept of tokens."""

import itertools

import numpy as np
import pytest

from ftlib import resampling
from ftlib.data.batches import Examples, language
from ftlib.data.tokens import Tokens
from ftlib.evals import text_metrics
from ftlib.tasks import generate, lm, preference, sft


def documents(*rows, **more):
  """Examples of documents of ids; the types are the ids plus 100."""
  ids = np.array([t for r in rows for t in r], np.int32)
  offsets = np.concatenate([[0], np.cumsum([len(r) for r in rows])]).astype(np.int64)
  return Examples(Tokens(ids, ids + 100, offsets, 1), {}, **more)


def ids(examples):
  o = examples.tokens.offsets
  return [examples.tokens.ids[a:b].tolist() for a, b in itertools.pairwise(o)]


def test_rows_are_taken_with_all_they_have():
  made = documents([1, 2], [3], [4, 5, 6], per_token={'targets': np.arange(6)}, host={'gold': ['a', 'b', 'c'], 'k': 7})
  made.extra['labels'] = np.array([0, 1, 2])
  got = resampling.taken(made, np.array([2, 0, 2]))
  assert ids(got) == [[4, 5, 6], [1, 2], [4, 5, 6]]
  np.testing.assert_array_equal(got.tokens.types, got.tokens.ids + 100)
  assert got.per_token['targets'].tolist() == [3, 4, 5, 0, 1, 3, 4, 5]
  assert got.extra['labels'].tolist() == [2, 0, 2]
  assert got.host == {'gold': ['c', 'a', 'c'], 'k': 7}
  assert resampling.lengths(got).tolist() == [3, 2, 3]


def test_windows_go_with_their_rows():
  made = documents([1], [2], [3], [4], windows=np.array([0, 1, 1, 2]), host={'rows': [*'abc'], 'docs': np.arange(4)})
  made.extra['n'] = np.arange(4)
  got = resampling.taken(made, np.array([1, 0, 1]))
  assert ids(got) == [[2], [3], [1], [2], [3]]
  assert got.windows.tolist() == [0, 0, 1, 2, 2]
  assert got.extra['n'].tolist() == [1, 2, 0, 1, 2]
  assert got.host['rows'] == ['b', 'a', 'b']
  assert got.host['docs'].tolist() == [1, 2, 0, 1, 2]
  assert resampling.count(got) == 3
  assert resampling.lengths(made).tolist() == [1, 2, 1]


def test_pairs_stay_together():
  made = documents([1], [2], [3], [4], packs=[np.array([0, 1]), np.array([2, 3])])
  made.extra['pairs'] = np.array([5, 6])
  got = resampling.taken(made, np.array([1, 1]))
  assert [p.tolist() for p in got.packs] == [[2, 3], [2, 3]]
  assert got.extra['pairs'].tolist() == [6, 6]
  assert len(got) == 2


def test_joined():
  of_tokens = {'per_token': {'targets': np.arange(4)}, 'spans': {'characters': np.zeros((4, 2), int)}}
  whole = documents([1, 2], [3], [4], windows=np.array([0, 0, 1]), host={'rows': [*'ab'], 'k': 7}, **of_tokens)
  plain = documents([5], [6, 7], host={'rows': [*'cd'], 'k': 7})  # all of whose rows fit
  got = resampling.joined([whole, plain])
  assert got.windows.tolist() == [0, 0, 1, 2, 3]
  assert ids(got) == [[0, 0], [0], [0], [0], [0, 0]]
  assert got.tokens.ids.strides == got.tokens.types.strides == (0,)  # which takes no room
  assert got.per_token == got.spans == {}
  assert got.host == {'rows': [*'abcd'], 'k': 7}
  assert got.tokens.truncated == 2
  pairs = documents([1], [2], packs=[np.array([0, 1])])
  assert [p.tolist() for p in resampling.joined([pairs, pairs]).packs] == [[0, 1], [2, 3]]


def test_predictions_are_joined_as_wide_as_the_widest():
  parts = [{'tags': np.ones((1, 2), int), 'p': np.ones((1, 2))}, {'tags': np.zeros((2, 3), int), 'p': np.zeros((2, 3))}]
  got = resampling.joined_predictions([{**p, 'list': ['x']} for p in parts])
  assert got['tags'].tolist() == [[1, 1, -1], [0, 0, 0], [0, 0, 0]]
  assert got['p'].tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 0]]
  assert got['list'] == ['x', 'x']


def test_language_models_and_preferences():
  rng = np.random.default_rng(0)
  counts = np.array([2, 0, 1, 3])
  found = {'nll': rng.random(4), 'correct': rng.random(4), 'counted': rng.integers(1, 9, 4).astype(float)}
  examples = language([[1, 2]] * 4, [[True] * 2] * 4)
  task = lm.build(lm.Config(), train=None, known=None)
  quick, slow = (f(task, examples, found) for f in (task.__class__.resampled, resampling.retaken))
  assert quick(counts) == pytest.approx(slow(counts))
  assert quick(np.ones(4)) == pytest.approx(task.metrics(examples, found))
  task = preference.build(preference.Config(), train=None, known=None)
  pairs = documents(*[[i] for i in range(8)], packs=[np.array([2 * i, 2 * i + 1]) for i in range(4)])
  got = resampling.resampled(task, pairs, {'margin': np.array([1.0, 2.0, -1.0, -2.0])}, [{}] * 4)
  assert got(counts) == {'accuracy': 2 / 6}


def test_generated_answers_have_the_scores_that_follow_from_rows():
  config = generate.Config(form='prompt', metrics='exact, rouge,distinct', answered=3)
  assert isinstance(config, sft.Config)
  task = generate.build(config, train=None, known=None)
  answers = ['a cat', 'two dogs', 'none', None]  # of the first three rows alone
  rows = [{'prompt': 'p', 'completion': c} for c in ('a cat', 'three dogs', 'some', 'more')]
  found = {n: np.ones(4) for n in ('nll', 'correct', 'counted')} | {'prediction': answers}
  got = resampling.resampled(task, language([[1, 2]] * 4, [[True] * 2] * 4), found, rows)(np.array([2, 1, 0, 5]))
  texts = ['a cat', 'a cat', 'two dogs']
  want = text_metrics.scores(['exact', 'rouge'], texts, [['a cat'], ['a cat'], ['three dogs']])
  assert {n: got[n] for n in want} == pytest.approx(want)
  assert 'distinct_1' not in got
  assert got['perplexity'] == pytest.approx(np.e)
