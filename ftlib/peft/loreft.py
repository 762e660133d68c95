"""LoReFT (Wu et al. 2024, equation 2): a low-rank edit of the hidden state after every layer, at a few tokens.

h + R^T (W h + b - R h) at the `first` and `last` tokens of a text, the same R, W and b at each of them. R has
orthonormal rows: it starts random, and after every step, in averages too, the nearest such matrix takes its place (the
polar factor). W starts as R and b at zero, so the adapted model starts as the pretrained one.

Trainable: 2 rank D + rank a layer.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import initializers

from ftlib.base import linalg, trees
from ftlib.base.errors import InputError
from ftlib.base.rng import Stream
from ftlib.base.settings import setting
from ftlib.base.types import Flat, Params
from ftlib.models.layers import Axis, Hidden, contract, param
from ftlib.models.model import Model
from ftlib.peft.method import Adapter, Gradient, Method, adapt


@dataclasses.dataclass(frozen=True)
class Config:
  """`first`, `last`: how many tokens are edited at either end (the paper's f3+l3); `target`: after which layers."""

  rank: int = setting(4, low=1)
  first: int = setting(3, low=0)
  last: int = setting(3, low=0)
  target: str = r'^layers/\d+/out$'
  also: str = '^head/'


class Edit(Adapter):
  """`rotation` R [R, D], `source` W [R, D] and its `bias` b [R]."""

  def __init__(self, site: Hidden, config: Config):
    if config.rank > site.axis.size:
      raise InputError(f'method.rank={config.rank} is larger than the {site.axis.size} values of a hidden state')
    rank = Axis('rank', config.rank)
    self.rotation = param((rank, site.axis), initializers.orthogonal())
    self.source = param((rank, site.axis), initializers.zeros)  # `prepare` puts R here
    self.bias = param((rank,), initializers.zeros)
    self.first, self.last = config.first, config.last

  def __call__(self, site: Hidden, x: jax.Array, y: jax.Array, context: Any, stream: Stream | None) -> jax.Array:
    change_BLR = contract(y, (self.source[...] - self.rotation[...]).T, 1) + self.bias[...].astype(y.dtype)
    edited_BL1 = ends(context.segments_BL, self.first, self.last)[..., None]
    return y + contract(jnp.where(edited_BL1, change_BLR, 0), self.rotation[...], 1)


def ends(segments_BL: jax.Array, first: int, last: int) -> jax.Array:
  """Booleans [B, L]: the `first` and the `last` tokens of every text; padding is segment 0, and no text's."""
  length = segments_BL.shape[1]
  before = jnp.pad(segments_BL, ((0, 0), (first, 0)), constant_values=-1)[:, :length]
  after = jnp.pad(segments_BL, ((0, 0), (0, last)), constant_values=-1)[:, last:]
  return (segments_BL > 0) & ((before != segments_BL) | (after != segments_BL))


def orthonormal(r: jax.Array) -> jax.Array:
  """The nearest matrix with orthonormal rows, (R R^T)^(-1/2) R, of each of [..., R, D]."""
  gram = jnp.einsum('...id,...jd->...ij', r, r, precision='highest')
  values, vectors = linalg.each(jnp.linalg.eigh, gram)
  scaled = vectors * jax.lax.rsqrt(jnp.maximum(values, 1e-12))[..., None, :]
  return jnp.einsum('...ik,...jk,...jd->...id', scaled, vectors, r, precision='highest')


def build(config: Config, model: Model) -> Method:
  """An edit on every site that `target` matches."""
  if config.first == config.last == 0:
    raise InputError('method.first=0 and method.last=0 leave no token to edit; raise one of them')
  mine = trees.matching(config.target, model.sites(Hidden), field='method.target', what='sites')
  rotations = {f'{site}/adapter/rotation' for site in mine}

  def prepare(flat: Flat, gradient: Gradient) -> Flat:
    return {f'{site}/adapter/source': jnp.copy(flat[f'{site}/adapter/rotation']) for site in mine}

  def project(trainable: Params, kept: Params) -> Params:
    fix = lambda name, x: orthonormal(x) if trees.canonical(name) in rotations else x  # noqa: E731
    return trees.map_named(fix, trainable)

  adjust = lambda trainable, kept, grads, step: (project(trainable, kept), kept)  # noqa: E731
  hooks = {'kind': Hidden, 'prepare': prepare, 'adjust': lambda steps: adjust, 'project': project}
  return adapt(model, config.target, lambda site, name, salt: Edit(site, config), also=config.also, **hooks)
