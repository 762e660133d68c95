"""Floating-point operations of a train step: of its matrix products as traced, or of everything as XLA compiles it.

XLA counts one turn of a loop; the trace knows how many there are, so scanned layers can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax

from ftlib.run import Run
from ftlib.train.compiled import Compiled
from ftlib.train.step import make_train_step
from tests.contract import runs


def as_compiled(step: Compiled) -> float:
  """Operations of a step that was compiled for one shape, as XLA counts them after its passes."""
  (executable,) = step._by_shape.values()
  return executable.cost_analysis()['flops']


def of_step(r: Run) -> float:
  """Operations of the matrix products in a step of a run: a multiplication and an addition are two."""
  step = make_train_step(r.method.model.apply, r.objective, r.optimizer.tx)
  return of_jaxpr(jax.make_jaxpr(step)(*runs.shapes(r), r.batch(0)[1]).jaxpr)


def of_jaxpr(jaxpr: Any, dtype: Any = None) -> float:
  """The same of a jaxpr (of numbers of `dtype` alone), loops multiplied out."""
  total = 0.0
  for eqn, times in products(jaxpr):
    if dtype is None or all(v.aval.dtype == dtype for v in eqn.invars):
      (contracted, _), _ = eqn.params['dimension_numbers']
      shape = eqn.invars[0].aval.shape
      total += times * 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(shape[d] for d in contracted)
  return total


def products(jaxpr: Any, times: int = 1) -> Iterator[tuple[Any, int]]:
  """(equation, how often it is computed) of every matrix product, those within calls and loops too."""
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'dot_general':
      yield eqn, times
    inside = times * (eqn.params['length'] if eqn.primitive.name == 'scan' else 1)
    for value in eqn.params.values():
      for inner in value if isinstance(value, tuple | list) else (value,):
        inner = getattr(inner, 'jaxpr', inner)
        if hasattr(inner, 'eqns'):
          yield from products(inner, inside)
