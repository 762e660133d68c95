"""A trained adapter as a folder of Hugging Face PEFT, and back: `adapter_config.json` and `adapter_model.safetensors`.

A method's file says how its parameters are called and laid out there: `to_peft`, `from_peft` of one site, or
`to_peft_whole`, `from_peft_whole` of all, and `shared_to_peft`, `shared_from_peft` of tensors that hold no parameter of
ours. Here are the names around them, trained heads, and the checks of what is read. `ftlib.json` beside the two files,
which PEFT does not need, holds the fingerprint of the base and the labels.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import numpy as np

from ftlib import peft_config, peft_fused
from ftlib.base.errors import InputError, did_you_mean, listing
from ftlib.base.types import Flat
from ftlib.io import hf
from ftlib.io import workdir as files
from ftlib.models import hf_config
from ftlib.models.model import Model
from ftlib.peft.method import added

CONFIG, TENSORS, OURS = 'adapter_config.json', 'adapter_model.safetensors', 'ftlib.json'


@dataclasses.dataclass(frozen=True)
class Folder:
  """`values` of its adapter_config.json, its tensors, and what ftlib wrote beside them ({} where it did not)."""

  path: pathlib.Path
  field: str
  values: dict[str, Any]
  weights: hf.Weights
  ours: dict[str, Any]


def is_one(path: pathlib.Path) -> bool:
  """Whether a folder is one of PEFT, complete or not."""
  return any((path / n).exists() for n in (CONFIG, TENSORS, 'adapter_model.bin'))


def opened(path: pathlib.Path, *, field: str) -> Folder:
  """The folder. Raises `InputError` naming `field` where files lack, are pickled or cannot be read."""
  if not (path / CONFIG).is_file():
    raise InputError(f'{field} holds no {CONFIG}; it is written beside {TENSORS} by save_pretrained')
  values = files.read_json(path / CONFIG)
  if not isinstance(values, dict) or not isinstance(values.get('peft_type'), str):
    raise InputError(f'{path / CONFIG} has no "peft_type"')
  if not (path / TENSORS).is_file():
    pickled = (path / 'adapter_model.bin').exists()
    what = 'only adapter_model.bin: pickled weights can run code and are refused' if pickled else f'no {TENSORS}'
    raise InputError(f'{field} holds {what}. Write it with peft: save_pretrained(..., safe_serialization=True)')
  more = sorted(p.name for p in path.glob('*.safetensors*') if p.name != TENSORS)
  if more:
    raise InputError(f'{field} holds {more[0]} beside {TENSORS}; move the adapter to a folder of its own')
  ours = files.read_json(path / OURS) if (path / OURS).is_file() else {}
  return Folder(path, field, values, hf.Weights(path), ours if isinstance(ours, dict) else {})


@dataclasses.dataclass(frozen=True)
class Form:
  """How the parameters of an adapted model lie in a PEFT file; `saved` are those of the base that are in it.

  Of these, `copied` lie in PEFT's copy of their module. Sites whose kernels are parts of one tensor share an adapter
  there (`peft_fused.py`), `reading` in another form.
  """

  module: ModuleType
  config: Any
  model: Model
  saved: tuple[str, ...]
  copied: tuple[str, ...] = ()
  reading: bool = False

  @property
  def prefix(self) -> str:
    return 'base_model.' if self.module.PEFT_TYPE in peft_config.PROMPTS else 'base_model.model.'

  def key(self, name: str) -> str:
    """What a base parameter is called in the file."""
    module, _, leaf = peft_config.torch_names(self.model)[name].rpartition('.')
    return self.prefix + '.'.join([module, *([self.module.COPY] if name in self.copied else []), leaf])

  @functools.cached_property
  def sites(self) -> dict[str, Any]:
    """The slots that hold an adapter with parameters."""
    names = dict.fromkeys(n.split('/adapter/')[0] for n in self.model.info() if added(n))
    modules = self.model.modules()
    return {n: modules[n] for n in names}

  @functools.cached_property
  def zeros(self) -> Flat:
    """The parameters in the file, all zero."""
    info = self.model.info()
    return {n: np.zeros(i.shape, i.dtype) for n, i in info.items() if added(n) or n in self.saved}

  @functools.cached_property
  def shapes(self) -> dict[str, tuple[int, ...]]:
    """{tensor: shape} of the file."""
    return {k: x.shape for part in self.parts(self.zeros).values() for k, x in part.items()}

  def parts(self, flat: Mapping[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    """{site, '' for what is of no site, or parameter of the base: {key in the file: tensor}}, layers unstacked."""
    own = {n: np.asarray(x) for n, x in flat.items() if added(n)}
    out = {}
    if hasattr(self.module, 'to_peft_whole'):
      out[''] = self.module.to_peft_whole(self.config, own)
    else:
      names = peft_config.torch_modules(self.model)
      for site, slot in self.sites.items():
        start = f'{site}/adapter/'
        leaves = {n.removeprefix(start): x for n, x in own.items() if n.startswith(start)}
        tensors = self.module.to_peft(self.config, leaves, slot)
        out[site] = {f'{self.prefix}{names[site]}.{suffix}': np.ascontiguousarray(x) for suffix, x in tensors.items()}
      out = peft_fused.joined(out, self.model, names, self.module.PEFT_TYPE, reading=self.reading)
    whole = self.whole(flat)
    return out | {n: {self.key(n): whole[self.key(n)]} for n in self.saved}

  def whole(self, flat: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """{key in the file: tensor} of `saved`, parts of one tensor (`Model.hf_parts`) joined."""
    shapes, pieces = self.model.hf_shapes(), {}
    for name in sorted(self.saved, key=lambda n: self.model.hf_parts.get(n.rpartition('/')[0], (0, 1))[0]):
      piece = np.asarray(self.model.to_hf(name, np.asarray(flat[name])))
      axis = next((i for i, (n, of) in enumerate(zip(piece.shape, shapes[name], strict=True)) if n != of), 0)
      pieces.setdefault(self.key(name), (axis, []))[1].append(piece)
    return {k: x[0] if len(x) == 1 else np.concatenate(x, axis) for k, (axis, x) in pieces.items()}

  def shared(self) -> dict[str, np.ndarray]:
    """Tensors of the file that hold no parameter of ours, such as VeRA's matrices."""
    if not hasattr(self.module, 'shared_to_peft'):
      return {}
    return self.module.shared_to_peft(self.config, next(iter(self.sites.values())))

  def flat(self, tensors: Mapping[str, np.ndarray]) -> Flat:
    """The parameters in a file whose keys and shapes were checked: the inverse of `parts` and `shared`."""
    parts = self.parts(self.zeros)
    if hasattr(self.module, 'shared_from_peft'):
      self.module.shared_from_peft(self.config, tensors, next(iter(self.sites.values())))
    if '' in parts:
      out = dict(self.module.from_peft_whole(self.config, tensors, self.model.info()))
    else:
      out, names = {}, peft_config.torch_modules(self.model)
      for site, slot in self.sites.items():
        start = f'{self.prefix}{names[site]}.'
        own = {k.removeprefix(start): tensors[k] for k in parts[site]}
        leaves = self.module.from_peft(self.config, peft_fused.part_of(own, self.model, site), slot)
        out |= {f'{site}/adapter/{leaf}': x for leaf, x in leaves.items()}
    out |= {n: self.model.from_hf(n, tensors[next(iter(parts[n]))]) for n in self.saved}
    wrong = [n for n, x in self.zeros.items() if n not in out or out[n].shape != x.shape]
    if wrong or len(out) != len(self.zeros):
      raise RuntimeError(f'{self.module.__name__}.from_peft gives other parameters than its method has: {wrong}')
    return {n: np.asarray(x, self.zeros[n].dtype) for n, x in out.items()}


