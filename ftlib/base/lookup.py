"""The folder is the registry: a component's name is its file's name.

`component('peft', 'lora')` is the module `ftlib/peft/lora.py`; a dotted name (`my_lab.odd_lora`) is a module outside
the package. A component file exposes `Config` (a frozen dataclass) and `build`.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import pathlib
import re
import sys
from types import ModuleType

from ftlib.base.errors import InputError, did_you_mean, fault

_PACKAGE = pathlib.Path(__file__).resolve().parent.parent


def names(folder: str) -> list[str]:
  """The components of a folder, sorted: its files that define both `Config` and `build`."""

  def is_component(path: pathlib.Path) -> bool:
    text = path.read_text(encoding='utf-8')  # not imported: one broken file must not hide the others
    return all(
      re.search(rf'^(class|def) {w}\b|^{w} = |^from .* import .*\b{w}\b', text, re.M) for w in ('Config', 'build')
    )

  return sorted(p.stem for p in (_PACKAGE / folder).glob('[a-z]*.py') if is_component(p))


def component(folder: str, name: str, *, field: str) -> ModuleType:
  """The module called `name` of `ftlib/<folder>`, or the outside module of a dotted name.

  Raises `InputError` for an unknown name (with the folder's list), a module that fails to import, or one without
  `Config` and `build`.
  """
  if not name or not isinstance(name, str):
    raise InputError(f'{field} is empty; it names a file of ftlib/{folder}: {", ".join(names(folder))}')
  if '.' in name and not all(map(str.isidentifier, name.split('.'))):
    raise InputError(f'{field}={name!r} is no name of a module; give one with dots, such as my_lab.scale, and no path')
  if '.' in name:
    return _outside(folder, name, field)
  known = names(folder)
  if name not in known:
    raise InputError(
      f'{field}={name!r} is no component of ftlib/{folder}{did_you_mean(name, known)}\n'
      f'  known: {", ".join(known)}\n  code of your own: a dotted module name, such as my_lab.{name}'
    )
  return _imported(f'ftlib.{folder}.{name}', f'{field}={name!r}')


def _outside(folder: str, name: str, field: str) -> ModuleType:
  if '' not in sys.path and str(pathlib.Path.cwd()) not in sys.path:
    sys.path.insert(0, str(pathlib.Path.cwd()))  # `python train.py` puts train.py's folder there, not the user's
  module = _imported(name, f'{field}={name!r}')
  missing = [w for w in ('Config', 'build') if not hasattr(module, w)]
  if missing:
    near = ''.join(did_you_mean(w, vars(module)) for w in missing)
    raise InputError(
      f'{field}={name!r} ({module.__file__}) lacks {" and ".join(missing)}{near}\n  a component file defines a frozen '
      'dataclass Config and a function build'
    )
  bare = '' if folder == 'models' else _without_default(module.Config)  # a model's come from its config.json
  if bare:
    raise InputError(
      f'{field}={name!r} ({module.__file__}): Config must be a frozen dataclass with a default for every field; {bare}'
    )
  return module


def _imported(name: str, field: str) -> ModuleType:
  try:
    return importlib.import_module(name)
  except Exception as e:  # code of the user's: anything
    absent = isinstance(e, ModuleNotFoundError) and e.name and f'{name}.'.startswith(f'{e.name}.')
    looked = f'{e}\n  it is looked for on PYTHONPATH and in {pathlib.Path.cwd()}'
    why = looked if absent else fault(e, file=name.replace('.', '/') + '.py')
    raise InputError(f'{field} cannot be imported: {why}') from e


def _without_default(config: type) -> str:
  """What keeps a class from being a section, or the empty string."""
  if not dataclasses.is_dataclass(config) or not config.__dataclass_params__.frozen:
    return 'it is none'
  empty = dataclasses.MISSING
  names = [f.name for f in dataclasses.fields(config) if f.default is empty and f.default_factory is empty]
  return f'{", ".join(names)} {"have" if len(names) > 1 else "has"} none' if names else ''
