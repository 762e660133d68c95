"""From settings to one Optax transformation: clip, then for each group of names rule, decay and learning rate.

An optimizer file gives the direction; what every optimizer shares is set here. `config_of` puts both in one section
(`optim.learning_rate` beside `optim.b1`). Groups are name patterns with settings of their own; the first group that
matches a name takes it, the rest is the group `default`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ftlib.base import settings, trees
from ftlib.base.errors import InputError
from ftlib.base.settings import setting
from ftlib.base.types import ParamInfo
from ftlib.optim import schedules


@dataclasses.dataclass(frozen=True)
class Common:
  """What every optimizer has. Rates are per step; `clip_norm` 0 does not clip.

  `no_decay` is a pattern of names without weight decay; `cut_frac` and `ratio` are of schedule 'slanted'. `groups` is
  {group name: {pattern, learning_rate, weight_decay}}, set in a config file; flags then change what is there.
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
  cut_frac: float = setting(0.1, above=0, below=1)
  ratio: float = setting(32.0, low=1)
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
  """`tx` over the trainable tree; `schedules` {group: step -> learning rate}; `members` {group: names}.

  `staged[k]` is `tx` while what begins to train after stage k waits: neither it nor its moments and their count change.
  The state is the same.
  """

  tx: optax.GradientTransformation
  schedules: dict[str, optax.Schedule]
  members: dict[str, list[str]]
  staged: tuple[optax.GradientTransformation, ...] = ()


def build(
  module: ModuleType,
  config: Any,
  info: Mapping[str, ParamInfo],
  *,
  steps: int,
  stage: Callable[[str], int] = lambda _: 0,
  rates: Callable[[str], Sequence[float]] = lambda _: (1.0,),
) -> Optimizer:
  """The optimizer over the trainable parameters `info` for a run of `steps` steps.

  A parameter waits until its `stage`; `rates` gives the factor of its learning rate, or one for each layer of a stack.
  Raises `InputError` for a group whose pattern matches nothing, and a group all of whose names an earlier one took.
  """
  groups = {n: settings.read(Group, g, where=f'optim.groups.{n}') for n, g in config.groups.items()}
  members = _members(groups, list(info))
  warmup = schedules.warmup_steps(ratio=config.warmup, steps=config.warmup_steps, total=steps)
  chosen, waiting, begins, labels = {}, {}, {}, {}
  schedule = {}
  for name, names in members.items():
    group = groups.get(name, Group())
    schedule[name] = schedules.build(
      config.schedule,
      peak=config.learning_rate if group.learning_rate is None else group.learning_rate,
      warmup=warmup,
      total=steps,
      final=config.final,
      power=config.power,
      cut_frac=config.cut_frac,
      ratio=config.ratio,
    )
    decay = config.weight_decay if group.weight_decay is None else group.weight_decay
    for k in sorted(set(map(stage, names))):
      own = {n: info[n] for n in names if stage(n) == k}
      label = f'{name}-{k}' if k else name
      labels |= dict.fromkeys(own, label)
      rule = [*_chain(module.build(config, own), decay, config.no_decay), *_scaled(rates, own)]
      clock = optax.scale_by_learning_rate(schedule[name])
      chosen[label], begins[label] = optax.chain(*rule, clock), k
      waiting[label] = _waiting(chosen[label].init, clock)
  parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm > 0 else []
  tree = trees.unflatten({n: labels[n] for n in info})

  def during(k: int) -> optax.GradientTransformation:
    now = {label: tx if begins[label] <= k else waiting[label] for label, tx in chosen.items()}
    return optax.chain(*parts, next(iter(now.values())) if len(now) == 1 else optax.partition(now, tree))

  staged = tuple(map(during, range(max(begins.values(), default=0) + 1)))
  return Optimizer(staged[-1], schedule, members, staged)


def _waiting(init: Callable[[Any], Any], clock: optax.GradientTransformation) -> optax.GradientTransformation:
  """No update, and a state as it was but for the schedule's step, which is the run's."""

  def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    zero = jax.tree.map(jnp.zeros_like, updates)
    return zero, (*state[:-1], clock.update(zero, state[-1], params)[1])

  return optax.GradientTransformation(init, update)


def _scaled(rates: Callable[[str], Sequence[float]], names: Mapping[str, Any]) -> list[optax.GradientTransformation]:
  factors = {n: np.asarray(rates(n), np.float32) for n in names}
  if all((x == 1).all() for x in factors.values()):
    return []
  wide = lambda x, u: x[0] if x.size == 1 else x.reshape(-1, *[1] * (u.ndim - 1))  # noqa: E731
  times = lambda path, u: u * wide(factors[trees.path_name(path)], u)  # noqa: E731
  return [optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(times, updates))]


def _chain(rule: optax.GradientTransformation, decay: float, no_decay: str) -> list[optax.GradientTransformation]:
  rx = trees.compile_pattern(no_decay, field='optim.no_decay')
  decays = lambda name: not (no_decay and rx.search(name))  # noqa: E731
  mask = lambda tree: jax.tree_util.tree_map_with_path(lambda path, _: decays(trees.path_name(path)), tree)  # noqa: E731
  return [rule] if decay == 0 else [rule, optax.add_decayed_weights(decay, mask=mask)]


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
