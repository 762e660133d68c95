"""What a run writes down and shows: metrics.jsonl, TensorBoard events, and a bar or plain lines for people.

metrics.jsonl is the record; TensorBoard gets the same numbers. What people read goes to stdout, warnings to stderr. Of
several JAX processes the first one writes and shows, the others are silent.
"""

from __future__ import annotations

import contextlib
import logging
import numbers
import os
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tqdm
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter
from tqdm.contrib.logging import logging_redirect_tqdm

from ftlib.io.workdir import append_jsonl, truncate_jsonl

_FLUSH_SECONDS = 10.0
_COLUMNS = 80  # of a terminal that tells none
_LEAST_BAR = 10  # columns; a terminal with less room beside the numbers gets the numbers alone

_log = logging.getLogger(__name__)


class Log:
  """The metrics and the progress display of one run in `workdir`.

  `total` is the number of training steps; without a terminal a progress line is printed each `every` of them. Faults
  of the disk cost a warning and the rows they hit, never the training.
  """

  def __init__(self, workdir: str | os.PathLike[str], *, total: int | None = None, every: int = 10):
    self._folder = Path(workdir)
    self._on = jax.process_index() == 0
    self._total, self._every = total, max(1, every)
    self._first = 0  # the step this process started from
    self._events: _Events | None = None
    self._warned: set[str] = set()
    self._bar: Any = None
    self._open = contextlib.ExitStack()  # what the bar takes over until it is closed
    if self._on:
      self._folder.mkdir(parents=True, exist_ok=True)

  def resume(self, step: int) -> None:
    """Drops rows later than `step`, here and in TensorBoard: they will be written again. -1 drops all."""
    self._first = max(0, step)
    if self._on:
      truncate_jsonl(self._path, lambda row: row['step'] <= step)
      self._open_events(purge_step=step + 1)

  def row(self, step: int, split: str, values: Mapping[str, Any]) -> None:
    """Writes {'step', 'split', **values} as a line of metrics.jsonl and the numbers, as `split/name`, to TensorBoard.

    Numbers may be Python's, NumPy's or 0-d arrays; one that is not finite is null in the file.
    """
    if clash := {'step', 'split'} & set(values):
      raise ValueError(f'a metric may not be called {" or ".join(sorted(clash))}')
    if not self._on:
      return
    plain = {name: _plain(v) for name, v in values.items()}
    with self._tolerant('metrics.jsonl'):
      append_jsonl(self._path, {'step': int(step), 'split': split, **plain})
    if self._events is None:
      self._open_events(purge_step=None)
    with self._tolerant('TensorBoard events'):
      self._events.write(step, {f'{split}/{n}': v for n, v in plain.items() if isinstance(v, numbers.Real)})

  def progress(
    self,
    step: int,
    *,
    loss: float | None = None,
    learning_rate: float | None = None,
    tokens_per_second: float | None = None,
    seconds_left: float | None = None,
  ) -> None:
    """Shows that `step` is done: moves the bar, or prints a line if it is one of each `every` (or the last)."""
    if not self._on:
      return
    parts = [] if loss is None else [f'loss {loss:.4f}']
    parts += [] if learning_rate is None else [f'lr {learning_rate:.1e}']
    parts += [] if tokens_per_second is None else [f'{count(tokens_per_second)} tokens/s']
    parts += [] if seconds_left is None or step == self._total else [f'left {clock(seconds_left)}']
    if sys.stdout.isatty():
      first, self._bar = self._bar is None, self._bar or self._open_bar()
      self._bar.bar_format = _fitted(step, self._total, parts, self._bar.format_dict['ncols'])
      self._bar.update(step - self._bar.n)
      if first:
        self._bar.refresh()
    elif step % self._every == 0 or step == self._total:
      self.say('  '.join([f'step {step}/{self._total}' if self._total else f'step {step}', *parts]))

  def say(self, text: str) -> None:
    """Prints a line on stdout, above the bar if there is one."""
    if self._on and self._bar is not None:
      self._bar.write(text, file=sys.stdout)
    elif self._on:
      print(text, flush=True)

  def close(self) -> None:
    """Leaves the bar as it stands and closes the events; rows may still be written, to new ones."""
    if self._bar is not None:
      self._bar.close()
      self._bar = None
    self._open.close()
    if self._events is not None:
      with self._tolerant('TensorBoard events'):
        self._events.close()
      self._events = None

  def __enter__(self) -> Log:
    return self

  def __exit__(self, *exc: object) -> None:
    self.close()

  def _open_bar(self) -> Any:
    self._open.enter_context(logging_redirect_tqdm())  # a warning stands above the bar and not in it
    start = {'total': self._total, 'initial': self._first, 'bar_format': '{desc}'}  # nothing, until it is moved
    bar = tqdm.tqdm(file=sys.stdout, dynamic_ncols=True, miniters=1, **start)
    if not bar.ncols:  # a terminal that does not tell its width, on which nothing would be shown
      bar.dynamic_ncols, bar.ncols = False, _COLUMNS
    return bar

  @property
  def _path(self) -> Path:
    return self._folder / 'metrics.jsonl'

  def _open_events(self, *, purge_step: int | None) -> None:
    if self._events is not None:
      with self._tolerant('TensorBoard events'):
        self._events.close()
    self._events = _Events(self._folder / 'tensorboard', purge_step=purge_step)

  @contextlib.contextmanager
  def _tolerant(self, what: str) -> Any:
    try:
      yield
    except OSError as e:
      if what not in self._warned:
        self._warned.add(what)
        _log.warning(
          '%s in %s cannot be written (%s); training goes on, later rows may be missing', what, self._folder, e
        )


