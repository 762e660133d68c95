"""AdEMAMix (Pagliardini et al. 2024, algorithm 1): Adam with a second, slow average of gradients beside the first.

The direction is (m1 / (1 - b1^t) + alpha m2) / (sqrt(v / (1 - b2^t)) + eps), m2 = b3 m2 + (1 - b3) g. The slow average
remembers about 1 / (1 - b3) steps: lower b3 in runs that are shorter than that (the paper's appendix C.1.5).
"""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
import optax
from optax import contrib

from ftlib.base.settings import setting
from ftlib.base.types import ParamInfo
from ftlib.optim.moments import kept


@dataclasses.dataclass(frozen=True)
class Config:
  """`b1` and `b3`: decay of the fast and the slow average; `b2`: of the second moment; `alpha`: share of the slow one.

  Over `ramp_steps` steps `alpha` rises from 0 in a line, and `b3` from `b1` so that 1 / log(b3) does (the paper: over
  the whole run); 0: both stand from the first step.
  """

  b1: float = setting(0.9, low=0, below=1)
  b2: float = setting(0.999, low=0, below=1)
  b3: float = setting(0.9999, above=0, below=1)
  alpha: float = setting(5.0, low=0)
  eps: float = setting(1e-8, above=0)
  ramp_steps: int = setting(0, low=0)


def build(config: Config, info: dict[str, ParamInfo]) -> optax.GradientTransformation:
  """The direction before decay and learning rate, which `chain.py` adds. State: three moments a parameter.

  Of these the fast average alone follows `moments`: a step moves the slow one by less than bfloat16 resolves.
  """
  c = config
  start = 1 / math.log(c.b1) if c.b1 else 0.0

  def share(count):
    return jnp.minimum((count + 1) / max(1, c.ramp_steps), 1.0)

  def b3(count):
    return jnp.exp(1 / ((1 - share(count)) * start + share(count) / math.log(c.b3)))

  ramped = {'b3': b3, 'alpha': lambda count: c.alpha * share(count)} if c.ramp_steps else {'b3': c.b3, 'alpha': c.alpha}
  return kept(contrib.scale_by_ademamix(b1=c.b1, b2=c.b2, eps=c.eps, **ramped), ('m1',), c.moments)
