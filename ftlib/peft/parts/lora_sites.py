"""Where LoRA and its kin stand: on projections, each of its own rank and alpha, and on embedding tables."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import initializers

from ftlib.base import trees
from ftlib.base.errors import InputError
from ftlib.base.rng import Stream
from ftlib.base.settings import setting
from ftlib.models.layers import TIED, Axis, Embed, contract, param
from ftlib.models.model import Model
from ftlib.peft.method import Adapter, Method, Targets, adapt, adapt_more, check_rank
from ftlib.peft.parts.lora_patterns import numbers


@dataclasses.dataclass(frozen=True)
class Common(Targets):
  """What LoRA and its kin share."""

  rank: int = setting(8, low=1)
  alpha: float = setting(16.0, above=0)
  dropout: float = setting(0.1, low=0, below=1)
  scaling: str = setting('alpha/rank', choices=('alpha/rank', 'rsqrt'))
  rank_pattern: str = ''
  alpha_pattern: str = ''


def scale_of(config: Any, rank: int, alpha: float) -> float:
  """The factor s of the update."""
  return alpha / (rank if config.scaling == 'alpha/rank' else rank**0.5)


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


def fill(
  config: Any, model: Model, adapter: type[Adapter], *, embeddings: str = '', from_kernel: bool = False
) -> Method:
  """`adapter` on every site that `target` matches, each of its own rank and alpha, and `Table` on tables.

  `from_kernel`: whether adapters have values that follow from the pretrained kernel, `adapter.prepared(kernel)`.
  """
  sites = trees.matching(config.target, model.sites(), field='method.target', what='sites')
  if embeddings:
    tables = trees.matching(embeddings, model.sites(Embed), field='method.embeddings', what='sites')
    if 'embed/token' in tables and any(n.startswith('mlm/') for n in model.info()):
      raise InputError(f'method.embeddings={embeddings!r}: {TIED}')
    sites += tables
  ranks, alphas = numbers(config, sites)
  make = lambda kind: lambda site, name, salt: kind(site, salt, config, ranks[name], alphas[name])  # noqa: E731
  method = adapt(model, config.target, make(adapter), also=config.also)
  if from_kernel:
    filled = {n: s.adapter for n, s in method.model.sites().items() if n in sites}
    method = dataclasses.replace(method, prepare=lambda flat, _: _prepared(filled, flat))
  if not embeddings:
    return method
  return adapt_more(method, embeddings, make(Table), kind=Embed, merges=True, field='method.embeddings')


def _prepared(adapters: dict[str, Any], flat: dict[str, Any]) -> dict[str, Any]:
  own = {n: a.prepared(flat[f'{n}/kernel']) for n, a in adapters.items()}
  return {f'{n}/adapter/{k}': x for n, values in own.items() for k, x in values.items()}
