"""AdaLoRA: a budget of ranks moves to where it is of use (Zhang et al. 2023), y = W x + (alpha / rank) P E Q x.

E is the diagonal of `init_rank` singular values and starts at zero; P and Q are kept near orthogonal by a term of the
loss (equation 4; as in the paper's and PEFT's code the mean over the matrices of ||P^T P - I||_F, not squared).
After step t a triple (column of P, singular value, row of Q) has the importance S = s(E_k) + mean s(P_ik) +
mean s(Q_kj), s being the product of two running means of |w dL/dw|, its value's and its fluctuation's (equations 8 to
11). Over all sites together the triples of least importance lose their singular value, so that on average b(t) a
site are left: `init_rank` to step `tinit`, then falling with the cube of the time left (equation 12) to `target_rank`
at `total_steps - tfinal`, from where on which are left stays. Trainable: init_rank * (inputs + outputs + 1) a site.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import initializers

from ftlib.base import trees
from ftlib.base.errors import InputError
from ftlib.base.rng import Stream, dropout
from ftlib.base.settings import setting
from ftlib.models.layers import Axis, Proj, contract, normal, param, size
from ftlib.models.model import Model
from ftlib.peft.adalora_budget import allocator, stretched, triples
from ftlib.peft.exchange import pair_from_peft, pair_to_peft, renamed
from ftlib.peft.method import Adapter, Method, Targets, adapt

PEFT_TYPE = 'ADALORA'


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
    if self.target_rank > self.init_rank:
      raise ValueError(f'target_rank={self.target_rank} is above init_rank={self.init_rank}')
    if self.tinit >= self.total_steps - self.tfinal:
      raise ValueError(
        f'tinit={self.tinit} and tfinal={self.tfinal} leave no step of total_steps={self.total_steps} to lower the '
        'budget in'
      )


class AdaLora(Adapter):
  """`a` [*ins, R] (Q transposed), `e` [R], `b` [R, *outs] (P transposed); of each the two running means; and `mask`
  [R], 0 for the singular values that the last allocation took."""

  KEPT = tuple(f'{leaf}_{mean}' for leaf in 'aeb' for mean in ('sensitivity', 'uncertainty')) + ('mask',)

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
    penalty=lambda trainable: config.orthogonal * _off_orthogonal(triples(trainable, sites)),
    adjust=lambda steps: allocator(stretched(config, steps), sites),
  )


def _off_orthogonal(of: Mapping[str, tuple[jax.Array, jax.Array, jax.Array]]) -> jax.Array:
  """The mean over all matrices of the Frobenius norm of P^T P - I (or Q Q^T - I)."""
  norms = []
  for a, _, b in of.values():
    for m in (a.mT, b):
      gram = jnp.matmul(m, m.mT, precision=jax.lax.Precision.HIGHEST) - jnp.eye(m.shape[-2])
      norms.append(jnp.sqrt(jnp.square(gram).sum((-2, -1)) + 1e-12).reshape(-1))  # its derivative at 0 is 0, not NaN
  return jnp.concatenate(norms).mean()


_SAME = ('tinit', 'tfinal', 'beta1', 'beta2')
peft_config, config_of_peft = renamed(  # PEFT's `rank_pattern` is not needed: it says which rows the tensors lack
  {'init_rank': 'init_r', 'target_rank': 'target_r', 'alpha': 'lora_alpha', 'dropout': 'lora_dropout'}
  | {'total_steps': 'total_step', 'interval': 'deltaT', 'orthogonal': 'orth_reg_weight'}
  | dict(zip(_SAME, _SAME))
)


def to_peft(config: Config, leaves: Mapping[str, np.ndarray], site: Proj) -> dict[str, np.ndarray]:
  a_RI, b_OR = pair_to_peft(leaves['a'], leaves['b'])
  return {'lora_A': a_RI, 'lora_E': leaves['e'][:, None], 'lora_B': b_OR}


def from_peft(config: Config, tensors: Mapping[str, np.ndarray], site: Proj) -> dict[str, np.ndarray]:
  """PEFT saves the rows alone that its mask left; they come first, zeros follow, and the means begin anew."""
  left = tensors['lora_E'].shape[0]
  lacking = [(0, config.init_rank - left), (0, 0)]
  a_RI, e_R1, b_RO = (np.pad(x, lacking) for x in (tensors['lora_A'], tensors['lora_E'], tensors['lora_B'].T))
  a, b = pair_from_peft(a_RI, b_RO.T, site.ins, site.outs)
  out = {'a': a, 'e': e_R1[:, 0], 'b': b, 'mask': (np.arange(config.init_rank) < left).astype(np.float32)}
  return out | {n: np.zeros_like(out[n[0]]) for n in AdaLora.KEPT if n != 'mask'}
