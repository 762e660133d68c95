"""From settings to one Optax transformation: clip, then for each group of names its rule, decay and learning rate.

An optimizer file gives the direction of a step; what every optimizer shares is beside them: settings in `fields.py`,
one group in `rule.py`, gradients and parameters in `around.py`. Groups are name patterns with settings of their own;
the first group that matches a name takes it, the rest is the group `default`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import optax

from ftlib.base import trees
from ftlib.base.errors import InputError
from ftlib.base.types import ParamInfo, Params
from ftlib.optim import around, fields, rule, schedules
from ftlib.optim.fields import Common, Group, config_of

__all__ = ['Common', 'Group', 'Optimizer', 'Part', 'build', 'config_of']


@dataclasses.dataclass(frozen=True)
class Part:
  """One group: its optimizer file and settings, its learning rate at a step, and its names.

  `labels` {name: label} tells apart what begins to train at different stages; a label has a state of its own.
  """

  module: ModuleType
  config: Any
  schedule: optax.Schedule
  labels: dict[str, str]

  @property
  def optimizer(self) -> str:
    """The optimizer's name."""
    return fields.name_of(self.module)


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """`tx` over the trainable tree; `parts` {group: Part}; `needs`, the extra arguments that `tx.update` wants.

  `staged[k]` is `tx` while what begins to train after stage k waits: neither it nor its moments and their count change.
  The state is the same: {label: the state of `rule.py`}.
  """

  tx: optax.GradientTransformationExtraArgs
  parts: dict[str, Part]
  needs: frozenset[str]
  staged: tuple[optax.GradientTransformationExtraArgs, ...]

  @property
  def schedules(self) -> dict[str, optax.Schedule]:
    """{group: step -> learning rate}, before what a plateau lowers it by."""
    return {group: part.schedule for group, part in self.parts.items()}

  @property
  def members(self) -> dict[str, list[str]]:
    """{group: names}."""
    return {group: list(part.labels) for group, part in self.parts.items()}

  def averaged(self, opt_state: Any, params: Params) -> Params:
    """The parameters to evaluate, predict and export with: `params`, but where a group's optimizer file says other."""
    out = []
    for part in self.parts.values():
      fn = getattr(part.module, 'averaged', lambda state, own: own)
      owned = _split(params, part.labels)
      out += [fn(opt_state[label]['rule'], own) for label, own in owned.items()]
    return trees.join(*out)

  def planned(self, steps: int, *, points: int = 200) -> dict[str, list[list[float]]]:
    """{group: [[step, learning rate], ...]} at up to `points` steps of a run of `steps`, as far as known beforehand."""
    at = np.unique(np.linspace(0, steps - 1, min(points, steps)).round().astype(np.int32))
    rates = {group: np.asarray(schedule(at)) for group, schedule in self.schedules.items()}
    return {group: [[int(t), float(r)] for t, r in zip(at, rate, strict=True)] for group, rate in rates.items()}


def marks(module: ModuleType, config: Any) -> Callable[[str], tuple[str, bool]]:
  """`name -> (its group, whether it decays)` of a trainable parameter of one layer. Layers that differ in it cannot lie
  in one stack. Raises `InputError` for groups that cannot be read."""
  specs = {name: fields.of_group(name, module, config) for name in config.groups}
  patterns = {g: trees.compile_pattern(x.pattern, field=f'optim.groups.{g}.pattern') for g, x in specs.items()}
  decays = {g: rule.decays(x.config, where=f'optim.groups.{g}') for g, x in specs.items()}
  decays['default'] = rule.decays(config, where='optim')

  def mark(name: str) -> tuple[str, bool]:
    group = next((g for g, rx in patterns.items() if rx.search(name)), 'default')
    return group, decays[group](name)

  return mark


def build(
  module: ModuleType,
  config: Any,
  info: Mapping[str, ParamInfo],
  *,
  steps: int,
  stage: Callable[[str], int] = lambda _: 0,
  rates: Callable[[str], Sequence[float]] = lambda _: (1.0,),
  seed: int = 0,
) -> Optimizer:
  """The optimizer over the trainable parameters `info` for a run of `steps` steps.

  A parameter waits until its `stage`; `rates` gives the factor of its learning rate, or one for each layer of a stack.
  `seed` is that of gradient noise and of what rules draw. Raises `InputError` for a group whose pattern matches
  nothing, and one all of whose names an earlier one took, and for settings that do not go together.
  """
  specs = {name: fields.of_group(name, module, config) for name in config.groups}
  members = _members({name: spec.pattern for name, spec in specs.items()}, list(info))
  top = max((-around.depths(n, 0)[-1] for n in info), default=0)
  parts, rules, begins = {}, {}, {}
  for name, names in members.items():
    where = f'optim.groups.{name}' if name in specs else 'optim'
    own, settings = (specs[name].module, specs[name].config) if name in specs else (module, config)
    schedule = schedules.build(settings, peak=settings.learning_rate, total=steps, where=where)
    part = Part(own, settings, schedule, {n: f'{name}-{stage(n)}' if stage(n) else name for n in names})
    parts[name] = part
    factor = functools.partial(_factors, rates, part.config.layer_decay, top)
    for n, label in part.labels.items():
      begins[label] = stage(n)
    for label in dict.fromkeys(part.labels.values()):
      inside = {n: info[n] for n in names if part.labels[n] == label}
      rules[label] = rule.group(own, settings, inside, schedule=schedule, rates=factor, seed=seed, where=where)
  labels = {n: label for part in parts.values() for n, label in part.labels.items()}
  searching = [part.optimizer for part in parts.values() if fields.searches(part.module)]
  if config.clip_norm and searching:
    raise InputError(
      f'optim.clip_norm={config.clip_norm} does not go with the optimizer {searching[0]}, which searches by the loss: '
      'that would change the gradient alone; set it to 0'
    )
  clip = around.clipper(config.clip, config.clip_norm, info)

  def during(k: int) -> optax.GradientTransformationExtraArgs:
    now = {label: tx if begins[label] <= k else rule.waiting(tx) for label, tx in rules.items()}
    return _together(now, labels, clip)

  staged = tuple(map(during, range(max(begins.values(), default=0) + 1)))
  return Optimizer(staged[-1], parts, _needs(parts), staged)


