"""Several tasks at once: an encoder that they share, logits of each task's own, and batches of rows of all.

Each part is a task of its own (classify, multilabel or similarity) with data, columns, labels and metrics of its own.
All heads are one output layer, of which a part has its own stretch: a row's loss reads only that, so they are as
separate as layers would be. What a family's head has before that layer is shared, as the encoder is.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftlib.base import lookup, settings
from ftlib.base.errors import InputError, did_you_mean
from ftlib.base.settings import setting
from ftlib.base.types import Batch, Head, Outputs
from ftlib.data.batches import Examples
from ftlib.data.labels import PART, Columns
from ftlib.data.sources import Rows, subset
from ftlib.data.tokens import Tokens
from ftlib.evals import thresholds
from ftlib.objectives import several
from ftlib.tasks.task import Task

OBJECTIVE = 'several'
_FIELDS = ('data', 'text', 'pair', 'label', 'separator', 'threshold', 'weight')  # what may be said of a part
_TAKEN = "classify, multilabel, similarity and tasks of one's own that are judged like them"
_KINDS = {'classification': several.CLASS, 'multilabel': several.LABEL, 'regression': ''}  # objective -> kind of labels


@dataclasses.dataclass(frozen=True)
class Config:
  """`parts`: 'NAME=TASK,FIELD=VALUE,...; NAME=TASK', where fields are `text`, `pair`, `label`, `separator`, `threshold`
  (a number) and `weight` of that task, and `data`: where its rows are, a path inside data.path (by default the name),
  or a whole one.

  `pooling`: what all heads see of a row. `temperature`: rows of a part with n of them are drawn in proportion to
  n^(1 / temperature): 1 is by size, and the higher it is, the more alike parts are drawn. `best`: the scalar that
  "best" means, such as 'NAME/accuracy'; '' is `mean`, the mean over the parts of each one's own."""

  parts: str = ''
  pooling: str = setting('', choices=('', 'cls', 'mean', 'max', 'last'))
  temperature: float = setting(1.0, low=1)
  best: str = ''


@dataclasses.dataclass(frozen=True)
class Part:
  """A task of the config: its file, its settings, and where its rows are."""

  module: ModuleType
  config: Any
  data: str

  @property
  def kind(self) -> str:
    """What its labels are (`ftlib/objectives/several.py`)."""
    return _KINDS[self.module.OBJECTIVE]

  @property
  def columns(self) -> Columns:
    """What it reads of its data."""
    return Columns(*self.module.columns(self.config))


def columns(config: Config) -> Columns:
  """What is read: of every part its own; of rows that are mixed already (of a file), what names their part."""
  found = {n: (p.data, p.columns) for n, p in _parts(config.parts).items()}

  def row(given: dict[str, Any]) -> dict[str, Any]:
    if given[PART] not in found:
      near = did_you_mean(given[PART], found)
      raise ValueError(f'"{PART}" is {given[PART]!r}{near}; the parts are {", ".join(found)}')
    return given

  return Columns([PART], fields=(PART, 'label'), row=row, parts=found)


def build(config: Config, *, train: Sequence[Mapping[str, Any]] | None, known: list | None) -> Several:
  """The task over the training rows' labels; `known` is the label list of a stored run. Raises `InputError`."""
  found = _parts(config.parts)
  tasks, labels, counts = {}, [], []
  for name, part in found.items():
    rows = [row for row in train or () if row[PART] == name]
    own = _known(known, name, rows, part) if known else None
    if getattr(part.config, 'threshold', '') == thresholds.TUNED:
      raise InputError(f'task.parts: {name}: threshold=tuned is for tasks by themselves; give a number')
    try:
      task = part.module.build(part.config, train=rows, known=own)
    except InputError as e:
      raise InputError(f'part {name} of task.parts: {e}') from e
    if task.head.marks:
      raise InputError(f'task.parts: {name}: its head reads marked tokens, and all parts share one; parts are {_TAKEN}')
    tasks[name] = task
    labels += [f'{name}{part.kind}{label}' for label in task.labels] or [name]
    counts += [*(task.counts[:, 1] if part.kind == several.LABEL else task.counts)] or [len(rows)]
  scalars = {'mean': True, **{f'{n}/{k}': higher for n, t in tasks.items() for k, higher in t.metric_names.items()}}
  best = config.best or 'mean'
  if best not in scalars:
    raise InputError(f'task.best={best} is no metric{did_you_mean(best, scalars)}\n  known: {", ".join(scalars)}')
  integers = [name for name, task in tasks.items() if any(isinstance(label, int) for label in task.labels)]
  return Several(config, labels, np.array(counts, np.int64), best, tasks, integers)