def form_of_run(module: ModuleType, config: Any, model: Model, owns: Callable[[str], bool]) -> tuple[Form, list[str]]:
  """(the form that a run's parameters are saved in, `modules_to_save`).

  Raises `InputError` for parameters of the base that train and that PEFT cannot save, or would save untied.
  """
  names, info = peft_config.torch_modules(model), model.info()
  trained = [n for n in info if owns(n) and not added(n)]
  heads = peft_config.heads_of({'task_type': peft_config.task_of(model)})
  known = peft_config.covered(model, heads) if heads else ()
  copied = peft_config.copied(module, config, model, heads)
  save = [*heads, *dict.fromkeys(names[n.rpartition('/')[0]] for n in trained if n not in known and n not in copied)]
  form = _form(module, config, model, save)
  if tied := _tied(form):
    raise InputError(f'--format=peft: {tied}\n  export merged weights with --format=hf, or train without it')
  both = [n for n in form.saved if n.rpartition('/')[0] in form.sites]
  if both:
    raise InputError(
      '--format=peft: PEFT either saves a module whole or puts an adapter on it. These parameters train (or are of the '
      f'head, which it always saves), and their module has an adapter:\n{listing(both, limit=len(both))}\n'
      '  export merged weights with --format=hf, or train with another method.target or method.also'
    )
  return form, save