def _factors(rates: Callable[[str], Sequence[float]], decay: float, top: int, name: str) -> np.ndarray:
  below = around.depths(name, top) if decay < 1 else [0]
  return np.asarray(rates(name), np.float32) * np.float32(decay) ** np.asarray(below, np.float32)


def _needs(parts: Mapping[str, Part]) -> frozenset[str]:
  plateau = ['rate_scale'] if any(part.config.schedule == 'plateau' for part in parts.values()) else []
  return frozenset(plateau).union(*(fields.needs_of(part.module) for part in parts.values()))


def _split(tree: Params, labels: Mapping[str, str]) -> dict[str, Params]:
  """{label: the part of a tree that bears it}."""
  flat = trees.flatten(tree)
  out: dict[str, dict[str, Any]] = {label: {} for label in labels.values()}
  for name, label in labels.items():
    out[label][name] = flat[name]
  return {label: trees.unflatten(own) for label, own in out.items()}


def _together(
  rules: Mapping[str, optax.GradientTransformationExtraArgs],
  labels: Mapping[str, str],
  clip: Callable[[Params, Params], Params],
) -> optax.GradientTransformationExtraArgs:
  """Each rule over the names with its label, as in `optax.partition`, after `clip` over all.

  A rule is given trees of its names alone and no `optax.MaskedNode`s, and so are the functions among the extra
  arguments: what it does not own is at the parameters of the step.
  """

  def init(params: Params) -> dict[str, Any]:
    return {label: rules[label].init(own) for label, own in _split(params, labels).items()}

  def update(gradients: Params, state: Mapping[str, Any], params: Params, **extra: Any) -> tuple[Params, dict]:
    clipped, theirs = _split(clip(gradients, params), labels), _split(params, labels)
    if 'grad_fn' in extra:
      extra['grad_fn'] = lambda p, *i, fn=extra['grad_fn']: clip(fn(p, *i), p)
    out = {}
    for label, tx in rules.items():
      given = _inside(extra, params, {n for n, owner in labels.items() if owner == label})
      out[label] = tx.update(clipped[label], state[label], theirs[label], **given)
    return trees.join(*(updates for updates, _ in out.values())), {label: after for label, (_, after) in out.items()}

  return optax.GradientTransformationExtraArgs(init, update)


def _inside(extra: Mapping[str, Any], params: Params, names: set[str]) -> dict[str, Any]:
  """The extra arguments of a rule that owns `names`."""
  rest = trees.split(params, names.__contains__)[1]
  own = lambda tree: trees.split(tree, names.__contains__)[0]  # noqa: E731
  at = {n: (lambda p, fn=extra[n]: fn(trees.join(p, rest))) for n in ('value_fn', 'obj_fn') if n in extra}
  if 'grad' in extra:
    at['grad'] = own(extra['grad'])
  if 'grad_fn' in extra:
    at['grad_fn'] = lambda p, *i: own(extra['grad_fn'](trees.join(p, rest), *i))
  return {**extra, **at}


def _members(patterns: Mapping[str, str], names: list[str]) -> dict[str, list[str]]:
  left, members = list(names), {}
  owner = {layer: n for n in names for layer in trees.members(n)}
  for group, pattern in patterns.items():
    field = f'optim.groups.{group}.pattern'
    if group == 'default':
      raise InputError('optim.groups.default: "default" is the name of the rest; call the group something else')
    hits = set(trees.matching(pattern, owner, field=field, what='trainable parameters'))
    members[group] = [n for n in left if hits.intersection(trees.members(n))]
    if not members[group]:
      raise InputError(f'optim.groups.{group} is empty: earlier groups took all that {pattern!r} matches')
    for n in members[group]:
      if not hits.issuperset(trees.members(n)):
        raise InputError(f'{field}={pattern!r} takes some layers of the stack {n}')
    left = [n for n in left if n not in members[group]]
  return {**members, **({'default': left} if left else {})}
