"""Prefix tuning (Li & Liang 2021): in every layer P trained keys and values stand beside those of the tokens,
attention(q, [P_k; k], [P_v; v]) (equation 2; He et al. 2022, section 3.1).

With `reparametrise` (equation 3) the prefixes of all layers come from one table of P vectors: tanh(table W_1 + b_1) is
computed once, and each layer has its slice of W_2 and b_2. Without, each layer has its own P keys and values. As in the
paper and in PEFT the prefix takes the positions 0 to P - 1, so those of the tokens start at P and rows are cut to what
is left; every document of a packed row sees it. Random starts are PEFT's (the table normal, matrices uniform within
1 / sqrt(inputs)), but plain vectors start at `std`. The adapted model does not start as the pretrained one.

Trainable: layers * P * 2 * embed; reparametrised, P * embed + (embed + 1) * hidden + layers * (hidden + 1) * 2 * embed.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftlib.base.errors import InputError
from ftlib.base.rng import Stream
from ftlib.base.settings import setting
from ftlib.base.types import ParamInfo
from ftlib.models.layers import Axis, Embed, Memory, Positions, Proj, Shared, normal, param, uniform
from ftlib.models.model import Model
from ftlib.peft.method import Adapter, Method, adapt, adapt_more
from ftlib.peft.virtual_tokens import TENSOR, check_length, virtual_tokens, whole

PEFT_TYPE = 'PREFIX_TUNING'
SHARED = 'shared/adapter'


@dataclasses.dataclass(frozen=True)
class Config:
  """`length` is P; `hidden` the width of the reparametrisation (0: that of the model); `std` that of plain vectors at
  the start; `target`: pattern of the layers' memories; `also`: pattern of base parameters to train as well."""

  length: int = setting(10, low=1)
  reparametrise: bool = True
  hidden: int = setting(512, low=0)
  std: float = setting(0.02, above=0)
  target: str = r'attn/memory$'
  also: str = '^head/'


class Vectors(Adapter):
  """`k` and `v` [P, H, K]."""

  def __init__(self, site: Memory, config: Config):
    axes = (Axis('prefix', config.length), site.heads, site.size)
    self.k, self.v = param(axes, normal(config.std)), param(axes, normal(config.std))

  def __call__(self, site: Memory, context: Any, stream: Stream | None) -> tuple[jax.Array, jax.Array]:
    return self.k[...], self.v[...]


class Table(Adapter):
  """`table` [P, D] and `first`, D to the hidden width: what the layers share."""

  def __init__(self, config: Config, embed: Axis, hidden: Axis, dtype: Any):
    self.table = param((Axis('prefix', config.length), embed), normal(1.0))
    self.first = Proj((embed,), (hidden,), init=uniform(embed.size))
    self.dtype = dtype

  def __call__(self, site: Shared, stream: Stream | None) -> jax.Array:
    return jnp.tanh(self.first(self.table[...].astype(self.dtype)))


class Slice(Adapter):
  """`second`, from the hidden width to the keys and values of one layer."""

  def __init__(self, site: Memory, hidden: Axis):
    self.second = Proj((hidden,), (Axis('key_value', 2), site.heads, site.size), init=uniform(hidden.size))

  def __call__(self, site: Memory, context: Any, stream: Stream | None) -> tuple[jax.Array, jax.Array]:
    kv_P2HK = self.second(context.shared)
    return kv_P2HK[:, 0], kv_P2HK[:, 1]


class After(Adapter):
  """Positions that follow those of the prefix, in a table; it has no parameters."""

  def __init__(self, length: int):
    self.length = length

  def __call__(self, site: Embed, ids: jax.Array, y: jax.Array, stream: Stream | None) -> jax.Array:
    return jnp.take(site.table[...], ids + self.length, axis=0, mode='clip')


class Turned(Adapter):
  """The same for queries and keys that are turned by their positions; the prefix's own keys are not."""

  def __init__(self, length: int):
    self.length = length

  def __call__(self, site: Positions, positions_BL: jax.Array) -> jax.Array:
    return positions_BL + self.length


def build(config: Config, model: Model) -> Method:
  """A prefix in every layer that `target` matches."""
  check_length(config.length, model)
  embed = Axis('embed', model.config.embed)
  hidden = Axis('hidden', config.hidden or embed.size)
  make = lambda site, *_: Slice(site, hidden) if config.reparametrise else Vectors(site, config)  # noqa: E731
  options = {'also': config.also, 'tokens': config.length, 'identity': False}
  method = adapt(model, config.target, make, kind=Memory, **options)
  kind, after = (Embed, After) if 'embed/position' in model.sites(Embed) else (Positions, Turned)
  method = adapt_more(method, '^embed/(position|turn)$', lambda *_: after(config.length), kind=kind)
  if not config.reparametrise:
    return method
  table = lambda site, name, salt: Table(config, embed, hidden, model.compute)  # noqa: E731
  return adapt_more(method, '^shared$', table, kind=Shared)


def peft_config(config: Config) -> dict[str, Any]:
  """PEFT's file holds the keys and values that a reparametrisation gives, so there it has none."""
  return {'num_virtual_tokens': config.length, 'prefix_projection': False}


def config_of_peft(values: Mapping[str, Any]) -> dict[str, Any]:
  """The fields that follow from an adapter_config.json: with or without projection, its file holds plain vectors."""
  return {'length': virtual_tokens(values), 'reparametrise': False}


def to_peft_whole(config: Config, flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The one tensor of PEFT's file: [P, layers * 2 * D], key before value in each layer."""
  sites = sorted({m[0] for n in flat if (m := re.match(r'layers/\d+/attn/memory/adapter', n))}, key=_layer)
  if [_layer(s) for s in sites] != list(range(len(sites))) or not sites:
    raise InputError(f'PEFT puts a prefix on every layer, but method.target={config.target!r} chose some alone')
  return {TENSOR: np.concatenate([_pair(config, flat, s).reshape(config.length, -1) for s in sites], 1)}


def from_peft_whole(
  config: Config, tensors: Mapping[str, np.ndarray], info: Mapping[str, ParamInfo]
) -> dict[str, np.ndarray]:
  """The inverse of `to_peft_whole`."""
  names = sorted((n for n in info if re.match(r'layers/\d+/attn/memory/adapter/k$', n)), key=_layer)
  if config.reparametrise or not names:
    raise InputError("PEFT's file holds keys and values; they cannot be turned back: set method.reparametrise=False")
  length, heads, size = info[names[0]].shape
  vectors = whole(tensors, (length, len(names) * 2 * heads * size)).reshape(length, len(names), 2, heads, size)
  return {f'{n[:-1]}{x}': vectors[:, i, j] for i, n in enumerate(names) for j, x in enumerate('kv')}


def _layer(name: str) -> int:
  return int(name.split('/')[1])


def _pair(config: Config, flat: Mapping[str, np.ndarray], site: str) -> np.ndarray:
  """The keys and values of one layer, [P, 2, H, K]."""
  of = lambda name: np.asarray(flat[name], np.float32)  # noqa: E731
  if not config.reparametrise:
    return np.stack([of(f'{site}/k'), of(f'{site}/v')], 1)
  h = np.tanh(of(f'{SHARED}/table') @ of(f'{SHARED}/first/kernel') + of(f'{SHARED}/first/bias'))
  return np.tensordot(h, of(f'{site}/second/kernel'), 1) + of(f'{site}/second/bias')
