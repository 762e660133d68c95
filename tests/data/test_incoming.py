"""Rows of a file, piece by piece: every format, numbers of rows, and what is wrong with its place."""

import gzip
import io
import json

import pytest

from ftlib.base.errors import InputError
from ftlib.data import incoming
from ftlib.data.incoming import Incoming


def read(path, texts=('text',), size=2, **options):
  """(rows, where each stands) of a file in pieces of two."""
  source = Incoming(str(path), texts, **options)
  pieces = list(source.pieces(size=size))
  assert all(0 < len(p) <= size for p in pieces)
  return [r for p in pieces for r in p], [p.where(i) for p in pieces for i in range(len(p))], source


def written(tmp_path, name, data):
  path = tmp_path / name
  path.write_bytes(data if isinstance(data, bytes) else data.encode())
  return path


def test_texts_by_lines(tmp_path):
  path = written(tmp_path, 'a.txt', 'one\n\n  \ntwo \u2028 and\rmore\r\nthree')
  rows, where, source = read(path)
  assert rows == [
    {'id': 0, 'text': 'one'},
    {'id': 3, 'text': 'two \u2028 and\rmore'},
    {'id': 4, 'text': 'three'},
  ]
  assert where == [f'{path}:1', f'{path}:4', f'{path}:5']
  assert (source.passed, source.first, source.name) == (2, f'{path}:2', 'a')


def test_pairs_by_tabs(tmp_path):
  path = written(tmp_path, 'a.txt', 'one\ttwo\nthree\tfour\n')
  assert read(path, ('a', 'b'))[0][1] == {'id': 1, 'a': 'three', 'b': 'four'}
  assert read(path)[0][0] == {'id': 0, 'text': 'one\ttwo'}
  path.write_text('one\ttwo\nthree\n')
  with pytest.raises(InputError, match=r'a\.txt:2: 1 text in the line, but the task reads 2'):
    read(path, ('a', 'b'))


def test_tables_and_objects(tmp_path):
  table = 'id,text,more\n7,"a\nb",x\n8,c,y\n9,d,z\n'
  path = written(tmp_path, 'a.csv', '\ufeff' + table)
  rows, where, _ = read(path)
  assert rows[0] == {'id': '7', 'text': 'a\nb', 'more': 'x'}
  assert where == [f'{path}:2', f'{path}:4', f'{path}:5']
  path = written(tmp_path, 'a.tsv', 'text\tn\na\t1\nb\t2\n')
  assert read(path)[0] == [{'id': 0, 'text': 'a', 'n': '1'}, {'id': 1, 'text': 'b', 'n': '2'}]
  path = written(tmp_path, 'a.jsonl', '{"text": "a"}\n\n{"text": "b", "id": "x"}\n')
  rows, where, source = read(path)
  assert rows == [{'id': 0, 'text': 'a'}, {'text': 'b', 'id': 'x'}]
  assert where == [f'{path}:1', f'{path}:3']
  assert source.passed == 0


def test_what_is_read_whole(tmp_path):
  rows = [{'text': t} for t in 'abc']
  path = written(tmp_path, 'a.json', json.dumps(rows))
  got, where, _ = read(path)
  assert got == [{'id': i, **r} for i, r in enumerate(rows)]
  assert where[2] == f'{path} row 3'
  path = written(tmp_path, 'b.jsonl.gz', gzip.compress(b'{"text": "a"}\n'))
  assert read(path)[0] == [{'id': 0, 'text': 'a'}]
  assert Incoming(str(path), ['text']).name == 'b'


def test_the_standard_input(monkeypatch):
  monkeypatch.setattr('sys.stdin', io.StringIO('one\n\ntwo\n'))
  rows, where, source = read('-')
  assert [r['text'] for r in rows] == ['one', 'two']
  assert (where[1], source.name, source.first) == ('stdin:3', 'stdin', 'stdin:2')
  monkeypatch.setattr('sys.stdin', io.StringIO('{"text": "a"}\n'))
  assert read('-', format='jsonl')[0] == [{'id': 0, 'text': 'a'}]


