"""DoRA: a pretrained matrix as magnitude and direction (Liu et al. 2024, equation 5), W' = m (W + s B A) / |W + s B A|.

The norms are those of the rows of W as PyTorch holds it, one for each output, as in the authors' code and PEFT (the
paper writes of columns). `m` starts as |W|, and a norm within rounding of m counts as m, so the adapted model starts as
the pretrained one, exactly. The norm is a constant in the backward pass (section 4.3); it is computed as |W|^2 + 2 s B
(A W) + s^2 B (A A') B, from products of rank rows, never as a matrix. As in PEFT, dropout acts on all that the change
of W reads: y = W x + (m / |..| - 1) W drop(x) + (m / |..|) s B A drop(x), which costs a second product with W in
training; without dropout there is none. Starts, patterns, scaling and layers to act on are as in `lora.py`.
Trainable: rank * (inputs + outputs) + outputs a site.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import initializers

from ftlib.base.rng import Stream
from ftlib.base.settings import setting
from ftlib.models.layers import Proj, contract, param
from ftlib.models.model import Model
from ftlib.peft.lora import Lora
from ftlib.peft.method import Method
from ftlib.peft.parts import lora_exchange
from ftlib.peft.parts.lora_exchange import PEFT_TYPE, from_peft, to_peft  # noqa: F401
from ftlib.peft.parts.lora_patterns import patterns_of_peft, peft_patterns  # noqa: F401
from ftlib.peft.parts.lora_sites import Common, fill
from ftlib.peft.parts.lora_starts import FROM_KERNEL

ROUNDING = 1e-6  # how far norms of the same matrix may lie apart that two programs or meshes compute


@dataclasses.dataclass(frozen=True)
class Config(Common):
  """`lora.py`'s fields and starts."""

  init: str = setting('kaiming', choices=('kaiming', 'gaussian', 'orthogonal', *FROM_KERNEL))


class Dora(Lora):
  """`a` [*ins, R], `b` [R, *outs] and `m` [*outs]."""

  def __init__(self, site: Proj, salt: int, config: Any, rank: int, alpha: float):
    super().__init__(site, salt, config, rank, alpha)
    self.m = param(site.outs, initializers.ones)

  def __call__(self, site: Proj, x: jax.Array, y: jax.Array, stream: Stream | None) -> jax.Array:
    a, b = self.factors()
    gain = self.gain(site.kernel[...], a, b)
    seen = self.dropped(x, stream)
    if seen is not x:
      base = contract(seen, site.kernel[...], self.ins)
    else:
      base = y if site.bias is None else y - site.bias[...].astype(y.dtype)
    return y + base * (gain - 1).astype(y.dtype) + self.update(seen, a, b * gain)

  def gain(self, kernel: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """m / |W + s a b| [*outs] in float32, the norm a constant."""
    kernel, a, b, m = jax.lax.stop_gradient((kernel.astype(jnp.float32), a, b, self.m[...]))
    over = tuple(range(self.ins)), tuple(range(self.ins))
    products = 2 * self.scale * jax.lax.dot_general(a, kernel, (over, ((), ())))
    products += self.scale**2 * jnp.tensordot(jnp.tensordot(a, a, over), b, axes=1)
    square = _square(kernel, self.ins) + (b * products).sum(0)
    norm = jnp.sqrt(jnp.maximum(square, jnp.finfo(jnp.float32).tiny))
    return self.m[...] / jnp.where(jnp.abs(norm - m) <= ROUNDING * m, m, norm)

  def merged(self, kernel: jax.Array, bias: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
    gain = self.gain(kernel, *self.factors())
    return (gain * (kernel.astype(jnp.float32) + self.delta())).astype(kernel.dtype), bias

  def prepared(self, kernel: jax.Array) -> dict[str, Any]:
    return {**super().prepared(kernel), 'm': jnp.sqrt(_square(kernel.astype(jnp.float32), self.ins))}


def _square(kernel: jax.Array, ins: int) -> jax.Array:
  return jnp.square(kernel).sum(tuple(range(ins)))


def build(config: Config, model: Model) -> Method:
  """DoRA on every site that `target` matches."""
  return fill(config, model, Dora, from_kernel=True)


peft_config, config_of_peft = (
  functools.partial(form, dora=True) for form in (lora_exchange.peft_config, lora_exchange.config_of_peft)
)