def _known(known: list, name: str, rows: Sequence[Mapping[str, Any]], part: Part) -> list | None:
  """The labels of a part in a stored list, of the type that they have in the rows."""
  values = (row[part.columns.label] for row in rows)
  there = {str(v): v for value in values for v in (value if isinstance(value, list) else [value])}
  own = [label for other, kind, label in map(several.split, known) if other == name and kind]
  return [there.get(label, label) for label in own] or None


def _parts(text: str) -> dict[str, Part]:
  """{name: Part} of the setting's text. Raises `InputError`."""
  found: dict[str, Part] = {}
  for item in filter(None, (p.strip() for p in text.split(';'))):
    first, *fields = (f.strip() for f in item.split(','))
    name, _, task = first.partition('=')
    if not re.fullmatch(r'[\w.-]+', name) or not task or name in found:
      why = 'stands there twice' if name in found else 'is not NAME=TASK,FIELD=VALUE,...; names are letters and digits'
      raise InputError(f'task.parts: {item!r} {why}')
    module = lookup.component('tasks', task, field=f'task.parts: {name}')
    if getattr(module, 'OBJECTIVE', '') not in _KINDS:
      raise InputError(f'task.parts: {name}={task} cannot be a part of several; these can: {_TAKEN}')
    values: dict[str, Any] = {}
    for field in fields:
      key, equals, value = field.partition('=')
      if key not in _FIELDS or not equals:
        raise InputError(
          f'task.parts: {name}: {field!r} is not FIELD=VALUE{did_you_mean(key, _FIELDS)}\n'
          f'  fields: {", ".join(_FIELDS)}'
        )
      values[key] = value
    data = values.pop('data', name)
    found[name] = Part(module, settings.read(module.Config, values, where=f'task.parts: {name}'), data)
  return found