def form_of_folder(folder: Folder, module: ModuleType, config: Any, model: Model) -> Form:
  """The form that the parameters in a folder are saved in. Raises `InputError` for a saved table that is tied here."""
  save = [*(folder.values.get('modules_to_save') or ())]
  save += peft_config.heads_of(folder.values)
  form = _form(module, config, model, save, reading=True)
  if tied := _tied(form):
    raise InputError(f'{folder.field}: {tied}\n  merge the adapter with peft (merge_and_unload), or train it anew')
  return form


def _form(module: ModuleType, config: Any, model: Model, save: list[str], **options: Any) -> Form:
  copied = peft_config.copied(module, config, model, save)
  whole = peft_config.covered(model, save) if save else ()
  return Form(module, config, model, (*whole, *copied), copied, **options)


def _tied(form: Form) -> str:
  """What is wrong with a table that is saved whole and is the output matrix as well, '' where none is."""
  tied = {n: out for out, n in form.model.tied.items() if n in form.saved}
  return '; '.join(
    f'{n} is tied to {out}, but a copy of it that PEFT trains acts on the inputs alone' for n, out in tied.items()
  )


def write(output: pathlib.Path, form: Form, flat: Flat, *, base: str, save: list[str], ours: Mapping[str, Any]) -> None:
  """The folder of the parameters `flat`, layers unstacked; PEFT looks for the model `base`, `ours` is ftlib.json."""
  values = peft_config.of_run(form.module, form.config, form.model, base=base, save=save)
  tensors = {**form.shared(), **{k: x for part in form.parts(flat).values() for k, x in part.items()}}
  hf.save(output, dict(sorted(tensors.items())), values)  # under the names of a model
  os.replace(output / 'model.safetensors', output / TENSORS)
  os.replace(output / 'config.json', output / CONFIG)
  files.write_json(output / OURS, ours)


def check_method(folder: Folder, name: str, module: ModuleType, config: Any, model: Model) -> list[str]:
  """Notes. Raises `InputError` where the folder is not of this method with these settings, with the flags to set."""
  kind, where = folder.values['peft_type'], str(folder.path / CONFIG)
  if getattr(module, 'PEFT_TYPE', None) != kind:
    found = peft_config.candidates(folder.values, model, where=where)
    lines = [peft_config.flags({'name': n, **v}, m.Config()) for n, (m, v) in found.items()]
    todo = f'  set one of\n{listing(lines)}' if lines else '  no method of ftlib can read it'
    raise InputError(f'{folder.field} is an adapter of PEFT type {kind}, and no form of method.name={name}\n{todo}')
  asked = peft_config.read(folder.values, module, model, where=where)
  wanted, differing, notes = asked.settings(model), {}, []
  here = peft_config.adapted(module, config, model)
  for field, value in wanted.items():
    if field in asked.sites:
      same = set(asked.sites[field]) == set(here.get(field, ()))
    elif field.endswith('_pattern'):
      same = _patterns(module, config, here, wanted) == _patterns(module, config, here, {})
    else:
      same = value == getattr(config, field)
    if not same and 'dropout' in field:  # says how to train, not what is computed
      notes.append(f'method.{field}={getattr(config, field)} here, {value} in {folder.path}')
    elif not same:
      differing[field] = value
  differing |= {f: '' for f, sites in here.items() if sites and f in asked.sites and not asked.sites[f]}
  if differing:
    lines = [f'method.{f}: {v!r} there, {getattr(config, f)!r} here' for f, v in differing.items()]
    raise InputError(
      f'{folder.field} is an adapter of method.name={name} with other settings than these:\n'
      f'{listing(lines, limit=len(lines))}\n  set {peft_config.flags(differing)}'
    )
  return notes


