"""Checkpoints: saved behind the training's back, committed by one rename, verified byte for byte when restored.

    <folder>/<step>/state/           what Orbax wrote
                    meta.json        step, metric, {leaf: spec} and the caller's meta
                    manifest.json    {file: {size, sha256}} of all of the above
    <folder>/<step>.saving/          a save that was never committed; swept at the next start
    <folder>/<step>.deleting/        retention was interrupted here; swept too
    <folder>/<step>.replaced/        the former save of a step that is being saved again; put back if that failed
    <folder>/<step>.corrupt/         set aside by `restore`: its bytes are not those that were saved

Orbax writes the arrays. It neither notices a flipped bit nor falls back to an older step, and its CheckpointManager
commits before the bytes can be digested; so the commit, the manifest and the choice of a step are made here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import re
import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from ftlib.base import trees
from ftlib.base.errors import FtlibError, InputError, listing
from ftlib.io import leaves, manifest
from ftlib.io.workdir import jsonable, read_json, sync_folder, write_json

FORMAT = 1
_STEP = re.compile(r'0|[1-9]\d*')
_LEFTOVER = re.compile(r'(\d+)\.(saving|deleting|replaced)')

_log = logging.getLogger(__name__)


def _not_noise(record: logging.LogRecord) -> bool:
  """Orbax logs its progress, and each failure as screens of traceback that `SaveFailed` carries as its cause."""
  return 'orbax' not in record.pathname or (record.levelno >= logging.WARNING and not record.exc_info)


logging.getLogger('absl').addFilter(_not_noise)


class SaveFailed(FtlibError):
  """A checkpoint could not be written, and neither could it at a second try."""


@dataclasses.dataclass(frozen=True)
class Restored:
  """A state on the devices asked for, the step it was saved at and the `meta` given with it."""

  step: int
  state: Any
  meta: dict[str, Any]


class Checkpoints:
  """The checkpoints of one run, in `folder`, of which the newest `keep_last` and the best `keep_best` are kept.

  One process may write (`workdir.Lock` sees to it); any number may read with `readonly=True`, which never renames,
  sweeps or deletes anything. Use it as a context manager, or call `close`: a save still in progress when the
  interpreter exits may be lost (the steps before it are not).

  Several JAX processes: all must call `save` and `restore` together, on a folder that they share; saving then blocks,
  and is not tried twice. Process 0 alone commits, sweeps and sets aside. Tried by hand with two CPU processes on one
  machine (saving, replacing, falling back, reading back with one process); not in the test suite, and not on two hosts.
  """

  def __init__(
    self,
    folder: str | os.PathLike[str],
    *,
    keep_last: int = 1,
    keep_best: int = 1,
    higher_is_better: bool = True,
    readonly: bool = False,
  ):
    if keep_last < 1 or keep_best < 0:
      raise ValueError(f'keep_last={keep_last} must be at least 1 and keep_best={keep_best} at least 0')
    self._folder = Path(folder).absolute()
    self._keep_last, self._keep_best = keep_last, keep_best
    self._higher_is_better = higher_is_better  # of what is saved here; a step's own is in its meta.json
    self._readonly = readonly
    self._owner = not readonly and jax.process_index() == 0  # the one that changes names in the folder
    self._thread: threading.Thread | None = None
    self._failure: SaveFailed | None = None
    self._commits = 0
    self._orbax = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    if self._owner:
      try:
        self._folder.mkdir(parents=True, exist_ok=True)
        _sweep(self._folder)
      except OSError as e:
        raise InputError(f'cannot write checkpoints to {self._folder}: {e}') from e

  # Saving.

  def save(self, step: int, state: Any, meta: dict[str, Any], *, metric: float | None = None) -> None:
    """Starts saving a pytree of arrays and returns once it is copied to the host: the arrays may then be donated.

    `meta` is JSON-able and comes back from `restore`; `metric` ranks the step for `best` (NaN and infinities do not).
    A step that exists is replaced. Waits for the save before. Where that one failed, this one is waited for as well
    and raises `SaveFailed` if it fails too: one failure costs a warning, two in a row end the run.
    """
    if self._readonly:
      raise ValueError(f'checkpoints in {self._folder} were opened readonly')
    named = leaves.named(state)
    specs = {n: leaves.spec(x) for n, x in named.items()}
    rank = {'metric': metric, 'higher_is_better': self._higher_is_better}
    doc = jsonable({'format': FORMAT, 'step': int(step), **rank, 'leaves': specs, 'meta': meta})
    self._join()
    earlier, self._failure = self._failure, None
    several = jax.process_count() > 1
    named = {n: x for n, x in named.items() if x.size}  # Orbax refuses empty arrays; `restore` makes them anew
    tree = trees.unflatten(named if several else leaves.snapshot(named))
    tries = 1 if several else 2
    self._thread = threading.Thread(target=self._write, args=(int(step), tree, doc, tries), name='checkpoint')
    self._thread.start()
    if several or earlier:
      self.wait()

  def wait(self) -> None:
    """Returns when the last save is committed. Raises `SaveFailed` if it could not be."""
    self._join()
    failure, self._failure = self._failure, None
    if failure:
      raise failure

  def close(self) -> None:
    """`wait`, then lets go of Orbax's resources."""
    try:
      self.wait()
    finally:
      self._orbax.close()

  def __enter__(self) -> Checkpoints:
    return self

  def __exit__(self, kind: object, error: object, traceback: object) -> None:
    try:
      self.close()
    except SaveFailed as e:
      if error is None:
        raise
      _log.warning('%s', e)  # the error to show is the one that stopped the run

  def _join(self) -> None:
    if self._thread:
      self._thread.join()
      self._thread = None

  def _write(self, step: int, tree: Any, doc: dict[str, Any], tries: int) -> None:
    """The background thread: writes, digests, commits, clears up. Never raises."""
    for left in reversed(range(tries)):
      try:
        self._commit(step, tree, doc)
        break
      except Exception as e:  # any fault of Orbax, tensorstore or the disk: the training is worth more than a save
        what = f'checkpoint of step {step} could not be saved in {self._folder}: {_brief(e)}'
        _log.warning('%s; %s', what, 'trying once more' if left else 'the steps before it are kept')
        if self._owner:
          with contextlib.suppress(OSError):
            _sweep(self._folder)
        if not left:
          self._failure = SaveFailed(f'{what}\nFree disk space or mend the folder, then start again to resume.')
          self._failure.__cause__ = e
          return
    if self._owner:
      try:
        self._retain(step)
      except OSError as e:
        _log.warning('old checkpoints in %s were not cleared up: %s', self._folder, e)

  def _commit(self, step: int, tree: Any, doc: dict[str, Any]) -> None:
    saving, final = self._folder / f'{step}.saving', self._folder / str(step)
    former = self._folder / f'{step}.replaced'
    if self._owner:
      manifest.remove(saving)
      saving.mkdir(parents=True)
    self._orbax.save(saving / 'state', args=ocp.args.PyTreeSave(tree))
    if self._owner:
      write_json(saving / 'meta.json', doc)
      manifest.seal(saving)
      if final.exists():
        manifest.remove(former)
        os.rename(final, former)
      os.rename(saving, final)
      sync_folder(self._folder)
      manifest.remove(former)
    self._commits += 1
    ocp.multihost.sync_global_processes(f'ftlib_checkpoint_commit_{self._commits}')

  def _retain(self, newest: int) -> None:
    """Deletes what retention does not keep; never `newest`, the step just digested from disk and committed."""
    keep = {newest, *self.steps()[-self._keep_last :], *self._ranked()[: self._keep_best]}
    for step in self.steps():
      if step not in keep:
        doomed = self._folder / f'{step}.deleting'
        manifest.remove(doomed)
        os.rename(self._folder / str(step), doomed)  # in one move: no reader meets half a step
        manifest.remove(doomed)

  # What there is.

  def steps(self) -> list[int]:
    """Committed steps, ascending."""
    return [s for s in self._candidates() if (self._folder / str(s) / manifest.NAME).is_file()]

  def best(self) -> int | None:
    """The step with the best metric, the earliest of equals; None where no step has one."""
    return next(iter(self._ranked()), None)

  def size(self, step: int) -> int:
    """Bytes on disk."""
    return sum(p.stat().st_size for p in manifest.files(self._folder / str(step)).values())

  def _candidates(self) -> list[int]:
    names = [p.name for p in self._folder.iterdir()] if self._folder.is_dir() else []
    return sorted(int(n) for n in names if _STEP.fullmatch(n))  # by number: clocks go wrong

  def _ranked(self) -> list[int]:
    """Steps that have a metric, best first."""
    scores = {}
    for step in self.steps():
      try:
        doc = read_json(self._folder / str(step) / 'meta.json')
        if doc['metric'] is not None:
          scores[step] = float(doc['metric']) * (1 if doc.get('higher_is_better', True) else -1)
      except (OSError, InputError, KeyError, TypeError, ValueError):
        continue  # corrupt, which is for `restore` to say
    return sorted(scores, key=lambda s: (-scores[s], s))

  # Restoring.

  def restore(self, target: Any, *, step: int | None = None) -> Restored | None:
    """The newest step whose bytes are those that were saved, or exactly `step`; None where none was ever committed.

    `target` is the state's pytree with a `jax.ShapeDtypeStruct` (or array) in place of each array; a leaf comes back
    on the `sharding` it names, whatever the devices it was saved from, or uncommitted where it names none.

    Steps that fail are named in a warning and renamed to `<step>.corrupt` (not when `readonly`). A step that verifies
    and that Orbax still cannot load is passed over too, but keeps its name: memory may be short, the bytes are good.
    Raises `InputError` where tree, shapes or dtypes differ from `target`, where no step is left although there were
    some, and where the `step` asked for is absent or corrupt.
    """
    self._join()
    wanted = leaves.named(target)
    if step is not None:
      return self._restore_exactly(int(step), target, wanted)
    corrupt: dict[int, str] = {}
    unloadable: dict[int, str] = {}
    while (found := max(set(self._candidates()) - {*corrupt, *unloadable}, default=None)) is not None:
      failed, why = corrupt, self._fault(found)
      if why is None:
        try:
          restored = self._load(found, target, wanted)
        except FtlibError:
          raise
        except Exception as e:
          failed, why = unloadable, f'its bytes are good, but loading them failed: {_brief(e)}'
        else:
          self._set_aside(corrupt, unloadable, found)
          return restored
      if os.path.lexists(self._folder / str(found)):  # else the writer's retention overtook this reader
        failed[found] = why
    if reasons := self._reasons(corrupt | unloadable):
      raise InputError(
        f'no checkpoint in {self._folder} can be restored:\n{listing(reasons)}\n'
        'Bring one of them back from a copy, or delete that folder to begin anew.'
      )
    return None

  def _restore_exactly(self, step: int, target: Any, wanted: dict[str, Any]) -> Restored:
    fault = self._fault(step) if (self._folder / str(step)).exists() else 'there is none'
    if fault is None:
      return self._load(step, target, wanted)
    others = ', '.join(str(s) for s in self.steps() if s != step) or 'none'
    raise InputError(f'checkpoint of step {step} in {self._folder}: {fault}; other steps there: {others}')

  def _fault(self, step: int) -> str | None:
    """Why `step` is corrupt; None if it is not."""
    path = self._folder / str(step)
    if why := manifest.fault(path):
      return why
    try:
      held = read_json(path / 'meta.json')['step']
    except (OSError, InputError, KeyError, TypeError) as e:
      return f'meta.json cannot be read: {_brief(e)}'
    return None if held == step else f'it holds step {held}'

  def _load(self, step: int, target: Any, wanted: dict[str, Any]) -> Restored:
    path = self._folder / str(step)
    doc = read_json(path / 'meta.json')
    if doc['format'] > FORMAT:
      raise InputError(f'checkpoint {path} was written by a newer ftlib (format {doc["format"]}, here {FORMAT})')
    if wrong := leaves.differences(doc['leaves'], {n: leaves.spec(x) for n, x in wanted.items()}):
      raise InputError(
        f'checkpoint {path} does not fit this run:\n{listing(wrong)}\n'
        'It was written with another model, method or optimizer, or by an older ftlib: use the config and the version '
        'it was made with, or a new folder.'
      )
    stored = {n: x for n, x in wanted.items() if x.size}
    item = trees.unflatten({n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in stored.items()})
    how = trees.unflatten({n: leaves.restore_args(n, x) for n, x in stored.items()})
    flat = trees.flatten(self._orbax.restore(path / 'state', args=ocp.args.PyTreeRestore(item, restore_args=how)))
    empty = {n: jnp.zeros(x.shape, x.dtype) for n, x in wanted.items() if not x.size}
    arrays = [jnp.asarray((flat | empty)[n]) for n in wanted]
    return Restored(step, jax.tree.unflatten(jax.tree.structure(target), arrays), doc['meta'])

  def _set_aside(self, corrupt: dict[int, str], unloadable: dict[int, str], used: int) -> None:
    for step, reason in sorted((corrupt | unloadable).items(), reverse=True):
      fate = 'left as it is'
      if step in corrupt and self._owner:
        try:
          moved = manifest.rename_free(self._folder / str(step), self._folder / f'{step}.corrupt')
          fate = f'set aside as {moved.name}'
        except OSError as e:
          fate = f'left as it is ({e})'
      _log.warning('checkpoint of step %d in %s: %s; %s, using step %d', step, self._folder, reason, fate, used)

  def _reasons(self, failed: dict[int, str]) -> list[str]:
    """Why nothing can be restored, a line a step; also of those that an earlier start set aside."""
    aside = sorted(self._folder.glob('*.corrupt*')) if self._folder.is_dir() else []
    lines = [f'step {step}: {reason}' for step, reason in sorted(failed.items())]
    return lines + [f'{p.name}: {manifest.fault(p) or "set aside by an earlier start"}' for p in aside]


def _sweep(folder: Path) -> None:
  """Removes what interrupted saves and deletions left; a step whose replacement never came is put back."""
  for path in list(folder.iterdir()):
    if match := _LEFTOVER.fullmatch(path.name):
      step = folder / match[1]
      if match[2] == 'replaced' and not step.exists():
        os.rename(path, step)
      else:
        manifest.remove(path)


def _brief(error: BaseException) -> str:
  """An exception in one line of some 300 characters, beginning and end: Orbax's own run over screens."""
  text = ' '.join(str(error).split())
  return f'{type(error).__name__}: {text if len(text) <= 320 else text[:120] + " ... " + text[-190:]}'
