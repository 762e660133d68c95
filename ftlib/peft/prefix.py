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
from typing import Any

import jax
import jax.numpy as jnp

from ftlib.base.rng import Stream
from ftlib.base.settings import setting
from ftlib.models.layers import Axis, Embed, Memory, Positions, Proj, Shared, normal, param, uniform
from ftlib.models.model import Model
from ftlib.peft.method import Adapter, Method, adapt, adapt_more
from ftlib.peft.parts.prefix_exchange import PEFT_TYPE, config_of_peft, from_peft_whole, peft_config, to_peft_whole  # noqa: F401
from ftlib.peft.parts.virtual_tokens import After, Turned, check_length


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
