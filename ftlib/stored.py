"""How a model's parameters are kept: alike layers in stacks, which are compiled once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from ftlib.base.types import ParamInfo
from ftlib.models import stack
from ftlib.peft.method import Method, added


def info_of(
  method: Method, trains: Callable[[str], bool], *, scan: bool, marks: Callable[[str], Any] = lambda name: None
) -> tuple[dict[str, ParamInfo], list]:
  """(the parameters as they are kept, the runs (first, stop) of layers that lie in one stack). `marks` of what trains
  are the same in all layers of a stack."""
  info = method.model.info()
  layers: dict[int, list] = {i: [] for i in range(len(method.model.blocks))}
  for name, i in info.items():
    if name.startswith('layers/'):
      _, number, rest = name.split('/', 2)
      layers[int(number)].append((rest, i.shape, trains(name) and (marks(name),), method.stage(name)))
  for name, module in method.model.modules().items():
    if name.startswith('layers/') and added(name):  # layers of one stack share their adapters' constants
      fixed = {k: v for k, v in vars(module).items() if isinstance(v, int | float | str)}
      layers[int(name.split('/')[1])].append(sorted(fixed.items()))
  runs = stack.segments([layers[i] if scan else i for i in layers])
  of_run = {str(first): (f'{first}:{stop}' if stop - first > 1 else str(first), stop - first) for first, stop in runs}
  out = {}
  for name, i in info.items():
    head, _, rest = name.partition('/')
    number, _, rest = rest.partition('/')
    if head != 'layers':
      out[name] = i
    elif number in of_run:
      key, count = of_run[number]
      stacked = dataclasses.replace(i, shape=(count, *i.shape), axes=('layers', *i.axes))
      out[f'layers/{key}/{rest}'] = stacked if count > 1 else i
  return out, runs
