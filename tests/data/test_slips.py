"""What a slip of the user's is told as: the file's kind, the column that was meant, and what to do about it."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zipfile

import pytest

from ftlib.data import sources
from ftlib.data.labels import Columns
from ftlib.data.preparation import Config, load
from tests.refusal import refused

ROWS = [{'text': f'a plot {i}', 'label': ('good', 'bad')[i % 2]} for i in range(24)]


def lines(rows):
  return ''.join(json.dumps(r) + '\n' for r in rows)


def zipped(data):
  out = io.BytesIO()
  with zipfile.ZipFile(out, 'w') as z:
    z.writestr('train.jsonl', data)
  return out.getvalue()


def prepared(path, *, texts=('text',), label='label', kind='class', **settings):
  return load(Config(path=str(path), **settings), **Columns(texts, label, kind)._asdict())


PACKED = {
  'gzip': (gzip.compress, 'compressed by gzip (.gz)'),
  'bzip2': (bz2.compress, 'compressed by bzip2 (.bz2)'),
  'xz': (lzma.compress, 'compressed by xz (.xz)'),
  'zip': (zipped, 'a zip archive, which has to be unpacked'),
}


@pytest.mark.parametrize('kind', PACKED)
def test_a_packed_file_that_is_not_called_so(tmp_path, kind):
  pack, says = PACKED[kind]
  path = tmp_path / 'train.jsonl'
  path.write_bytes(pack(lines(ROWS).encode()))
  message = refused(lambda: sources.read(str(path)), f'train.jsonl: is no text, but {says}')
  assert 'encoding' not in message


def test_files_that_are_not_what_they_are_called(tmp_path):
  path = tmp_path / 'train.jsonl.gz'
  path.write_text(lines(ROWS))
  refused(lambda: sources.read(str(path)), 'cannot be read as .gz', 'one without compression has no .gz')
  for text in (json.dumps(ROWS), '1\n'):
    path = tmp_path / 'train.jsonl'
    path.write_text(text)
    refused(lambda: sources.read(str(tmp_path / 'train.jsonl')), 'train.jsonl:1', 'a file named .json')


def test_places_that_are_not_where_files_lie(tmp_path):
  refused(lambda: sources.open_source('s3://bucket/a'), 'no such file', 'has to be fetched first')
  (tmp_path / 'train.jsonl').mkdir()
  refused(lambda: sources.open_source(str(tmp_path)), 'has no train file', '  train.jsonl/')


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
  path = tmp_path / 'train.jsonl'
  path.write_text(lines(ROWS))

  def read_bytes(self):
    raise PermissionError(13, 'Permission denied', str(self))

  monkeypatch.setattr(sources.Path, 'read_bytes', read_bytes)
  message = refused(lambda: sources.read(str(path)), 'Permission denied', 'who may read it')
  assert 'fetched' not in message


def test_columns_without_a_name(tmp_path):
  (tmp_path / 'a.jsonl').write_text(lines(ROWS))
  refused(lambda: prepared(tmp_path / 'a.jsonl', texts=('',)), 'task.text is empty', '--config.task.text=')
  refused(lambda: prepared(tmp_path / 'a.jsonl', label=''), 'task.label is empty', '--config.task.label=')


@pytest.mark.parametrize('texts', [('label',), ('text', 'label')])
def test_a_label_that_is_read_as_a_text(tmp_path, texts):
  (tmp_path / 'a.jsonl').write_text(lines(ROWS))
  refused(lambda: prepared(tmp_path / 'a.jsonl', texts=texts), "task.label='label' is a column of the texts too")


def test_a_text_that_is_read_as_the_label(tmp_path):
  (tmp_path / 'a.jsonl').write_text(lines(ROWS))
  words = ['24 values of "text": is that the column of the labels?', 'has only 24']
  refused(lambda: prepared(tmp_path / 'a.jsonl', texts=('label',), label='text'), *words)


def test_a_header_that_is_a_text(tmp_path):
  """Of a file without a header: the first row's long text is not printed whole."""
  (tmp_path / 'a.csv').write_text(f'{"a long text " * 90},good\nshort,bad\n')
  message = refused(lambda: prepared(tmp_path / 'a.csv'), 'has no column "text"', 'a long text')
  assert max(map(len, message.splitlines())) < 200


def test_a_test_file_without_labels(tmp_path):
  (tmp_path / 'train.jsonl').write_text(lines(ROWS))
  (tmp_path / 'test.jsonl').write_text(lines([{'text': r['text']} for r in ROWS]))
  refused(lambda: prepared(tmp_path), 'test.jsonl has no column "label"', 'ftlib.predict')
  (tmp_path / 'test.jsonl').rename(tmp_path / 'validation.jsonl')
  refused(lambda: prepared(tmp_path), 'validation.jsonl has no column "label"', 'add it as train has it')


def test_labels_that_differ_in_case_or_spaces(tmp_path):
  some = [{**r, 'label': (r['label'], r['label'].title(), f' {r["label"]}')[i % 3]} for i, r in enumerate(ROWS)]
  (tmp_path / 'a.jsonl').write_text(lines(some))
  notes = [n for n in prepared(tmp_path / 'a.jsonl').notes if n.startswith('labels:')]
  assert notes == [
    "labels: ' bad', 'Bad', 'bad' (and 1 more such) differ in case or spaces alone, and are classes of their own"
  ]
  (tmp_path / 'a.jsonl').write_text(lines(ROWS))
  assert not [n for n in prepared(tmp_path / 'a.jsonl').notes if n.startswith('labels:')]
