"""Several named adapters on one base, switched by name.

    adapters = Adapters(run)                 # a Run gives the base, the data and the task
    adapters.add('lora', 'runs/lora')        # a run folder or a folder of PEFT, of whatever method
    adapters.use('lora').evaluate('test')

The base is read once. What an adapter leaves alone of it is the same buffers for all adapters whose layers are stacked
alike, and adapters of the same shapes and constants (scales, dropout) share a compiled step.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftlib import adapter, peft_config, peft_folder, recipe, stored
from ftlib.base import settings, trees
from ftlib.base.errors import InputError, did_you_mean, listing
from ftlib.base.types import Batch, Flat, Params
from ftlib.models import stack
from ftlib.peft.method import Method, added
from ftlib.run import Run


@dataclasses.dataclass(frozen=True)
class _Member:
  """An adapter: the run that computes with it, its own parameters and those of the base, as they are stored."""

  run: Run
  own: Flat
  frozen: Flat


class Adapters:
  """`run` gives the base model, the data, the task and the labels; its own adapter is none of these."""

  def __init__(self, run: Run):
    self._run = run
    model = run.method.model
    options = {'compute': model.compute, 'remat': model.remat, 'dropout_bits': model.dropout_bits}
    self._plain = run.base.family.build(model.config, head=run.task.head, **options)
    self._members: dict[str, _Member] = {}
    self._runs: dict[str, Run] = {}  # by what a compiled step depends on
    self._bases: dict[str, Flat] = {}  # by the runs of layers that lie in one stack
    self._name = ''

  @property
  def names(self) -> list[str]:
    """The adapters in the order they were added."""
    return list(self._members)

  def add(self, name: str, path: str | pathlib.Path) -> list[str]:
    """Reads an adapter; gives notes. Raises `InputError` for a name that is no word or taken, and for a folder that is
    neither a run with a checkpoint nor of PEFT, of another base or other labels, or that lacks a parameter."""
    field, where = f'--adapters={name}={path}', pathlib.Path(path).expanduser()
    if not re.fullmatch(r'[\w.-]+', name):
      raise InputError(f'{field}: the name {name!r} is no word of letters, digits, "_", "-" and "."')
    if name in self._members:
      raise InputError(f'{field}: there are two adapters of the name {name}; give each its own')
    read = self._of_peft if peft_folder.is_one(where) else self._of_run
    which, module, config, values, notes = read(where, field)
    method = module.build(config, self._plain)
    info = method.model.info()
    unknown = [n for n in values if n not in info]
    lacking = [n for n in info if n not in values and (added(n) or n not in self._run.match.pairs)]
    if unknown or lacking:
      parts = (
        (unknown, 'it holds and the model lacks'),
        (lacking, 'the model needs and neither it nor the base holds'),
      )
      lines = [f'{len(names)} parameters that {why}:\n{listing(names)}' for names, why in parts if names]
      raise InputError('\n'.join([f'{field} does not fit method.name={which}', *lines]))
    self._check_length(method, field)
    self._members[name] = self._member(method, values)
    return notes

  def use(self, name: str) -> Adapters:
    """Switches to an adapter. Raises `InputError` for a name that was not added."""
    if name not in self._members:
      there = ', '.join(self.names) or 'none'
      raise InputError(f'there is no adapter {name!r}{did_you_mean(name, self.names)}; there are {there}')
    self._name = name
    return self

  @property
  def params(self) -> Params:
    """The whole tree of the adapter in use, stacked as its run's; what it shares with others is the same arrays."""
    member = self._used
    return trees.unflatten({**member.own, **member.frozen})

  @property
  def run(self) -> Run:
    """The run that computes with the adapter in use."""
    return self._used.run

  def evaluate(self, split: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(metrics, predictions) of the adapter in use on a split."""
    member = self._used
    return member.run.evaluate(trees.unflatten(member.own), trees.unflatten(member.frozen), split)

  def logits(self, batch: Batch) -> jax.Array:
    """Of the adapter in use, without dropout: [B, C]."""
    return self._used.run.method.model.apply(self.params, batch, None).logits

  @property
  def _used(self) -> _Member:
    return self._members[self.use(self._name)._name]

  def _of_run(self, where: pathlib.Path, field: str) -> tuple[str, ModuleType, Any, Flat, list[str]]:
    run, info = self._run, self._plain.info()
    source = adapter.opened(where, run.base.fingerprint, field)
    self._check_labels(source.identity['labels'], field)
    pooling = source.config['task'].get('pooling', run.task.head.pooling)
    if pooling != run.task.head.pooling:
      raise InputError(f'{field}: its head reads task.pooling={pooling}, here {run.task.head.pooling}')
    section = dict(source.config['method'])
    which = section.pop('name')
    module = recipe.component('method', which)
    config = settings.read(module.Config, section, where='method')
    held = source.held([n for n, i in info.items() if 'classes' in i.axes])
    return which, module, config, source.values([*held]), [f'{where}, checkpoint {source.step}']

  def _of_peft(self, where: pathlib.Path, field: str) -> tuple[str, ModuleType, Any, Flat, list[str]]:
    run, source = self._run, peft_folder.opened(where, field=field)
    notes = peft_folder.check_base(source, run.base.fingerprint, run.settings.model.pretrained, run.base.folder)
    if 'labels' in source.ours:
      self._check_labels(source.ours['labels'], field)
    else:
      notes.append(f'{where} does not name its labels; its classes are taken for {", ".join(map(str, self._labels))}')
    found = peft_config.candidates(source.values, self._plain, where=str(where / peft_folder.CONFIG))
    if not found:
      raise InputError(f'{field} is an adapter of PEFT type {source.values["peft_type"]} that no method of ftlib reads')
    first = source.ours.get('method')
    which = first if first in found else min(found)
    module, fields = found[which]
    config = settings.read(module.Config, fields, where='method')
    form = peft_folder.form_of_folder(source, module, config, module.build(config, self._plain).model)
    return which, module, config, peft_folder.values(source, form), notes

  @property
  def _labels(self) -> list:
    return list(self._run.task.labels)

  def _check_labels(self, there: list, field: str) -> None:
    if there != self._labels:
      names = [', '.join(map(str, labels)) or 'none' for labels in (there, self._labels)]
      raise InputError(f'{field} has other labels than the data it would be judged on: {names[0]}; here {names[1]}')

  def _check_length(self, method: Method, field: str) -> None:
    longest = max(int(e.tokens.lengths.max()) for e in self._run.examples.values())
    positions = method.model.config.max_length
    if longest + method.tokens > positions:
      raise InputError(
        f'{field}: its {method.tokens} virtual tokens and rows of {longest} do not fit into the {positions} positions '
        'of the model; give a run with a lower train.max_length as --workdir'
      )

  def _member(self, method: Method, values: Flat) -> _Member:
    scan = self._run.settings.model.layers == 'scan'
    info, spans = stored.info_of(method, lambda name: False, scan=scan)
    base = self._base(info, spans)
    place = lambda n, x: jax.device_put(x, self._run.layout.param(info[n]))  # noqa: E731
    own = {}
    for name in info:
      members = trees.members(name)
      if values.keys().isdisjoint(members):
        continue
      rows = [values[n] if n in values else np.asarray(base[name][i], np.float32) for i, n in enumerate(members)]
      own[name] = place(name, np.stack(rows) if len(rows) > 1 else rows[0])
    key = json.dumps([spans, sorted((n, x.shape) for n, x in own.items()), _constants(method)])
    if key not in self._runs:
      more = {'method': method, 'trains': values.__contains__, 'adapter': None, 'info': info, 'runs': spans}
      self._runs[key] = dataclasses.replace(self._run, **more)
    return _Member(self._runs[key], own, {n: base[n] for n in info if n not in own})

  def _base(self, info: Mapping[str, Any], spans: list[tuple[int, int]]) -> Flat:
    """The pretrained parameters, layers stacked by `spans`: read once, and laid out anew for other spans."""
    key = json.dumps(spans)
    if key in self._bases:
      return self._bases[key]
    run = self._run
    if self._bases:
      flat = trees.flatten(stack.unstack(trees.unflatten(next(iter(self._bases.values())))))
    else:
      read = lambda n, pair: np.asarray(self._plain.from_hf(n, run.base.weights.read(pair)))  # noqa: E731
      dtype = jnp.dtype(run.settings.precision.frozen)
      flat = {n: read(n, pair).astype(dtype) for n, pair in run.match.pairs.items()}
    stacked = trees.flatten(stack.stack(trees.unflatten(flat), spans))
    self._bases[key] = {n: jax.device_put(x, run.layout.param(info[n])) for n, x in stacked.items()}
    return self._bases[key]


def _constants(method: Method) -> list[tuple[str, str, list[tuple[str, str]]]]:
  """What a compiled step has of a method's adapters besides their parameters; what cannot be compared is of its own."""
  found = []
  for path, module in method.model.modules().items():
    if not added(path):
      continue
    plain = {k: v for k, v in vars(module).items() if not k.startswith('_') and not hasattr(v, 'get_metadata')}
    known = lambda v: v is None or isinstance(v, int | float | str | tuple) or dataclasses.is_dataclass(v)  # noqa: E731
    values = sorted((k, repr(v) if known(v) else f'{type(v)} {id(v)}') for k, v in plain.items())
    found.append((path, f'{type(module).__module__}.{type(module).__qualname__}', values))
  return found
