"""A config from the command line: a recipe with its arguments, or a run's config.json, and the flags that change it.

`load('configs/classify.py:method=bitfit', [('train.steps', '100')])`. Texts are read by the fields' types in any order;
`method.name` and `optim.name` go to the recipe as its arguments, so that it can fill the sections they belong to.
"""

from __future__ import annotations

import inspect
import json
import pathlib
import re
import sys
import types
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import config_dict

from ftlib import recipe
from ftlib.base import settings
from ftlib.base.errors import FtlibError, InputError, did_you_mean, fault, listing
from ftlib.optim import chain

Changes = Sequence[tuple[str, str | None]]  # ('train.steps', '100'); None is a flag without a value
_WRITTEN = re.compile(r'(.*?\.(?:py|json))(?::(.*))?', re.S)
_ARGUMENTS = ('method.name', 'optim.name')  # what recipes take as arguments


def load(text: str, changes: Changes = ()) -> config_dict.ConfigDict:
  """The config that `--config=<text>` and the flags `--config.<field>=<value>` mean, complete and checked.

  Raises `InputError` for a file that is absent or fails (with file and line), an unknown argument or field (with the
  nearest known one), and a value of a wrong type or out of range.
  """
  path, argument = _located(text)
  named = lambda field: field.endswith('.name') and field.removesuffix('.name') in recipe.COMPONENTS  # noqa: E731
  names = {field: value for field, value in changes if named(field) and value}
  if path.suffix == '.json':
    if argument:
      raise InputError(f'--config={text}: a stored config takes no arguments; write --config.SECTION.FIELD=VALUE')
    values = _stored(path)
  else:
    own = [f'{field.removesuffix(".name")}={names.pop(field)}' for field in _ARGUMENTS if field in names]
    values = _executed(path, ','.join(filter(None, [argument, *own])))
  for field, name in names.items():
    _replace(values, field.removesuffix('.name'), name)
  for field, value in changes:
    if not (named(field) and value):
      _set(values, field, value)
  return recipe.expanded(values)


def _located(text: str) -> tuple[pathlib.Path, str]:
  """(file, arguments)."""
  written = _WRITTEN.fullmatch(text)
  path = pathlib.Path(written[1] if written else text.partition(':')[0]).expanduser()
  if written and path.is_file():
    return path, written[2] or ''
  if path.is_file():
    raise InputError(f'--config={text}: a config is a .py file with get_config, or the config.json of a run')
  if (path / 'config.json').is_file():
    raise InputError(f'--config={text} is a folder; did you mean --config={path / "config.json"}?')
  parent = path if path.is_dir() else path.parent
  if not parent.is_dir():
    raise InputError(f'--config={text}: there is no folder {parent.absolute()}')
  there = sorted(p.name for p in parent.glob('*') if p.suffix in ('.py', '.json')) if parent.is_dir() else []
  listed = f'\n  configs in {parent}/:\n{listing(there)}' if there else f'\n  there is none in {parent.absolute()}'
  raise InputError(f'--config={text}: there is no file {path}{did_you_mean(path.name, there)}{listed}')


def _stored(path: pathlib.Path) -> dict[str, Any]:
  try:
    values = json.loads(path.read_text(encoding='utf-8'))
  except ValueError as e:
    raise InputError(f'--config={path}:{getattr(e, "lineno", 1)}: not JSON: {e}') from e
  if not isinstance(values, dict) or 'train' not in values:
    raise InputError(f'--config={path} is not the config.json of a run folder of train.py')
  return values


def _executed(path: pathlib.Path, argument: str) -> dict[str, Any]:
  """What `get_config(argument)` of a file returns, as plain dicts."""
  module = types.ModuleType(f'ftlib_config_{path.stem}')
  module.__file__ = str(path)
  sys.modules[module.__name__] = module  # dataclasses of the file look there
  try:
    exec(compile(path.read_bytes(), str(path), 'exec'), module.__dict__)
    get_config = getattr(module, 'get_config', None)
    if not callable(get_config):
      raise InputError(f'--config={path} defines no get_config(arg); see configs/classify.py for what one looks like')
    takes = bool(inspect.signature(get_config).parameters)
    if argument and not takes:
      raise InputError(
        f'--config={path}:{argument}: get_config() of this file takes no arguments, as method.name and optim.name are'
      )
    config = get_config(argument) if takes else get_config()
  except FtlibError:
    raise
  except Exception as e:  # code of the user's: anything
    raise InputError(f'--config={path} fails at {fault(e, file=str(path))}') from e
  if not isinstance(config, Mapping | config_dict.ConfigDict):
    raise InputError(
      f'--config={path}: get_config returned {type(config).__name__}, wanted what recipe.recipe(...) gives'
    )
  return config.to_dict() if isinstance(config, config_dict.ConfigDict) else dict(config)


def _replace(values: dict[str, Any], section: str, name: str) -> None:
  """Another component in a section: its defaults take the place of what stood there."""
  if values.get(section, {}).get('name') != name:
    values[section] = recipe.component_section(section, name).to_dict()


def _set(values: dict[str, Any], field: str, text: str | None) -> None:
  section, _, key = field.partition('.')
  if field == 'seed':
    values['seed'] = settings.parsed(int, text, where='seed')
  elif section not in {*recipe.PLAIN, *recipe.COMPONENTS} or section not in values:
    raise InputError(_unknown(values, field))
  elif not key:
    raise InputError(
      f'--config.{section} is a section; set its fields, such as --config.{_fields(values, section)[0]}='
    )
  elif section == 'optim' and key.startswith('groups.') and key.count('.') == 2:
    _, group, own = key.split('.')
    groups = values['optim']['groups']
    if group not in groups:
      raise InputError(
        f'--config.{field}: there is no group {group!r}{did_you_mean(group, groups)}; a config file makes groups, or '
        """--config.optim.groups="{'NAME': {'pattern': '...', 'learning_rate': 1e-2}}\""""
      )
    groups[group][own] = settings.from_text(chain.Group, own, text, where=f'optim.groups.{group}')
  else:
    dataclass = recipe.dataclass_of(section, values[section].get('name', ''))
    value = settings.from_text(dataclass, key, text, where=section)
    *path, last = key.split('.')
    node = values[section]
    for part in path:
      node[part] = node.get(part, {})
      node = node[part]
    node[last] = value


def _fields(values: Mapping[str, Any], *sections: str) -> list[str]:
  """The names of all fields of some sections, 'train.steps'."""
  own = lambda s: settings.leaves(recipe.dataclass_of(s, values.get(s, {}).get('name', '')))  # noqa: E731
  return [f'{s}.{name}' for s in sections for name in own(s)]


def _unknown(values: Mapping[str, Any], field: str) -> str:
  sections = [*recipe.PLAIN, *recipe.COMPONENTS]
  near = did_you_mean(field, ['seed', *_fields(values, *sections)])
  return f'unknown config key {field}{near}\n  sections: seed, {", ".join(sections)}'
