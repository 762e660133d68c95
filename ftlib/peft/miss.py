"""MiSS: one small matrix serves every shard of a site's inputs (Kang & Yin 2024, equation 5), y = W x + D^T S x + b.

S x [R] adds up x's consecutive shards of R inputs each, the last one padded with zeros; so the kernel's row i gets
D's row i mod R. D [R, outputs] starts at zero. Trainable: rank * outputs a site.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import initializers

from ftlib.base.errors import InputError
from ftlib.base.rng import Stream, dropout
from ftlib.base.settings import setting
from ftlib.models.layers import Axis, Proj, contract, param
from ftlib.models.model import Model
from ftlib.peft.method import Adapter, Method, adapt

PEFT_TYPE = 'MISS'
_PLAIN = {'bias': 'none', 'trainable_token_indices': None}  # all that is read


@dataclasses.dataclass(frozen=True)
class Config:
  """`target`: pattern of site names; `also`: pattern of base parameters to train as well, such as the head."""

  rank: int = setting(16, low=1)
  dropout: float = setting(0.0, low=0, below=1)
  target: str = r'attn/(q|v)$'
  also: str = '^head/'


class Miss(Adapter):
  """`d` [R, *outs]."""

  def __init__(self, site: Proj, name: str, salt: int, config: Config):
    inputs = math.prod(a.size for a in site.ins)
    if config.rank > inputs:
      raise InputError(f'method.rank={config.rank} is larger than the {inputs} inputs of {name}; lower it')
    self.d = param((Axis('rank', config.rank), *site.outs), initializers.zeros)
    self.rank, self.rate, self.salt, self.ins = config.rank, config.dropout, salt, tuple(a.size for a in site.ins)

  def __call__(self, site: Proj, x: jax.Array, y: jax.Array, stream: Stream | None) -> jax.Array:
    x = dropout(x, self.rate, None if stream is None else stream.at(f'miss/{self.salt}'))
    lead, inputs = x.shape[: x.ndim - len(self.ins)], math.prod(self.ins)
    x = jnp.pad(x.reshape(*lead, inputs), [(0, 0)] * len(lead) + [(0, -inputs % self.rank)])
    return y + contract(x.reshape(*lead, -1, self.rank).sum(-2), self.d[...], 1)

  def delta(self) -> jax.Array:
    d = self.d[...]
    return d[np.arange(math.prod(self.ins)) % self.rank].reshape(*self.ins, *d.shape[1:])


def build(config: Config, model: Model) -> Method:
  """A shared shard on every site that `target` matches."""
  return adapt(model, config.target, lambda site, name, salt: Miss(site, name, salt, config), also=config.also)


def peft_config(config: Config) -> dict[str, Any]:
  return {'r': config.rank, 'miss_dropout': config.dropout, 'init_weights': True}


def config_of_peft(values: Mapping[str, Any]) -> dict[str, Any]:
  """Fields of `Config` from PEFT's. Raises `InputError` for settings that ftlib does not compute."""
  odd = [f'{k}={values[k]!r}' for k, plain in _PLAIN.items() if values.get(k, plain) not in (plain, None)]
  if isinstance(values.get('init_weights'), str):  # 'bat' and 'mini' are other methods, not other starts
    odd.append(f'init_weights={values["init_weights"]!r}')
  if odd:
    raise InputError(f'adapter_config.json: ftlib has no MiSS with {", ".join(odd)}')
  return {'rank': values.get('r', 64), 'dropout': values.get('miss_dropout', 0.0)}


def to_peft(config: Config, leaves: Mapping[str, np.ndarray], site: Proj) -> dict[str, np.ndarray]:
  return {'miss_block': leaves['d'].reshape(config.rank, -1)}


def from_peft(config: Config, tensors: Mapping[str, np.ndarray], site: Proj) -> dict[str, np.ndarray]:
  return {'d': tensors['miss_block'].reshape(config.rank, *(a.size for a in site.outs))}
