"""OFT: blocks of a site's inputs are rotated before the frozen matrix (Qiu et al. 2023, equations 4 to 6).

y = W R^T x + b with R = diag(R_1, ..., R_n) and, by Cayley's transform of a skew-symmetric Q, R_i = (I - Q)(I + Q)^-1;
it is the input that is rotated, not the matrix (OFTv2, Qiu et al. 2025). Q starts at zero, R at I. With
`neumann_terms` the inverse is cut off as PEFT's default does, whose series is that of the rotation the other way
round: I + 2 (Q + ... + Q^(t-2)) + Q^(t-1), of (I + Q)(I - Q)^-1. Both are computed in float32.
Trainable: n * s (s - 1) / 2 = inputs * (s - 1) / 2 a site with n blocks of size s.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import initializers

from ftlib.base import linalg
from ftlib.base.errors import InputError
from ftlib.base.rng import Stream
from ftlib.base.settings import setting
from ftlib.models.layers import Axis, Proj, contract, param, size
from ftlib.models.model import Model
from ftlib.peft.method import Adapter, Method, Targets, adapt
from ftlib.peft.parts.oft_exchange import PEFT_TYPE, config_of_peft, from_peft, peft_config, to_peft  # noqa: F401

HIGHEST = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True)
class Config(Targets):
  """`blocks`, where it is not 0, is the number of blocks, and `block_size` is not used. `neumann_terms` 0: the
  inverse itself; PEFT's default is 5."""

  block_size: int = setting(32, low=2)
  blocks: int = setting(0, low=0)
  neumann_terms: int = setting(0, low=0)

  def __post_init__(self):
    if self.neumann_terms == 1:
      raise ValueError('neumann_terms=1 leaves of the series the identity alone; give 2 or more, or 0 for the inverse')


class Oft(Adapter):
  """`skew` [N, S (S - 1) / 2]: the upper triangle of every block's Q, row by row."""

  def __init__(self, site: Proj, name: str, config: Config):
    inputs = size(site.ins)
    count, field = (config.blocks, 'blocks') if config.blocks else (config.block_size, 'block_size')
    if inputs % count or inputs == config.blocks:
      fit = [i for i in range(2, inputs + 1) if inputs % i == 0]
      fit = [inputs // i for i in reversed(fit)] if config.blocks else fit
      raise InputError(f'method.{field}={count} does not fit the {inputs} inputs of {name}; these do: {fit}')
    self.size = inputs // count if config.blocks else count
    self.ins, self.terms = len(site.ins), config.neumann_terms
    axes = Axis('blocks', inputs // self.size), Axis('skew', self.size * (self.size - 1) // 2)
    self.skew = param(axes, initializers.zeros)

  def rotation(self) -> jax.Array:
    """R [N, S, S] in float32."""
    skew, (rows, cols) = self.skew[...].astype(jnp.float32), np.triu_indices(self.size, 1)
    q = jnp.zeros((skew.shape[0], self.size, self.size)).at[:, rows, cols].set(skew)
    q, one = q - q.mT, jnp.eye(self.size)
    if self.terms == 0:
      return 2 * linalg.skew_inverse(q) - one  # as (I - Q) = 2 I - (I + Q)
    if self.terms == 2:
      return one + 2 * q
    r, power = one + 2 * q, q
    for _ in range(2, max(self.terms, 4) - 1):
      power = jnp.matmul(power, q, precision=HIGHEST)
      r = r + 2 * power
    return r + jnp.matmul(power, q, precision=HIGHEST)

  def __call__(self, site: Proj, x: jax.Array, y: jax.Array, stream: Stream | None) -> jax.Array:
    r = self.rotation().astype(x.dtype)
    x_NS = x.reshape(*x.shape[: x.ndim - self.ins], -1, self.size)
    y = contract(jnp.einsum('...ns,nst->...nt', x_NS, r).reshape(x.shape), site.kernel[...], self.ins)
    return y if site.bias is None else y + site.bias[...].astype(y.dtype)

  def merged(self, kernel: jax.Array, bias: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
    blocks = kernel.reshape(-1, self.size, math.prod(kernel.shape[self.ins :]))
    turned = jnp.einsum('nst,nto->nso', self.rotation(), blocks, precision=HIGHEST)
    return turned.reshape(kernel.shape).astype(kernel.dtype), bias


def build(config: Config, model: Model) -> Method:
  """A rotation before every site that `target` matches."""
  return adapt(model, config.target, lambda site, name, salt: Oft(site, name, config), also=config.also)
