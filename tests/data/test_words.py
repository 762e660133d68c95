"""Words as sub-words: as transformers has them, every word once, windows that share, and nothing special in a word."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ftlib.data import tokens, words
from tests import tiny

ROWS = [  # "gooda" has two pieces, "badcab" four
  ['the', 'gooda', 'film'],
  ['good'],
  ['it', 'was', 'bad', 'badcab', 'dull', 'the', 'plot', 'of', 'this', 'scene', 'cold'],
]


@pytest.fixture(scope='module')
def bert(tiny_bert):
  return tokens.load(tiny_bert)


@pytest.fixture(scope='module')
def byte_level(tmp_path_factory):
  return tokens.load(tiny.chat_tokenizer(tmp_path_factory.mktemp('bpe'), size=320))


def pieces(found, i):
  return found.tokens.ids[found.tokens.offsets[i] : found.tokens.offsets[i + 1]].tolist()


def test_pieces_and_first_pieces_are_those_of_transformers(bert):
  rows = [['the', 'Gooda', 'film', 'xyz'], ['good']]
  found = words.encode(bert, rows, limit=20, stride=0)
  want = bert(rows, is_split_into_words=True)
  first = 0
  for i, row in enumerate(rows):
    assert pieces(found, i) == want['input_ids'][i]
    ids = want.word_ids(i)
    begins = [w is not None and w not in ids[:t] for t, w in enumerate(ids)]
    here = found.word[found.tokens.offsets[i] : found.tokens.offsets[i + 1]]
    assert here.tolist() == [first + w if b else -1 for w, b in zip(ids, begins)]
    assert found.places[i].tolist() == [[0, ids.index(w)] for w in range(len(row))]
    first += len(row)
  assert (found.own == (found.word >= 0)).all()
  assert found.tokens.truncated == found.unknown == 0


def test_byte_level_words_have_their_space(byte_level, tmp_path):
  byte_level.save_pretrained(tmp_path)
  file = tmp_path / 'tokenizer.json'
  file.write_text(file.read_text().replace('"add_prefix_space": false', '"add_prefix_space": true', 1))
  spaced = tokens.load(tmp_path)
  found = words.encode(byte_level, ROWS, limit=60, stride=0)
  for i, row in enumerate(ROWS):
    assert pieces(found, i) == spaced(row, is_split_into_words=True)['input_ids']
    assert byte_level.decode(pieces(found, i)) == ' ' + ' '.join(row)
  plain = words.encode(byte_level, [['电', '影']], limit=60, stride=0)  # but no space where a script has none
  assert byte_level.decode(pieces(plain, 0)) == '电影'


def test_a_special_tokens_name_is_text(bert, byte_level):
  for tokenizer, name in ((bert, '[SEP]'), (byte_level, '<|im_end|>')):
    found = words.encode(tokenizer, [['good', name, 'film']], limit=40, stride=0)
    inner = [t for t in pieces(found, 0) if t in tokenizer.all_special_ids]
    frame = [t for t in tokenizer('good')['input_ids'] if t in tokenizer.all_special_ids]
    assert [t for t in inner if t != tokenizer.unk_token_id] == [t for t in frame if t != tokenizer.unk_token_id]


def test_a_word_without_tokens_becomes_the_unknown_one(bert):
  found = words.encode(bert, [['good', '\u200b', 'film']], limit=20, stride=0)
  assert pieces(found, 0)[2] == bert.unk_token_id
  assert len(pieces(found, 0)) == 5
  assert found.unknown == 1


@pytest.mark.parametrize('stride', [0, 2, 3, 50])
def test_windows_hold_whole_words_and_each_is_answered_once(bert, stride):
  limit = 8  # six tokens beside the special ones
  found = words.encode(bert, ROWS, limit=limit, stride=stride)
  lengths = found.tokens.lengths
  assert lengths.max() <= limit
  assert found.tokens.truncated == 1
  assert found.rows.tolist() == sorted(found.rows)
  assert np.bincount(found.word[found.own]).tolist() == [1] * sum(map(len, ROWS))
  whole = bert(ROWS[2], is_split_into_words=True)
  firsts = [whole['input_ids'][whole.word_ids().index(w)] for w in range(len(ROWS[2]))]
  documents = np.flatnonzero(found.rows == 2)
  for w, (k, t) in enumerate(found.places[2].tolist()):
    at = found.tokens.offsets[documents[k]] + t
    assert found.word[at] == 4 + w
    assert found.own[at]
    assert found.tokens.ids[at] == firsts[w]
  seen = [{w for w in found.word[found.tokens.offsets[d] : found.tokens.offsets[d + 1]] if w >= 0} for d in documents]
  shared = [len(a & b) for a, b in itertools.pairwise(seen)]
  assert all(n >= 1 for n in shared) if stride else not any(shared)


def test_the_window_with_most_around_a_word_answers_for_it():
  ends = np.arange(1, 13)  # twelve words of a token each, windows of six that share four
  begins = ends - 1
  spans = words.windows(begins, ends, 6, 4)
  assert spans == [(0, 6), (2, 8), (4, 10), (6, 12)]
  best = words._best(begins, ends, spans)
  assert best == [0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 3, 3]


def test_windows_go_on_where_words_are_long():
  lengths = np.array([1, 6, 6, 1, 5, 1])
  ends = np.cumsum(lengths)
  spans = words.windows(ends - lengths, ends, 6, 3)
  assert spans[0][0] == 0
  assert spans[-1][1] == 6
  assert all(a < b and ends[b - 1] - (ends - lengths)[a] <= 6 for a, b in spans)
  assert {w for a, b in spans for w in range(a, b)} == {*range(6)}


def test_words_are_put_together_again():
  assert words.joined(['a', 'film']) == 'a film'
  assert words.joined(list('电影很好')) == '电影很好'
  assert words.joined(['电影', '很好看']) == '电影 很好看'
