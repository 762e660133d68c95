"""The head of a GGUF file: metadata and the table of tensors, by the format's published specification (versions 2, 3).

Read here and not by `gguf.GGUFReader`, which makes several NumPy arrays of every token of the vocabulary: seconds
where this takes tenths. `ftlib/io/gguf.py` reads the tensors, `ftlib/data/gguf_tokenizer.py` the tokenizer.
"""

from __future__ import annotations

import dataclasses
import mmap
import pathlib
import struct
from typing import Any

from ftlib.base.errors import InputError

_MAGIC = b'GGUF'
_VERSIONS = (2, 3)
_NUMBERS = {0: 'B', 1: 'b', 2: 'H', 3: 'h', 4: 'I', 5: 'i', 6: 'f', 7: '?', 10: 'Q', 11: 'q', 12: 'd'}
_STRING, _ARRAY = 8, 9
_DIMENSIONS = 8


@dataclasses.dataclass(frozen=True)
class Tensor:
  """`shape` as NumPy has it (rows first), `kind` the number of a ggml type, `offset` in bytes from the data's start."""

  shape: tuple[int, ...]
  kind: int
  offset: int


@dataclasses.dataclass(frozen=True)
class Header:
  """`metadata` {key: number, string, or list of them}; `start`: byte of the file at which the tensors' data begins."""

  metadata: dict[str, Any]
  tensors: dict[str, Tensor]
  start: int


def read(path: pathlib.Path) -> Header:
  """The header of a file. Raises `InputError` for a git-lfs pointer, another format, a file that ends too early."""
  try:
    size = path.stat().st_size
    with path.open('rb') as f:
      head = f.read(64)
      if head[:4] != _MAGIC:
        raise InputError(_foreign(path, head, size))
      with mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _read(_Cursor(data))
  except OSError as e:
    raise InputError(f'{path} cannot be read: {e}') from e
  except struct.error as e:
    raise InputError(f'{path} is truncated: its {size} bytes end within the header; fetch it again') from e
  except ValueError as e:
    raise InputError(f'{path} cannot be read as GGUF: {e}') from e


def _foreign(path: pathlib.Path, head: bytes, size: int) -> str:
  if head.startswith(b'version https://git-lfs'):
    return f'{path} is a git-lfs pointer, not the weights; run `git lfs pull` in its folder'
  return f'{path} ({size} bytes) is no GGUF file: it does not begin with {_MAGIC.decode()!r}'


class _Cursor:
  """Reads on from where it stands; `struct.error` at the end of the data."""

  def __init__(self, data: mmap.mmap):
    self.data, self.at = data, 0

  def numbers(self, code: str, count: int = 1) -> tuple[Any, ...]:
    layout = f'<{count}{code}'
    if self.at + struct.calcsize(layout) > len(self.data):
      raise struct.error('end of data')
    values = struct.unpack_from(layout, self.data, self.at)
    self.at += struct.calcsize(layout)
    return values

  def number(self, code: str) -> Any:
    return self.numbers(code)[0]

  def string(self) -> str:
    length = self.number('Q')
    if self.at + length > len(self.data):
      raise struct.error('end of data')
    self.at += length
    return self.data[self.at - length : self.at].decode('utf-8')

  def value(self, kind: int) -> Any:
    if kind in _NUMBERS:
      return self.number(_NUMBERS[kind])
    if kind == _STRING:
      return self.string()
    if kind != _ARRAY:
      raise ValueError(f'metadata of type {kind} is not known')
    inner, count = self.number('I'), self.number('Q')
    if count > len(self.data):
      raise struct.error('end of data')
    if inner in _NUMBERS:
      return list(self.numbers(_NUMBERS[inner], count))
    if inner != _STRING:
      raise ValueError(f'metadata arrays of type {inner} are not known')
    return [self.string() for _ in range(count)]


def _read(cursor: _Cursor) -> Header:
  cursor.at = len(_MAGIC)
  version = cursor.number('I')
  if version not in _VERSIONS:
    kind = 'it is big-endian' if not version & 0xFFFF else f'it is of version {version}'
    raise ValueError(f'{kind}; versions {" and ".join(map(str, _VERSIONS))} are read, little-endian')
  tensors, keys = cursor.numbers('Q', 2)
  metadata: dict[str, Any] = {}
  for _ in range(keys):
    key = cursor.string()
    metadata[key] = cursor.value(cursor.number('I'))
  table: dict[str, Tensor] = {}
  for _ in range(tensors):
    name, dimensions = cursor.string(), cursor.number('I')
    if dimensions > _DIMENSIONS or name in table:
      raise ValueError(f'the tensor {name!r} is there twice or has {dimensions} dimensions')
    shape = cursor.numbers('Q', dimensions)
    table[name] = Tensor(shape[::-1], cursor.number('I'), cursor.number('Q'))
  align = metadata.get('general.alignment', 32)
  if not isinstance(align, int) or align <= 0:
    raise ValueError(f'general.alignment={align!r} is no number of bytes')
  return Header(metadata, table, -(-cursor.at // align) * align)
