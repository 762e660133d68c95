"""LoKr: an update that is a Kronecker product (Edalati et al. 2022; as in LyCORIS).

y = W x + (alpha / rank) (W1 kron W2) x. The inputs are split as m * n and the outputs as l * k, so that W1 is l x m and
W2 is k x n; the product is never written out, as x, seen as m x n, goes through one and then the other. `W2` is of
low rank where rank < max(k, n) / 2, and `W1` with `decompose_both` where rank < max(l, m) / 2. The start is PEFT's:
Kaiming uniform with a = sqrt 5, but for `W1`, which is zero (its factor `b1`, if there are factors).
Trainable: l * m, or rank * (l + m), and k * n, or rank * (k + n), a site.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers

from ftlib.base.rng import Stream
from ftlib.base.settings import setting
from ftlib.models.layers import Axis, Proj, param, shape, uniform
from ftlib.models.model import Model
from ftlib.peft.method import Adapter, Method, Targets, adapt
from ftlib.peft.parts.lokr_exchange import PEFT_TYPE, config_of_peft, from_peft, peft_config, to_peft  # noqa: F401


@dataclasses.dataclass(frozen=True)
class Config(Targets):
  """`factor`: the first part of inputs and outputs (see `split`); `rank` of `W2`, and with `decompose_both` of `W1`."""

  rank: int = setting(8, low=1)
  alpha: float = setting(8.0, above=0)
  factor: int = setting(-1, low=-1)
  decompose_both: bool = False

  def __post_init__(self) -> None:
    if self.factor == 0:
      raise ValueError('factor=0 divides nothing; wanted -1 (near the square root) or at least 1')


def split(size: int, factor: int) -> tuple[int, int]:
  """Two numbers whose product is `size`: the first is `factor` if that divides it, else the largest divisor up to the
  square root and, unless it is -1, up to `factor`."""
  first = factor
  if factor < 1 or size % factor:
    first = max(d for d in range(1, math.isqrt(size) + 1) if size % d == 0 and (factor == -1 or d <= factor))
  return first, size // first


class Lokr(Adapter):
  """`w1` [M, L], or its factors `a1` [M, R] and `b1` [R, L]; `w2` [N, K], or `a2` [N, R] and `b2` [R, K]."""

  def __init__(self, site: Proj, config: Config):
    self.ins, self.outs = shape(site.ins), shape(site.outs)
    (m, n), (l, k) = (split(math.prod(sizes), config.factor) for sizes in (self.ins, self.outs))
    rank, axes = Axis('rank', config.rank), [Axis(*a) for a in zip(('in_1', 'in_2', 'out_1', 'out_2'), (m, n, l, k))]
    low1, low2 = config.decompose_both and config.rank < max(l, m) / 2, config.rank < max(k, n) / 2
    self.w1 = nnx.data(None) if low1 else param((axes[0], axes[2]), initializers.zeros)
    self.a1 = param((axes[0], rank), uniform(m)) if low1 else nnx.data(None)
    self.b1 = param((rank, axes[2]), initializers.zeros) if low1 else nnx.data(None)
    self.w2 = nnx.data(None) if low2 else param((axes[1], axes[3]), uniform(n))
    self.a2 = param((axes[1], rank), uniform(n)) if low2 else nnx.data(None)
    self.b2 = param((rank, axes[3]), uniform(config.rank)) if low2 else nnx.data(None)
    self.scale = config.alpha / config.rank

  def factors(self, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """W1 [M, L], scaled, and W2 [N, K]."""
    cast = lambda p: p[...].astype(dtype)  # noqa: E731
    w1_ML = cast(self.w1) if self.w1 is not None else cast(self.a1) @ cast(self.b1)
    w2_NK = cast(self.w2) if self.w2 is not None else cast(self.a2) @ cast(self.b2)
    return w1_ML * jnp.asarray(self.scale, dtype), w2_NK

  def __call__(self, site: Proj, x: jax.Array, y: jax.Array, stream: Stream | None) -> jax.Array:
    w1_ML, w2_NK = self.factors(x.dtype)
    x_MN = x.reshape(*x.shape[: x.ndim - len(self.ins)], w1_ML.shape[0], w2_NK.shape[0])
    return y + jnp.einsum('...mk,ml->...lk', x_MN @ w2_NK, w1_ML).reshape(y.shape)

  def delta(self) -> jax.Array:
    return jnp.kron(*self.factors(jnp.float32)).reshape(*self.ins, *self.outs)


def build(config: Config, model: Model) -> Method:
  """LoKr on every site that `target` matches."""
  return adapt(model, config.target, lambda site, name, salt: Lokr(site, config), also=config.also)
