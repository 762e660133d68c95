"""What is shown of a row is the row, and what is marked is what counts."""

from __future__ import annotations

import pytest

from ftlib.data import tokens
from ftlib.data.batches import language
from ftlib.data.preview import pieces, shown
from tests import tiny

TEXT = 'the good film caf\u00e9 \U0001f600 \u4e2d\u6587<|im_end|>\n'


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  return tokens.load(tiny.chat_tokenizer(tmp_path_factory.mktemp('preview'), size=300))


def test_pieces_are_the_text(tokenizer):
  """One for each token, characters of several tokens whole."""
  ids = tokenizer(TEXT)['input_ids']
  counts = [i % 3 == 0 for i in range(len(ids))]
  found = pieces(language([[7], ids], [[True], counts]), tokenizer, 1)
  assert ''.join(text for text, _ in found) == TEXT
  assert [on for _, on in found] == [False, *counts[1:]]  # a first token is never predicted
  assert '\N{REPLACEMENT CHARACTER}' not in ''.join(text for text, _ in found)
  assert len(found) == len(ids)


def test_marks():
  row = [('a', False), ('b', True), ('c', True), ('d', False), ('e', True)]
  assert shown(row, colour=False) == 'a[[bc]]d[[e]]'
  assert shown(row, colour=True) == 'a\x1b[30;42mbc\x1b[0md\x1b[30;42me\x1b[0m'
  assert shown([('a', False)], colour=True) == 'a'