@dataclasses.dataclass(frozen=True)
class Several:
  """The task; see `ftlib/tasks/task.py`. `labels` are 'part/class', 'part+label' where a row may have any number of
  them, or 'part' for a score; `built` the task of each part, of whose labels those of `integers` are such."""

  config: Config
  labels: list
  counts: np.ndarray
  metric: str
  built: Mapping[str, Task]
  integers: Sequence[str] = ()

  @functools.cached_property
  def tasks(self) -> dict[str, Task]:
    """The task of each part."""
    typed = lambda n, t: dataclasses.replace(t, labels=[*map(int, t.labels)]) if n in self.integers else t  # noqa: E731
    return {name: typed(name, task) for name, task in self.built.items()}

  @property
  def learnt(self) -> dict[str, Any]:
    """What the label list does not say of the training rows."""
    return {'integers': [*self.integers]}

  @property
  def head(self) -> Head:
    return Head('classify', len(self.labels), self.config.pooling)

  @property
  def about(self) -> str:
    return '; '.join(f'{name}: {task.about}' for name, task in self.tasks.items())

  @property
  def metric_names(self) -> dict[str, bool]:
    return {'mean': True, **{f'{n}/{k}': h for n, t in self.tasks.items() for k, h in t.metric_names.items()}}

  def rates(self, examples: Examples) -> np.ndarray | None:
    """How often rows are drawn, by `temperature`, float64 [N] with a mean of 1; None for all alike."""
    if self.config.temperature == 1:
      return None
    sizes = np.bincount(examples.extra['part'], minlength=len(self.tasks)).clip(1).astype(np.float64)
    found = (sizes ** (1 / self.config.temperature - 1))[examples.extra['part']]
    return found / found.mean()

  def examples(self, rows: Rows, tokenizer: Any, *, limit: int) -> Examples:
    """With `part` int32 [N] and `answers` float32 [N, C]: at a part's classes or labels 1 for the right ones, or its
    score."""
    part_N = self._part(rows)
    documents: list[tuple[np.ndarray, np.ndarray]] = [(np.zeros(0), np.zeros(0))] * len(rows)
    answers = np.zeros((len(rows), len(self.labels)), np.float32)
    weights = np.ones(len(rows), np.float32)
    truncated, notes = 0, []
    for k, (name, task) in enumerate(self.tasks.items()):
      at_n = np.flatnonzero(part_N == k)
      if not len(at_n):
        continue
      found = task.examples(subset(rows, at_n.tolist()), tokenizer, limit=limit)
      starts, stops = found.tokens.offsets[:-1], found.tokens.offsets[1:]
      for i, a, b in zip(at_n.tolist(), starts, stops, strict=True):
        documents[i] = found.tokens.ids[a:b], found.tokens.types[a:b]
      own = self.stretch(name)
      labels = found.extra['labels']
      one_hot = self._kind(name) == several.CLASS
      answers[at_n, own] = np.eye(own.stop - own.start)[labels] if one_hot else labels.reshape(len(at_n), -1)
      weights[at_n] = found.extra['weights']
      truncated += found.tokens.truncated
      notes += [f'{name}: {note}' for note in found.notes]
    offsets = np.concatenate([[0], np.cumsum([len(ids) for ids, _ in documents])]).astype(np.int64)
    ids, types = (np.concatenate([d[j] for d in documents]).astype(np.int32) for j in (0, 1))
    extra = {'part': part_N, 'answers': answers, 'weights': weights}
    return Examples(Tokens(ids, types, offsets, truncated), extra, notes=notes)

  def predict(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
    """What every part predicts of every row, as 'part/name'; a row's own is what counts."""
    logits_BC = outputs.logits.astype(jnp.float32)
    found = {n: t.predict(Outputs(outputs.hidden, logits=logits_BC[:, self.stretch(n)]), batch) for n, t in self._all()}
    return {f'{name}/{key}': x for name, own in found.items() for key, x in own.items()}

  def metrics(self, examples: Examples, predictions: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Each part's over its own rows, as 'part/metric', None where a split has no row of it; and their `mean`."""
    out: dict[str, Any] = {'mean': None, **dict.fromkeys([*self.metric_names][1:])}
    main = []
    for k, (name, task) in enumerate(self.tasks.items()):
      at_n = np.flatnonzero(examples.extra['part'] == k)
      if not len(at_n):
        continue
      answers = examples.extra['answers'][at_n, self.stretch(name)]
      of_kind = {several.CLASS: lambda x: x.argmax(1).astype(np.int32), several.LABEL: lambda x: x.astype(np.int32)}
      labels = of_kind.get(self._kind(name), lambda x: x[:, 0])(answers)
      found = task.metrics(Examples(examples.tokens, {'labels': labels}), self._of(predictions, name, at_n))
      out |= {f'{name}/{key}': found[key] for key in task.metric_names}
      main.append(found[task.metric])
    return {**out, 'mean': sum(main) / len(main)}

  def records(self, rows: Rows, predictions: Mapping[str, np.ndarray]) -> Iterator[dict]:
    part_N, out = self._part(rows), {}
    for k, name in enumerate(self.tasks):
      at_n = np.flatnonzero(part_N == k)
      found = self.tasks[name].records(subset(rows, at_n.tolist()), self._of(predictions, name, at_n))
      out |= {int(i): {**record, 'task': name} for i, record in zip(at_n, found, strict=True)}
    for i, row in enumerate(rows):
      yield {**out[i], 'id': row.get('id', i)}

  def _all(self) -> Iterator[tuple[str, Task]]:
    return iter(self.tasks.items())

  def stretch(self, name: str) -> slice:
    """A part's logits among all."""
    own = self._own_part(name)
    return slice(own.start, own.stop)

  def _kind(self, name: str) -> str:
    return self._own_part(name).kind

  def _own_part(self, name: str) -> several.Part:
    return next(p for p in several.parts(self.labels) if p.name == name)

  def _of(self, predictions: Mapping[str, np.ndarray], name: str, at_n: np.ndarray) -> dict[str, np.ndarray]:
    front = f'{name}/'
    return {key.removeprefix(front): x[at_n] for key, x in predictions.items() if key.startswith(front)}

  def _part(self, rows: Rows) -> np.ndarray:
    """The number of each row's part, int32 [N]."""
    numbers = {name: k for k, name in enumerate(self.tasks)}
    return np.array([numbers[row[PART]] for row in rows], np.int32)
