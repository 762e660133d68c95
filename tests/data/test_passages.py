"""Windows of a passage: what is in them, what they share, and that characters come back exactly as they were."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from ftlib.base.errors import InputError
from ftlib.data import passages, tokens
from tests import tiny

WHERE = lambda i: f'f.jsonl:{i + 1}'  # noqa: E731
ODD = ['film', ' ', '  ', '\n', '\t', 'Étoile', '北京', '😀', 'e\u0301', '(a)', "it's", '3.5', '\u3000', 'x' * 9]


@pytest.fixture(scope='module')
def wordpiece(tiny_bert):
  return tokens.load(tiny_bert)


@pytest.fixture(scope='module')
def bytewise(tmp_path_factory):
  """A byte-level BPE, which has neither special tokens around a pair nor one between."""
  return tokens.load(tiny.llama_folder(tmp_path_factory.mktemp('llama')))


@pytest.fixture(params=['wordpiece', 'bytewise'])
def tokenizer(request):
  return request.getfixturevalue(request.param)


def windows(tokenizer, context, span=None, *, question='was it good', **options):
  options = {'limit': 32, 'stride': 8, 'max_question': 8, **options}
  return passages.windows(tokenizer, [question], [context], [span], where=WHERE, **options)


def each(found):
  """(ids, candidates, characters) of every window."""
  bounds = zip(found.tokens.offsets, found.tokens.offsets[1:])
  return [(found.tokens.ids[a:b], found.candidates[a:b], found.characters[a:b]) for a, b in bounds]


def test_a_short_passage_is_the_pair_as_the_tokenizer_has_it(wordpiece):
  found = windows(wordpiece, 'the film was good')
  want = wordpiece('was it good', 'the film was good')
  np.testing.assert_array_equal(found.tokens.ids, want['input_ids'])
  np.testing.assert_array_equal(found.tokens.types, want['token_type_ids'])
  assert found.candidates.tolist() == [passages.NULL, 0, 0, 0, 0, *[passages.INSIDE] * 4, 0]
  assert found.characters[5:9].tolist() == [[0, 3], [4, 8], [9, 12], [13, 17]]
  assert found.tokens.truncated == 0
  assert (found.starts.tolist(), found.ends.tolist()) == ([0], [0])


def test_windows_hold_every_token_and_share_a_stride(wordpiece):
  words = random.Random(0).choices(tiny.NEUTRAL, k=60)
  found = windows(wordpiece, ' '.join(words), limit=24, stride=5)
  assert found.tokens.truncated == 1
  assert found.rows.tolist() == [0] * len(found.rows)
  parts = [chars[kinds == passages.INSIDE].tolist() for _, kinds, chars in each(found)]
  room = 24 - 6
  assert [len(p) for p in parts[:-1]] == [room] * (len(parts) - 1)
  assert len(parts) == 1 + -(-(60 - room) // (room - 5))
  for a, b in itertools.pairwise(parts):
    assert a[-5:] == b[:5]
  seen = [*parts[0], *(t for p in parts[1:] for t in p[5:])]
  text = ' '.join(words)
  assert [text[a:b] for a, b in seen] == words
  for ids, _, _ in each(found):
    assert wordpiece.decode(ids[:5]) == '[CLS] was it good [SEP]'
    assert len(ids) <= 24


def test_windows_are_those_of_transformers(wordpiece):
  """Its own overflow, with truncation of the second text alone."""
  rng = random.Random(1)
  for count in (5, 18, 19, 40, 61):
    context = ' '.join(rng.choices(tiny.NEUTRAL, k=count))
    found = windows(wordpiece, context, limit=24, stride=7)
    want = wordpiece(
      'was it good', context, truncation='only_second', max_length=24, stride=7, return_overflowing_tokens=True
    )['input_ids']
    assert [ids.tolist() for ids, _, _ in each(found)] == want
  wordpiece.backend_tokenizer.no_truncation()


def test_a_span_stands_in_the_windows_that_have_the_whole_of_it(wordpiece):
  words = random.Random(2).choices(tiny.NEUTRAL, k=60)
  text = ' '.join(words)
  for first in (0, 17, 30, 58):
    begin = len(' '.join([*words[:first], ''])) if first else 0
    behind = begin + len(' '.join(words[first : first + 2]))
    found = windows(wordpiece, text, (begin, behind), limit=24, stride=5)
    assert (found.unseen, found.inexact) == (0, 0)
    holding = 0
    for (_, kinds, chars), start, end in zip(each(found), found.starts, found.ends):
      inside = chars[kinds == passages.INSIDE]
      whole = inside[0, 0] <= begin and behind <= inside[-1, 1]
      holding += whole
      if whole:
        assert (chars[start, 0], chars[end, 1]) == (begin, behind)
      else:
        assert kinds[start] == kinds[end] == passages.NULL
    assert holding >= 1
  long = windows(wordpiece, text, (0, len(text)), limit=24, stride=5)
  assert long.unseen == 1
  assert not long.starts.any()


@pytest.mark.parametrize('seed', range(4))
def test_spans_come_back_character_by_character(tokenizer, seed):
  """Of texts of odd pieces: a span of tokens is what lies between its characters, or at least holds what was asked."""
  rng = random.Random(seed)
  exact = 0
  for _ in range(40):
    pieces = rng.choices(ODD, k=rng.randint(2, 12))
    text = ''.join(pieces)
    if not text.strip():
      continue
    at = rng.randrange(len(pieces))
    wanted = pieces[at].strip()
    begin = len(''.join(pieces[:at])) + len(pieces[at]) - len(pieces[at].lstrip())
    span = (begin, begin + len(wanted)) if wanted else None
    found = windows(tokenizer, text, span, limit=80)
    chars = found.characters[found.candidates == passages.INSIDE]
    assert (chars[:, 0] >= 0).all()
    assert (chars[:, 1] <= len(text)).all()
    assert (np.diff(chars, axis=0) >= 0).all()
    for a, b in chars:
      assert text[a:b] == text[a:b].strip()
    if span and not found.unseen and len(found.rows) == 1:
      a, b = found.characters[found.starts[0], 0], found.characters[found.ends[0], 1]
      assert max(a, span[0]) < min(b, span[1])
      assert ((a, b) == span) == (found.inexact == 0)  # 'e' with an accent of its own, which WordPiece drops, is not
      exact += (a, b) == span
  assert exact > 4


def test_a_token_that_reaches_beyond_a_span_is_counted(wordpiece):
  found = windows(wordpiece, 'the film was good', (4, 7))
  assert found.inexact == 1
  assert found.characters[found.starts[0]].tolist() == [4, 8]


def test_a_long_question_loses_its_end(wordpiece):
  long = ' '.join(['good'] * 30)
  found = windows(wordpiece, 'the film was bad', question=long, max_question=6)
  assert found.shortened == 1
  assert wordpiece.decode(found.tokens.ids) == '[CLS] ' + ' '.join(['good'] * 6) + ' [SEP] the film was bad [SEP]'
  half = windows(wordpiece, 'the film was bad', question=long, max_question=99, limit=23)
  assert (half.candidates == 0).sum() == 10 + 2  # half of the 20 that are not special


def test_where_the_last_token_stands_for_nothing(bytewise):
  found = windows(bytewise, 'the film was good ' * 9, null='last', limit=40, max_question=16)
  for ids, kinds, _ in each(found):
    assert kinds[-1] == passages.NULL
    assert ids[-1] == bytewise.eos_token_id
    assert (kinds == passages.NULL).sum() == 1
    assert bytewise.decode(ids).startswith('was it good\n')
  assert found.starts.tolist() == [len(ids) - 1 for ids, _, _ in each(found)]
  short = windows(bytewise, 'the film', null='last', max_question=4)
  assert bytewise.decode(short.tokens.ids) == 'was\nthe film<|im_end|>'


def test_names_of_special_tokens_are_text(wordpiece):
  found = windows(wordpiece, 'the [SEP] film', question='[CLS] good')
  assert (found.tokens.ids == wordpiece.sep_token_id).sum() == 2
  assert (found.tokens.ids == wordpiece.cls_token_id).sum() == 1


def test_what_cannot_be_cut(wordpiece):
  with pytest.raises(InputError, match=r'train.max_length=10 leaves 7 tokens'):
    windows(wordpiece, 'the film', limit=10)
  with pytest.raises(InputError, match=r'f.jsonl:1: the context has no token'):
    windows(wordpiece, '\u200b\u200b')
