"""Starting values from another run: the trainable parameters of its best checkpoint (`model.adapter`)."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Callable, Mapping

import jax
import numpy as np

from ftlib import folder
from ftlib.base import trees
from ftlib.base.errors import InputError, listing
from ftlib.base.types import ParamInfo, Params
from ftlib.io import workdir as files
from ftlib.io.checkpoint import Checkpoints
from ftlib.models import stack
from ftlib.peft.method import added

_SPEC = re.compile(r'(\w+)\[([\d,]*)\]')  # 'float32[8,128]'


@dataclasses.dataclass(frozen=True)
class Adapter:
  """`taken`: the parameters that start from checkpoint `step` of the run in `path`; `notes` say what does not."""

  path: pathlib.Path
  step: int
  leaves: Mapping[str, jax.ShapeDtypeStruct]  # the whole state of the checkpoint
  taken: list[str]
  notes: list[str]

  def values(self) -> dict[str, np.ndarray]:
    """{name: value} of the parameters taken, layers unstacked."""
    with Checkpoints(self.path / 'checkpoints', readonly=True) as checkpoints:
      state = checkpoints.restore(trees.unflatten(self.leaves), step=self.step).state
    flat = trees.flatten(stack.unstack(_own(state)))
    return {n: np.asarray(flat[n]) for n in self.taken}


def find(
  path: str, *, info: Mapping[str, ParamInfo], trains: Callable[[str], bool], weights: str, labels: list
) -> Adapter:
  """The starting values in a run folder for a model of parameters `info` on the base of fingerprint `weights`.

  A parameter of another shape here, and one of the classes where the labels are others, is made new, with a note.
  Raises `InputError` for a folder that is no run or has no checkpoint, another base model, parameters that this model
  lacks or that are frozen in it (frozen ones are not in checkpoints: they would be lost), and where nothing is taken.
  """
  field, where = f'model.adapter={path}', pathlib.Path(path).expanduser()
  config, identity = folder.read(where, field=field)
  if identity['weights'] != weights:
    raise InputError(
      f'{field} was trained on another base model than model.pretrained:\n'
      f'  there {config["model"]["pretrained"]} ({identity["weights"][:12]}), here {weights[:12]}\n'
      '  set model.pretrained to the model it was trained on'
    )
  step = _best(where, field)
  leaves = {
    n: _struct(s) for n, s in files.read_json(where / 'checkpoints' / str(step) / 'meta.json')['leaves'].items()
  }
  there = trees.flatten(jax.eval_shape(lambda s: stack.unstack(_own(s)), trees.unflatten(leaves)))
  method = config['method']['name']
  owns = lambda name: trains(name) or added(name)  # noqa: E731
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
  return Adapter(where, step, leaves, taken, notes)


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
