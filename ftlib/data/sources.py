"""Reads data: a path becomes splits of plain rows, and a fault in a file is told with its line.

`open_source(path)` takes

* a folder with `train.EXT`, and `validation.EXT` (or `valid`, `val`, `dev`) and `test.EXT` where there are such;
* a single file, which becomes one split called `all`;
* `tfds:glue/sst2` - a data set of TensorFlow Datasets, as TFDS spells it: `NAME[/CONFIG][:VERSION]`;
* `hf:stanfordnlp/imdb`, `hf:nyu-mll/glue:sst2` - one of the Hugging Face hub: `[OWNER/]NAME[:CONFIG]`, always with a
  colon before the configuration, since the name itself may hold a slash;
* `package:NAME/path/inside` - a folder or file that an installed Python package ships; the package is not imported;
* a folder of nothing but .yml files with a list `conversations` (`ftlib/data/dialogues.py`), one split called `all`.

EXT is jsonl, json (a list of objects, or one object a line), csv, tsv, parquet or txt (a line is a row with the column
`text`; blank ones are passed over), each also as .gz, .bz2, .xz, .zst.
"""

from __future__ import annotations

import array
import bz2
import csv
import dataclasses
import functools
import gzip
import hashlib
import importlib.util
import io
import json
import lzma
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ftlib.base.errors import InputError, did_you_mean, listing
from ftlib.data import dialogues, hubs

EXTENSIONS = ('.jsonl', '.json', '.csv', '.tsv', '.parquet', '.txt')
COMPRESSIONS = ('.gz', '.bz2', '.xz', '.zst')
SPLITS = {'train': 'train', 'test': 'test'} | dict.fromkeys(('validation', 'valid', 'val', 'dev'), 'validation')
_PACKED = {  # how files begin that are no text
  b'\x1f\x8b': 'compressed by gzip (.gz)',
  b'BZh': 'compressed by bzip2 (.bz2)',
  b'\xfd7zXZ': 'compressed by xz (.xz)',
  b'\x28\xb5\x2f\xfd': 'compressed by zstd (.zst)',
  b'PAR1': 'Parquet (.parquet)',
  b'PK\x03\x04': 'a zip archive, which has to be unpacked, or a table of Excel, which has to be saved as .csv',
}
_KNOWN = f'{" ".join(EXTENSIONS)} (also compressed: {" ".join(COMPRESSIONS)})'
_Parsed = tuple[list[dict[str, Any]], Sequence[int]]  # rows, and the number of each in its file


@dataclasses.dataclass(frozen=True, eq=False)
class Rows(Sequence[dict]):
  """Rows by index, each a plain dict {column: value}; `where(i)` says which line of which file row `i` came from.
  `passed`: blank lines of a .txt that are no rows."""

  rows: list[dict[str, Any]] = dataclasses.field(repr=False)
  name: str  # of the split, or of the file where that was read alone
  file: str  # its path as the user gave it
  at: Sequence[int] = dataclasses.field(repr=False)  # each row's line, or its number from 1 where there are no lines
  unit: str = ':'
  passed: int = 0

  def __len__(self) -> int:
    return len(self.rows)

  def __iter__(self):
    return iter(self.rows)

  def __getitem__(self, i):
    return subset(self, range(len(self))[i]) if isinstance(i, slice) else self.rows[i]

  def where(self, i: int) -> str:
    """`'DIR/train.jsonl:17'`, or `'DIR/train.parquet row 17'` where the format has no lines."""
    return f'{self.file}{self.unit}{self.at[i]}'

  @functools.cached_property
  def columns(self) -> list[str]:
    """The names of all columns that any row has, in the order they are first seen."""
    return list(dict.fromkeys(column for row in self.rows for column in row))


@dataclasses.dataclass(frozen=True)
class Source:
  """Splits of rows, the class names of columns that come with such, and a hash that says nothing of where it lies."""

  splits: dict[str, Rows]
  labels: dict[str, list[str]]
  fingerprint: str


def subset(rows: Rows, indices: Iterable[int], *, name: str = '') -> Rows:
  """The rows at `indices`, sharing the dicts; `.where` still points at the source."""
  indices = list(indices)
  at = array.array('q', [rows.at[i] for i in indices])
  return dataclasses.replace(rows, rows=[rows.rows[i] for i in indices], name=name or rows.name, at=at)


def read(path: str, *, encoding: str = 'utf-8') -> Rows:
  """The rows of one file. Raises `InputError` with file and line for whatever is wrong with it."""
  return _read(_existing(path), path, encoding, name=Path(path).name)[0]


