"""What a run holds in memory, before there are weights or data: python -m ftlib.shapes --config=configs/lora_glue.py

The model of the config is built at full size from its `config.json` alone (a preset of `ftlib/models/presets.py`, or a
folder), with the task's head and the method, and a training step is traced with shapes in place of arrays. Printed are
parameters, what trains, and the bytes of each part over all devices, with what averages, mixout, adversarial training
and privacy ask for besides.
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

from ftlib import recipe, regularised, scratch, shapes_batch, stored
from ftlib.base import lookup, trees
from ftlib.base.errors import InputError, did_you_mean
from ftlib.base.types import Batch, ParamInfo, Params, Sums
from ftlib.io import gguf, hf
from ftlib.models import heads, presets
from ftlib.objectives import adversarial
from ftlib.optim import chain
from ftlib.optim.chain import Optimizer
from ftlib.peft.method import Method, added
from ftlib.recipe import Settings
from ftlib.tasks.task import Task
from ftlib.train import averages, mixout
from ftlib.train import state as train_state
from ftlib.train.averages import Rule
from ftlib.train.state import TrainState
from ftlib.train.step import make_train_step

_STEPS = 100_000  # of a run whose data, and so whose number of steps, is not known


@dataclasses.dataclass(frozen=True, eq=False)
class Shapes:
  """A run without arrays: `state`, `frozen` and `batch` are trees of shapes and dtypes; `step` takes them. With mixout,
  `frozen` has the pretrained values of what is mixed too, under `mixout.START`."""

  settings: Settings
  task: Task
  method: Method
  info: dict[str, ParamInfo]
  train_info: dict[str, ParamInfo]
  objective: Callable[..., Sums]
  optimizer: Optimizer
  averaging: dict[str, Rule]
  steps: int
  state: TrainState
  frozen: Params
  batch: Batch

  @functools.cached_property
  def step(self) -> Callable[[TrainState, Params, Batch], tuple[TrainState, dict[str, Any]]]:
    """A training step, as `Run.train_step` compiles it."""
    return make_train_step(
      self.method.model.apply,
      self.objective,
      self.optimizer.tx,
      micro=self.settings.train.accumulate,
      penalty=self.method.penalty,
      adjust=self.method.adjust and self.method.adjust(self.steps),
      project=self.method.project,
      needs=self.optimizer.needs,
      averaging=self.averaging,
      **regularised.hooks(self),
    )

  def kept_bytes(self) -> int:
    """Bytes that the forward passes over the rows that are computed at once leave for the backward pass, parameters
    aside: of both passes of R-Drop and of adversarial training, but for freelb, whose passes come one by one.

    It is what automatic differentiation asks for; what XLA makes of it is less where it fuses, and more for scratch.
    """
    s, rows = self.settings, regularised.rows_at_once(self.settings)
    piece = jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), self.batch)
    apply, rest = self.method.model.apply, trees.join(_without_start(self.frozen), self.state.kept)
    alone = dataclasses.replace(s, adversarial=adversarial.Config()) if s.adversarial.name == 'freelb' else s
    objective = regularised.objective(alone, self.task, getattr(self.method.model.config, 'embed', None))

    def back(trainable: Params, rest: Params, batch: Batch, key: jax.Array):
      loss = lambda t: objective(functools.partial(apply, trees.join(t, rest)), batch, key)['loss'][0]  # noqa: E731
      return jax.vjp(loss, trainable)[1]

    left = jax.tree.leaves(jax.eval_shape(back, self.state.trainable, rest, piece, self.state.key))
    parameters = collections.Counter((x.shape, x.dtype) for x in jax.tree.leaves((self.state.trainable, rest)))
    left = collections.Counter((x.shape, x.dtype) for x in left) - parameters
    return sum(n * trees.nbytes(jax.ShapeDtypeStruct(*kind)) for kind, n in left.items())

  def mixed_bytes(self) -> int:
    """Bytes of the pretrained values that mixout keeps, or 0; a step holds as many of what it mixes them into."""
    return trees.nbytes(self.frozen.get(mixout.START, {}))

  def row_bytes(self) -> int:
    """Bytes of the gradients of single rows that a private step holds at once (float32), or 0."""
    s = self.settings
    return s.privacy.microbatch * 4 * trees.size(self.state.trainable) if regularised.is_private(s) else 0


def values(s: Settings) -> dict[str, Any]:
  """`config.json` of the model of a run: of a preset, a folder or a GGUF file, or of one made from nothing, with as
  large a vocabulary as it may have. Raises `InputError`."""
  pretrained = s.model.pretrained
  if not pretrained:
    return scratch.largest(s)
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
  arch = regularised.with_dropout(family.from_hf(config_json, where=s.model.pretrained, allow=s.model.allow_config), s)
  s = recipe.pooled(s, heads.pooling(family, arch))
  task = shapes_batch.task_of(s, classes)
  options = {'compute': jnp.dtype(s.precision.compute), 'remat': s.model.remat, 'dropout_bits': s.train.dropout_bits}
  method = s.modules['method'].build(s.method, family.build(arch, head=task.head, **options))
  trains = lambda name: method.trains(name) or scratch.is_new(s, name)  # noqa: E731
  if method.stages is not None:
    fresh = [n for n in method.model.info() if scratch.is_new(s, n)]
    method = dataclasses.replace(method, stages=method.stages.with_first(fresh))
  marks = chain.marks(s.modules['optim'], s.optim)
  info, _ = stored.info_of(method, trains, scan=s.model.layers == 'scan', marks=marks)
  train_info = {n: i for n, i in info.items() if trains(trees.canonical(n))}
  steps = s.train.steps or _STEPS
  optimizer = chain.build(
    s.modules['optim'], s.optim, train_info, steps=steps, stage=lambda name: method.stage(trees.canonical(name))
  )
  own = {n: i for n, i in info.items() if n in train_info or added(trees.canonical(n))}
  rules = averages.rules(ema=s.train.ema, swa_start=s.train.swa_start, steps=steps)
  make = functools.partial(train_state.create, tx=optimizer.tx, seed=s.seed, averages=rules)
  state = jax.eval_shape(make, *trees.split(_structs(own), train_info.__contains__))
  frozen = _structs({n: i for n, i in info.items() if n not in own}, jnp.dtype(s.precision.frozen))
  if s.train.mixout:
    frozen[mixout.START] = _structs({n: i for n, i in train_info.items() if _mixable(n)})
  objective = regularised.objective(s, task, getattr(arch, 'embed', None))
  at_once = regularised.rows_at_once(s)
  rows = -(-s.train.batch_size // at_once) * at_once
  batch = shapes_batch.batch_of(s, task, rows=rows, length=s.train.max_length or arch.max_length)
  return Shapes(s, task, method, info, train_info, objective, optimizer, rules, steps, state, frozen, batch)


def _mixable(name: str) -> bool:
  """Whether a trainable parameter is a matrix that a checkpoint has."""
  own = trees.canonical(name)
  return own.endswith('/kernel') and not own.startswith('head/') and not added(own)


def _without_start(frozen: Params) -> Params:
  return {n: x for n, x in frozen.items() if n != mixout.START}


def report(shapes: Shapes) -> str:
  """One screen: sizes and bytes."""
  s, c = shapes.settings, shapes.method.model.config
  rows, length = shapes.batch['tokens'].shape
  total, training = (sum(i.size for i in x.values()) for x in (shapes.info, shapes.train_info))
  adapters = sum(i.size for n, i in shapes.train_info.items() if added(trees.canonical(n)))
  kept, mixed, of_rows = shapes.kept_bytes(), shapes.mixed_bytes(), shapes.row_bytes()
  weights, state = trees.nbytes(_without_start(shapes.frozen)), trees.nbytes(shapes.state.trainable)
  opt, extra, means = (trees.nbytes(x) for x in (shapes.state.opt, shapes.state.kept, shapes.state.averages))
  micro = f' in {s.train.accumulate} micro-batches' if s.train.accumulate > 1 else ''
  lines = [
    ('model', f'{s.model.pretrained or s.model.family} ({c.layers} layers, width {c.embed})'),
    ('task', f'{s.names["task"]}, {shapes.task.about}'),
    ('method', f'{s.names["method"]}, {adapters:,} parameters added that train'),
    ('parameters', f'{total:,} total, {training:,} trainable ({training / total:.2%})'),
    ('step', f'{rows} rows of {length} tokens{micro}, {s.precision.compute}, remat {s.model.remat}'),
    ('frozen', f'{_size(weights)} ({s.precision.frozen})'),
    ('trainable', f'{_size(state)}, as much again for gradients' + (f'; kept beside {_size(extra)}' if extra else '')),
    ('optimizer', _size(opt)),
    *([('averages', f'{_size(means)}, {", ".join(shapes.averaging)}')] * (means > 0)),
    *([('mixout', f'{_size(mixed)} of pretrained values, as much again of what they are mixed into')] * (mixed > 0)),
    *([('privacy', f'{_size(of_rows)} of gradients of {s.privacy.microbatch} rows')] * (of_rows > 0)),
    ('backward', f'{_size(kept)} kept from the forward pass{"es" * (s.adversarial.name not in ("none", "freelb"))}'),
    (
      'together',
      f'{_size(weights + 2 * state + extra + opt + means + 2 * mixed + of_rows + kept)}, without what XLA needs for '
      'scratch',
    ),
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


def _structs(info: Mapping[str, ParamInfo], dtype: Any = None) -> Params:
  kind = lambda i: dtype if dtype is not None and jnp.issubdtype(i.dtype, jnp.floating) else i.dtype  # noqa: E731
  return trees.unflatten({n: jax.ShapeDtypeStruct(i.shape, kind(i)) for n, i in info.items()})


def main() -> None:
  """Prints the report of the config."""
  from absl import flags

  if flags.FLAGS.config is None:
    raise InputError('give a config: --config=configs/NAME.py')
  if flags.FLAGS.classes < 2:
    raise InputError(f'--classes={flags.FLAGS.classes}: a task with classes has two or more')
  s = recipe.read(flags.FLAGS.config)
  print(report(of(s, values(s), classes=flags.FLAGS.classes)))


if __name__ == '__main__':
  from absl import flags

  cli.define_config()
  flags.DEFINE_integer('classes', 2, 'how many classes a task with a list of labels has')
  sys.exit(cli.run(main))
