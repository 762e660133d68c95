"""Layers in a row: unrolled, or scanned where consecutive layers are alike.

A layer's parameters are named `layers/<i>/...`. `stack` lays runs of alike layers on a leading `layers` axis under the
name `layers/<first>:<stop>/...`, `unstack` undoes it, and `run` takes either form. Scanned layers compile in the time
of one, and a run of frozen layers below the lowest trainable one is a scan of its own: its backward pass is not paid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ftlib.base.types import Params
from ftlib.models.cache import Layer

LayerFn = Callable[[Params, jax.Array, Any], jax.Array]  # (parameters of a layer, hidden, its index) -> hidden

REMAT: dict[str, Callable[[Callable], Callable]] = {
  'none': lambda fn: fn,
  'full': jax.checkpoint,
  'dots': lambda fn: jax.checkpoint(fn, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable),
}


def run(layers: Mapping[str, Params], h_BLD: jax.Array, fns: Sequence[LayerFn], *, remat: str = 'none') -> jax.Array:
  """The hidden state after all layers. `fns[i]` computes layer i; layers in one stack share a function."""
  for first, stop, key in _spans(layers):
    fn = REMAT[remat](fns[first])
    if stop is None:
      h_BLD = fn(layers[key], h_BLD, first)
    else:
      body = lambda h, x, fn=fn: (fn(x[0], h, x[1]), None)  # noqa: E731
      h_BLD, _ = jax.lax.scan(body, h_BLD, (layers[key], jnp.arange(first, stop)))
  return h_BLD


def run_shared(
  layers: Mapping[str, Params], h_BLD: jax.Array, fns: Sequence[LayerFn], order: Sequence[int], *, remat: str = 'none'
) -> jax.Array:
  """As `run` of layers that share their parameters: layer i is block `order[i]`, and `fns` are of blocks."""
  blocks = unstack({'layers': layers})['layers']
  for first, stop in segments(order):
    fn, p = REMAT[remat](fns[order[first]]), blocks[str(order[first])]
    h_BLD, _ = jax.lax.scan(lambda h, i, fn=fn, p=p: (fn(p, h, i), None), h_BLD, jnp.arange(first, stop))
  return h_BLD


def run_cached(
  layers: Mapping[str, Params],
  h_BQD: jax.Array,
  fns: Sequence[Callable],
  caches: Mapping[str, Params],
  used: jax.Array,
) -> tuple[jax.Array, Params]:
  """(hidden state after all layers, their caches). `fns[i](parameters, hidden, index, cache.Layer)` computes layer i.

  The caches of a stack go through its scan whole, and each layer writes its new slots in place.
  """
  out: Params = {}
  for first, stop, key in _spans(layers):
    fn, kv = fns[first], caches[key]

    def one(h, kv, p, i, fn=fn, first=first):
      h, past = fn(p, h, i, Layer(kv['k'], kv['v'], i - first, used))
      return h, {'k': past.keys, 'v': past.values}

    if stop is None:
      h_BQD, out[key] = one(h_BQD, kv, layers[key], first)
    else:
      body = lambda carry, x, one=one: (one(*carry, *x), None)  # noqa: E731
      (h_BQD, out[key]), _ = jax.lax.scan(body, (h_BQD, kv), (layers[key], jnp.arange(first, stop)))
  return h_BQD, out


def counts(layers: Mapping[str, Params]) -> dict[str, int]:
  """{key of a stack, or of a single layer: how many layers it holds}."""
  return {key: 1 if stop is None else stop - first for first, stop, key in _spans(layers)}


def segments(signatures: Sequence[Any]) -> list[tuple[int, int]]:
  """Runs (first, stop) of consecutive equal signatures."""
  runs: list[tuple[int, int]] = []
  for i, signature in enumerate(signatures):
    if runs and signatures[runs[-1][0]] == signature:
      runs[-1] = (runs[-1][0], i + 1)
    else:
      runs.append((i, i + 1))
  return runs


def stack(params: Params, runs: Sequence[tuple[int, int]]) -> Params:
  """`params` with each run of more than one layer under one name, its leaves on a new leading axis.

  A run none of whose layers is in `params` is left out, so trainable and frozen trees are stacked alike.
  """
  if 'layers' not in params:
    return params
  layers, out = params['layers'], {}
  for first, stop in runs:
    present = [layers[str(i)] for i in range(first, stop) if str(i) in layers]
    if len(present) not in (0, stop - first):
      raise ValueError(f'layers {first}:{stop} are not alike: only {len(present)} of them are here')
    if present and stop - first == 1:
      out[str(first)] = present[0]
    elif present:
      out[f'{first}:{stop}'] = jax.tree.map(_stack_leaves, *present)
  return {**params, 'layers': out}


def unstack(params: Params) -> Params:
  """`params` with every layer under its own name."""
  if 'layers' not in params:
    return params
  out = {}
  for first, stop, key in _spans(params['layers']):
    if stop is None:
      out[key] = params['layers'][key]
    else:
      for i in range(first, stop):
        out[str(i)] = jax.tree.map(lambda x, i=i - first: x[i], params['layers'][key])
  return {**params, 'layers': out}


def _spans(layers: Mapping[str, Params]) -> list[tuple[int, int | None, str]]:
  spans = []
  for key in layers:
    first, colon, stop = key.partition(':')
    spans.append((int(first), int(stop) if colon else None, key))
  return sorted(spans)


def _stack_leaves(*leaves: Any) -> Any:
  if isinstance(leaves[0], jax.ShapeDtypeStruct):
    return jax.ShapeDtypeStruct((len(leaves), *leaves[0].shape), leaves[0].dtype)
  return jnp.stack(leaves)
