"""What a task and a training batch are before there are data: `ftlib/shapes.py` asks.

A batch is what `ftlib/data/batches.py: collate` makes of `Task.examples`, at its longest. Which fields a task adds is
known by its objective; an objective that is not in `FIELDS` has `labels` and `weights` of rows.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ftlib.base.errors import InputError
from ftlib.base.types import Batch
from ftlib.data.labels import Columns
from ftlib.recipe import Settings
from ftlib.tasks.task import Task

FIELDS = {  # objective -> what its task adds to a batch, each of a shape and kind of its own (`_extras`)
  'classification': 'labels weights',
  'regression': 'labels weights',
  'multilabel': 'labels weights',
  'language': 'targets token_weights',
  'masked': 'targets token_weights words mask_token vocabulary',
  'tagging': 'targets token_weights chain',
  'span': 'starts ends weights candidates',
  'choice': 'labels options asked',
  'cosine': 'labels cosines weights',
  'contrastive': 'texts weights',
  'preference': 'targets token_weights pairs reference',
}


def task_of(s: Settings, classes: int) -> Task:
  """The task as it would be of training rows with that many classes, labels, types of entities or options.

  Raises `InputError` for several tasks at once, whose heads follow from the data of each.
  """
  module = s.modules['task']
  if s.names['objective'] == 'several':
    raise InputError(f'task.name={s.names["task"]}: its heads follow from the data of its parts; ask for one of them')
  columns, names = Columns(*module.columns(s.task)), [f'class {i}' for i in range(classes)]
  if getattr(s.task, 'choices', ''):
    names = [*s.task.verbalisers]
  if columns.kind == 'tags' and getattr(s.task, 'scheme', '') in ('bio', 'bioes'):
    names = ['O', *(f'B-{name}' for name in names)]
  scores = columns.label is not None and columns.kind == 'score'
  rows = [{columns.label: 0.0}, {columns.label: 1.0}] if scores else None
  return module.build(s.task, train=rows, known=names)


def batch_of(s: Settings, task: Task, *, rows: int, length: int) -> Batch:
  """The shapes of a training batch of so many rows; `length` is that of a document, of which a row may hold several."""
  fields = FIELDS.get(s.names['objective'], 'labels weights').split()
  if 'options' in fields and task.head.kind == 'lm':
    fields += ['targets', 'token_weights']
  documents = len(task.labels) if 'options' in fields else 2 if 'pairs' in fields else task.head.documents
  length *= documents
  needs = getattr(s.modules['objective'], 'needs_reference', lambda config: False)
  if 'reference' in fields and not needs(s.objective):
    fields.remove('reference')
  found = dict.fromkeys(('tokens', 'positions', 'segments', 'types'), ((rows, length), jnp.int32))
  found |= {'rows': ((rows,), jnp.int32), **_extras(task, fields, rows, length, documents)}
  if task.head.marks:
    found['marks'] = ((rows, task.head.marks), jnp.int32)
  return {n: jax.ShapeDtypeStruct(shape, dtype) for n, (shape, dtype) in found.items()}


def _extras(task: Task, fields: list[str], rows: int, length: int, documents: int) -> dict[str, tuple]:
  """{field: (shape, dtype)} of what a task adds."""
  out: dict[str, tuple] = {}
  for name in fields:
    if name == 'labels':
      each = (len(task.labels),) if getattr(task, 'problem_type', '') == 'multi_label_classification' else ()
      out[name] = (rows, *each), jnp.int32 if len(task.labels) else jnp.float32
    elif name == 'token_weights':
      out['weights'] = (rows, length), jnp.float32
    elif name in ('targets', 'words', 'chain', 'candidates'):
      out[name] = (rows, length), jnp.int8 if name == 'candidates' else jnp.int32
    elif name in ('options', 'reference'):
      out[name] = (rows, documents), jnp.float32
    elif name == 'texts':
      out[name] = (rows, documents), jnp.int32
    elif name in ('weights', 'asked', 'cosines', 'pairs'):
      out[name] = (rows,), jnp.float32
    else:
      out[name] = (rows,), jnp.int32
  return out
