"""A folder sealed with the digests of its files: later it can be told whether it still holds what was written.

`manifest.json` is {relative path: {size, sha256}} of every other file in the folder.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from ftlib.base.errors import InputError
from ftlib.io.workdir import read_json, sync_folder, write_json

NAME = 'manifest.json'


def seal(folder: Path) -> None:
  """Writes the manifest, and everything in the folder through to the disk."""
  listed = files(folder)
  listed.pop(NAME, None)
  write_json(folder / NAME, {n: {'size': p.stat().st_size, 'sha256': _sha256(p)} for n, p in listed.items()})
  for path in [*listed.values(), *(p for p in folder.rglob('*') if p.is_dir()), folder]:
    sync_folder(path)


def fault(folder: Path) -> str | None:
  """Why the folder does not hold what was sealed; None if it does, to the bit."""
  try:
    if not folder.is_dir():
      return 'not a folder'
    found = files(folder)
    if found.pop(NAME, None) is None:
      return f'{NAME} is missing' if found else 'the folder is empty'
    sealed = {n: (entry['size'], entry['sha256']) for n, entry in read_json(folder / NAME).items()}
    for name in sorted({*sealed, *found}):
      if why := _fault_of_file(name, found.get(name), sealed.get(name)):
        return why
    return None
  except (OSError, InputError, KeyError, TypeError, AttributeError) as e:
    return f'it cannot be read: {type(e).__name__}: {e}'


def files(folder: Path) -> dict[str, Path]:
  """{relative path: file} of all files below a folder."""
  return {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob('*')) if not p.is_dir()}


def remove(path: Path) -> None:
  """Deletes a folder or file if it can: what stays is swept another time."""
  if path.is_dir():
    shutil.rmtree(path, ignore_errors=True)
  else:
    path.unlink(missing_ok=True)


def rename_free(path: Path, to: Path) -> Path:
  """Renames to `to`, or to the first of `to.1`, `to.2`, ... that does not exist; gives the new path."""
  number, free = 0, to
  while free.exists():
    number += 1
    free = to.with_name(f'{to.name}.{number}')
  os.rename(path, free)
  return free


def _fault_of_file(name: str, path: Path | None, entry: tuple[int, str] | None) -> str | None:
  if path is None:
    return f'{name} is missing'
  if entry is None:
    return f'{name} does not belong there'
  size, digest = entry
  if path.stat().st_size != size:
    return f'{name} has {path.stat().st_size} bytes, not {size}'
  return None if _sha256(path) == digest else f'{name} has changed since it was written'


def _sha256(path: Path) -> str:
  with open(path, 'rb') as f:
    return hashlib.file_digest(f, 'sha256').hexdigest()