@pytest.mark.parametrize(('format', 'data'), [('txt', 'a\n'), ('jsonl', '{"text": "a"}\n'), ('csv', 'text\na\n')])
def test_a_byte_order_mark_is_no_text(monkeypatch, tmp_path, format, data):
  monkeypatch.setattr('sys.stdin', io.StringIO('\ufeff' + data))
  assert read('-', format=format)[0] == [{'id': 0, 'text': 'a'}]
  path = written(tmp_path, f'a.{format}', ('\ufeff' + data).encode('utf-16-le'))
  assert read(path, encoding='utf-16-le')[0] == [{'id': 0, 'text': 'a'}]


def test_only_a_piece_is_held(tmp_path, monkeypatch):
  """Lines are asked for as pieces are: after the first piece of two, no more than the third has been read."""
  asked = []

  def lines():
    for i in range(100):
      asked.append(i)
      yield f'text {i}\n'

  monkeypatch.setattr('sys.stdin', lines())
  pieces = Incoming('-', ['text']).pieces(size=2)
  next(pieces)
  assert len(asked) <= 3
  next(pieces)
  assert len(asked) <= 5


FAULTS = {
  'cut': ('a.jsonl', '{"text": "a"}\n{"text": ', ':2: not valid JSON'),
  'no object': ('a.jsonl', '{"text": "a"}\n[1]\n', ':2: an object'),
  'twice': ('a.jsonl', '{"text": "a", "text": "b"}\n', ':1: the key "text" stands twice'),
  'fields': ('a.csv', 'text,b\nx,y\nx\n', ':3: 1 fields, but the header has 2'),
  'quote': ('a.csv', 'text,b\n"x,y\n', ':2: a quoted field'),
  'nul': ('a.txt', 'a\nb\0c\n', ':2: the character'),
  'bytes': ('a.txt', b'a\nb\xff\n', 'a.txt:2: not utf-8'),
  'empty': ('a.txt', '\n\n', 'holds no rows, but 2 empty lines'),
  'nothing': ('a.jsonl', '', 'holds no rows'),
  'header': ('a.csv', 'text\n', 'holds no rows'),
  'kind': ('a.xlsx', 'x', 'its extension is none of those'),
}


@pytest.mark.parametrize('name', FAULTS)
def test_what_is_wrong_has_a_place(tmp_path, name):
  file, data, words = FAULTS[name]
  path = written(tmp_path, file, data)
  with pytest.raises(InputError) as e:
    read(path)
  assert str(path) in str(e.value)
  assert words in str(e.value)


def test_files_that_are_not_there(tmp_path):
  written(tmp_path, 'rows.jsonl', '')
  with pytest.raises(InputError, match=r'--input=.*row\.jsonl: there is no such file; did you mean "rows.jsonl"'):
    Incoming(str(tmp_path / 'row.jsonl'), ['text'])
  with pytest.raises(InputError, match=r'is a folder; give a file of it$'):
    Incoming(str(tmp_path), ['text'], field='--file')
  with pytest.raises(InputError, match='--format=josnl is none of txt, jsonl, csv, tsv; did you mean "jsonl"'):
    Incoming('-', ['text'], format='josnl')
  path = written(tmp_path, 'a.txt', 'a')
  with pytest.raises(InputError, match='--encoding=utf-9'):
    read(path, encoding='utf-9')
  assert incoming.PIECE >= 256  # rows of like length are batched together


def test_the_line_of_a_byte_behind_the_first_chunk(tmp_path):
  data = b'a fine film\n' * 5000 + b'half a line \xff\n'
  with pytest.raises(InputError, match=r'a\.txt:5001: not utf-8 .*set --encoding='):
    read(written(tmp_path, 'a.txt', data))
  with pytest.raises(InputError, match=r'a\.csv:3: not utf-8 .*set data\.encoding of the run'):
    read(written(tmp_path, 'a.csv', b'text\nb\n\xff\n'), field='--file')
