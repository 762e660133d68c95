"""AdaLoRA: a budget of ranks moves to where it is of use (Zhang et al. 2023), y = W x + (alpha / rank) P E Q x.

E is the diagonal of `init_rank` singular values and starts at zero; P and Q are kept near orthogonal by a term of the
loss (equation 4; as in the paper's and PEFT's code the mean over the matrices of ||P^T P - I||_F, not squared).
Over all sites together the triples (column of P, singular value, row of Q) of least importance lose their singular
value, so that on average `init_rank` a site are left at first and `target_rank` at the end (`parts/adalora_budget.py`:
equations 8 to 12). Trainable: init_rank * (inputs + outputs + 1) a site.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.nn import initializers

from ftlib.base import trees
from ftlib.base.errors import InputError
from ftlib.base.rng import Stream, dropout
from ftlib.base.settings import setting
from ftlib.models.layers import Axis, Proj, contract, normal, param, size
from ftlib.models.model import Model
from ftlib.peft.method import Adapter, Method, Targets, adapt
from ftlib.peft.parts.adalora_budget import MEANS, allocator, check_plan, masked, off_orthogonal, stretched, triples
from ftlib.peft.parts.adalora_exchange import PEFT_TYPE, config_of_peft, from_peft, peft_config, to_peft  # noqa: F401


@dataclasses.dataclass(frozen=True)
class Config(Targets):
  """`tinit` and `tfinal` are for a run of `total_steps` and are stretched to the run's own length; every `interval`
  steps the budget is dealt out. `beta1` and `beta2` are of the running means, `orthogonal` is the penalty's weight."""

  init_rank: int = setting(12, low=1)
  target_rank: int = setting(8, low=1)
  alpha: float = setting(32.0, above=0)
  dropout: float = setting(0.1, low=0, below=1)
  total_steps: int = setting(1000, low=1)
  tinit: int = setting(100, low=0)
  tfinal: int = setting(300, low=0)
  interval: int = setting(10, low=1)
  beta1: float = setting(0.85, above=0, below=1)
  beta2: float = setting(0.85, above=0, below=1)
  orthogonal: float = setting(0.5, low=0)

  def __post_init__(self):
    check_plan(self)


class AdaLora(Adapter):
  """`a` [*ins, R] (Q transposed), `e` [R], `b` [R, *outs] (P transposed); of each the two running means; and `mask`
  [R], 0 for the singular values that the last allocation took."""

  KEPT = (*MEANS, 'mask')

  def __init__(self, site: Proj, name: str, salt: int, config: Config):
    inputs, outputs = size(site.ins), size(site.outs)
    if config.init_rank > min(inputs, outputs):
      raise InputError(f'method.init_rank={config.init_rank} is larger than the {inputs} x {outputs} of {name}')
    rank = Axis('rank', config.init_rank)
    axes = {'a': (*site.ins, rank), 'e': (rank,), 'b': (rank, *site.outs)}
    for leaf, of in axes.items():
      setattr(self, leaf, param(of, initializers.zeros if leaf == 'e' else normal(0.02)))
      setattr(self, f'{leaf}_sensitivity', param(of, initializers.zeros))
      setattr(self, f'{leaf}_uncertainty', param(of, initializers.zeros))
    self.mask = param((rank,), initializers.ones)
    self.scale = config.alpha / (config.init_rank + 1e-5)
    self.rate, self.salt, self.ins = config.dropout, salt, len(site.ins)

  def __call__(self, site: Proj, x: jax.Array, y: jax.Array, stream: Stream | None) -> jax.Array:
    noise = None if stream is None else stream.at(f'adalora/{self.salt}')
    low_BLR = contract(dropout(x, self.rate, noise), self.a[...], self.ins)
    return y + contract(low_BLR * (self.e[...] * self.scale).astype(x.dtype), self.b[...], 1)

  def delta(self) -> jax.Array:
    return jnp.tensordot(self.a[...] * (self.e[...] * self.scale), self.b[...], axes=1)


def build(config: Config, model: Model) -> Method:
  """AdaLoRA on every site that `target` matches."""
  sites = trees.matching(config.target, model.sites(), field='method.target', what='sites')
  return adapt(
    model,
    config.target,
    lambda site, name, salt: AdaLora(site, name, salt, config),
    also=config.also,
    penalty=lambda trainable: config.orthogonal * off_orthogonal(triples(trainable, sites)),
    adjust=lambda steps: allocator(stretched(config, steps), sites),
    project=masked(sites),
  )
