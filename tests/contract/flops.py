"""Floating-point operations of a train step: of its matrix products as traced, or of everything as XLA compiles it.

XLA counts one turn of a loop; the trace knows how many there are, so scanned layers can be compared.
"""

from __future__ import annotations

import math
from typing import Any

import jax

from ftlib.run import Run
from ftlib.train.step import make_train_step
from tests.contract import runs


def of_step(r: Run, *, compiled: bool) -> float:
  """Operations of one step of a run: a multiplication and an addition are two."""
  step = make_train_step(r.method.model.apply, r.objective, r.optimizer.tx)
  args = *runs.shapes(r), r.batch(0)[1]
  if compiled:
    return jax.jit(step, compiler_options=runs.QUICK).lower(*args).compile().cost_analysis()['flops']
  return of_jaxpr(jax.make_jaxpr(step)(*args).jaxpr)


def of_jaxpr(jaxpr: Any) -> float:
  """The same of the `dot_general`s of a jaxpr, loops multiplied out."""
  total = 0.0
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'dot_general':
      (contracted, _), _ = eqn.params['dimension_numbers']
      shape = eqn.invars[0].aval.shape
      total += 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(shape[d] for d in contracted)
    times = eqn.params['length'] if eqn.primitive.name == 'scan' else 1
    for value in eqn.params.values():
      for inner in value if isinstance(value, tuple | list) else (value,):
        inner = getattr(inner, 'jaxpr', inner)
        if hasattr(inner, 'eqns'):
          total += times * of_jaxpr(inner)
  return total