def open_source(path: str, *, encoding: str = 'utf-8') -> Source:
  """All splits of a folder, file or hub data set (see the module's docstring for the spellings of `path`)."""
  scheme, _, rest = path.partition(':')
  if scheme in hubs.SPELLING:
    return _hub(scheme, rest)
  place = _in_package(rest) if scheme == 'package' else _existing(path)
  if (
    place.is_dir()
    and (corpus := dialogues.files(place))
    and not any(_extension(f)[1] not in ('', '.txt') for f in place.iterdir())
  ):
    rows, digest = dialogues.read(corpus, path)
    return Source({'all': Rows(rows, 'all', path, range(1, len(rows) + 1), ' conversation ')}, {}, digest)
  files = {s: (f, os.path.join(path, f.name)) for s, f in _split_files(place).items()} if place.is_dir() else {}
  parts = {split: _read(*f, encoding, name=split) for split, f in (files or {'all': (place, path)}).items()}
  known = ''.join(f'{split} {digest}\n' for split, (_, digest) in sorted(parts.items()))
  return Source({split: rows for split, (rows, _) in parts.items()}, {}, hashlib.sha256(known.encode()).hexdigest())


def _existing(path: str) -> Path:
  if not path.strip():
    raise InputError('data.path is empty\nGive --config.data.path= a folder, a file, or a tfds:, hf: or package: name')
  place = missing = Path(os.path.expanduser(path))
  if place.exists():
    return place
  if re.match(r'[A-Za-z]\w+:', path):
    raise InputError(
      f'{path}: no such file, and the only prefixes are tfds:, hf: and package:\nWhat lies on a server has to be '
      'fetched first; give the folder or file it was saved to.'
    )
  while not missing.parent.exists():
    missing = missing.parent
  siblings = sorted(f.name for f in missing.parent.iterdir()) if missing.parent.is_dir() else []
  raise InputError(
    f'{place}: no such file or folder{did_you_mean(missing.name, siblings)}\n'
    f'{missing.parent} holds:\n{listing(siblings or ["nothing"])}\nCorrect --config.data.path=.'
  )


def _in_package(rest: str) -> Path:
  name, _, inside = rest.partition('/')
  spec = importlib.util.find_spec(name) if name.isidentifier() and name != '__main__' else None
  places = [Path(f) / inside for f in spec.submodule_search_locations or ()] if spec else []  # namespaces have several
  if not places:
    raise InputError(f'package:{rest}: no package {name} is installed\nWrite package:NAME/PATH, as in import NAME.')
  return _existing(str(next((p for p in places if p.exists()), places[0])))


def _extension(file: Path) -> tuple[str, str]:
  """(name without extensions, extension), the extension empty where it is not one that is read."""
  name = file.name.lower()
  name = name.removesuffix(next(filter(name.endswith, COMPRESSIONS), ''))
  known = next((e for e in EXTENSIONS if name.endswith(e)), '')
  return name.removesuffix(known), known


def _split_files(folder: Path) -> dict[str, Path]:
  found: dict[str, Path] = {}
  files = sorted(f for f in folder.iterdir() if f.is_file() and not f.name.startswith('.'))
  for file in files:
    stem, known = _extension(file)
    split = SPLITS.get(stem, '') if known else ''
    if split in found:
      raise InputError(f'{folder}: {found[split].name} and {file.name} are both the {split} split\nKeep one of them.')
    if split:
      found[split] = file
  if 'train' not in found:
    raise InputError(
      f'{folder}: has no train file, but holds:\n{listing(_held(folder))}\nName the files '
      f'train.EXT, and validation.EXT and test.EXT where there are such; EXT is one of {_KNOWN}.'
    )
  return {split: found[split] for split in ('train', 'validation', 'test') if split in found}


def _held(folder: Path) -> list[str]:
  return sorted(f.name + '/' * f.is_dir() for f in folder.iterdir() if not f.name.startswith('.')) or ['nothing']


def _read(file: Path, shown: str, encoding: str, *, name: str) -> tuple[Rows, str]:
  """(rows, hash of the unpacked content and of how it is read); `shown` is how messages name the file."""
  _, extension = _extension(file)
  if not extension:
    raise InputError(f'{shown}: its extension is none of those that are read: {_KNOWN}')
  parse = {
    '.jsonl': _jsonl,
    '.json': _json,
    '.csv': functools.partial(_table, separator=','),
    '.tsv': functools.partial(_table, separator='\t'),
    '.parquet': _parquet,
    '.txt': _text,
  }[extension]
  data = _bytes(file, shown)
  if not data.strip():
    raise InputError(f'{shown}: is empty')
  content = data if extension == '.parquet' else _decode(data, shown, encoding)
  rows, at = parse(content, shown)
  if not rows:
    raise InputError(f'{shown}: holds no rows')
  digest = hashlib.sha256(extension.encode() + (data if content is data else content.encode())).hexdigest()
  passed = len(content.removesuffix('\n').split('\n')) - len(rows) if extension == '.txt' else 0
  return Rows(rows, name, shown, at, ' row ' if isinstance(at, range) else ':', passed), digest


