"""Sparse fine-tuning: a few entries of each matrix train, the rest stays, y = (W + D) x + b.

D is zero but at n entries of W, which are chosen once, before the first step. What is stored, saved and has optimizer
state is their n `values` (zeros at first) and n `indices`, not a mask of the size of W. `choose` says which they are:

  fisher     largest mean of the squared gradients of single rows, the empirical Fisher information
             (FISH mask, Sung et al. 2021, equation 4)
  magnitude  largest |w|
  gradient   largest |g|, g the mean gradient over the rows
  movement   largest -w g: the entries that a step of gradient descent moves away from zero (Sanh et al. 2020, whose
             sum over steps is here one over the rows, at the pretrained weights)
  movers     largest |w' - w|, w' what w became in the finished run `of`: train whole, keep the movers, rewind to w
             (LT-SFT, Ansell et al. 2022, after the lottery tickets of Frankle & Carbin 2019)
  random     a uniform sample without repetition, by the run's seed (SHiRA-rand, Bhardwaj et al. 2024)

Every matrix gets its own n, where Sung et al. rank the entries of the whole model: then the shapes of parameters would
follow from the data, layers could not be scanned, and a checkpoint would fit its own run alone.

Trainable: a site has max(1, round(density * inputs * outputs)), or with `rank` rank * (inputs + outputs), as SHiRA
counts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn import initializers

from ftlib.base.errors import InputError
from ftlib.base.rng import Stream
from ftlib.base.settings import setting
from ftlib.base.types import Flat
from ftlib.models.layers import Axis, Proj, contract, param, size
from ftlib.models.model import Model
from ftlib.peft.method import Adapter, Gradient, Method, Targets, adapt
from ftlib.peft.sparse_choice import CHOICES, chosen

PEFT_TYPE = 'SHIRA'


@dataclasses.dataclass(frozen=True)
class Config(Targets):
  """`density`: share of a matrix that trains; `rank` above 0 counts as LoRA of that rank instead. `rows`: training rows
  that gradients are taken over. `of`: folder of a finished run, for 'movers'."""

  choose: str = setting('fisher', choices=CHOICES)
  density: float = setting(0.005, above=0, high=1)
  rank: int = setting(0, low=0)
  rows: int = setting(256, low=1)
  of: str = ''
  target: str = '^layers/'


class Sparse(Adapter):
  """`values` [N], added at `indices` int32 [N], ascending, of the kernel as one row of numbers."""

  KEPT = ('indices',)

  def __init__(self, site: Proj, config: Config):
    inputs, outputs = size(site.ins), size(site.outs)
    count = config.rank * (inputs + outputs) or max(1, round(config.density * inputs * outputs))
    if count > inputs * outputs:
      raise InputError(
        f'method.rank={config.rank} stands for {count} entries of a matrix of {inputs} x {outputs}, which has '
        f'{inputs * outputs}; lower it, or set it to 0 and give method.density'
      )
    draw = lambda key, shape, dtype: _sample(key, inputs * outputs, shape[0]).astype(dtype)  # noqa: E731
    self.values = param((Axis('entries', count),), initializers.zeros)
    self.indices = nnx.Param(jax.ShapeDtypeStruct((count,), jnp.int32), axes=('entries',), init=draw)

  def __call__(self, site: Proj, x: jax.Array, y: jax.Array, stream: Stream | None) -> jax.Array:
    @jax.checkpoint  # the backward pass adds again: it would keep a second copy of every kernel else
    def product(x: jax.Array, *args: jax.Array) -> jax.Array:
      return contract(x, _add(*args), len(site.ins))

    y = product(x, site.kernel[...], self.values[...], self.indices[...])
    return y if site.bias is None else y + site.bias[...].astype(y.dtype)

  def merged(self, kernel: jax.Array, bias: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
    return _add(kernel, self.values[...], self.indices[...]).astype(kernel.dtype), bias


def build(config: Config, model: Model) -> Method:
  """Some entries of every site that `target` matches."""

  def prepare(flat: Flat, gradient: Gradient) -> Flat:
    return chosen(config, [n for n in method.shown if f'{n}/adapter/values' in flat], flat, gradient)

  if (config.choose == 'movers') != bool(config.of):
    raise InputError(f"method.choose={config.choose} with method.of={config.of!r}: 'movers', and it alone, needs a run")
  options = {} if config.choose == 'random' else {'prepare': prepare, 'source': config.of}
  method = adapt(model, config.target, lambda site, name, salt: Sparse(site, config), also=config.also, **options)
  return method


def _add(kernel: jax.Array, values: jax.Array, indices: jax.Array) -> jax.Array:
  """In float32, for values may be too small to change a bfloat16 kernel."""
  where = jnp.unravel_index(indices, kernel.shape)  # a flattened kernel could not stay split over devices
  wide = jnp.asarray(kernel, jnp.float32)
  return wide.at[where].add(values, indices_are_sorted=True, unique_indices=True, mode='promise_in_bounds')


def _sample(key: jax.Array, size: int, count: int) -> jax.Array:
  return jnp.sort(jax.random.choice(key, size, (count,), replace=False))


# PEFT's SHiRA. Its indices are (output, input) pairs, in the order of [outputs, inputs].


def peft_config(config: Config) -> dict[str, Any]:
  """Raises `InputError` without a rank, by which PEFT counts the entries."""
  if not config.rank:
    raise InputError(
      f'method.density={config.density}: PEFT counts the entries of SHiRA by a rank; train with method.rank above 0'
    )
  return {'r': config.rank, 'mask_type': 'random'}


def config_of_peft(values: Mapping[str, Any]) -> dict[str, Any]:
  """Which mask it was does not matter: its indices are in the file."""
  return {'choose': 'random', 'rank': values['r']}


def to_peft(config: Config, leaves: Mapping[str, np.ndarray], site: Proj) -> dict[str, np.ndarray]:
  """One site's `shira_weight` [N] and `shira_indices` int32 [2, N]."""
  i, o = np.divmod(np.asarray(leaves['indices']), size(site.outs))
  order = np.lexsort((i, o))
  return {
    'shira_weight': np.asarray(leaves['values'])[order],
    'shira_indices': np.stack([o[order], i[order]]).astype(np.int32),
  }


def from_peft(config: Config, tensors: Mapping[str, np.ndarray], site: Proj) -> dict[str, np.ndarray]:
  """The inverse. Raises `InputError` for an entry outside the matrix or named twice."""
  (o, i), inputs, outputs = np.asarray(tensors['shira_indices']).astype(np.int64), size(site.ins), size(site.outs)
  flat = i * outputs + o
  inside = (i >= 0) & (i < inputs) & (o >= 0) & (o < outputs)
  if not inside.all() or len(np.unique(flat)) != len(flat):
    raise InputError(f'shira_indices names entries outside a matrix of {inputs} x {outputs}, or some of them twice')
  order = np.argsort(flat)
  return {'values': np.asarray(tensors['shira_weight'])[order], 'indices': flat[order].astype(np.int32)}
