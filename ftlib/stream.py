"""A trained run over the rows of any file, a piece at a time: read, checked, tokenised, answered, and let go.

Of the run, its folder and the base model suffice: its data need not be there.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from ftlib import examples, folder, generators, judge, reference, thresholds
from ftlib import run as runs
from ftlib.base.errors import Diverged, InputError, did_you_mean, listing
from ftlib.base.types import Batch, Params
from ftlib.data import batches, cleaning, tokens
from ftlib.data.batches import Examples
from ftlib.data.columns import Unusable, sound, spared
from ftlib.data.incoming import PIECE, Incoming
from ftlib.data.labels import CHECKS, FAULTS, PART, Columns
from ftlib.data.sources import Rows, subset
from ftlib.evals import evaluate
from ftlib.run import Run
from ftlib.tasks.task import Task, unlabelled

Answered = tuple[Rows, Examples, dict[str, Any]]  # rows, what they were made into, predictions of each row


@dataclasses.dataclass(frozen=True)
class Stream:
  """A run with parameters. `labelled`: whether rows have labels, else any in them are not looked at. `skip`: whether
  rows that cannot be used are passed over, up to as many of a file as of a split. `notes` grows by what was found in
  the rows; `edges` are lengths that batches were padded to so far, `seen` the columns of a file so far."""

  run: Run
  own: Params
  frozen: Params
  labelled: bool = False
  skip: bool = False
  notes: list[str] = dataclasses.field(default_factory=list)
  edges: list[int] = dataclasses.field(default_factory=list)
  seen: set[str] = dataclasses.field(default_factory=set)

  @property
  def columns(self) -> Columns:
    """What the task reads."""
    s = self.run.settings
    return Columns(*s.modules['task'].columns(s.task))

  def over(self, incoming: Incoming) -> Iterator[Answered]:
    """The answers to a file, piece by piece; all at once where rows are compared with each other (retrieve). Raises
    `InputError` with file and line, in the end where too many rows cannot be used."""
    coupled = getattr(self.run.settings.modules['objective'], 'COUPLED', False)
    unusable, file = Unusable(self.skip, '--on_bad_row'), incoming.path
    count, long, windows = 0, 0, None
    self.seen.clear()
    for rows in incoming.pieces(size=sys.maxsize if coupled else PIECE):
      file, checked = rows.file, self.checked(rows, unusable)
      if len(checked):
        rows, made, predictions = self.answered(checked)
        count, long = count + len(rows), long + made.tokens.truncated
        if made.windows is not None:
          windows = (windows or 0) + len(made) - len(rows) + made.tokens.truncated
        yield rows, made, predictions
    self.notes.extend(unusable.note(file))
    if long:
      self.notes.append(examples.cut_note(incoming.name, long, count, windows, limit=self.run.limit))

  def checked(self, rows: Rows, unusable: Unusable) -> Rows:
    """The rows as the task takes them, those that cannot be used left out or an `InputError`; where there are several
    tasks at once, as the row's own does."""
    columns = self.columns
    rows = self._checked(rows, columns, self.run.task, unusable)
    if columns.parts is None:
      return rows
    found: dict[int, dict] = {}  # by line
    for name, (_, own) in columns.parts.items():
      part = subset(rows, [i for i, row in enumerate(rows) if row[PART] == name])
      unusable.total -= len(part)  # counted with the whole
      try:
        part = self._checked(part, own, self.run.task.tasks[name], unusable) if len(part) else part
      except InputError as e:
        raise InputError(f'part {name} of task.parts: {e}') from None
      found |= zip(part.at, part)
    at = sorted(found)
    return dataclasses.replace(rows, rows=[found[i] for i in at], at=at)

  def _checked(self, rows: Rows, columns: Columns, task: Task, unusable: Unusable) -> Rows:
    self.seen.update(rows.columns)  # a piece may lack what others have: its rows cannot be used, then
    for field, column in zip(columns.fields, [*columns.texts, *([columns.label] if self.labelled else [])]):
      if column and column not in self.seen and column not in (columns.spare or {}):
        raise InputError(
          f'{rows.file} has no column "{column}", which the run reads (task.{field})'
          f'{did_you_mean(column, rows.columns)}\nIts columns:\n{listing(rows.columns)}\nRename one of them.'
        )
    splits = spared({rows.name: rows}, columns.spare or {}, self.notes)
    splits = cleaning.cleaned(splits, columns.texts, self.run.settings.data.clean, [], how=columns.cleaned)
    if columns.label and not self.labelled:
      filled = unlabelled(task, splits[rows.name], columns)
      splits = {rows.name: dataclasses.replace(rows, rows=filled)}
    splits = sound(splits, columns, FAULTS.get(columns.kind), group='', unusable={rows.name: unusable})
    return (CHECKS[columns.kind](splits, columns.label, self.notes) if columns.label else splits)[rows.name]

  def answered(self, rows: Rows) -> Answered:
    """The rows that the task takes, what it makes of them, and the model's predictions of each. Raises `Diverged` where
    these are not finite."""
    run = self.run
    found = run.task.examples(rows, run.tokenizer, limit=run.limit)
    arch = run.method.model.config
    tokens.check_ids(
      found.tokens, vocab=arch.vocab, types=arch.types, where=f'{run.settings.model.pretrained} on {rows.file}'
    )
    if found.rows is not None:
      rows, found = subset(rows, found.rows), dataclasses.replace(found, rows=None)
    self.notes.extend(n for n in found.notes if n not in self.notes)
    found = found.unpacked
    step = functools.partial(run.eval_step, self.own, self.frozen)
    _, predictions = evaluate.evaluate(step, self._batches(found), rows=len(found))
    for values in predictions.values():
      if len(bad := np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(1))):
        row = bad[0] if found.windows is None else found.windows[bad[0]]
        raise Diverged(f'{rows.where(int(row))}: the prediction is not finite, nor are {len(bad) - 1} others')
    if found.windows is not None:
      predictions = run.task.combined(found, predictions)
    if hasattr(run.task, 'judged'):
      run.dataset.splits[rows.name] = rows
      predictions['prediction'] = generators.answers(run, self.own, self.frozen, rows.name)[1]
      del run.dataset.splits[rows.name]
    return rows, found, predictions

  def _batches(self, examples: Examples) -> Iterator[tuple[np.ndarray, Batch]]:
    """(row numbers, Batch), rows of like length together, padded to lengths that are used again by later pieces."""
    size, pad = self.run.settings.train.eval_batch_size, self.run.tokenizer.pad_token_id
    lengths = examples.lengths
    if not self.edges:
      self.edges.extend(batches.buckets(lengths, count=self.run.settings.train.buckets))
    if (longest := int(lengths.max())) > self.edges[-1]:
      self.edges.append(max(longest, min(2 * self.edges[-1], self.run.limit)))
    order = np.argsort(lengths, kind='stable')
    for i in range(0, len(order), size):
      rows = order[i : i + size]
      batch = batches.collate(examples, rows, size=size, edges=tuple(self.edges), pad_id=pad)
      yield rows, jax.device_put(batch, self.run.layout.batch)


def of_run(
  workdir: str | None,
  *,
  checkpoint: str = 'best',
  batch_size: int | None = None,
  field: str = '--workdir',
  **options: Any,
) -> tuple[Stream, int]:
  """(the Stream of a run's checkpoint, its step); `options` are `Stream`'s. Raises `InputError`."""
  if not workdir:
    raise InputError('give the run folder: --workdir=runs/NAME')
  where = pathlib.Path(workdir).expanduser()
  config, labels = folder.stored(where, field=f'{field}={workdir}')
  if batch_size is not None:
    if batch_size < 1:
      raise InputError(f'--batch_size={batch_size}: wanted a number of rows from 1')
    config = {**config, 'train': {**config['train'], 'eval_batch_size': batch_size}}
  run = folder.as_trained(where, reference.without(runs.build(config, labels=labels, data=False)))
  notes = folder.changed(where, run)
  own, frozen, step = judge.restored(run, where, checkpoint)
  run = thresholds.read(run, where, step, split='')
  return Stream(run, own, frozen, notes=notes, **options), step
