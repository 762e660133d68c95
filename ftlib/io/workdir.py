"""The run folder: files that are whole or absent, a lock that dies with its process, and what machine ran.

Every write here survives `kill -9`: JSON files are replaced by one rename, JSON-lines files lose at most the line that
was being written, and the lock is the kernel's.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import logging
import math
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ftlib.base.errors import InputError

PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'transformers', 'numpy')

_log = logging.getLogger(__name__)


def jsonable(obj: Any) -> Any:
  """`obj` in plain JSON types: NumPy and JAX values by value, paths as text, a number that is not finite as null.

  Raises `TypeError` for anything else: the text of an object's address in a file helps nobody.
  """
  if isinstance(obj, Mapping):
    return {str(k): jsonable(v) for k, v in obj.items()}
  if isinstance(obj, (list, tuple)):
    return [jsonable(v) for v in obj]
  if isinstance(obj, (np.generic, np.ndarray, jax.Array)):
    return jsonable(np.asarray(obj).tolist())
  if isinstance(obj, float):
    return float(obj) if math.isfinite(obj) else None  # NaN is no JSON, and other readers refuse it
  if obj is None or isinstance(obj, (bool, int, str)):
    return obj
  if isinstance(obj, os.PathLike):
    return os.fspath(obj)
  raise TypeError(f'{type(obj).__name__} cannot be written as JSON: {obj!r}')


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
  """Writes `obj` (see `jsonable`), keys in the order given. A reader sees the old file or the new one, never a part."""
  _replace(Path(path), (json.dumps(jsonable(obj), indent=1, ensure_ascii=False) + '\n').encode())


def read_json(path: str | os.PathLike[str]) -> Any:
  """What `write_json` wrote. `InputError` naming the file where it is malformed, `FileNotFoundError` where absent."""
  try:
    return json.loads(Path(path).read_bytes())
  except ValueError as e:  # JSONDecodeError and UnicodeDecodeError are both ValueErrors
    raise InputError(f'{path} is not valid JSON: {e}') from e


def append_jsonl(path: str | os.PathLike[str], row: Mapping[str, Any]) -> None:
  """Adds one line. What a killed process left half written at the end is cut off first, so lines never run together."""
  with open(path, 'ab+') as f:
    _cut_partial_line(f)
    f.write(json.dumps(jsonable(row), ensure_ascii=False).encode() + b'\n')


def read_jsonl(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """All rows; [] where the file is absent. A broken last line is left out, any other is an `InputError`."""
  path = Path(path)
  lines = path.read_bytes().splitlines() if path.exists() else []
  rows = []
  for number, line in enumerate(lines, 1):
    try:
      row = json.loads(line)
      if not isinstance(row, dict):
        raise ValueError('not a JSON object')
    except ValueError as e:
      if number == len(lines):
        break
      raise InputError(f'{path}:{number} is not valid JSON: {e}') from e
    rows.append(row)
  return rows


def truncate_jsonl(path: str | os.PathLike[str], keep: Callable[[dict[str, Any]], bool]) -> None:
  """Leaves the rows that `keep` accepts, in one rename."""
  if Path(path).exists():
    rows = [json.dumps(row, ensure_ascii=False) + '\n' for row in read_jsonl(path) if keep(row)]
    _replace(Path(path), ''.join(rows).encode())


def sync_folder(path: str | os.PathLike[str]) -> None:
  """Makes renames and new names inside a folder survive a power cut."""
  fd = os.open(path, os.O_RDONLY)
  try:
    os.fsync(fd)
  finally:
    os.close(fd)


class Lock:
  """Sole use of a run folder, from construction to `close` or the process's death, however it dies.

  `workdir/.lock` holds pid, host and start time of the owner. A second process gets an `InputError` naming them.
  """

  def __init__(self, workdir: str | os.PathLike[str]):
    folder = Path(workdir)
    try:
      folder.mkdir(parents=True, exist_ok=True)
      self._file = open(folder / '.lock', 'a+', encoding='utf-8')  # noqa: SIM115 - held open; 'a' spares the owner's text
    except OSError as e:
      raise InputError(f'cannot write to run folder {folder}: {e}') from e
    try:
      fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      text = _in_use(folder, self._file)
      self._file.close()
      raise InputError(text) from None
    except OSError as e:  # some network file systems have no locks: better a run without one than no run
      _log.warning('run folder %s cannot be locked (%s): start no second run on it', folder, e)
    start = time.strftime('%Y-%m-%d %H:%M:%S')
    self._file.truncate(0)
    self._file.write(json.dumps({'pid': os.getpid(), 'host': socket.gethostname(), 'start': start}) + '\n')
    self._file.flush()

  @staticmethod
  def check(workdir: str | os.PathLike[str]) -> None:
    """Raises the `InputError` of a folder that is in use, and touches nothing."""
    file = Path(workdir) / '.lock'
    if file.is_file():
      with open(file, encoding='utf-8') as f:
        try:
          fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
          raise InputError(_in_use(workdir, f)) from None
        except OSError:
          pass  # a file system without locks

  def close(self) -> None:
    self._file.close()  # the file stays: removing it would let two processes lock two files of one name

  def __enter__(self) -> Lock:
    return self

  def __exit__(self, *exc: object) -> None:
    self.close()


def environment() -> dict[str, Any]:
  """What a run ran on: package versions, machine, devices, source commit, command line. No environment variables."""
  root = Path(__file__).resolve().parents[2]
  devices = jax.devices()
  return {
    'versions': {
      'ftlib': _version('ftlib'),
      **{p: _version(p) for p in PACKAGES},
      'python': platform.python_version(),
    },
    'platform': platform.platform(),
    'host': socket.gethostname(),
    'cpu_count': os.cpu_count(),
    'devices': {
      'backend': jax.default_backend(),
      'count': len(devices),
      'kinds': sorted({d.device_kind for d in devices}),
      'processes': jax.process_count(),
    },
    'source': git_state(root),
    'argv': list(sys.argv),
  }


def measured_on() -> dict[str, Any]:
  """`environment` for results that are published: without what names the machine or its folders."""
  return {k: v for k, v in environment().items() if k not in ('host', 'argv')}


def git_state(root: str | os.PathLike[str]) -> dict[str, Any] | None:
  """{'commit', 'dirty'} of the checkout that `root` is the top of; None where it is none, or has no commit.

  An installed package inside somebody's own repository (`project/.venv/...`) is not that repository's source.
  """
  top = _git(root, 'rev-parse', '--show-toplevel')
  commit = _git(root, 'rev-parse', 'HEAD')
  if not top or not commit or Path(top).resolve() != Path(root).resolve():
    return None
  return {'commit': commit, 'dirty': bool(_git(root, 'status', '--porcelain', '--untracked-files=no'))}


def _git(root: str | os.PathLike[str], *args: str) -> str | None:
  with contextlib.suppress(OSError, subprocess.SubprocessError):
    done = subprocess.run(['git', '-C', str(root), *args], capture_output=True, text=True, timeout=20)
    return done.stdout.strip() if done.returncode == 0 else None
  return None


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    from ftlib import __version__

    return __version__ if package == 'ftlib' else None  # a plain checkout on the path has no metadata


def _in_use(folder: str | os.PathLike[str], file: Any) -> str:
  return f'run folder {folder} is in use by {_owner(file)}; wait for it, end it, or choose another folder'


def _owner(file: Any) -> str:
  file.seek(0)
  try:
    who = json.loads(file.read())
    return f'process {who["pid"]} on {who["host"]} since {who["start"]}'
  except (ValueError, KeyError, TypeError):
    return 'another process'  # it has locked, and not written its name yet


def _replace(path: Path, data: bytes) -> None:
  temp = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
  try:
    with open(temp, 'wb') as f:
      f.write(data)
      f.flush()
      os.fsync(f.fileno())
    os.replace(temp, path)
  except BaseException:
    temp.unlink(missing_ok=True)
    raise
  sync_folder(path.parent)


def _cut_partial_line(f: Any) -> None:
  """Truncates a file opened 'ab+' after its last newline."""
  end = f.seek(0, os.SEEK_END)
  start, tail = end, b''
  while start > 0 and b'\n' not in tail:
    start = max(0, start - 4096)
    f.seek(start)
    tail = f.read(end - start)
  whole = start + tail.rfind(b'\n') + 1
  if whole < end:
    f.truncate(whole)
