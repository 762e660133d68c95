"""What a run holds in memory, before there are weights or data: python -m ftlib.shapes --config=configs/lora_glue.py

The model of the config is built at full size from its `config.json` alone (a preset of `ftlib/models/presets.py`, or a
folder), with the task's head and the method, and a training step is traced with shapes in place of arrays. Printed are
parameters, what trains, and the bytes of each part over all devices.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any

from ftlib import cli

import jax  # isort: skip - cli sets the environment first
import jax.numpy as jnp  # isort: skip

from ftlib import recipe
from ftlib import run as runs
from ftlib.base import lookup, trees
from ftlib.base.errors import InputError, did_you_mean
from ftlib.base.types import Batch, ParamInfo, Params, Sums
from ftlib.data.labels import Columns
from ftlib.io import gguf, hf
from ftlib.models import presets, stack
from ftlib.optim import chain
from ftlib.peft.method import Method, added
from ftlib.recipe import Settings
from ftlib.tasks.task import Task
from ftlib.train import averages
from ftlib.train import state as train_state
from ftlib.train.state import TrainState
from ftlib.train.step import make_train_step

_STEPS = 100_000  # of a run whose data, and so whose number of steps, is not known


@dataclasses.dataclass(frozen=True, eq=False)
class Shapes:
  """A run without arrays: `state`, `frozen` and `batch` are trees of shapes and dtypes; `step` takes them."""

  settings: Settings
  task: Task
  method: Method
  info: dict[str, ParamInfo]
  train_info: dict[str, ParamInfo]
  objective: Callable[..., Sums]
  state: TrainState
  frozen: Params
  batch: Batch
  step: Callable[[TrainState, Params, Batch], tuple[TrainState, dict[str, Any]]]

  def kept_bytes(self) -> int:
    """Bytes that a micro-batch's forward pass leaves for the backward pass, parameters aside.

    It is what automatic differentiation asks for; what XLA makes of it is less where it fuses, and more for scratch.
    """
    micro = self.settings.train.accumulate
    piece = jax.tree.map(lambda x: jax.ShapeDtypeStruct((x.shape[0] // micro, *x.shape[1:]), x.dtype), self.batch)
    apply, rest = self.method.model.apply, trees.join(self.frozen, self.state.kept)

    def back(trainable: Params, rest: Params, batch: Batch, key: jax.Array):
      loss = lambda t: self.objective(functools.partial(apply, trees.join(t, rest)), batch, key)['loss'][0]  # noqa: E731
      return jax.vjp(loss, trainable)[1]

    left = jax.tree.leaves(jax.eval_shape(back, self.state.trainable, rest, piece, self.state.key))
    parameters = collections.Counter((x.shape, x.dtype) for x in jax.tree.leaves((self.state.trainable, rest)))
    left = collections.Counter((x.shape, x.dtype) for x in left) - parameters
    return sum(n * trees.nbytes(jax.ShapeDtypeStruct(*kind)) for kind, n in left.items())


def values(pretrained: str) -> dict[str, Any]:
  """`config.json` of a preset, a folder or a GGUF file. Raises `InputError`."""
  if pretrained in presets.PRESETS:
    return dict(presets.PRESETS[pretrained])
  path = hf.resolve(pretrained)
  return (gguf if path.suffix == '.gguf' else hf).read_config(path)


def of(settings: Settings, config_json: Mapping[str, Any], *, classes: int = 2) -> Shapes:
  """The shapes of a run on a model with that `config.json`; `classes` are those of a task with a list of labels.

  Raises `InputError` where config, model, task and method do not fit together.
  """
  s = settings
  family = _family(s, config_json)
  arch = family.from_hf(config_json, where=s.model.pretrained, allow=s.model.allow_config)
  task = task_of(s, classes)
  options = {'compute': jnp.dtype(s.precision.compute), 'remat': s.model.remat, 'dropout_bits': s.train.dropout_bits}
  method = s.modules['method'].build(s.method, family.build(arch, head=task.head, **options))
  trains = lambda name: method.trains(name) or name.startswith('head/')  # noqa: E731 - which no checkpoint has
  if method.stages is not None:
    fresh = [n for n in method.model.info() if n.startswith('head/')]
    method = dataclasses.replace(method, stages=method.stages.with_first(fresh))
  info, _ = runs.stored_info(method, trains, scan=s.model.layers == 'scan')
  train_info = {n: i for n, i in info.items() if trains(stack.canonical(n))}
  steps = s.train.steps or _STEPS
  optimizer = chain.build(
    s.modules['optim'], s.optim, train_info, steps=steps, stage=lambda name: method.stage(stack.canonical(name))
  )
  own = {n: i for n, i in info.items() if n in train_info or added(stack.canonical(n))}
  rules = averages.rules(ema=s.train.ema, swa_start=s.train.swa_start, steps=steps)
  make = functools.partial(train_state.create, tx=optimizer.tx, seed=s.seed, averages=rules)
  state = jax.eval_shape(make, *trees.split(_structs(own), train_info.__contains__))
  frozen = _structs({n: i for n, i in info.items() if n not in own}, jnp.dtype(s.precision.frozen))
  objective = s.modules['objective'].build(s.objective, labels=task.labels, counts=task.counts)
  step = make_train_step(
    method.model.apply,
    objective,
    optimizer.tx,
    micro=s.train.accumulate,
    penalty=method.penalty,
    adjust=method.adjust and method.adjust(steps),
    needs=optimizer.needs,
  )
  batch = _batch(s, task, s.train.max_length or arch.max_length)
  return Shapes(s, task, method, info, train_info, objective, state, frozen, batch, step)


def report(shapes: Shapes) -> str:
  """One screen: sizes and bytes."""
  s, c = shapes.settings, shapes.method.model.config
  rows, length = shapes.batch['tokens'].shape
  total, training = (sum(i.size for i in x.values()) for x in (shapes.info, shapes.train_info))
  adapters = sum(i.size for n, i in shapes.train_info.items() if added(stack.canonical(n)))
  kept = shapes.kept_bytes()
  weights, state = trees.nbytes(shapes.frozen), trees.nbytes(shapes.state.trainable)
  opt, extra = trees.nbytes(shapes.state.opt), trees.nbytes(shapes.state.kept)
  micro = f' in {s.train.accumulate} micro-batches' if s.train.accumulate > 1 else ''
  lines = [
    ('model', f'{s.model.pretrained} ({c.layers} layers, width {c.embed})'),
    ('task', f'{s.names["task"]}, {shapes.task.about}'),
    ('method', f'{s.names["method"]}, {adapters:,} parameters added that train'),
    ('parameters', f'{total:,} total, {training:,} trainable ({training / total:.2%})'),
    ('step', f'{rows} rows of {length} tokens{micro}, {s.precision.compute}, remat {s.model.remat}'),
    ('frozen', f'{_size(weights)} ({s.precision.frozen})'),
    ('trainable', f'{_size(state)}, as much again for gradients' + (f'; kept beside {_size(extra)}' if extra else '')),
    ('optimizer', _size(opt)),
    ('backward', f'{_size(kept)} kept from the forward pass'),
    ('together', f'{_size(weights + 2 * state + extra + opt + kept)}, without what XLA needs for scratch'),
  ]
  return '\n'.join(f'{k:>10}  {v}' for k, v in lines)


def _size(count: int) -> str:
  for unit, name in ((1e9, 'GB'), (1e6, 'MB')):
    if count >= unit:
      return f'{count / unit:.2f} {name}'
  return f'{count / 1e3:.1f} kB'


def _family(s: Settings, config_json: Mapping[str, Any]) -> Any:
  if s.model.family:
    return lookup.component('models', s.model.family, field='model.family')
  modules = [lookup.component('models', n, field='model') for n in lookup.names('models')]
  families = {kind: m for m in modules for kind in m.MODEL_TYPES}
  kind = config_json['model_type']
  if kind not in families:
    raise InputError(f'{s.model.pretrained}: model_type={kind!r} is no family here{did_you_mean(kind, families)}')
  return families[kind]


def task_of(s: Settings, classes: int) -> Task:
  """The task as two rows with the least and the greatest label would make it."""
  module = s.modules['task']
  columns = Columns(*module.columns(s.task))
  wrap = {'labels': lambda v: [v]}.get(columns.kind, float)
  rows = None if columns.label is None else [{columns.label: wrap(0)}, {columns.label: wrap(1)}]
  return module.build(s.task, train=rows, known=[f'class {i}' for i in range(classes)])


def _structs(info: Mapping[str, ParamInfo], dtype: Any = None) -> Params:
  kind = lambda i: dtype if dtype is not None and jnp.issubdtype(i.dtype, jnp.floating) else i.dtype  # noqa: E731
  return trees.unflatten({n: jax.ShapeDtypeStruct(i.shape, kind(i)) for n, i in info.items()})


def _batch(s: Settings, task: Task, length: int) -> Batch:
  """The shapes of a training batch (`ftlib/data/batches.py: collate`), at its longest."""
  if s.names['objective'] == 'preference' or task.head.documents > 1:
    raise InputError(f'task.name={s.names["task"]}: its rows hold several documents, whose shapes are not known here')
  rows = s.train.batch_size
  batch = {n: jax.ShapeDtypeStruct((rows, length), jnp.int32) for n in ('tokens', 'positions', 'segments', 'types')}
  batch['rows'] = jax.ShapeDtypeStruct((rows,), jnp.int32)
  if task.head.kind in ('lm', 'mlm'):
    extra = {'targets': ((rows, length), jnp.int32), 'weights': ((rows, length), jnp.float32)}
    if task.head.kind == 'mlm':
      of_rows = dict.fromkeys(('mask_token', 'vocabulary'), ((rows,), jnp.int32))
      extra |= {'words': ((rows, length), jnp.int32), **of_rows}
  else:
    several = getattr(task, 'problem_type', '') == 'multi_label_classification'
    shape = (rows, len(task.labels)) if several else (rows,)
    extra = {'labels': (shape, jnp.int32 if task.labels else jnp.float32), 'weights': ((rows,), jnp.float32)}
  return batch | {n: jax.ShapeDtypeStruct(shape, dtype) for n, (shape, dtype) in extra.items()}


def main() -> None:
  """Prints the report of the config."""
  from absl import flags

  if flags.FLAGS.config is None:
    raise InputError('give a config: --config=configs/NAME.py')
  if flags.FLAGS.classes < 2:
    raise InputError(f'--classes={flags.FLAGS.classes}: a task with classes has two or more')
  s = recipe.read(flags.FLAGS.config)
  print(report(of(s, values(s.model.pretrained), classes=flags.FLAGS.classes)))


if __name__ == '__main__':
  from absl import flags

  cli.define_config()
  flags.DEFINE_integer('classes', 2, 'how many classes a task with a list of labels has')
  sys.exit(cli.run(main))
