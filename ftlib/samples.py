"""What a run of language shows of itself besides numbers, in files from which the report is made without a model.

`eval/preview.jsonl`: the first training documents, and which of their tokens the loss is taken over.
`eval/samples.jsonl`: answers to a few rows of validation before the first step and, by the best checkpoint, at the end.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ftlib import generators
from ftlib.base.errors import InputError
from ftlib.base.types import Params
from ftlib.data.preview import pieces
from ftlib.generation.generator import Generator
from ftlib.generation.settings import Settings
from ftlib.io import workdir as files
from ftlib.run import Run

PREVIEWED = 8  # training documents
NEW = 64  # the most tokens of an answer, where the task does not say how it generates


class Samples:
  """Writes both files of a run. Tasks whose rows have no prompt get no samples, and those that learn no tokens neither.

  `say` takes a line for the user: a row that cannot be answered leaves a run without samples, and does not end it.
  """

  def __init__(self, run: Run, workdir: pathlib.Path, say: Callable[[str], None]):
    self._run, self._say = run, say
    self._folder = workdir / 'eval'
    self._file = self._folder / 'samples.jsonl'
    self._generator: Generator | None = None  # without parameters: what it has compiled

  def begin(self, own: Params, frozen: Params) -> None:
    """At step 0: the preview, and the answers before training."""
    _write(self._folder / 'preview.jsonl', previewed(self._run))
    rows = self._rows()
    try:
      rows = self._answered(rows, 'before', own, frozen) if rows else []
    except InputError as e:
      rows = []
      self._say(f'the report has no samples: {e}')
    _write(self._file, rows)

  def end(self, own: Params, frozen: Params) -> None:
    """The answers of the best checkpoint, beside those of `begin`, which may have been in another process."""
    rows = files.read_jsonl(self._file)
    if rows:
      _write(self._file, self._answered(rows, 'after', own, frozen))

  def _rows(self) -> list[dict[str, Any]]:
    """`task.samples` rows of validation, evenly spread over it."""
    task, rows = self._run.task, self._run.dataset.splits['validation']
    count = min(task.config.samples, len(rows)) if hasattr(task, 'prompts') else 0
    picked = np.linspace(0, len(rows) - 1, count).round().astype(int).tolist() if count else []
    return [
      {'row': i, 'id': rows[i].get('id', i), 'prompt': task.question(rows[i]), 'reference': task.answer(rows[i])}
      for i in picked
    ]

  def _answered(self, rows: Sequence[dict], name: str, own: Params, frozen: Params) -> list[dict[str, Any]]:
    run, known = self._run, self._run.dataset.splits['validation']
    if self._generator is None:
      room = run.method.model.config.max_length - run.method.tokens
      asked = getattr(run.task, 'generation', Settings(max_new_tokens=NEW))
      most = max(1, min(asked.max_new_tokens, room // 2))
      settings = dataclasses.replace(asked, max_new_tokens=most, batch_size=len(rows))
      generator = generators.of_run(run, own, frozen, settings, field='task.')
    else:
      generator = generators.renewed(self._generator, run, own, frozen)
    self._generator = generator.using({})
    prompts = run.task.prompts([known[r['row']] for r in rows], run.tokenizer)
    texts = generator.generate([generators.cut(p, generator) for p in prompts])
    return [{**r, name: t[0].text} for r, t in zip(rows, texts, strict=True)]


def previewed(run: Run) -> list[dict[str, Any]]:
  """The first training documents as {row, tokens, supervised, pieces}: pieces are [text, whether it is supervised].
  [] for tasks that learn no tokens."""
  examples, rows = run.examples['train'], run.dataset.splits['train']
  if 'weights' not in examples.per_token:
    return []
  each = len(examples.tokens) // len(rows)  # documents of a row: the answers of a pair, else one
  out = []
  for k in range(min(PREVIEWED, len(examples.tokens))):
    found = pieces(examples, run.tokenizer, k)
    parts = [[''.join(t for t, _ in same), own] for own, same in itertools.groupby(found, key=lambda p: p[1])]
    counts = {'tokens': len(found), 'supervised': sum(own for _, own in found)}
    out.append({'row': rows.where(k // each), **counts, 'pieces': parts})
  return out


def _write(path: pathlib.Path, rows: Sequence[dict[str, Any]]) -> None:
  """The file of these rows, in one rename, or none."""
  if not rows:
    return path.unlink(missing_ok=True)
  path.parent.mkdir(exist_ok=True)
  draft = path.with_suffix('.tmp')
  draft.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  os.replace(draft, path)