class _Events:
  """A TensorBoard event file, opened at the first write, given up for good at the first `OSError` (which it raises).

  Written in the calling thread. tensorboardX's SummaryWriter writes in one of its own, which dies of a full disk; the
  queue to it then fills, and the eleventh row blocks the training for ever.
  """

  def __init__(self, folder: Path, *, purge_step: int | None):
    self._folder, self._purge_step = folder, purge_step
    self._file: RecordWriter | None = None
    self._broken = False
    self._flushed = 0.0

  def write(self, step: int, values: Mapping[str, float]) -> None:
    if self._broken or not values:
      return
    try:
      self._file = self._file or self._open()
      for tag, value in values.items():
        self._put(step=int(step), summary=summary.scalar(tag, float(value)))
      if time.monotonic() - self._flushed > _FLUSH_SECONDS:
        self._file.flush()
        self._flushed = time.monotonic()
    except OSError:
      self._broken = True  # a record may be half written, and no reader gets past that
      with contextlib.suppress(OSError):
        self.close()
      raise

  def close(self) -> None:
    if self._file is not None:
      file, self._file = self._file, None
      file.close()

  def _open(self) -> RecordWriter:
    self._folder.mkdir(parents=True, exist_ok=True)
    # Process and time in the name: a run resumed within a second would else write over the file it continues.
    name = f'events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}.{time.time_ns()}'
    self._file = RecordWriter(str(self._folder / name))
    self._put(file_version='brain.Event:2')
    if self._purge_step is not None:  # readers drop earlier events from this step on
      self._put(step=self._purge_step, session_log=SessionLog(status=SessionLog.START))
    return self._file

  def _put(self, **event: Any) -> None:
    self._file.write(Event(wall_time=time.time(), **event).SerializeToString())


def _fitted(step: int, total: int | None, parts: list[str], columns: int) -> str:
  """tqdm's format of one line of `columns`: a bar and all parts; in less room no bar, then fewer parts (the learning
  rate goes first, the loss last)."""
  head = f'{step}/{total}' if total else f'step {step}'
  whole = '  '.join([head, *parts])
  if total and len(whole) + len('100%|| ') + _LEAST_BAR < columns:
    return f'{{percentage:3.0f}}%|{{bar}}| {whole}'
  if len(whole) < columns:
    return whole
  parts = list(parts)
  while parts and len(' '.join([head, *parts])) >= columns:
    parts.pop(min(1, len(parts) - 1))
  return ' '.join([head, *parts])


def count(number: float) -> str:
  """'950', '4.2k', '1.3M'."""
  for size, letter in ((1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
    if number >= 0.9995 * size:
      return f'{number / size:.1f}{letter}'
  return f'{number:.0f}'


def clock(seconds: float) -> str:
  """'1:32', '2:05:00'."""
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02d}:{rest:02d}' if hours else f'{minutes}:{rest:02d}'


def _plain(value: Any) -> Any:
  return np.asarray(value).item() if isinstance(value, (jax.Array, np.ndarray, np.generic)) else value
