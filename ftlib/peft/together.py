"""Several methods as one, `method=lora+bitfit`: each is built on the model of the one before.

A parameter trains where any of them trains it; merging undoes them from the last to the first. Each method's own
functions see its own parameters alone. Methods exclude each other where both want one slot, where one trains the whole
base already (`full`), and where one works in stages.
"""

from __future__ import annotations

import dataclasses
import re
import types
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import jax

from ftlib.base import trees
from ftlib.base.errors import InputError
from ftlib.base.types import Flat, Params
from ftlib.models.model import Model
from ftlib.peft.method import Adjust, Gradient, Method, Project, Taken, added


def component(modules: Mapping[str, ModuleType]) -> Any:
  """What stands for the module of a method: `Config`, of a section for each of `modules` by name, and `build`.

  A section is called as its method's file. Raises `InputError` for two of one name.
  """
  whole, keys = '+'.join(modules), [name.rpartition('.')[2] for name in modules]
  if len({*keys}) < len(keys):
    raise InputError(f'method.name={whole!r} has two methods of one name; a section of the config can hold one')
  sections = dict(zip(keys, modules.values(), strict=True))
  fields = [(k, m.Config, dataclasses.field(default_factory=m.Config)) for k, m in sections.items()]
  config = dataclasses.make_dataclass('Config', fields, frozen=True)
  make = lambda given, model: together(  # noqa: E731
    {k: lambda on, k=k, m=m: m.build(getattr(given, k), on) for k, m in sections.items()}, model
  )
  return types.SimpleNamespace(__name__=whole, Config=config, build=make, parts=sections)


@dataclasses.dataclass(frozen=True)
class _Part:
  """A method of several; `owns(name as it is stored)`: its adapters' parameters, and those of the base it trains."""

  method: Method
  owns: Callable[[str], bool]


def together(builds: Mapping[str, Callable[[Model], Method]], model: Model) -> Method:
  """One method of several, {name: model -> method}. Raises `InputError` for those that exclude each other."""
  parts: list[_Part] = []
  holders: dict[str, str] = {}  # parameter of an adapter -> whose it is
  for name, build in builds.items():
    method = _built(name, build, model, holders, '+'.join(builds))
    new = {n for n in method.model.info() if added(n) and n not in holders}
    holders.update(dict.fromkeys(new, name))
    chosen = {n for n in model.info() if not added(n) and method.trains(n)} | new
    parts.append(_Part(method, lambda n, chosen=chosen: trees.canonical(n) in chosen))
    model = method.model
  methods = [p.method for p in parts]
  merges, prepares, penalties, adjusts = (
    [m for m in methods if getattr(m, f) is not None] for f in ('merge', 'prepare', 'penalty', 'adjust')
  )
  return Method(
    model=model,
    trains=lambda name: any(p.owns(name) and p.method.trains(name) for p in parts),
    shown=list(dict.fromkeys(s for m in methods for s in m.shown)),
    merge=_merging(methods) if len(merges) == len(methods) else None,
    prepare=_preparing(methods) if prepares else None,
    penalty=_penalty(parts) if penalties else None,
    adjust=(lambda steps: _adjusting(parts, steps)) if adjusts else None,
    project=_projecting(parts) if adjusts else None,
    tokens=sum(m.tokens for m in methods),
    packs=all(m.packs for m in methods),
    source=next((m.source for m in methods if m.source), ''),
    text=next((m.text for m in methods if m.text), ''),
    identity=all(m.identity for m in methods),
    rates=_rates(parts) if any(m.rates for m in methods) else None,
  )


def _built(name: str, build: Callable[[Model], Method], model: Model, holders: Mapping[str, str], whole: str) -> Method:
  field = f'method.name={whole!r}'
  try:
    method = build(model)
  except Taken as e:
    other = next((who for n, who in holders.items() if n.startswith(f'{e.site}/adapter/')), name)
    raise InputError(
      f'{field}: {other} and {name} exclude each other: both want the slot {e.site}, which takes one adapter\n'
      f'  give them other sites, by method.{other}.target or method.{name}.target, or leave one out'
    ) from e
  except InputError as e:
    raise InputError(re.sub(r'\bmethod(?=[.=])(?!\.name\b)', f'method.{name}', str(e))) from e
  if method.stages is not None:
    raise InputError(f'{field}: {name} trains in stages, and takes no other method beside it; leave the others out')
  if all(method.trains(n) for n in method.model.info() if not added(n)):
    raise InputError(
      f'{field}: {name} trains the whole model, so that no other method has a part; leave the others out'
    )
  return method


def _merging(methods: list[Method]) -> Callable[[Params], Params]:
  def merge(params: Params) -> Params:
    for method in reversed(methods):
      params = method.merge(params)
    return params

  return merge


def _preparing(methods: list[Method]) -> Callable[[Flat, Gradient], Flat]:
  def prepare(flat: Flat, gradient: Gradient) -> Flat:
    new: Flat = {}
    for method in methods:
      if method.prepare is not None:
        new |= method.prepare({**flat, **new}, gradient)
    return new

  return prepare


def _penalty(parts: list[_Part]) -> Callable[[Params], jax.Array]:
  return lambda trainable: sum(
    p.method.penalty(trees.split(trainable, p.owns)[0]) for p in parts if p.method.penalty is not None
  )


def _adjusting(parts: list[_Part], steps: int) -> Adjust:
  fns = [(part, part.method.adjust(steps)) for part in parts if part.method.adjust is not None]

  def adjust(trainable: Params, kept: Params, grads: Params, step: jax.Array) -> tuple[Params, Params]:
    for part, fn in fns:
      (own, others), (own_kept, others_kept) = (trees.split(t, part.owns) for t in (trainable, kept))
      own, own_kept = fn(own, own_kept, trees.split(grads, part.owns)[0], step)
      trainable, kept = trees.join(own, others), trees.join(own_kept, others_kept)
    return trainable, kept

  return adjust


def _projecting(parts: list[_Part]) -> Project:
  def project(trainable: Params, kept: Params) -> Params:
    for part in parts:
      if part.method.project is not None:
        own, others = trees.split(trainable, part.owns)
        trainable = trees.join(part.method.project(own, trees.split(kept, part.owns)[0]), others)
    return trainable

  return project


def _rates(parts: list[_Part]) -> Callable[[str], float]:
  def rate(name: str) -> float:
    return next((p.method.rates(name) for p in parts if p.method.rates is not None and p.owns(name)), 1.0)

  return rate
