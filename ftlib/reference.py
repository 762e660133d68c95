"""What a preference-tuned model is compared with: log-probabilities of answers by the model that the run starts from.

They are computed once, before step 0, and are data from then on: `reference` float32 [N, 2] (chosen, rejected) of the
examples of every split, and `reference.npz` in the run folder, from which a resumed run and eval.py take them. So no
second model is ever in memory.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
import time
import zipfile
from collections.abc import Iterator

import jax
import numpy as np

from ftlib.base import trees
from ftlib.base.errors import InputError
from ftlib.base.types import Batch, Params
from ftlib.data.batches import Examples
from ftlib.evals import evaluate
from ftlib.run import Run

FILE = 'reference.npz'
EVERY = 15.0  # seconds


def needed(run: Run) -> bool:
  """Whether the objective compares with the starting model."""
  check = getattr(run.settings.modules['objective'], 'needs_reference', None)
  return check is not None and check(run.settings.objective)


def compute(run: Run, own: Params, frozen: Params) -> None:
  """Gives the examples of the run the log-probabilities that a model of these parameters has, where they are needed.

  Raises `InputError` where the task has none to give.
  """
  if not needed(run):
    return
  began, done, count = time.perf_counter(), 0, sum(map(len, run.examples.values()))
  said = began
  print(f'log-probabilities of {count:,} pairs by the starting model, once before the first step', flush=True)

  def predict(own: Params, frozen: Params, batch: Batch) -> dict[str, jax.Array]:
    return run.task.predict(run.method.model.apply(trees.join(own, frozen), batch, None), batch)

  step = jax.jit(predict, out_shardings=run.layout.replicated)

  def batches(split: str) -> Iterator[tuple[np.ndarray, Batch]]:
    """Those of a split, with a line every `EVERY` seconds."""
    nonlocal done, said
    for numbers, batch in run.eval_batches(split):
      yield numbers, batch
      done, now = done + len(numbers), time.perf_counter()
      if now - said > EVERY:
        said = now
        print(f'  {done:,} of {count:,} after {now - began:.0f} s', flush=True)

  for split, examples in run.examples.items():
    one = lambda batch: ({}, step(own, frozen, batch))  # noqa: E731
    _, found = evaluate.evaluate(one, batches(split), rows=len(examples))
    if not {'chosen', 'rejected'} <= set(found):
      raise InputError('objective.name=preference is for pairs of answers: task.name=preference makes them')
    _attach(run, split, np.stack([found['chosen'], found['rejected']], 1).astype(np.float32))
  print(f'  all in {time.perf_counter() - began:.1f} s', flush=True)


def without(run: Run) -> Run:
  """The run judged without a reference, where it would need one.

  A model that is its own reference has gained nothing on it: every margin is 0, and no answer is ahead. So the mean
  log-probabilities of the answers' tokens are compared as they are, as ORPO does, and a note says so.
  """
  if not needed(run):
    return run
  s = run.settings
  note = (
    f'objective.loss={s.objective.loss} compares with the model that training starts from, which is this one; instead '
    "answers are compared by the mean log-probability of their tokens, and loss is the chosen answer's, nats a token"
  )
  objective = s.modules['objective'].without_reference(s.objective)
  return dataclasses.replace(run, objective=objective, notes=[*run.notes, note])


def save(run: Run, workdir: pathlib.Path) -> None:
  """Writes what `compute` found, whole or not at all."""
  if not needed(run):
    return
  arrays = {}
  for split, examples in run.examples.items():
    arrays |= {split: examples.extra['reference'], f'{split}.rows': np.array(_digest(examples))}
  draft = workdir / f'{FILE}.tmp'
  with draft.open('wb') as f:
    np.savez(f, **arrays)
    f.flush()
    os.fsync(f.fileno())
  os.replace(draft, workdir / FILE)


def read(run: Run, workdir: pathlib.Path) -> None:
  """Gives the examples of the run what `save` wrote, where it is needed. Raises `InputError` where it is not there, or
  is of other rows."""
  if not needed(run):
    return
  path = workdir / FILE
  again = 'put it back, or train anew in another folder'
  try:
    with np.load(path, allow_pickle=False) as file:
      there = {n: file[n] for n in file.files}
  except FileNotFoundError as e:
    raise InputError(f'{path} is gone, with what the run compares with (objective.name=preference); {again}') from e
  except (OSError, ValueError, zipfile.BadZipFile, EOFError) as e:
    raise InputError(f'{path} cannot be read: {e}; {again}') from e
  for split, examples in run.examples.items():
    if split not in there or str(there[f'{split}.rows']) != _digest(examples):
      raise InputError(
        f'{path} is of other {split} rows than data.path, train.max_length and the chat template give now; put these '
        'back as they were'
      )
    _attach(run, split, there[split])


def _attach(run: Run, split: str, reference_N2: np.ndarray) -> None:
  examples = run.examples[split]
  run.examples[split] = dataclasses.replace(examples, extra={**examples.extra, 'reference': reference_N2})


def _digest(examples: Examples) -> str:
  """SHA-256 of the tokens and of which of them count."""
  h = hashlib.sha256(examples.tokens.ids.tobytes() + examples.tokens.offsets.tobytes())
  h.update(examples.per_token['weights'].tobytes())
  return h.hexdigest()
