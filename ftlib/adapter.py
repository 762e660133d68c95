"""Starting values from another run, the parameters of its best checkpoint, or from a folder of PEFT (`model.adapter`).

`model.adapter_parts` says which of them are looked at. What the other run trained of the base and this one keeps frozen
is in no checkpoint of this one: such a run needs the other as long as it lives (`Adapter.digest`), and rebuilds its
frozen parameters from it. A run that started so itself hands on what it started from (`Source.below`).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import pathlib
import re
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from ftlib import folder, peft_config, peft_folder
from ftlib.base import lookup, trees
from ftlib.base.errors import InputError, listing
from ftlib.base.types import Flat, Params
from ftlib.io import hf, manifest
from ftlib.io import workdir as files
from ftlib.io.checkpoint import Checkpoints
from ftlib.models import stack
from ftlib.models.model import Model
from ftlib.peft.method import added
from ftlib.recipe import Settings, parts_of

if TYPE_CHECKING:
  from ftlib.run import Base  # which imports this file

_SPEC = re.compile(r'(\w+)\[([\d,]*)\]')  # 'float32[8,128]'


@dataclasses.dataclass(frozen=True)
class Adapter:
  """`values()`: {name: value} of the parameters that start from it, layers unstacked; `notes` say what does not.

  `sites` are the slots whose adapters start from it. `digest` names the content of the folder where parameters that
  are frozen here start from it, and is '' else.
  """

  values: Callable[[], Flat]
  notes: list[str]
  sites: frozenset[str]
  digest: str = ''

  def sets(self, name: str) -> bool:
    """Whether the adapter that a parameter belongs to starts from it."""
    return _site(name) in self.sites


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
  """The best checkpoint of a run. `leaves`: its state by name; `below`: what its frozen parameters start
  from."""

  path: pathlib.Path
  config: dict[str, Any]
  identity: dict[str, Any]
  step: int
  leaves: dict[str, jax.ShapeDtypeStruct]
  below: Source | None
  notes: list[str]

  @functools.cached_property
  def own(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Its own parameters, layers unstacked."""
    return trees.flatten(jax.eval_shape(lambda s: stack.unstack(self._own(s)), trees.unflatten(self.leaves)))

  def _own(self, state: Params) -> Params:
    """What it evaluates with, by its own `checkpoint.weights`."""
    weights = self.config['checkpoint'].get('weights', 'raw')
    trained = state['trainable'] if weights == 'raw' else state['averages'][weights]
    return trees.join(trained, state.get('kept', {}))

  @property
  def digest(self) -> str:
    """SHA-256 of the checkpoint's content, and of what is below."""
    sealed = files.read_json(self.path / 'checkpoints' / str(self.step) / manifest.NAME)
    text = json.dumps([sealed, self.below.digest if self.below else ''], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()

  def held(self, classes: Collection[str] = ()) -> dict[str, jax.ShapeDtypeStruct]:
    """Its own parameters and those of the base that start from `below`. `classes`: names that have an axis of them."""
    out = dict(self.own)
    if self.below is not None:
      chosen, same = parts_of(_parts(self.config)), self.below.identity['labels'] == self.identity['labels']
      for name, leaf in self.below.held(classes).items():
        if not added(name) and name not in out and part(name) in chosen and (same or name not in classes):
          out[name] = leaf
    return out

  def values(self, names: Collection[str]) -> Flat:
    """The named ones of `held`. Raises `InputError` for a damaged checkpoint."""
    with Checkpoints(self.path / 'checkpoints', readonly=True) as checkpoints:
      state = checkpoints.restore(trees.unflatten(self.leaves), step=self.step).state
    flat = {n: np.asarray(x) for n, x in trees.flatten(stack.unstack(self._own(state))).items() if n in names}
    rest = [n for n in names if n not in self.own]
    return {**(self.below.values(rest) if rest else {}), **flat}


def part(name: str) -> str:
  """Which of `model.adapter_parts` a parameter is of."""
  return 'adapter' if added(name) else 'head' if re.match('(head|mlm)/', name) else 'encoder'


def opened(where: pathlib.Path, weights: str, field: str) -> Source:
  """A run on the base of fingerprint `weights`. Raises `InputError` naming `field` for a folder that is no run or has
  no checkpoint, another base, and where what it started from is gone or has changed."""
  config, identity = folder.read(where, field=field)
  if identity['weights'] != weights:
    raise InputError(
      f'{field} was trained on another base model than model.pretrained:\n'
      f'  there {config["model"]["pretrained"]} ({identity["weights"][:12]}), here {weights[:12]}\n'
      '  set model.pretrained to the model it was trained on'
    )
  notes, groups = [], (config['optim'].get('groups') or {}).values()
  for optim in filter(None, (config['optim']['name'], *(g.get('optimizer') for g in groups))):
    try:
      module = lookup.component('optim', optim, field=f'{field}: optim.name')
    except InputError:  # code from outside, which is needed for nothing else
      notes.append(f'{field}: {optim} cannot be imported here; if it has an `averaged`, export that run instead')
      continue
    if hasattr(module, 'averaged'):
      raise InputError(
        f'{field} was trained with {optim}, which evaluates with a mean that its checkpoint holds only in part\n'
        f'  export it (python -m ftlib.export --workdir={where} --output=DIR) and start from the exported folder'
      )
  step = _best(where, field)
  specs = files.read_json(where / 'checkpoints' / str(step) / 'meta.json')['leaves']
  below = None
  if identity.get('adapter'):
    path = config['model']['adapter']
    whose = f'{field}: its frozen parameters start from'
    below = opened(pathlib.Path(path).expanduser(), weights, f'{whose} {path}')
    if below.digest != identity['adapter']:
      raise InputError(f'{whose} {path}, which has changed since; put it back as it was')
  return Source(where, config, identity, step, {n: _struct(s) for n, s in specs.items()}, below, notes)


def find(
  path: str,
  *,
  model: Model,
  trains: Callable[[str], bool],
  base: Base,
  match: hf.Match,
  labels: list,
  settings: Settings,
) -> Adapter:
  """The starting values in a run folder, or in a folder of PEFT, for an adapted model on a base.

  A parameter of the classes is made new, with a note, where the labels are others or another number; of a run's, every
  parameter that has another shape here. Base parameters that a run trained and that are frozen here start from it too
  (`Adapter.digest`). Raises `InputError` for a folder that is neither or has no checkpoint, another base model,
  parameters that this model lacks, entries of matrices that were chosen there in another number, base parameters in a
  PEFT folder that are frozen here, and where nothing is taken.
  """
  field, where = f'model.adapter={path}', pathlib.Path(path).expanduser()
  info, weights, parts = model.info(), base.fingerprint, parts_of(settings.model.adapter_parts)
  owns = lambda name: trains(name) or added(name)  # noqa: E731
  if peft_folder.is_one(where):
    return _of_peft(peft_folder.opened(where, field=field), model, owns, base, match, labels, settings)
  source = opened(where, weights, field)
  held = source.held([n for n, i in info.items() if 'classes' in i.axes])
  there = {n: s for n, s in held.items() if part(n) in parts}
  if not there:
    has = ', '.join(sorted({part(n) for n in held}))
    raise InputError(f'{field} holds nothing of model.adapter_parts={settings.model.adapter_parts}; it has {has}')
  if names := [n for n in there if n not in info]:
    rest = sorted({part(n) for n in there} - {part(n) for n in names})
    hint = f'; or take the rest alone: model.adapter_parts={",".join(rest)}' if rest else ''
    raise InputError(
      f'{field}: {len(names)} of its {len(there)} parameters are not in this model:\n{listing(names)}\n'
      f'  it was trained with method.name={source.config["method"]["name"]}; use the same, or one whose parameters '
      f'hold these{hint}'
    )
  _check_entries({n: s for n, s in there.items() if added(n)}, info, field)
  notes, taken = [*source.notes], []
  for name, leaf in there.items():
    if leaf.shape != info[name].shape:
      notes.append(f'{name} is made new: {list(leaf.shape)} in {path}, {list(info[name].shape)} here')
    elif 'classes' in info[name].axes and source.identity['labels'] != labels:
      notes.append(f'{name} is made new: the labels of {path} are {", ".join(map(str, source.identity["labels"]))}')
    else:
      taken.append(name)
  if not taken:
    raise InputError(f'{field}: nothing of it can be used here:\n{listing(notes)}')
  frozen = [n for n in taken if not owns(n)]
  if own := len(taken) - len(frozen):
    notes.append(f'{own} of {sum(map(owns, info))} parameters of its own start from {path}, checkpoint {source.step}')
  if frozen:
    notes.append(
      f'{len(frozen)} frozen parameters start from {path}, checkpoint {source.step}: keep that folder as it is'
    )
  return Adapter(lambda: source.values(taken), notes, _sites(taken), source.digest if frozen else '')


def moved(path: str, model: Model, base: Base, match: hf.Match, *, field: str = 'method.of') -> Flat:
  """{moved/<name>: change since the pretrained values} of the base parameters that the run in `path` trained.

  In float32, whatever the frozen ones are kept in here; nothing without a path. Raises `InputError` for a folder that
  is no run or has no checkpoint, and another base model.
  """
  if not path:
    return {}
  source = opened(pathlib.Path(path).expanduser(), base.fingerprint, f'{field}={path}')
  start = lambda n: np.asarray(model.from_hf(n, base.weights.read(match.pairs[n])), np.float32)  # noqa: E731
  trained = source.values([n for n in source.own if n in match.pairs])
  return {f'moved/{n}': x - start(n) for n, x in trained.items()}


def _check_entries(there: dict[str, jax.ShapeDtypeStruct], info: dict[str, Any], field: str) -> None:
  """Raises `InputError` where indices, what trains of a matrix, were chosen in another number than here."""
  other = [
    f'{n}: {s.shape[-1]:,} entries there, {info[n].shape[-1]:,} here'
    for n, s in there.items()
    if jnp.issubdtype(info[n].dtype, jnp.integer) and s.shape != info[n].shape
  ]
  if other:
    raise InputError(
      f'{field}: other numbers of entries were chosen there, so that neither they nor their values fit:\n'
      f'{listing(other)}\n'
      '  set method.density or method.rank as that run did, or leave its choice: model.adapter_parts=encoder,head'
    )


def _of_peft(
  source: peft_folder.Folder,
  model: Model,
  owns: Callable[[str], bool],
  base: Base,
  match: hf.Match,
  labels: list,
  settings: Settings,
) -> Adapter:
  parts = parts_of(settings.model.adapter_parts)
  info, there = model.info(), source.ours.get('labels')
  notes = peft_folder.check_base(source, base.fingerprint, settings.model.pretrained, base.folder)

  def left(name: str, shape: tuple[int, ...]) -> bool:
    if part(name) not in parts:
      return True
    if 'classes' not in info[name].axes or (shape == model.hf_shapes()[name] and there in (None, labels)):
      return False
    why = f'{[*shape]} in {source.path}' if there in (None, labels) else f'the labels there are {there}'
    notes.append(f'{name} is made new: {why}')
    return True

  if 'adapter' in parts:
    module, config = settings.modules['method'], settings.method
    notes += peft_folder.check_method(source, settings.names['method'], module, config, model)
    form = peft_folder.form_of_folder(source, module, config, model)
    saved = tuple(n for n in form.saved if part(n) in parts or form.key(n) in source.weights.where)
    flat = peft_folder.values(source, dataclasses.replace(form, saved=saved), skip=left)
  else:
    flat = _without_adapter(source, model, left)
  frozen = [n for n in flat if not owns(n)]
  same = lambda n: np.array_equal(flat[n], model.from_hf(n, base.weights.read(match.pairs[n])))  # noqa: E731
  if other := [n for n in frozen if not same(n)]:
    which = f'({"|".join(map(re.escape, other))})'
    raise InputError(
      f'{source.field}: {len(other)} of its parameters are frozen in this run:\n{listing(other, limit=len(other))}\n'
      f'  train them, as it did: {peft_config.flags({"also": f"^{which}$"})}'
    )
  taken = {n: x for n, x in flat.items() if owns(n)}
  if not taken:
    raise InputError(
      f'{source.field}: nothing of it can be used with model.adapter_parts={settings.model.adapter_parts}'
      + ''.join(f'\n  {n}' for n in notes)
    )
  if there is None and any('classes' in info[n].axes for n in taken):
    notes.append(f'{source.path} does not name its labels; its classes are taken for {", ".join(map(str, labels))}')
  notes.append(f'{len(taken)} of {sum(map(owns, info))} parameters of its own start from {source.path}')
  return Adapter(lambda: taken, notes, _sites(taken))


def _without_adapter(source: peft_folder.Folder, model: Model, left: Callable[[str, tuple[int, ...]], bool]) -> Flat:
  """The parameters of the base in a PEFT folder, of whatever method its adapter is."""
  prefix = 'base_model.' if source.values['peft_type'] in peft_config.PROMPTS else 'base_model.model.'
  save = [*(source.values.get('modules_to_save') or ()), *peft_config.HEADS]
  names, shapes, out = model.hf_names(), model.hf_shapes(), {}
  for name in peft_config.covered(model, save):
    key = prefix + names[name]
    if key not in source.weights.where or left(name, source.weights.shape(key)):
      continue
    if source.weights.shape(key) != shapes[name]:
      raise InputError(f'{source.field}: {key} is {[*source.weights.shape(key)]}, wanted {[*shapes[name]]}')
    out[name] = np.asarray(model.from_hf(name, source.weights.read(key)))
  return out


def _site(name: str) -> str:
  return name.split('/adapter/')[0]


def _sites(names: Collection[str]) -> frozenset[str]:
  return frozenset(_site(n) for n in names if added(n))


def _parts(config: dict[str, Any]) -> str:
  return config['model'].get('adapter_parts', 'all')


def _best(where: pathlib.Path, field: str) -> int:
  with Checkpoints(where / 'checkpoints', readonly=True) as checkpoints:
    steps = checkpoints.steps()
    if not steps:
      raise InputError(f'{field} holds no checkpoint yet; train it first')
    best = checkpoints.best()
  return steps[-1] if best is None else best


def _struct(spec: str) -> jax.ShapeDtypeStruct:
  dtype, sizes = _SPEC.fullmatch(spec).groups()
  return jax.ShapeDtypeStruct(tuple(int(n) for n in sizes.split(',') if n), np.dtype(dtype))