def _bytes(file: Path, shown: str) -> bytes:
  """The content, unpacked."""
  kind = file.suffix.lower()
  try:
    raw = file.read_bytes()
    if kind == '.zst':
      import pyarrow as pa

      return pa.CompressedInputStream(pa.BufferReader(raw), 'zstd').read()
    return {'.gz': gzip.decompress, '.bz2': bz2.decompress, '.xz': lzma.decompress}.get(kind, bytes)(raw)
  except Exception as e:  # each of these libraries has its own kinds
    packed = kind in COMPRESSIONS
    todo = 'A damaged or cut off file has to be fetched again' + f'; one without compression has no {kind}' * packed
    todo = 'Give it to a user who may read it' if isinstance(e, PermissionError) else todo
    raise InputError(f'{shown}: cannot be read{f" as {kind}" * packed}: {e}\n{todo}.') from e


def _decode(data: bytes, file: str, encoding: str) -> str:
  """The text without a byte order mark. Raises where the bytes are of another encoding or hold a NUL."""
  try:
    text = data.decode(encoding).removeprefix('\ufeff')
  except LookupError as e:
    raise InputError(f'--config.data.encoding={encoding}: {e}\nUsual ones: utf-8, utf-16, latin-1, gb18030.') from e
  except UnicodeDecodeError as e:
    if packed := next((what for magic, what in _PACKED.items() if data.startswith(magic)), ''):
      raise InputError(f'{file}: is no text, but {packed}; name it so, as in train.jsonl.gz or train.parquet') from e
    marked = data.startswith((b'\xff\xfe', b'\xfe\xff'))
    guess = 'utf-16' if marked else 'latin-1' if encoding.lower() in ('utf-8', 'utf8') else 'utf-8'
    raise InputError(
      f'{file}:{1 + data.count(10, 0, e.start)}: not {encoding} (byte 0x{data[e.start]:02x}: {e.reason})\nThe file may '
      f'be {guess}: set --config.data.encoding={guess} (Chinese is often gb18030), or save it as utf-8.'
    ) from e
  if (nul := text.find('\0')) >= 0:
    raise InputError(
      f'{file}:{1 + text.count(chr(10), 0, nul)}: a NUL character stands in the text\n'
      'Remove it; or, if the file is UTF-16, set --config.data.encoding=utf-16 (utf-16-le without a byte order mark).'
    )
  return text


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    keys = [k for k, _ in pairs]
    raise ValueError(f'the key "{next(k for k in keys if keys.count(k) > 1)}" stands twice in one object')
  return found


_WHOLE = 'Each line must hold one whole JSON object (a list of objects is read from a file named .json).'
_JSON = json.JSONDecoder(object_pairs_hook=_unique)
_SUSPECT = re.compile(r'\\u(0000|[dD][89a-fA-F])')  # escapes of NUL and of surrogates, paired or not


