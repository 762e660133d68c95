"""What may stand in the columns of texts: each kind, what is wrong with a value of it, and rows as a whole."""

from __future__ import annotations

import json

import pytest

from ftlib.data import columns
from ftlib.data.labels import Columns
from ftlib.data.preparation import Config, load
from tests.refusal import refused


def prepared(path, kinds, row=None, *, kind='class', label='label', **settings):
  asked = Columns([*kinds], label, kind, ('a', 'b', 'label')[: len(kinds)] + ('label',), kinds=kinds, row=row)
  return load(Config(path=str(path), **settings), **asked._asdict())


def written(path, rows):
  path.write_text(''.join(json.dumps(r) + '\n' for r in rows))
  return path


def rows(**values):
  """40 rows 'x', the third with other values (`...` takes a column away)."""
  out = [{'x': f'w{i} v', 'label': 'ab'[i % 2]} for i in range(40)]
  for row in out:
    row |= {k: row['x'].split() for k in values if k != 'label'}
  out[2] = {k: v for k, v in (out[2] | values).items() if v is not ...}
  return out


FAULTS = [  # kind, value, what the message says, whether such a row may be skipped
  ('words', [], '"v" is an empty list', True),
  ('words', ['a', 3], '"v" holds the int 3 as word 2, where a string is needed', True),
  ('words', ['a', ' '], '"v" holds an empty word, number 2 of 2', True),
  ('words', ' ', '"v" is empty', True),
  ('words', None, '"v" is null', True),
  ('words', ..., '"v" is missing', True),
  ('words', {'a': 1}, '"v" is the dict', False),
  ('options', ['a'], '"v" has only 1 options', True),
  ('options', ['a', None], '"v" holds the NoneType None as option 2', True),
  ('options', 'ab', '"v" is the str', False),
  ('given', None, '"v" is null', True),
]


@pytest.mark.parametrize(('kind', 'value', 'says', 'skippable'), FAULTS)
def test_what_is_wrong_with_a_value(tmp_path, kind, value, says, skippable):
  path = written(tmp_path / 'a.jsonl', rows(v=value))
  message = refused(lambda: prepared(path, {'v': kind}), f'a.jsonl:3: {says}')
  if not skippable:
    assert '--config.task.a=' in message
    return
  data = prepared(path, {'v': kind}, on_bad_row='skip')
  assert sum(map(len, data.splits.values())) == 39
  assert any('1 of 40 rows skipped' in n for n in data.notes)


@pytest.mark.parametrize('value', [None, ..., '', ' ', 'text'])
def test_an_optional_text_may_be_empty(tmp_path, value):
  rows_ = [{'v': 'w', 'label': 'ab'[i % 2]} for i in range(40)]
  rows_[2] = {k: v for k, v in (rows_[2] | {'v': value}).items() if v is not ...}
  data = prepared(written(tmp_path / 'a.jsonl', rows_), {'v': 'optional'})
  [found] = [r['v'] for part in data.splits.values() for r, at in zip(part, part.at) if at == 3]
  assert found == (value if isinstance(value, str) else '')


def test_a_kind_of_ones_own(tmp_path):
  even = columns.Kind((int,), 'a number', lambda v: 'is odd' if v % 2 else '')
  path = written(tmp_path / 'a.jsonl', [{'v': i * 2, 'label': 'ab'[i % 2]} for i in range(40)])
  assert len(prepared(path, {'v': even}).splits['train']) == 32
  path = written(tmp_path / 'b.jsonl', [{'v': i, 'label': 'ab'[i % 2]} for i in range(40)])
  refused(lambda: prepared(path, {'v': even}), '20 of 40 rows', 'b.jsonl:2: "v" is odd')


def test_rows_as_a_whole_are_changed_and_refused(tmp_path):
  def row(r):
    if r['v'][0] == 'bad':
      raise ValueError('the first word is bad')
    return {**r, 'v': r['v'][::-1]}

  path = written(tmp_path / 'a.jsonl', rows(v=['bad', 'w']))
  refused(
    lambda: prepared(path, {'v': 'words'}, row), '1 of 40 rows cannot be used', 'a.jsonl:3: the first word is bad'
  )
  data = prepared(path, {'v': 'words'}, row, on_bad_row='skip')
  assert all(r['v'][0] == 'v' for part in data.splits.values() for r in part)
  assert {at for part in data.splits.values() for at in part.at} == {*range(1, 41)} - {3}


TAGS = [
  (['O'], ''),
  ('O B-X', ''),
  ([1, 2], ''),
  ([], 'the list of tags is empty'),
  ('', 'is empty'),
  (['O', None], 'tag 2 is the NoneType None'),
  (['O', True], 'tag 2 is the bool True'),
  (['O', ''], "tag 2 is the str ''"),
  (7, 'the int 7 is no list of tags'),
]


@pytest.mark.parametrize(('value', 'says'), TAGS)
def test_tags_of_a_row(tmp_path, value, says):
  found = [{'v': ['w'], 'label': value if i == 2 else ['O'] if value != [1, 2] else [3]} for i in range(40)]
  path = written(tmp_path / 'a.jsonl', found)
  if says:
    refused(lambda: prepared(path, {'v': 'words'}, kind='tags'), 'a.jsonl:3: "label"', says)
  else:
    assert sum(map(len, prepared(path, {'v': 'words'}, kind='tags').splits.values())) == 40


def test_tags_are_of_one_kind_throughout(tmp_path):
  path = written(tmp_path / 'a.jsonl', [{'v': ['w'], 'label': [1 if i == 9 else 'O']} for i in range(40)])
  says = 'several kinds', 'a.jsonl:1: the str', 'a.jsonl:10: the int 1'
  refused(lambda: prepared(path, {'v': 'words'}, kind='tags'), *says)
