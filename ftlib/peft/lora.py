"""LoRA: low-rank updates of frozen matrices (Hu et al. 2022, equation 3), y = W x + s B A x with s = alpha / rank.

`scaling='rsqrt'` is rsLoRA's s = alpha / sqrt(rank) (Kalajdzievski 2023). Starts (`init`): `kaiming` is PEFT's own,
uniform within 1 / sqrt(inputs), and `gaussian` a normal A of deviation 1 / rank; both with B = 0. `orthogonal` draws A
and B so that B A = 0 (but for rounding). `pissa` (Meng et al. 2024, equations 2-4) takes A0 and B0 from the first
singular vectors of W, `olora` (Büyükakyüz 2024) from its QR; where the papers then train on W - s B0 A0, the frozen W
stays here and y = W x + s (B A - B0 A0) x: the same function, identity at the start, and it leaves as a LoRA of twice
the rank. Dropout acts on the whole difference.

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

from ftlib.base import trees
from ftlib.base.errors import InputError
from ftlib.base.rng import Stream, dropout
from ftlib.base.settings import setting
from ftlib.models.layers import TIED, Axis, Embed, Proj, contract, param, size
from ftlib.models.model import Model
from ftlib.peft.lora_exchange import PEFT_TYPE, config_of_peft, from_peft, peft_config, to_peft  # noqa: F401
from ftlib.peft.lora_patterns import numbers, patterns_of_peft, peft_patterns  # noqa: F401
from ftlib.peft.lora_starts import FROM_KERNEL, drawn, of_kernel
from ftlib.peft.method import Adapter, Method, Targets, adapt, adapt_more, check_rank


@dataclasses.dataclass(frozen=True)
class Common(Targets):
  """What LoRA and its kin share."""

  rank: int = setting(8, low=1)
  alpha: float = setting(16.0, above=0)
  dropout: float = setting(0.1, low=0, below=1)
  scaling: str = setting('alpha/rank', choices=('alpha/rank', 'rsqrt'))
  rank_pattern: str = ''
  alpha_pattern: str = ''


@dataclasses.dataclass(frozen=True)
class Config(Common):
  """`Common`'s fields, the start, and a pattern of embedding tables ('': none)."""

  init: str = setting('kaiming', choices=('kaiming', 'gaussian', 'orthogonal', *FROM_KERNEL))
  embeddings: str = ''


def scale_of(config: Any, rank: int, alpha: float) -> float:
  """The factor s of the update."""
  return alpha / (rank if config.scaling == 'alpha/rank' else rank**0.5)


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


class Table(Adapter):
  """`a` [V, R] and `b` [R, D] of an embedding."""

  def __init__(self, site: Embed, salt: int, config: Any, rank: int, alpha: float):
    check_rank(rank, site.rows.size, site.axis.size)
    axis = Axis('rank', rank)
    self.a, self.b = param((site.rows, axis), initializers.zeros), param((axis, site.axis), initializers.normal(1.0))
    self.scale = scale_of(config, rank, alpha)

  def __call__(self, site: Embed, ids: jax.Array, y: jax.Array, stream: Stream | None) -> jax.Array:
    low = jnp.take(self.a[...], ids, axis=0, mode='clip').astype(y.dtype) * jnp.asarray(self.scale, y.dtype)
    return y + contract(low, self.b[...], 1)

  def delta(self) -> jax.Array:
    return self.a[...] @ self.b[...] * self.scale


def build(config: Config, model: Model) -> Method:
  """LoRA on every site that `target` matches, and on the tables that `embeddings` does."""
  return fill(config, model, Lora, embeddings=config.embeddings)


def fill(config: Any, model: Model, adapter: type[Lora], *, embeddings: str = '') -> Method:
  """`adapter` on every site that `target` matches, each of its own rank and alpha, and `Table` on tables."""
  sites = trees.matching(config.target, model.sites(), field='method.target', what='sites')
  if embeddings:
    tables = trees.matching(embeddings, model.sites(Embed), field='method.embeddings', what='sites')
    if 'embed/token' in tables and any(n.startswith('mlm/') for n in model.info()):
      raise InputError(f'method.embeddings={embeddings!r}: {TIED}')
    sites += tables
  ranks, alphas = numbers(config, sites)
  make = lambda kind: lambda site, name, salt: kind(site, salt, config, ranks[name], alphas[name])  # noqa: E731
  method = adapt(model, config.target, make(adapter), also=config.also)
  if config.init in FROM_KERNEL or adapter.prepared is not Lora.prepared:
    filled = {n: s.adapter for n, s in method.model.sites().items() if n in sites}
    method = dataclasses.replace(method, prepare=lambda flat, _: _prepared(filled, flat))
  if not embeddings:
    return method
  return adapt_more(method, embeddings, make(Table), kind=Embed, merges=True, field='method.embeddings')


def _prepared(adapters: dict[str, Lora], flat: dict[str, Any]) -> dict[str, Any]:
  own = {n: a.prepared(flat[f'{n}/kernel']) for n, a in adapters.items()}
  return {f'{n}/adapter/{k}': x for n, values in own.items() for k, x in values.items()}
