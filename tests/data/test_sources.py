"""Every format read back, every fault told with its place and its mending, hubs through their own interface."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest

from ftlib.base.errors import InputError
from ftlib.data import sources
from ftlib.data.sources import open_source, read, subset

ROWS = [
  {'text': 'plain', 'label': 'a'},
  {'text': 'a "quote", a comma,\nand two\n\nbreaks\t', 'label': 'NA'},
  {'text': '电影 naïve \u2028 \x85 🎬 \ufeff', 'label': 'null'},
  {'text': '', 'label': ''},
  {'text': ' x ', 'label': '01'},
]


def as_bytes(extension: str, rows: list[dict]) -> bytes:
  if extension == '.jsonl':
    return ''.join(json.dumps(r, ensure_ascii=False) + '\n' for r in rows).encode()
  if extension == '.json':
    return json.dumps(rows, indent=1).encode()
  if extension in ('.csv', '.tsv'):
    out = io.StringIO(newline='')
    writer = csv.DictWriter(out, rows[0].keys(), delimiter=',' if extension == '.csv' else '\t')
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()
  import pyarrow as pa
  import pyarrow.parquet as pq

  sink = pa.BufferOutputStream()
  pq.write_table(pa.Table.from_pylist(rows), sink)
  return sink.getvalue().to_pybytes()


def packed(compression: str, data: bytes) -> bytes:
  if compression == '.zst':
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, 'zstd') as stream:
      stream.write(data)
    return sink.getvalue().to_pybytes()
  return {'': bytes, '.gz': gzip.compress, '.bz2': bz2.compress, '.xz': lzma.compress}[compression](data)


def write(path: Path, data: bytes | str) -> str:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(data.encode() if isinstance(data, str) else data)
  return str(path)


def failure(call, *args, **kwargs) -> str:
  """The message of the InputError that a call must raise; it has to fit one screen."""
  with pytest.raises(InputError) as caught:
    call(*args, **kwargs)
  message = str(caught.value)
  assert len(message.splitlines()) <= 20
  assert len(message) < 2000
  return message


# --- what is read


@pytest.mark.parametrize('compression', ['', *sources.COMPRESSIONS])
@pytest.mark.parametrize('extension', [e for e in sources.EXTENSIONS if e != '.txt'])
def test_round_trip(tmp_path, extension, compression):
  # a tab beside a line break is refused in .tsv, where it tells of a quote that was no quote
  rows = [{**r, 'text': r['text'].replace('\t', ' ')} for r in ROWS] if extension == '.tsv' else ROWS
  path = write(tmp_path / f'some.data{extension}{compression}', packed(compression, as_bytes(extension, rows)))
  got = read(path)
  assert list(got) == rows
  assert (len(got), got.columns, got.name) == (5, ['text', 'label'], f'some.data{extension}{compression}')
  assert list(open_source(path).splits) == ['all']


def test_where_counts_lines_not_rows(tmp_path):
  jsonl = read(path := write(tmp_path / 'a.jsonl', '\n{"a": 1}\r\n\n  \n{"a": 2}'))
  assert [jsonl.where(i) for i in range(2)] == [f'{path}:2', f'{path}:5']
  table = read(path := write(tmp_path / 'a.csv', 'a,b\n"1\n\n2",x\n\n3,y\n'))
  assert [table.where(i) for i in range(2)] == [f'{path}:2', f'{path}:6']
  listed = read(write(tmp_path / 'a.json', '[{"a": 1}, {"a": 2}]'))
  assert listed.where(1) == f'{tmp_path}/a.json row 2'
  assert read(write(tmp_path / 'b.json', '{"a": 1}\n{"a": 2}\n')).where(1) == f'{tmp_path}/b.json:2'
  assert read(write(tmp_path / 'a.parquet', as_bytes('.parquet', ROWS))).where(4).endswith('/a.parquet row 5')


def test_subset_keeps_places(tmp_path):
  rows = read(path := write(tmp_path / 'a.jsonl', ''.join(f'{{"a": {i}}}\n' for i in range(9))))
  part = subset(subset(rows, range(2, 9)), np.array([5, 0]), name='test')
  assert [r['a'] for r in part] == [7, 2]
  assert [part.where(0), part.where(1), part.name] == [f'{path}:8', f'{path}:3', 'test']
  assert part[0] is rows[7]
  assert [r['a'] for r in rows[-2:]] == [7, 8]
  assert rows[-2:].where(1) == f'{path}:9'
  with pytest.raises(IndexError):
    rows[9]


def test_json_rows_may_differ_in_keys(tmp_path):
  rows = read(write(tmp_path / 'a.jsonl', '{"a": 1, "c": [1.5, null]}\n{"b": true, "a": {"x": 1}}\n'))
  assert (rows.columns, rows[1]) == (['a', 'c', 'b'], {'b': True, 'a': {'x': 1}})


def test_long_fields_and_csv_state(tmp_path):
  before = csv.field_size_limit()
  text = 'x' * 300_000
  assert read(write(tmp_path / 'a.csv', f'text,label\n{text},a\n'))[0]['text'] == text
  assert csv.field_size_limit() == before


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16', 'utf-16-le', 'latin-1'])
def test_encodings(tmp_path, encoding):
  data = 'text,label\nnaïve,é\n'.encode(encoding)
  rows = read(write(tmp_path / 'a.csv', data), encoding='utf-8' if encoding == 'utf-8-sig' else encoding)
  assert list(rows) == [{'text': 'naïve', 'label': 'é'}]


def test_escaped_surrogate_pairs_are_text(tmp_path):
  assert read(write(tmp_path / 'a.jsonl', '{"text": "\\ud83c\\udfac \\\\u0000"}\n'))[0]['text'] == '🎬 \\u0000'


def test_reading_is_linear(tmp_path):
  def seconds(count: int, extension: str, end: str = '') -> float:
    body = ''.join(f'{{"a": "{i}"}}\n' if extension == 'jsonl' else f'"{i}\n",x\n' for i in range(count))
    path = write(tmp_path / f'{count}.{extension}', ('' if extension == 'jsonl' else 'a,b\n') + body)
    start = time.process_time()
    assert len(read(path)) == count
    return time.process_time() - start

  for extension in ('jsonl', 'csv'):
    small = min(seconds(4000, extension) for _ in range(3))
    assert seconds(64_000, extension) < 16 * 6 * max(small, 1e-3)


# --- folders, packages, fingerprints


@pytest.mark.parametrize('name', ['validation', 'valid', 'val', 'dev'])
def test_folder(tmp_path, name):
  write(tmp_path / 'train.csv.gz', gzip.compress(b'a\n1\n'))
  write(tmp_path / f'{name}.jsonl', '{"a": "2"}\n')
  write(tmp_path / 'test.tsv', 'a\tb\n3\t4\n')
  write(tmp_path / 'README.md', '# data')
  write(tmp_path / '.train.csv', 'swap')
  source = open_source(str(tmp_path))
  assert list(source.splits) == ['train', 'validation', 'test']
  assert [r[0]['a'] for r in source.splits.values()] == ['1', '2', '3']
  assert source.splits['validation'].name == 'validation'
  assert source.splits['validation'].where(0) == f'{tmp_path}/{name}.jsonl:1'
  assert source.labels == {}


def test_fingerprint_is_of_the_content_alone(tmp_path):
  def source(folder: str, train: str, test: str = '{"a": 1}\n') -> str:
    write(tmp_path / folder / 'train.jsonl', train)
    write(tmp_path / folder / 'test.jsonl', test)
    return open_source(str(tmp_path / folder)).fingerprint

  first = source('one', '{"a": 1}\n')
  assert first == source('else/where', '{"a": 1}\n')
  assert len({first, source('two', '{"a": 2}\n'), source('three', '{"a": 1}\n', '{"a": 2}\n')}) == 3
  (tmp_path / 'one' / 'train.jsonl').unlink()
  write(tmp_path / 'one' / 'train.jsonl.gz', gzip.compress(b'{"a": 1}\n'))
  assert open_source(str(tmp_path / 'one')).fingerprint == first
  path = write(tmp_path / 'x.csv', 'a\né\n')
  assert open_source(path).fingerprint != open_source(path, encoding='latin-1').fingerprint


def test_package_is_found_and_not_imported(tmp_path, monkeypatch):
  write(tmp_path / 'ships_data' / '__init__.py', 'raise RuntimeError("imported")')
  write(tmp_path / 'ships_data' / 'data' / 'train.jsonl', '{"a": 1}\n')
  monkeypatch.syspath_prepend(str(tmp_path))
  assert open_source('package:ships_data/data').splits['train'][0] == {'a': 1}
  assert (
    open_source('package:ships_data/data/train.jsonl').splits['all'].where(0) == 'package:ships_data/data/train.jsonl:1'
  )
  assert 'ships_data' not in sys.modules
  assert 'did you mean "train.jsonl"' in failure(open_source, 'package:ships_data/data/trian.jsonl')
  for bad in ('package:no_such_package/x', 'package:ships_data.data/x', 'package:', 'package:__main__/x'):
    assert 'package:NAME/' in failure(open_source, bad)


def test_missing_paths(tmp_path):
  write(tmp_path / 'reviews' / 'train.csv', 'a\n1\n')
  assert 'did you mean "reviews"' in failure(open_source, str(tmp_path / 'review'))
  assert 'did you mean "reviews"' in failure(open_source, str(tmp_path / 'review' / 'deep' / 'er.csv'))
  assert 'did you mean "train.csv"' in failure(read, str(tmp_path / 'reviews' / 'trian.csv'))
  for path in ('', '~nobody/x', str(tmp_path / 'reviews' / 'trian.csv'), str(tmp_path / 'reviews' / 'train.csv' / 'x')):
    assert '--config.data.path=' in failure(open_source, path)
  assert 'tfds:, hf: and package:' in failure(open_source, 's3://bucket/x.csv')


def test_bad_folders(tmp_path):
  write(tmp_path / 'a' / 'train.csv', 'a\n1\n')
  write(tmp_path / 'a' / 'dev.csv', 'a\n1\n')
  write(tmp_path / 'a' / 'validation.jsonl', '{"a": 1}\n')
  assert 'dev.csv and validation.jsonl are both the validation split' in failure(open_source, str(tmp_path / 'a'))
  write(tmp_path / 'b' / 'train.doc', 'x')
  write(tmp_path / 'b' / 'test.csv', 'a\n1\n')
  message = failure(open_source, str(tmp_path / 'b'))
  assert all(part in message for part in ('no train file', 'train.doc', 'test.csv', '.parquet', '.zst'))
  (tmp_path / 'c').mkdir()
  assert 'nothing' in failure(open_source, str(tmp_path / 'c'))
  assert '.jsonl .json .csv .tsv .parquet' in failure(read, write(tmp_path / 'd.xlsx', 'x'))


# --- bad files: (name, content, what the message must say)

BAD = {
  'malformed': ('a.jsonl', '{"a": 1}\n{"a": 1, b}\n{"a": 1}\n', ('a.jsonl:2', 'column 10', 'whole JSON object')),
  'truncated': ('a.jsonl', '{"a": 1}\n\n{"a": "half a te', ('a.jsonl:3', 'column 7', 'cut off', 'again')),
  'malformed at the end': ('a.jsonl', '{"a": 1}\n{"a": 1, b}', ('a.jsonl:2', 'column 10', 'whole JSON object')),
  'not an object': ('a.jsonl', '{"a": 1}\n[1, 2]\n', ('a.jsonl:2', '[1, 2]', '"column": value')),
  'a bare number': ('a.jsonl', '{"a": 1}\n3\n', ('a.jsonl:2', 'needed, not 3')),
  'two objects': ('a.jsonl', '{"a": 1}{"a": 2}\n', ('a.jsonl:1', 'column 9')),
  'a list as jsonl': ('a.jsonl', '[\n{"a": 1}\n]\n', ('a.jsonl:1', 'named .json')),
  'duplicate key': ('a.jsonl', '{"a": 1}\n{"b": {"a": 1, "a": 2}}\n', ('a.jsonl:2', 'key "a" stands twice')),
  'deep nesting': ('a.jsonl', '{"a": 1}\n{"a": ' + '[' * 10**5 + '\n', ('a.jsonl:2', 'recursion')),
  'NUL': ('a.jsonl', '{"a": 1}\n{"a": "x\0y"}\n', ('a.jsonl:2', 'NUL', 'Remove')),
  'escaped NUL': ('a.jsonl', '{"a": 1}\n{"a": ["x\\u0000y"]}\n', ('a.jsonl:2', 'NUL', 'Remove')),
  'lone surrogate': ('a.jsonl', '{"a": 1}\n{"a": {"b": "x\\ud83cy"}}\n', ('a.jsonl:2', 'surrogate', 'ud83c')),
  'NUL in a list': ('a.json', '[{"a": "x"}, {"a": "\\u0000"}]', ('a.json row 2', 'NUL')),
  'cut list': ('a.json', '[{"a": 1},\n{"a": 2},', ('a.json:2', 'cut off')),
  'bad list': ('a.json', '[{"a": 1},\n{"a" 2}]', ('a.json:2', 'column 6')),
  'list of lists': ('a.json', '[{"a": 1}, [2]]', ('a.json row 2', 'not [2]')),
  'duplicate key in a list': ('a.json', '[{"a": 1, "a": 2}]', ('a.json:1', 'key "a" stands twice')),
  'utf-8 surrogate bytes': ('a.jsonl', b'{"a": 1}\n{"a": "\xed\xa0\x80"}\n', ('a.jsonl:2', '--config.data.encoding=')),
  'latin-1': ('a.csv', 'a\nx\nnaïve\n'.encode('latin-1'), ('a.csv:3', '0xef', '--config.data.encoding=latin-1')),
  'utf-16': ('a.csv', 'a\nx\n'.encode('utf-16'), ('a.csv:1', '--config.data.encoding=utf-16')),
  'utf-16 without a mark': ('a.csv', 'a\nx\n'.encode('utf-16-le'), ('a.csv:1', '--config.data.encoding=utf-16')),
  'ragged, short': ('a.csv', 'a,b\n1,2\n"x\ny",2\n3\n', ('a.csv:5', '1 fields', 'has 2: a, b', 'quotes')),
  'ragged, long': ('a.csv', 'a,b\n1,2,3\n', ('a.csv:2', '3 fields')),
  'unterminated quote': ('a.csv', 'a,b\n1,2\n"x,2\n3,4\n', ('a.csv:3', 'quoted field', 'twice')),
  'stray quote': ('a.csv', 'a,b\n1,2\n"x" y,2\n3,4\n', ('a.csv:3', 'quoted field', 'twice')),
  'quotes as characters': ('a.tsv', 'a\tb\n"x\t1\ny\t2\nz"\t3\n', ('a.tsv:2', 'tabs and line breaks')),
  'semicolons': ('a.csv', 'text;label\nx;y\n', ('a.csv:1', "separated by ';'", '.tsv')),
  'commas as tsv': ('a.tsv', 'text,label\nx,y\n', ('a.tsv:1', "separated by ','")),
  'empty': ('a.jsonl', '', ('a.jsonl', 'is empty')),
  'blank': ('a.csv', ' \n\n', ('a.csv', 'is empty')),
  'header only': ('a.csv', 'a,b\n', ('a.csv', 'no rows')),
  'empty list': ('a.json', '[]', ('a.json', 'no rows')),
  'not parquet': ('a.parquet', 'a,b\n1,2\n', ('a.parquet', 'parquet', 'again')),
  'not gzip': ('a.csv.gz', 'a,b\n1,2\n', ('a.csv.gz', '.gz', 'again')),
  'empty gzip': ('a.csv.gz', gzip.compress(b''), ('a.csv.gz', 'is empty')),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_files(tmp_path, case):
  name, data, parts = BAD[case]
  path = write(tmp_path / name, data)
  message = failure(read, path)
  assert [part for part in parts if part not in message] == []
  assert message == failure(open_source, path)


# pyarrow writes zstd without a checksum: nothing can tell of flipped bits
FAULTS = [(c, f) for c in sources.COMPRESSIONS for f in ('cut', 'garbage', 'flipped')[: 2 if c == '.zst' else 3]]


@pytest.mark.parametrize(('compression', 'fault'), FAULTS)
def test_corrupt_compression(tmp_path, compression, fault):
  data = packed(compression, as_bytes('.jsonl', [{'a': str(np.random.RandomState(0).rand(900))}] * 3))
  middle = len(data) // 2
  flipped = data[:middle] + bytes(b ^ 255 for b in data[middle : middle + 9]) + data[middle + 9 :]
  data = {'cut': data[:middle], 'garbage': b'no such thing' * 9, 'flipped': flipped}[fault]
  message = failure(read, write(tmp_path / f'a.jsonl{compression}', data))
  assert f'a.jsonl{compression}' in message
  assert 'fetched again' in message


def test_bad_parquet(tmp_path):
  import pyarrow as pa
  import pyarrow.parquet as pq

  pq.write_table(pa.table([['x'], ['y']], names=['a', 'a']), tmp_path / 'a.parquet')
  assert 'stand twice' in failure(read, str(tmp_path / 'a.parquet'))
  pq.write_table(pa.table({'a': ['x', 'y\0']}), tmp_path / 'b.parquet')
  assert 'b.parquet row 2: a NUL' in failure(read, str(tmp_path / 'b.parquet'))
  pq.write_table(pa.table({'a': pa.array([], pa.string())}), tmp_path / 'c.parquet')
  assert 'no rows' in failure(read, str(tmp_path / 'c.parquet'))


@pytest.mark.parametrize('encoding', ['utf-9', 'base64', 'rot13'])
def test_unknown_encoding(tmp_path, encoding):
  path = write(tmp_path / 'a.csv', 'a\n1\n')
  assert f'--config.data.encoding={encoding}' in failure(read, path, encoding=encoding)


# --- hubs


@pytest.fixture(scope='module')
def tiny_tfds(tmp_path_factory):
  """A real TFDS data set on disk, found by its name alone, written and read without TensorFlow."""
  tfds = pytest.importorskip('tensorflow_datasets')
  features = {'text': tfds.features.Text(), 'n': np.int32, 'label': tfds.features.ClassLabel(names=['neg', 'pos'])}
  features['tags'] = tfds.features.Sequence(tfds.features.ClassLabel(names=['O', 'B']))

  with tfds.core.registered.skip_registration():

    class FtlibTiny(tfds.core.GeneratorBasedBuilder):
      VERSION = tfds.core.Version('1.2.0')

      def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

      def _split_generators(self, dl_manager):
        return {'train': self._generate_examples(6), 'dev': self._generate_examples(2), 'test': self._hidden()}

      def _generate_examples(self, count):
        for i in range(count):
          yield i, {'text': f'电影 {i}', 'n': i, 'label': i % 2, 'tags': [0, 1][: i + 1]}

      def _hidden(self):
        yield 0, {'text': 'x', 'n': 0, 'label': -1, 'tags': []}

  folder = tmp_path_factory.mktemp('tfds')
  FtlibTiny(data_dir=folder, file_format='array_record').download_and_prepare()
  tfds.core.add_data_dir(folder)
  return 'tfds:ftlib_tiny'


@pytest.mark.filterwarnings('default')
def test_tfds(tiny_tfds):
  source = open_source(tiny_tfds)
  assert source.labels == {'label': ['neg', 'pos'], 'tags': ['O', 'B']}
  assert {name: len(rows) for name, rows in source.splits.items()} == {'train': 6, 'validation': 2, 'test': 1}
  rows = sorted(source.splits['train'], key=lambda r: r['n'])
  assert rows[1] == {'text': '电影 1', 'n': 1, 'label': 'pos', 'tags': ['O', 'B']}
  assert set(map(type, rows[1].values())) == {str, int, list}  # nothing of numpy
  assert source.splits['test'][0]['label'] is None
  assert source.splits['validation'].where(1) == 'tfds:ftlib_tiny dev row 2'
  assert open_source(tiny_tfds).fingerprint == source.fingerprint


@pytest.mark.filterwarnings('default')
def test_tfds_faults(tiny_tfds):
  assert 'did you mean "imdb_reviews"' in failure(open_source, 'tfds:imdb_review')
  for bad in ('tfds:', 'tfds:a b', 'tfds:glue/sst3', 'tfds:imdb_reviews:0.0.1'):
    assert 'NAME[/CONFIG][:VERSION]' in failure(open_source, bad)


class ClassLabel:
  def __init__(self, names):
    self.names = names


class FakeSplit(list):
  features = types.MappingProxyType({'text': object(), 'label': ClassLabel(['no', 'yes'])})
  info = types.SimpleNamespace(version='1.0.0')


@pytest.fixture
def fake_hub(monkeypatch):
  """The interface of the datasets library that is used here (which is not installed everywhere)."""

  def load_dataset(name, config):
    if name != 'owner/name' or config not in ('conf', None):
      raise FileNotFoundError(f"Dataset '{name}' doesn't exist on the Hub\nor cannot be accessed.")
    train = FakeSplit({'text': f't{i}{config or ""}', 'label': i % 2} for i in range(4))
    return {'train': train, 'valid': train[:1], 'validation': train[:2], 'test': [{'text': 'x', 'label': -1}]}

  fake = types.SimpleNamespace(load_dataset=load_dataset, ClassLabel=ClassLabel)
  monkeypatch.setitem(sys.modules, 'datasets', fake)


def test_hugging_face(fake_hub):
  source = open_source('hf:owner/name:conf')
  assert {s: len(rows) for s, rows in source.splits.items()} == {'train': 4, 'valid': 1, 'validation': 2, 'test': 1}
  assert source.splits['train'][1] == {'text': 't1conf', 'label': 'yes'}
  assert source.splits['test'][0] == {'text': 'x', 'label': None}
  assert source.labels == {'label': ['no', 'yes']}
  assert source.splits['train'].where(0) == 'hf:owner/name:conf train row 1'
  assert open_source('hf:owner/name').fingerprint != source.fingerprint
  message = failure(open_source, 'hf:owner/name/conf')
  assert "doesn't exist on the Hub or" in message
  assert '[OWNER/]NAME[:CONFIG]' in message


def test_hugging_face_without_its_library(monkeypatch):
  monkeypatch.setitem(sys.modules, 'datasets', None)
  assert "pip install 'ftlib[hf]'" in failure(open_source, 'hf:owner/name')
