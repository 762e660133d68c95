"""What can go wrong by a user's doing, each with the exit status that scripts rely on.

An `FtlibError` is printed on stderr without a traceback (`--traceback` shows it). Its text says what is wrong, where
(`file:line`, config field or parameter name) and what to do, in one screen.
"""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable


class FtlibError(Exception):
  """Base of every error that a user can mend."""

  exit_code = 2


class InputError(FtlibError):
  """Wrong config, data, model files or work folder; raised before compute is spent. Exit status 2."""


class Diverged(FtlibError):
  """The loss or a gradient stopped being finite. Exit status 3."""

  exit_code = 3


class Stopped(FtlibError):
  """Ended by a signal after saving. Exit status 128 + the signal's number (130 or 143)."""

  def __init__(self, message: str, *, signum: int):
    super().__init__(message)
    self.exit_code = 128 + signum


def did_you_mean(word: str, known: Iterable[str]) -> str:
  """`'; did you mean "x"?'` for the nearest of `known`, or the empty string."""
  near = difflib.get_close_matches(str(word), [str(k) for k in known], n=1, cutoff=0.6)
  return f'; did you mean "{near[0]}"?' if near else ''


def listing(items: Iterable[object], *, limit: int = 12) -> str:
  """The items one a line, indented, cut after `limit` with a count of the rest."""
  items = [str(i) for i in items]
  lines = [f'  {i}' for i in items[:limit]]
  if len(items) > limit:
    lines.append(f'  ... and {len(items) - limit} more')
  return '\n'.join(lines)


def fault(e: BaseException, *, file: str = '') -> str:
  """An exception of the user's own code as one line: 'my_lab/odd.py:12: NameError: ...', with the line below it.

  The place is that of a syntax error, else the innermost in `file` (the end of its path), else the innermost of all.
  """
  text = f'{type(e).__name__}: {" ".join(str(getattr(e, "msg", e)).split())[:300]}'
  if isinstance(e, SyntaxError) and e.filename:
    return f'{e.filename}:{e.lineno}: {text}\n  {(e.text or "").strip()}'
  frames = traceback.extract_tb(e.__traceback__)
  inside = [f for f in frames if file and f.filename.endswith(file)] or frames
  return f'{inside[-1].filename}:{inside[-1].lineno}: {text}\n  {inside[-1].line}' if inside else text
