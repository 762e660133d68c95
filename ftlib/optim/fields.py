"""The settings that every optimizer has, and how those of a group come from the run's.

`config_of` puts a file's own fields and the shared ones in one section (`optim.learning_rate` beside `optim.b1`). A
group may change every shared field but `RUN_WIDE`, take another optimizer, and set that file's own fields in `options`.
"""

from __future__ import annotations

import dataclasses
import typing
from types import ModuleType
from typing import Any, NamedTuple

from ftlib.base import lookup, settings
from ftlib.base.errors import InputError
from ftlib.base.settings import setting
from ftlib.optim import schedules

EXTRA = ('value', 'grad', 'value_fn', 'grad_fn', 'obj_fn')  # what a file's NEEDS can name
RUN_WIDE = ('groups', 'clip', 'clip_norm')
CLIPS = ('global', 'block', 'adaptive', 'value')


@dataclasses.dataclass(frozen=True)
class Common(schedules.Schedule):
  """What every optimizer has. Rates are per step; the schedule's fields are those of `schedules.py`.

  `weight_decay` is decoupled: it shrinks a parameter at the learning rate, past the rule. `l2` and `l2_sp` are added to
  the clipped gradient, that of l2_sp toward the values at the start of the run (Li et al. 2018), which it stores. `l1`
  draws to exactly zero after the update (proximal; at the step's learning rate). `no_decay` is a pattern of names
  without any of the four.

  `clip` is by the global norm, that of each block (parameter of a layer), of each unit relative to that of its weights
  (adaptive: Brock et al. 2021), or by value, and `clip_norm` its limit; 0 does not clip. `noise` is the variance of the
  gradient noise of the first step, divided by (1 + step)^`noise_decay` later (Neelakantan et al. 2015). `centralize`
  takes the mean over the inputs off the gradient of a matrix (Yong et al. 2020). `layer_decay` multiplies the learning
  rate once for each layer below the top one. `moments` is the dtype that a rule's
  first moments are stored in; second ones stay float32.

  `groups` is {group name: {pattern, optimizer, options, learning_rate, ...}}, set in a config file; flags then change
  what is there.
  """

  learning_rate: float = setting(1e-3, above=0)
  weight_decay: float = setting(0.0, low=0)
  no_decay: str = r'(bias|scale)$'
  l1: float = setting(0.0, low=0)
  l2: float = setting(0.0, low=0)
  l2_sp: float = setting(0.0, low=0)
  clip: str = setting('global', choices=CLIPS)
  clip_norm: float = setting(1.0, low=0)
  noise: float = setting(0.0, low=0)
  noise_decay: float = setting(0.55, low=0)
  centralize: bool = False
  layer_decay: float = setting(1.0, above=0, high=1)
  moments: str = setting('float32', choices=('float32', 'bfloat16'))
  groups: dict = dataclasses.field(default_factory=dict)


def _group() -> type:
  hints = typing.get_type_hints(Common)
  shared = [f for f in dataclasses.fields(Common) if f.name not in RUN_WIDE]
  own = [('pattern', str, ''), ('optimizer', str, ''), ('options', dict, dataclasses.field(default_factory=dict))]
  optional = lambda f: (f.name, hints[f.name] | None, dataclasses.field(default=None, metadata=f.metadata))  # noqa: E731
  doc = "One group of names. `options` are fields of its optimizer file; a field at None is the run's."
  return dataclasses.make_dataclass('Group', [*own, *map(optional, shared)], frozen=True, namespace={'__doc__': doc})


Group = _group()


def config_of(module: ModuleType) -> type:
  """The dataclass of an optimizer's section: the file's own fields (and its defaults) over `Common`'s.

  Raises `InputError` for a field of the file's that has the name of a shared one and another type.
  """
  theirs, shared = typing.get_type_hints(module.Config), typing.get_type_hints(Common)
  for name in sorted(set(theirs) & set(shared)):
    if theirs[name] != shared[name]:
      raise InputError(
        f'{module.__file__}: Config.{name} means something else in every optimizer (optim.{name}); rename it'
      )
  return dataclasses.make_dataclass('Config', [], bases=(module.Config, Common), frozen=True)


def name_of(module: ModuleType) -> str:
  """What `optim.name` calls a module."""
  return module.__name__.removeprefix('ftlib.optim.')


def needs_of(module: ModuleType) -> tuple[str, ...]:
  """The extra arguments that a file's `update` uses. Raises `InputError` for one that there is not."""
  needs = tuple(getattr(module, 'NEEDS', ()))
  for name in needs:
    if name not in EXTRA:
      raise InputError(f'{module.__file__}: NEEDS names {name!r}, which is none of {", ".join(EXTRA)}')
  return needs


def searches(module: ModuleType) -> bool:
  """Whether a file goes along a line by the loss; what changes the gradient alone would mislead it."""
  return {'value', 'grad', 'value_fn'} <= {*needs_of(module)}


class Spec(NamedTuple):
  """A group as its settings say: pattern of names, optimizer file and the whole config for that."""

  pattern: str
  module: ModuleType
  config: Any


def of_group(name: str, module: ModuleType, config: Any) -> Spec:
  """What `config.groups[name]` says, over the run's optimizer file and config.

  A field that the group leaves out is the run's; but with an optimizer of its own, what that file gives a default of
  its own is the file's. Raises `InputError` for unknown fields, options and optimizers and for values out of range.
  """
  where = f'optim.groups.{name}'
  group = settings.read(Group, config.groups[name], where=where)
  own = lookup.component('optim', group.optimizer, field=f'{where}.optimizer') if group.optimizer else module
  settings.read(own.Config, group.options, where=f'{where}.options')
  shared = sorted(set(RUN_WIDE) & set(group.options))
  if shared:
    raise InputError(f'{where}.options.{shared[0]} is of the whole run, not of a group; set optim.{shared[0]}')
  files = {f.name for f in dataclasses.fields(own.Config)}
  kept = [f.name for f in dataclasses.fields(config) if own is module or f.name not in files]
  known = {f.name for f in dataclasses.fields(config_of(own))}
  values = {n: getattr(config, n) for n in kept if n in known}
  changed = {f.name: getattr(group, f.name) for f in dataclasses.fields(Common) if f.name not in RUN_WIDE}
  changed = {n: x for n, x in changed.items() if x is not None}
  if 'warmup' in changed:
    values['warmup_steps'] = None
  return Spec(group.pattern, own, settings.read(config_of(own), {**values, **group.options, **changed}, where=where))