def _patterns(module: ModuleType, config: Any, sites: Mapping[str, list[str]], other: Mapping[str, Any]) -> Any:
  """What a config's patterns of numbers mean for the sites."""
  other = {k: v for k, v in other.items() if k.endswith('_pattern')}
  try:
    return module.peft_patterns(dataclasses.replace(config, **other), {s: s for of in sites.values() for s in of})
  except InputError:  # a pattern for sites that this run lacks; `target` differs as well
    return None


def check_base(folder: Folder, fingerprint: str, name: str, base: pathlib.Path) -> list[str]:
  """Notes. Raises `InputError` where the folder was trained on other weights than those in `base`, called `name`: by
  the fingerprint that ftlib wrote; else by the files, where the base that it names lies here; or by two hub ids."""
  there = str(folder.values.get('base_model_name_or_path') or '')
  last = [os.path.basename(n.rstrip('/')) for n in (there, name)]
  before, here, todo = folder.ours.get('weights'), fingerprint, 'set model.pretrained to the model it was trained on'
  local = pathlib.Path(there).expanduser()
  if before is None and there and local.is_dir() and base.is_dir() and local.resolve() != base.resolve():
    before, here = _print_of(local), _print_of(base)
  elif before is None and last[0] != last[1] and all(_of_hub(n) for n in (there, name)):
    before, here = 'a hub id', 'another'
    todo += '; if it is the same one under another name, say so by base_model_name_or_path in adapter_config.json'
  if before not in (None, here):
    raise InputError(
      f'{folder.field} was trained on another base model than model.pretrained:\n'
      f'  there {there} ({str(before)[:12]}), here {name} ({str(here)[:12]})\n  {todo}'
    )
  known = before is not None or last[0] == last[1]
  return [] if known else [f'{folder.path} was trained on {there or "a base without a name"}: is it {name}?']


def _print_of(base: pathlib.Path) -> str | None:
  """SHA-256 of a base's weights and config, but for what is harmless."""
  try:
    values, weights = hf.read_config(base), hf.Weights(base)
  except InputError:  # a folder that is no model, and only has the name
    return None
  return hashlib.sha256(hf_config.identity(values, weights.fingerprint())).hexdigest()


def _of_hub(name: str) -> bool:
  """Whether it is written as a hub id ('org/model'), and is no folder here."""
  return re.fullmatch(r'[\w.-]+/[\w.-]+', name) is not None and not pathlib.Path(name).exists()


def values(folder: Folder, form: Form, *, skip: Callable[[str, tuple[int, ...]], bool] = lambda *_: False) -> Flat:
  """The parameters in the folder, without those of the base for which `skip(name, shape in the file)` holds.

  Raises `InputError` with all keys that lack, that nobody knows, or whose tensors have another shape.
  """
  shared, shapes, weights = form.shared(), form.shapes, folder.weights
  there = {k: weights.shape(k) for k in weights.where}
  left = {n for n in form.saved if form.key(n) in there and skip(n, there[form.key(n)])}
  wanted = {k: s for k, s in shapes.items() if k not in map(form.key, left)}
  form = dataclasses.replace(form, saved=tuple(n for n in form.saved if n not in left))
  saved = {} if folder.values.get('save_projection') is False else shared  # PEFT draws them anew
  missing = [k for k in {**wanted, **saved} if k not in there]
  unknown = [k + did_you_mean(k, missing) for k in there if k not in shapes and k not in shared]
  fewer = bool(folder.values.get('rank_pattern')) and folder.values['peft_type'] == 'ADALORA'
  fits = lambda a, b: a == b or (fewer and len(a) == len(b) and all(x <= y for x, y in zip(a, b)))  # noqa: E731
  odd = [f'{k} is {[*there[k]]}, wanted {[*s]}' for k, s in wanted.items() if k in there and not fits(there[k], s)]
  problems = {'missing': missing, 'unknown': unknown, 'of another shape': odd}
  if any(problems.values()):
    parts = [f'{folder.field}: the tensors of {TENSORS} do not fit the model with this method']
    for title, names in problems.items():
      if names:
        parts.append(f'{len(names)} {title}:\n{listing(sorted(names), limit=len(names))}')
    raise InputError('\n'.join(parts))
  try:
    return form.flat({k: weights.read(k) for k in there})
  except InputError as e:
    raise InputError(f'{folder.field}: {e}') from e
