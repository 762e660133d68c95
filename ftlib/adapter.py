"""Starting values from another run, the trainable parameters of its best checkpoint, or from a folder of PEFT
(`model.adapter`)."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import jax
import numpy as np

from ftlib import folder, peft_config, peft_folder
from ftlib.base import trees
from ftlib.base.errors import InputError, listing
from ftlib.base.types import Flat, Params
from ftlib.io import hf
from ftlib.io import workdir as files
from ftlib.io.checkpoint import Checkpoints
from ftlib.models import stack
from ftlib.models.model import Model
from ftlib.peft.method import added
from ftlib.recipe import Settings

if TYPE_CHECKING:
  from ftlib.run import Base  # which imports this file

_SPEC = re.compile(r'(\w+)\[([\d,]*)\]')  # 'float32[8,128]'


@dataclasses.dataclass(frozen=True)
class Adapter:
  """`values()`: {name: value} of the parameters that start from it, layers unstacked; `notes` say what does not."""

  values: Callable[[], Flat]
  notes: list[str]


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
  parameter that has another shape here. Raises `InputError` for a folder that is neither or has no checkpoint, another
  base model, parameters that this model lacks or that are frozen in it (frozen ones are not in checkpoints: they would
  be lost), and where nothing is taken.
  """
  field, where = f'model.adapter={path}', pathlib.Path(path).expanduser()
  info, weights = model.info(), base.fingerprint
  owns = lambda name: trains(name) or added(name)  # noqa: E731
  if peft_folder.is_one(where):
    return _of_peft(peft_folder.opened(where, field=field), model, owns, base, match, labels, settings)
  config, identity, step, leaves = _opened(where, weights, field)
  there = trees.flatten(jax.eval_shape(lambda s: stack.unstack(_own(s)), trees.unflatten(leaves)))
  method = config['method']['name']
  for why, names in (
    ('are not in this model', [n for n in there if n not in info]),
    ('are frozen in this run', [n for n in there if n in info and not owns(n)]),
  ):
    if names:
      raise InputError(
        f'{field}: {len(names)} of its {len(there)} parameters {why}:\n{listing(names)}\n'
        f'  it was trained with method.name={method}; use the same, or one whose parameters hold these'
      )
  notes, taken = [], []
  for name, leaf in there.items():
    if leaf.shape != info[name].shape:
      notes.append(f'{name} is made new: {list(leaf.shape)} in {path}, {list(info[name].shape)} here')
    elif 'classes' in info[name].axes and identity['labels'] != labels:
      notes.append(f'{name} is made new: the labels of {path} are {", ".join(map(str, identity["labels"]))}')
    else:
      taken.append(name)
  if not taken:
    raise InputError(f'{field}: nothing of it can be used here:\n{listing(notes)}')
  here = sum(map(owns, info))
  notes.append(f'{len(taken)} of {here} parameters of its own start from {path}, checkpoint {step}')

  def values() -> Flat:
    flat = _values(where, step, leaves)
    return {n: flat[n] for n in taken}

  return Adapter(values, notes)


def moved(path: str, model: Model, base: Base, match: hf.Match, *, field: str = 'method.of') -> Flat:
  """{moved/<name>: change since the pretrained values} of the base parameters that the run in `path` trained.

  In float32, whatever the frozen ones are kept in here; nothing without a path. Raises `InputError` for a folder that
  is no run or has no checkpoint, and another base model.
  """
  if not path:
    return {}
  where = pathlib.Path(path).expanduser()
  _, _, step, leaves = _opened(where, base.fingerprint, f'{field}={path}')
  there = {n: x for n, x in _values(where, step, leaves).items() if n in match.pairs}
  start = lambda n: np.asarray(model.from_hf(n, base.weights.read(match.pairs[n])), np.float32)  # noqa: E731
  return {f'moved/{n}': x - start(n) for n, x in there.items()}


def _opened(where: pathlib.Path, weights: str, field: str) -> tuple[dict, dict, int, dict[str, jax.ShapeDtypeStruct]]:
  """(config, identity, best step, the leaves of its state) of a run on the base of fingerprint `weights`."""
  config, identity = folder.read(where, field=field)
  if identity['weights'] != weights:
    raise InputError(
      f'{field} was trained on another base model than model.pretrained:\n'
      f'  there {config["model"]["pretrained"]} ({identity["weights"][:12]}), here {weights[:12]}\n'
      '  set model.pretrained to the model it was trained on'
    )
  step = _best(where, field)
  specs = files.read_json(where / 'checkpoints' / str(step) / 'meta.json')['leaves']
  return config, identity, step, {n: _struct(s) for n, s in specs.items()}


def _values(where: pathlib.Path, step: int, leaves: Mapping[str, jax.ShapeDtypeStruct]) -> Flat:
  with Checkpoints(where / 'checkpoints', readonly=True) as checkpoints:
    state = checkpoints.restore(trees.unflatten(leaves), step=step).state
  return {n: np.asarray(x) for n, x in trees.flatten(stack.unstack(_own(state))).items()}


def _of_peft(
  source: peft_folder.Folder,
  model: Model,
  owns: Callable[[str], bool],
  base: Base,
  match: hf.Match,
  labels: list,
  settings: Settings,
) -> Adapter:
  method = settings.names['method'], settings.modules['method'], settings.method
  notes = peft_folder.check_base(source, base.fingerprint, settings.model.pretrained)
  notes += peft_folder.check_method(source, *method, model)
  info, form = model.info(), peft_folder.form_of_folder(source, *method[1:], model)
  there = source.ours.get('labels')

  def made_new(name: str, shape: tuple[int, ...]) -> bool:
    if 'classes' not in info[name].axes or (shape == model.hf_shapes()[name] and there in (None, labels)):
      return False
    why = f'{[*shape]} in {source.path}' if there in (None, labels) else f'the labels there are {there}'
    notes.append(f'{name} is made new: {why}')
    return True

  flat = peft_folder.values(source, form, skip=made_new)
  frozen = [n for n in flat if not owns(n)]
  same = lambda n: np.array_equal(model.to_hf(n, flat[n]), base.weights.read(match.pairs[n]))  # noqa: E731
  if other := [n for n in frozen if not same(n)]:
    which = f'({"|".join(map(re.escape, other))})'
    raise InputError(
      f'{source.field}: {len(other)} of its parameters are frozen in this run:\n{listing(other, limit=len(other))}\n'
      f'  train them, as it did: {peft_config.flags({"also": f"^{which}$"})}'
    )
  taken = {n: x for n, x in flat.items() if owns(n)}
  if there is None and any('classes' in info[n].axes for n in taken):
    notes.append(f'{source.path} does not name its labels; its classes are taken for {", ".join(map(str, labels))}')
  notes.append(f'{len(taken)} of {sum(map(owns, info))} parameters of its own start from {source.path}')
  return Adapter(lambda: taken, notes)


def _own(state: Params) -> Params:
  return trees.join(state['trainable'], state.get('kept', {}))


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
