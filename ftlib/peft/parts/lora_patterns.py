"""Ranks and alphas by site: `rank_pattern` and `alpha_pattern` of LoRA and its kin, here and in PEFT's format."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ftlib.base import trees
from ftlib.base.errors import InputError
from ftlib.peft.parts.lora_starts import FROM_KERNEL


def numbers(config: Any, sites: Sequence[str]) -> tuple[dict[str, int], dict[str, float]]:
  """({site: rank}, {site: alpha}) of the sites. Raises what `by_site` raises."""
  ranks = by_site(config.rank_pattern, config.rank, sites, field='method.rank_pattern')
  return ranks, by_site(config.alpha_pattern, config.alpha, sites, field='method.alpha_pattern')


def by_site(text: str, default: float, sites: Sequence[str], *, field: str) -> dict[str, Any]:
  """The number of each site by a text 'pattern=number;...', of which the first pattern that is found counts.

  Raises `InputError` for a text of another form, numbers of another type or below 1, and patterns that match no site.
  """
  kind, found = type(default), {}
  for part in filter(None, text.split(';')):
    pattern, _, number = part.rpartition('=')
    try:
      value = kind(number)
    except ValueError:
      value = 0
    if not pattern or not 0 < value < math.inf:
      wanted = 'a whole number from 1 on' if kind is int else 'a number above 0'
      raise InputError(f'{field}={text!r}: {part!r} is not pattern=number with {wanted}; several are separated by ";"')
    for name in trees.matching(pattern, sites, field=field, what='sites it acts on'):
      found.setdefault(name, value)
  return {n: found.get(n, default) for n in sites}


def peft_patterns(config: Any, names: Mapping[str, str]) -> dict[str, dict[str, Any]]:
  """`rank_pattern` and `alpha_pattern` of `adapter_config.json`; `names`: the torch module of every site it acts on."""
  ranks, alphas = numbers(config, list(names))
  own, default = {n: doubled(config, ranks[n], alphas[n]) for n in names}, doubled(config, config.rank, config.alpha)
  pick = lambda i: {names[n]: pair[i] for n, pair in own.items() if pair[i] != default[i]}  # noqa: E731
  return {'rank_pattern': pick(0), 'alpha_pattern': pick(1)}


def patterns_of_peft(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, str]:
  """Our `rank_pattern` and `alpha_pattern` from PEFT's, of which the first that fits a name counts as well.

  `names` gives the torch module of every site with an adapter.
  """

  def text(patterns: Mapping[str, Any] | None) -> str:
    found = []
    for site, module in names.items():
      key = next((k for k in patterns or {} if re.match(rf'(.*\.)?({k})$', module)), None)
      found += [] if key is None else [f'^{site}$={patterns[key]}']
    return ';'.join(found)

  return {k: text(values.get(k)) for k in ('rank_pattern', 'alpha_pattern')}


def doubled(config: Any, rank: int, alpha: float) -> tuple[int, float]:
  """The rank and alpha that an adapter has in PEFT, where one with a start from the kernel holds that as well."""
  if config.init not in FROM_KERNEL:
    return rank, alpha
  return 2 * rank, alpha * (2 if config.scaling == 'alpha/rank' else 2**0.5)
