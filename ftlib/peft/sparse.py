"""Sparse fine-tuning: a few entries of each matrix train, the rest stays, y = (W + D) x + b.

D is zero but at n entries of W, which are chosen once, before the first step. What is stored, saved and has optimizer
state is their n `values` (zeros at first) and n `indices`, not a mask of the size of W. `choose` says which they are
(`parts/sparse_choice.py` has the scores): by Fisher information (FISH mask, Sung et al. 2021), magnitude, gradient,
movement (Sanh et al. 2020), at random (SHiRA, Bhardwaj et al. 2024), or the movers of a finished run (LT-SFT, Ansell et
al. 2022, after the lottery tickets of Frankle & Carbin 2019).

Every matrix gets its own n, where Sung et al. rank the entries of the whole model: then the shapes of parameters would
follow from the data, layers could not be scanned, and a checkpoint would fit its own run alone.

Trainable: max(1, round(density * inputs * outputs)) a site, or with `rank` rank * (inputs + outputs) as SHiRA counts.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers

from ftlib.base.errors import InputError
from ftlib.base.rng import Stream
from ftlib.base.settings import setting
from ftlib.base.types import Flat
from ftlib.models.layers import Axis, Proj, contract, param, size
from ftlib.models.model import Model
from ftlib.peft.method import Adapter, Gradient, Method, Targets, adapt
from ftlib.peft.parts.sparse_choice import CHOICES, chosen, entries, sample
from ftlib.peft.parts.sparse_exchange import PEFT_TYPE, config_of_peft, from_peft, peft_config, to_peft  # noqa: F401


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
    count = entries(config, inputs, outputs)
    draw = lambda key, shape, dtype: sample(key, inputs * outputs, shape[0]).astype(dtype)  # noqa: E731
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
  method = adapt(model, config.target, lambda site, *_: Sparse(site, config), also=config.also, source=config.of)
  return method if config.choose == 'random' else dataclasses.replace(method, prepare=prepare)


def _add(kernel: jax.Array, values: jax.Array, indices: jax.Array) -> jax.Array:
  """In float32, for values may be too small to change a bfloat16 kernel."""
  where = jnp.unravel_index(indices, kernel.shape)  # a flattened kernel could not stay split over devices
  wide = jnp.asarray(kernel, jnp.float32)
  return wide.at[where].add(values, indices_are_sorted=True, unique_indices=True, mode='promise_in_bounds')
