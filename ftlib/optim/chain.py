"""From settings to one Optax transformation: clip, then for each group of names rule, decay and learning rate.

An optimizer file gives the direction; what every optimizer shares is set here. `config_of` puts both in one section
(`optim.learning_rate` beside `optim.b1`). Groups are name patterns with settings of their own; the first group that
matches a name takes it, the rest is the group `default`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import jax
import optax

from ftlib.base import settings, trees
from ftlib.base.errors import InputError
from ftlib.base.settings import setting
from ftlib.base.types import ParamInfo
from ftlib.optim import schedules


@dataclasses.dataclass(frozen=True)
class Common:
  """What every optimizer has. Rates are per step; `clip_norm` 0 does not clip.

  `no_decay` is a pattern of names without weight decay. `groups` is {group name: {pattern, learning_rate,
  weight_decay}}, set in a config file; flags then change what is there.
  """

  learning_rate: float = setting(1e-3, above=0)
  weight_decay: float = setting(0.0, low=0)
  no_decay: str = r'(bias|scale)$'
  clip_norm: float = setting(1.0, low=0)
  schedule: str = setting('linear', choices=schedules.NAMES)
  warmup: float = setting(0.06, low=0, below=1)
  warmup_steps: int | None = setting(None, low=0)
  final: float = setting(0.0, low=0, high=1)
  power: float = setting(1.0, above=0)
  groups: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Group:
  """One group of names. A field at None is the optimizer's own."""

  pattern: str = ''
  learning_rate: float | None = setting(None, above=0)
  weight_decay: float | None = setting(None, low=0)


def config_of(module: ModuleType) -> type:
  """The dataclass of an optimizer's section: the file's own fields (and its defaults) over `Common`'s."""
  return dataclasses.make_dataclass('Config', [], bases=(module.Config, Common), frozen=True)


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """`tx` over the trainable tree; `schedules` {group: step -> learning rate}; `members` {group: names}."""

  tx: optax.GradientTransformation
  schedules: dict[str, optax.Schedule]
  members: dict[str, list[str]]


def build(module: ModuleType, config: Any, info: Mapping[str, ParamInfo], *, steps: int) -> Optimizer:
  """The optimizer over the trainable parameters `info` for a run of `steps` steps.

  Raises `InputError` for a group whose pattern matches nothing, and a group all of whose names an earlier one took.
  """
  groups = {n: settings.read(Group, g, where=f'optim.groups.{n}') for n, g in config.groups.items()}
  members = _members(groups, list(info))
  warmup = schedules.warmup_steps(ratio=config.warmup, steps=config.warmup_steps, total=steps)
  chosen = {}
  rates = {}
  for name, names in members.items():
    group = groups.get(name, Group())
    rates[name] = schedules.build(
      config.schedule,
      peak=config.learning_rate if group.learning_rate is None else group.learning_rate,
      warmup=warmup,
      total=steps,
      final=config.final,
      power=config.power,
    )
    decay = config.weight_decay if group.weight_decay is None else group.weight_decay
    own = {n: info[n] for n in names}
    chosen[name] = _chain(module.build(config, own), decay, config.no_decay, rates[name])
  label_of = {n: g for g, names in members.items() for n in names}
  labels = trees.unflatten({n: label_of[n] for n in info})
  parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm > 0 else []
  tx = optax.chain(*parts, next(iter(chosen.values())) if len(chosen) == 1 else optax.partition(chosen, labels))
  return Optimizer(tx, rates, members)


def _chain(rule: optax.GradientTransformation, decay: float, no_decay: str, rate: optax.Schedule) -> Any:
  rx = trees.compile_pattern(no_decay, field='optim.no_decay')
  decays = lambda name: not (no_decay and rx.search(name))  # noqa: E731
  mask = lambda tree: jax.tree_util.tree_map_with_path(lambda path, _: decays(trees.path_name(path)), tree)  # noqa: E731
  parts = [rule] if decay == 0 else [rule, optax.add_decayed_weights(decay, mask=mask)]
  return optax.chain(*parts, optax.scale_by_learning_rate(rate))


def _members(groups: Mapping[str, Group], names: list[str]) -> dict[str, list[str]]:
  left = list(names)
  members: dict[str, list[str]] = {}
  for group, spec in groups.items():
    if group == 'default':
      raise InputError('optim.groups.default: "default" is the name of the rest; call the group something else')
    hits = trees.matching(spec.pattern, names, field=f'optim.groups.{group}.pattern', what='trainable parameters')
    members[group] = [n for n in hits if n in left]
    if not members[group]:
      raise InputError(f'optim.groups.{group} is empty: earlier groups took all that {spec.pattern!r} matches')
    left = [n for n in left if n not in members[group]]
  return {**members, **({'default': left} if left else {})}
