"""Config sections: a frozen dataclass on one side, an `ml_collections.ConfigDict` on the other.

`section(Config, rank=16)` shows every default in the ConfigDict, where flags change values
(`--config.method.rank=32`); `read(Config, section, where='method')` turns it back and checks keys, types and ranges.
ConfigDict alone would take `--config.method.target=q,k` on a tuple of strings as `('q,k',)`, and would keep LoRA's
fields after the method's name changed; so settings are scalars (patterns are regular expressions) and every section
is read back through its dataclass. A field whose type is a dataclass is a section in the section.
"""

from __future__ import annotations

import ast
import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from ml_collections import config_dict

from ftlib.base.errors import InputError, did_you_mean

T = TypeVar('T')
_MARK = 'ftlib.setting'
_WORDS = {bool: 'true or false', int: 'a whole number', float: 'a number', str: 'a text', types.NoneType: 'none'}


@dataclasses.dataclass(frozen=True)
class _Bounds:
  low: float | None
  high: float | None
  above: float | None
  below: float | None
  choices: tuple[Any, ...] | None


def setting(
  default: Any,
  *,
  low: float | None = None,
  high: float | None = None,
  above: float | None = None,
  below: float | None = None,
  choices: tuple[Any, ...] | None = None,
) -> Any:
  """A dataclass field with a range: `low <= x <= high`, `above < x < below`, or one of `choices`."""
  bounds = _Bounds(low, high, above, below, choices)
  return dataclasses.field(default=default, metadata={_MARK: bounds})


def choices(config: Any, name: str) -> tuple[Any, ...]:
  """What a field may be, () where it is not one of a few."""
  field = next(f for f in dataclasses.fields(config) if f.name == name)
  return field.metadata[_MARK].choices or () if _MARK in field.metadata else ()


def section(config: type, /, **values: Any) -> config_dict.ConfigDict:
  """A ConfigDict of all fields of a dataclass, defaults overridden by `values`.

  An optional field that stands at None becomes a typed placeholder, so that a flag can fill it.
  """
  hints = typing.get_type_hints(config)
  unknown = set(values) - {f.name for f in dataclasses.fields(config)}
  if unknown:
    raise InputError(_unknown(config, sorted(unknown)[0], config.__module__))
  out = config_dict.ConfigDict()
  for field in dataclasses.fields(config):
    value = values.get(field.name, _default(field))
    kinds = _kinds(hints[field.name])
    if value is None:
      value = config_dict.placeholder(next(k for k in kinds if k is not type(None)))
    elif float in kinds and isinstance(value, int) and not isinstance(value, bool):
      value = float(value)
    elif nested := _nested(hints[field.name]):
      given = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else dict(value)
      value = section(nested, **given)
    elif dict in kinds:
      value = config_dict.ConfigDict(value)
    out[field.name] = value
  return out


def read(config: type[T], values: Mapping[str, Any], *, where: str) -> T:
  """The frozen dataclass of a section, its keys, types and ranges checked.

  Raises `InputError` naming `where.field` and, for an unknown key, the nearest known one.
  """
  hints = typing.get_type_hints(config)
  fields = {f.name: f for f in dataclasses.fields(config)}
  got: dict[str, Any] = {}
  for key in values:
    if key not in fields:
      raise InputError(_unknown(config, key, where))
    value = values[key]
    value = value.to_dict() if isinstance(value, config_dict.ConfigDict) else value
    got[key] = _checked(value, hints[key], fields[key], f'{where}.{key}')
  try:
    return config(**got)
  except ValueError as e:  # a dataclass may check several fields together in __post_init__
    raise InputError(f'{where}: {e}') from e


def from_text(config: type, key: str, text: str | None, *, where: str) -> Any:
  """The value of a field that a command line wrote as `text`; see `parsed`.

  Raises `InputError` naming `where.key` for an unknown key (with the nearest known one) and a text of another type.
  """
  key, dot, rest = key.partition('.')
  if key not in {f.name for f in dataclasses.fields(config)}:
    raise InputError(_unknown(config, f'{key}{dot}{rest}', where))
  hint = typing.get_type_hints(config)[key]
  nested = _nested(hint)
  if nested and rest:
    return from_text(nested, rest, text, where=f'{where}.{key}')
  if nested:
    raise InputError(f'--config.{where}.{key} is a section; its fields: {", ".join(leaves(nested)) or "none"}')
  if dot:
    raise InputError(_unknown(config, f'{key}{dot}{rest}', where))
  return parsed(hint, text, where=f'{where}.{key}')


