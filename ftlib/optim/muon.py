"""Muon (Jordan et al. 2024): steps along the orthogonalised momentum of each matrix; the rest goes to adamw.

With m = beta m + (1 - beta) g, and n = beta m + (1 - beta) g once more (Nesterov's step; m and g without bias, as in
NAdam), the direction is 5 Newton-Schulz steps on n = U S V^T, which give U S' V^T with S' in about 0.7..1.2. Times
`rms` sqrt(max(inputs, outputs)) it has the size of adamw's steps, so that one learning rate and decay serve both (Liu
et al. 2025, equation 4). `rms` 0 is Jordan's sqrt(max(1, outputs / inputs)), whose usual learning rate is 0.02.

Matrices are told by axis names, each layer of a stack for itself, heads as one side; embeddings, output layers,
convolutions, biases and gains are the rest. So with a method that trains no matrix this is adamw.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import optax
import optax.contrib

from ftlib.base import trees
from ftlib.base.settings import setting
from ftlib.base.types import ParamInfo
from ftlib.optim import matrices
from ftlib.optim.moments import kept


@dataclasses.dataclass(frozen=True)
class Config:
  """`beta`, `nesterov`, `ns_steps` (Newton-Schulz) and `rms` are of the matrices; `b1`, `b2`, `eps` of the rest.

  `factors`: low-rank factors (LoRA's) count as matrices. `adam_learning_rate` is the rate of the rest, under the same
  schedule; none: the same rate. Weight decay acts at `learning_rate` on both.
  """

  beta: float = setting(0.95, low=0, below=1)
  nesterov: bool = True
  ns_steps: int = setting(5, low=1)
  rms: float = setting(0.2, low=0)
  factors: bool = True
  adam_learning_rate: float | None = setting(None, above=0)
  b1: float = setting(0.9, low=0, below=1)
  b2: float = setting(0.999, low=0, below=1)
  eps: float = setting(1e-8, above=0)


def build(config: Config, info: dict[str, ParamInfo]) -> optax.GradientTransformation:
  """The direction before decay and learning rate. State: one momentum a matrix, two moments a parameter of the rest;
  momentum and first moment in `moments`."""
  views = matrices.hidden(info, factors=config.factors)

  def dimensions(path: Any, x: jax.Array) -> optax.contrib.MuonDimensionNumbers:
    view = views[trees.path_name(path)]
    first = len(view.stack)
    cut = next(i for i in range(first + 1, x.ndim) if math.prod(x.shape[first:i]) == view.dims[0])
    return optax.contrib.MuonDimensionNumbers(tuple(range(first, cut)), tuple(range(cut, x.ndim)))

  def scaled(path: Any, x: jax.Array) -> jax.Array:
    ins, outs = views[trees.path_name(path)].dims
    return x * (config.rms * math.sqrt(max(ins, outs)) if config.rms else math.sqrt(max(1, outs / ins)))

  momentum = optax.contrib.scale_by_muon(
    beta=config.beta,
    ns_steps=config.ns_steps,
    nesterov=config.nesterov,
    weight_dimension_numbers=lambda tree: jax.tree_util.tree_map_with_path(dimensions, tree),
  )
  adam = optax.scale_by_adam(config.b1, config.b2, config.eps)
  momentum, adam = (kept(rule, ('mu',), config.moments) for rule in (momentum, adam))
  size = optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(scaled, updates))
  ratio = 1.0 if config.adam_learning_rate is None else config.adam_learning_rate / config.learning_rate
  return matrices.partition(optax.chain(momentum, size), optax.chain(adam, optax.scale(ratio)), views)
