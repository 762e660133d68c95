"""LoRA: low-rank updates of frozen matrices (Hu et al. 2022, equation 3), y = W x + s B A x with s = alpha / rank.

`scaling='rsqrt'` is rsLoRA's s = alpha / sqrt(rank) (Kalajdzievski 2023). `init` says where A and B start, PiSSA and
OLoRA among them (`parts/lora_starts.py`); all start as the pretrained model. Dropout acts on the whole difference.

`target` also says which layers: r'^layers/[6-9]/attn/(q|v)$'. `rank_pattern` and `alpha_pattern` give sites other
numbers, r'attn/q$=4;^layers/0/=16': patterns of site names, the first that is found counts. `embeddings` is a pattern
of tables ('embed/token') that get an update too: PEFT's, with A = 0 and a normal B, without dropout.
LoRA+ (Hayou et al. 2024) is a larger rate for B: optim.groups = {'b': {'pattern': 'adapter/b$', 'learning_rate':
1.6e-3}} beside optim.learning_rate = 1e-4. Trainable: rank * (inputs + outputs) a site, rank * (rows + size) a table.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers

from ftlib.base.rng import Stream, dropout
from ftlib.base.settings import setting
from ftlib.models.layers import Axis, Proj, contract, param, size
from ftlib.models.model import Model
from ftlib.peft.method import Adapter, Method, check_rank
from ftlib.peft.parts.lora_exchange import PEFT_TYPE, config_of_peft, from_peft, peft_config, to_peft  # noqa: F401
from ftlib.peft.parts.lora_patterns import patterns_of_peft, peft_patterns  # noqa: F401
from ftlib.peft.parts.lora_sites import Common, fill, scale_of
from ftlib.peft.parts.lora_starts import FROM_KERNEL, drawn, of_kernel


@dataclasses.dataclass(frozen=True)
class Config(Common):
  """`Common`'s fields, the start, and a pattern of embedding tables ('': none)."""

  init: str = setting('kaiming', choices=('kaiming', 'gaussian', 'orthogonal', *FROM_KERNEL))
  embeddings: str = ''


class Lora(Adapter):
  """`a` [*ins, R] and `b` [R, *outs]; `a0` and `b0` are their first values where those come from the kernel."""

  KEPT: ClassVar[tuple[str, ...]] = ('a0', 'b0')

  def __init__(self, site: Proj, salt: int, config: Any, rank: int, alpha: float):
    check_rank(rank, size(site.ins), size(site.outs))
    axis, starts = Axis('rank', rank), drawn(config.init, rank, size(site.ins), salt)
    self.a, self.b = param((*site.ins, axis), starts[0]), param((axis, *site.outs), starts[1])
    known = config.init in FROM_KERNEL
    self.a0 = param((*site.ins, axis), initializers.zeros) if known else nnx.data(None)
    self.b0 = param((axis, *site.outs), initializers.zeros) if known else nnx.data(None)
    self.scale, self.rank, self.init = scale_of(config, rank, alpha), rank, config.init
    self.rate, self.salt, self.ins = config.dropout, salt, len(site.ins)

  def __call__(self, site: Proj, x: jax.Array, y: jax.Array, stream: Stream | None) -> jax.Array:
    return y + self.update(self.dropped(x, stream), *self.factors())

  def factors(self) -> tuple[jax.Array, jax.Array]:
    """The update as one product: with `a0` and `b0`, a b - a0 b0 = (a - a0) b + a0 (b - b0), exactly 0 at the start."""
    a, b = self.a[...], self.b[...]
    if self.a0 is None:
      return a, b
    a0, b0 = self.a0[...], self.b0[...]
    return jnp.concatenate([a - a0, a0], -1), jnp.concatenate([b, b - b0], 0)

  def dropped(self, x: jax.Array, stream: Stream | None) -> jax.Array:
    """What the update reads in training."""
    return dropout(x, self.rate, None if stream is None else stream.at(f'lora/{self.salt}'))

  def update(self, x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """s x a b."""
    return contract(contract(x, a, self.ins) * jnp.asarray(self.scale, x.dtype), b, 1)

  def delta(self) -> jax.Array:
    a, b = self.factors()
    return jnp.tensordot(a, b, axes=1) * self.scale

  def prepared(self, kernel: jax.Array) -> dict[str, Any]:
    """Own parameters that follow from the pretrained kernel [*ins, *outs]."""
    if self.a0 is None:
      return {}
    a, b = of_kernel(self.init, kernel, self.ins, self.rank, self.scale)
    return {'a': a, 'b': b, 'a0': a, 'b0': b}


def build(config: Config, model: Model) -> Method:
  """LoRA on every site that `target` matches, and on the tables that `embeddings` does."""
  return fill(config, model, Lora, embeddings=config.embeddings, from_kernel=config.init in FROM_KERNEL)