def leaves(config: type, prefix: str = '') -> list[str]:
  """The names of all fields, 'rank', those of a section in the section with its name: 'lora.rank'."""
  hints = typing.get_type_hints(config)
  out = []
  for field in dataclasses.fields(config):
    nested = _nested(hints[field.name])
    out += leaves(nested, f'{prefix}{field.name}.') if nested else [f'{prefix}{field.name}']
  return out


def parsed(hint: Any, text: str | None, *, where: str) -> Any:
  """`text` as a value of the type `hint`; None stands for a flag without a value, which is true."""
  kinds = _kinds(hint)
  if text is None and bool not in kinds:
    raise InputError(f'--config.{where} has no value; write --config.{where}=VALUE')
  for kind in (k for k in _PARSERS if k in kinds):
    try:
      return _PARSERS[kind]('true' if text is None else text)
    except (ValueError, SyntaxError, KeyError):
      continue
  wanted = ' or '.join(_WORDS.get(k, f'a {k.__name__}') for k in kinds)
  raise InputError(f'--config.{where}={text}: wanted {wanted}')


def _dict(text: str) -> dict:
  value = ast.literal_eval(text)
  if not isinstance(value, dict):
    raise ValueError(text)
  return value


_PARSERS = {
  types.NoneType: lambda text: {'none': None, 'null': None}[text.lower()],
  bool: lambda text: {'true': True, '1': True, 'yes': True, 'false': False, '0': False, 'no': False}[text.lower()],
  int: int,
  float: float,
  dict: _dict,
  str: str,
}


def _checked(value: Any, hint: Any, field: dataclasses.Field, where: str) -> Any:
  if nested := _nested(hint):
    if not isinstance(value, Mapping):
      raise InputError(f'{where}={value!r} is a section of the config; set {where}.FIELD')
    return read(nested, value, where=where)
  kinds = _kinds(hint)
  if isinstance(value, list):
    value = tuple(value)
  if float in kinds and isinstance(value, int) and not isinstance(value, bool):
    value = float(value)
  if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
    wanted = ' or '.join('none' if k is type(None) else k.__name__ for k in kinds)
    raise InputError(f'{where}={value!r} is {type(value).__name__}; wanted {wanted}')
  if isinstance(value, float) and not math.isfinite(value):
    raise InputError(f'{where}={value} is not finite; wanted a finite number')
  bounds: _Bounds | None = field.metadata.get(_MARK)
  if bounds is None or value is None:
    return value
  if bounds.choices is not None and value not in bounds.choices:
    raise InputError(
      f'{where}={value!r} is not one of {", ".join(map(str, bounds.choices))}'
      f'{did_you_mean(str(value), map(str, bounds.choices))}'
    )
  rules = (
    (bounds.low, lambda x, b: x >= b, 'at least'),
    (bounds.high, lambda x, b: x <= b, 'at most'),
    (bounds.above, lambda x, b: x > b, 'above'),
    (bounds.below, lambda x, b: x < b, 'below'),
  )
  for bound, holds, words in rules:
    if bound is not None and not holds(value, bound):
      raise InputError(f'{where}={value!r} is out of range; it must be {words} {bound}')
  return value


def _default(field: dataclasses.Field) -> Any:
  if field.default is not dataclasses.MISSING:
    return field.default
  if field.default_factory is not dataclasses.MISSING:
    return field.default_factory()
  raise TypeError(f'setting {field.name} has no default')


def _kinds(hint: Any) -> tuple[type, ...]:
  if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
    return tuple(k for part in typing.get_args(hint) for k in _kinds(part))
  return (typing.get_origin(hint) or hint,)


def _nested(hint: Any) -> type | None:
  return hint if isinstance(hint, type) and dataclasses.is_dataclass(hint) else None


def _unknown(config: type, key: str, where: str) -> str:
  known = leaves(config)
  return f'unknown config key {where}.{key}{did_you_mean(key, known)}\n  known: {", ".join(known) or "(none)"}'
