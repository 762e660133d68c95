"""The rule inside another: what `sam` and `lookahead` wrap."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import optax

from ftlib.base import lookup, settings
from ftlib.base.errors import InputError
from ftlib.base.types import ParamInfo
from ftlib.optim import fields


def rule(config: Any, info: Mapping[str, ParamInfo], *, inside: str) -> optax.GradientTransformationExtraArgs:
  """The direction of the optimizer file `config.inner`, whose own fields are `config.inner_options`.

  Raises `InputError` for an unknown file or option, a shared field among the options (decay and rate are added outside)
  and a file that has its rate in its rule or needs more than a gradient.
  """
  module = lookup.component('optim', config.inner, field='optim.inner')
  if any(getattr(module, name, False) for name in ('RATED', 'NEEDS', 'SEEDED')):
    why = 'has its learning rate in its rule' if getattr(module, 'RATED', False) else 'needs more than the gradient'
    raise InputError(f'optim.inner={config.inner!r} {why}, so it cannot be inside {inside}; take adamw or sgd')
  where = 'optim.inner_options'
  settings.read(module.Config, config.inner_options, where=where)
  shared = {f.name: getattr(config, f.name) for f in dataclasses.fields(fields.Common)}
  outside = sorted(set(shared) & set(config.inner_options))
  if outside:
    field = outside[0]
    raise InputError(f'{where}.{field} is shared by all optimizers and acts outside the rule; set optim.{field}')
  own = settings.read(fields.config_of(module), {**shared, **config.inner_options}, where=where)
  return optax.with_extra_args_support(module.build(own, dict(info)))