def stripped(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
  """(number from 1, line without its end) of each line; '' for a blank one."""
  for number, line in enumerate(lines, 1):
    yield number, '' if line.isspace() else line.rstrip('\r\n')


def _text(text: str, file: str) -> _Parsed:
  found = [(number, line) for number, line in stripped(text.split('\n')) if line]
  return [{'text': line} for _, line in found], array.array('q', [number for number, _ in found])


def _jsonl(text: str, file: str) -> _Parsed:
  lines = text.split('\n')  # not splitlines: a text may hold U+2028 and its like
  at = array.array('q', [number for number, line in stripped(lines) if line])
  return [json_row(lines[n - 1], f'{file}:{n}', last=n == len(lines)) for n in at], at


def json_row(line: str, where: str, *, last: bool) -> dict[str, Any]:
  """The object of a line. Raises `InputError`; `last`: nothing follows, so that it may be cut off."""
  try:
    row = _JSON.decode(line)
  except (ValueError, RecursionError) as e:
    raise _not_json(e, where, last=last) from e
  if type(row) is not dict or _SUSPECT.search(line):
    _check_row(row, where)
  return row


def _json(text: str, file: str) -> _Parsed:
  if not text.lstrip().startswith('['):
    return _jsonl(text, file)
  try:
    rows = _JSON.decode(text)
  except (ValueError, RecursionError) as e:
    raise _not_json(e, f'{file}:{getattr(e, "lineno", 1)}', last=True) from e
  for number, row in enumerate(rows, 1):
    _check_row(row, f'{file} row {number}')
  return rows, range(1, len(rows) + 1)


def _not_json(e: Exception, where: str, *, last: bool) -> InputError:
  if not isinstance(e, json.JSONDecodeError):
    return InputError(f'{where}: {e}\nCorrect the line.')
  cut = last and (e.msg.startswith('Unterminated') or e.pos >= len(e.doc.rstrip()))
  todo = 'The last line is cut off (a broken download, a full disk): fetch or write the file again.' if cut else _WHOLE
  near = e.doc[max(0, e.pos - 30) : e.pos + 30].strip()
  return InputError(f'{where}: not valid JSON at column {e.colno}: {e.msg}\n  ... {near} ...\n{todo}')


def _check_row(row: Any, where: str) -> None:
  if not isinstance(row, dict):
    raise InputError(f'{where}: an object {{"column": value, ...}} is needed, not {json.dumps(row)[:60]}\n{_WHOLE}')
  if fault := _unusable(row):
    raise InputError(f'{where}: {fault} stands in the text\nRemove it.')


def _unusable(value: Any) -> str:
  """What no tokenizer takes, anywhere in a value; empty where there is none."""
  if isinstance(value, str):
    found = re.search('[\0\ud800-\udfff]', value)
    return '' if not found else 'a NUL character' if found[0] == '\0' else f'half a surrogate pair {found[0]!a}'
  if isinstance(value, dict):
    value = [*value, *value.values()]
  return next(filter(None, map(_unusable, value)), '') if isinstance(value, list) else ''


def _table(text: str, file: str, *, separator: str) -> _Parsed:
  rows, at = [], array.array('q')
  for line, row in table_rows(io.StringIO(text, newline=''), file, separator):
    rows.append(row)
    at.append(line)
  return rows, at


def table_rows(lines: Iterable[str], file: str, separator: str) -> Iterator[tuple[int, dict[str, str]]]:
  """(the line on which it begins, the row) of each record below the header. Raises `InputError`."""
  header: list[str] = []
  line = 1  # where the record that is being read begins
  former = csv.field_size_limit(2**31 - 1)  # a long text is no fault
  reader = csv.reader(lines, delimiter=separator, strict=True)
  try:
    for record in reader:
      if not header:
        header = record
        _check_header(header, f'{file}:{line}', separator)
      elif record:
        if len(record) != len(header):
          raise InputError(
            f'{file}:{line}: {len(record)} fields, but the header has {len(header)}: {", ".join(header)[:200]}\n'
            'Put double quotes around fields that hold the separator, a quote or a line break.'
          )
        if separator == '\t' and reader.line_num > line and any('\t' in f and '\n' in f for f in record):
          raise csv.Error('it holds tabs and line breaks')  # a quote that was meant as a character swallowed rows
        yield line, dict(zip(header, record))
      line = reader.line_num + 1
  except csv.Error as e:
    raise InputError(
      f'{file}:{line}: a quoted field of the record that begins here does not end as it should ({e})\n'
      'Write a double quote inside a field twice, with quotes around the field, or save the data as .jsonl.'
    ) from e
  finally:
    csv.field_size_limit(former)


def _check_header(names: Sequence[str], where: str, separator: str = '') -> None:
  if separator and len(names) == 1 and (other := re.search(r'[;\t,|]', names[0])):
    raise InputError(
      f'{where}: the columns seem to be separated by {other[0]!r}, not {separator!r}: {names[0][:80]}\n'
      'Save the file with commas as .csv or with tabs as .tsv.'
    )
  if twice := sorted({n for n in names if names.count(n) > 1}):
    raise InputError(f'{where}: column names stand twice:\n{listing(twice)}\nRename or remove one of each.')


def _parquet(data: bytes, file: str) -> _Parsed:
  import pyarrow as pa
  import pyarrow.parquet as pq

  try:
    table = pq.ParquetFile(pa.BufferReader(data))
    _check_header(table.schema_arrow.names, file)
    rows = table.read().to_pylist()
  except (pa.ArrowException, OSError, UnicodeDecodeError) as e:
    raise InputError(f'{file}: cannot be read as parquet: {str(e)[:200]}\nFetch or write the file again.') from e
  for number, row in enumerate(rows, 1):
    _check_row(row, f'{file} row {number}')
  return rows, range(1, len(rows) + 1)


def _hub(scheme: str, name: str) -> Source:
  path, splits = f'{scheme}:{name}', {}
  found, labels, digest = hubs.read(scheme, name)
  for split, rows in found.items():
    known = split if SPLITS.get(split) in found else SPLITS.get(split, split)
    splits[known] = Rows(rows, known, f'{path} {split}', range(1, len(rows) + 1), ' row ')
  return Source(splits, labels, digest)
