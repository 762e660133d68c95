"""A model is a pure function of a plain parameter tree, and the table that says what is in the tree.

`Model.apply(params, inputs, key)` knows nothing of training; `Model.info()` gives every parameter's shape, dtype and
axis names; `Model.sites()` every projection that an adapter can be put on; `Model.hf_names()` the Hugging Face name of
every base parameter. Flax NNX modules describe the computation and never hold arrays.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ftlib.base import rng, trees
from ftlib.base.types import Batch, Outputs, ParamInfo, Params
from ftlib.models import cache as caches
from ftlib.models import heads, stack
from ftlib.models.cache import Cache
from ftlib.models.layers import Proj


class Stored(NamedTuple):
  """Where a module lies in Hugging Face's files: its `name` there; as `part` of `of` equal ones along the outputs; with
  `straight` kernels, which are [in, out] there and not [out, in], `apart` with their axes as here and not as two."""

  name: str
  part: int = 0
  of: int = 1
  straight: bool = False
  apart: bool = False


@dataclasses.dataclass(frozen=True)
class Model:
  """`trunk` embeds the inputs and computes the head; `blocks` are the layers between.

  `trunk.start(inputs, stream) -> (h [B, L, D], context)`; `block(h, context, stream) -> h`;
  `trunk.finish(h, context, stream) -> Outputs`. `hf` maps our module paths to Hugging Face's (`{i}` is the layer, where
  no path has its number). `order`: which block each layer is, where several are one and the same; () for one each.
  `tied` {Hugging Face name: our name}: tensors that files may hold besides, equal to a parameter of ours.
  """

  config: Any
  trunk: nnx.Module
  blocks: tuple[nnx.Module, ...]
  hf: Mapping[str, str | Stored]
  tied: Mapping[str, str] = dataclasses.field(default_factory=dict)
  compute: Any = jnp.float32
  remat: str = 'none'
  dropout_bits: str = 'hash'
  order: tuple[int, ...] = ()

  def apply(self, params: Params, inputs: Batch, key: jax.Array | None = None) -> Outputs:
    """The forward pass. `inputs`: `tokens, positions, segments, types` int32 [B, L], `rows` int32 [B] (numbers of the
    rows in the global batch, from which dropout masks follow); where it is there, `embedding_noise` [B, L, D] is added
    to what the first block reads of these tokens. No `key`, no dropout. `params` may be stacked."""
    stream = None if key is None else rng.Stream.start(key, inputs['rows'], kind=self.dropout_bits)
    trunk = nnx.merge(nnx.graphdef(self.trunk), {k: v for k, v in params.items() if k != 'layers'})
    h_BLD, context = trunk.start(inputs, stream)
    if 'embedding_noise' in inputs:
      noise_BLD = inputs['embedding_noise'].astype(h_BLD.dtype)
      h_BLD += jnp.pad(noise_BLD, ((0, 0), (context.prompt, 0), (0, 0)))
    h_BLD = h_BLD.astype(self.compute)  # every later layer casts its parameters to what it is given

    def layer(graph: Any) -> stack.LayerFn:
      def fn(p: Params, h: jax.Array, i: Any) -> jax.Array:
        return nnx.merge(graph, p)(h, context.layer(i), None if stream is None else stream.layer(i))

      return fn

    fns = [layer(nnx.graphdef(b)) for b in self.blocks]
    if self.order:
      h_BLD = stack.run_shared(params['layers'], h_BLD, fns, self.order, remat=self.remat)
    else:
      h_BLD = stack.run(params['layers'], h_BLD, fns, remat=self.remat)
    return heads.with_transitions(trunk.finish(h_BLD, context, stream), trunk)

  def cache(self, params: Params, *, rows: int, slots: int) -> Cache:
    """An empty cache of a decoder for `rows` rows of up to `slots` tokens (virtual ones included), laid as `params`."""
    c = self.config
    stacks = stack.counts(params['layers'])
    return caches.empty(stacks, rows=rows, slots=slots, groups=c.kv_heads, size=c.head_dim, dtype=self.compute)

  def decode(self, params: Params, inputs: Batch, cache: Cache, *, first: bool) -> tuple[Outputs, Cache]:
    """The forward pass of Q further tokens of each row, without dropout, and the cache with them.

    `inputs`: `tokens, positions, segments` int32 [B, Q]; a row's positions go on where it ended, padding is segment 0.
    `first`: they begin their rows, so that virtual tokens come in front. The caller sees to it that slots are left.
    """
    trunk = nnx.merge(nnx.graphdef(self.trunk), {k: v for k, v in params.items() if k != 'layers'})
    h_BQD, context = trunk.start(inputs, None, cache, first=first)

    def layer(graph: Any) -> Callable:
      return lambda p, h, i, past: nnx.merge(graph, p).cached(h, context.layer(i), None, past)

    fns = [layer(nnx.graphdef(b)) for b in self.blocks]
    h_BQD = h_BQD.astype(self.compute)
    count = h_BQD.shape[1]
    h_BQD, layers = stack.run_cached(params['layers'], h_BQD, fns, cache.layers, cache.used)
    outputs = trunk.finish(h_BQD, context, None)
    return outputs, dataclasses.replace(context.cache, layers=layers, used=cache.used + count)

  def info(self) -> dict[str, ParamInfo]:
    """Every parameter by name, layers unstacked."""
    out: dict[str, ParamInfo] = {}
    for prefix, module in self._parts():
      for path, leaf in nnx.to_flat_state(nnx.state(module)):
        meta = leaf.get_metadata()
        value = leaf.get_value()
        name = prefix + '/'.join(map(str, path))
        out[name] = ParamInfo(value.shape, value.dtype, meta['axes'], meta['init'])
    return dict(sorted(out.items()))

  def modules(self) -> dict[str, nnx.Module]:
    """Every module by path."""
    out: dict[str, nnx.Module] = {}
    for prefix, module in self._parts():
      for path, sub in nnx.iter_modules(module):
        out[(prefix + '/'.join(map(str, path))).rstrip('/')] = sub
    return out

  def sites(self, kind: type = Proj) -> dict[str, Any]:
    """Every slot of a kind by name ('layers/0/attn/q'): where adapters can be put (`ftlib/models/layers.py`)."""
    return {n: m for n, m in self.modules().items() if type(m) is kind and 'adapter' not in n.split('/')}

  def copy(self) -> Model:
    """A model whose modules can be changed without touching this one's."""
    return dataclasses.replace(self, trunk=copy.deepcopy(self.trunk), blocks=copy.deepcopy(self.blocks))

  def unshared(self, params: Params) -> tuple[Model, Params]:
    """(a model that computes the same with a block of its own for every layer, its parameters, unstacked)."""
    params = stack.unstack(params)
    if not self.order:
      return self, params
    layers = {str(i): params['layers'][str(k)] for i, k in enumerate(self.order)}
    model = dataclasses.replace(self, order=(), blocks=tuple(self.blocks[k] for k in self.order))
    return model, {**params, 'layers': layers}

  def initial(self, key: jax.Array, names: list[str] | None = None) -> Params:
    """Starting values of the named parameters (all by default), each from the key folded with its name."""
    info = self.info()
    chosen = info if names is None else {n: info[n] for n in names}
    return trees.unflatten({n: i.init(rng.key_for(key, n), i.shape, i.dtype) for n, i in chosen.items()})

  def hf_names(self) -> dict[str, str]:
    """{our name: Hugging Face name} of the base parameters (those of adapters have none); several of ours may be parts
    of one tensor."""
    return {name: found[0] for name in self.info() if (found := self._hf_name(name)) is not None}

  @functools.cached_property
  def hf_parts(self) -> dict[str, tuple[int, int]]:
    """{module: (which part, of how many)} of the modules that lie with others in one tensor."""
    found = {n.rpartition('/')[0]: self._hf_name(n)[1] for n in self.hf_names()}
    return {n: (s.part, s.of) for n, s in found.items() if s.of > 1}

  @property
  def straight(self) -> bool:
    """Whether the matrices in Hugging Face's files are [in, out]."""
    return any(isinstance(s, Stored) and s.straight and not s.apart for s in self.hf.values())

  def hf_shapes(self) -> dict[str, tuple[int, ...]]:
    """{our name: shape of the whole tensor in Hugging Face's layout} of the base parameters."""
    return {n: self._hf_shape(n) for n in self.hf_names()}

  def to_hf(self, name: str, value: Any) -> Any:
    """An array in Hugging Face's layout, a part by itself: kernels as [out, in], biases flat, the rest as it is."""
    whole, axis, transposed, stored = self._hf_layout(name)
    shape = tuple(n // (stored.of if i == axis else 1) for i, n in enumerate(whole))
    value = value.reshape(shape[::-1]).T if transposed else value.reshape(shape)
    return value.reshape(self._hf_shape(name)) if stored.apart else value

  def from_hf(self, name: str, value: Any) -> Any:
    """Our array from a whole tensor of Hugging Face's. The shape is not checked here."""
    whole, axis, transposed, stored = self._hf_layout(name)
    if stored.of > 1:
      size = whole[axis] // stored.of
      value = value[(slice(None),) * axis + (slice(size * stored.part, size * (stored.part + 1)),)]
    value = value.reshape(whole) if stored.apart else value
    return (value.T if transposed else value).reshape(self._info[name].shape)

  def tensors(self, flat: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """{Hugging Face name: whole tensor} of the parameters `flat`, layers unstacked: the inverse of `from_hf`."""
    parts: dict[str, list[str]] = {}
    for name, hf in self.hf_names().items():
      parts.setdefault(hf, []).append(name)
    out = {}
    for hf, names in parts.items():
      ordered = sorted(names, key=lambda n: self._hf_layout(n)[3].part)
      arrays = [np.asarray(self.to_hf(n, jax.device_get(flat[n]))) for n in ordered]
      out[hf] = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, self._hf_layout(names[0])[1])
    return out

  @functools.cached_property
  def _info(self) -> dict[str, ParamInfo]:
    return self.info()

  @functools.cached_property
  def _sites(self) -> dict[str, Proj]:
    return self.sites()

  def _hf_layout(self, name: str) -> tuple[tuple[int, ...], int, bool, Stored]:
    """(shape of the whole tensor, its axis of parts, whether it is a kernel to transpose, where it lies)."""
    path, _, leaf = name.rpartition('/')
    site, found = self._sites.get(path), self._hf_name(name)
    stored = Stored('') if found is None else found[1]
    if site is None:
      return self._info[name].shape, 0, False, stored
    ins, outs = (math.prod(a.size for a in axes) for axes in (site.ins, site.outs))
    outs *= stored.of
    if leaf != 'kernel':
      return (outs,), 0, False, stored
    return ((ins, outs), 1, False, stored) if stored.straight else ((outs, ins), 0, True, stored)

  def _hf_shape(self, name: str) -> tuple[int, ...]:
    """The shape of the whole tensor in Hugging Face's files."""
    whole, _, _, stored = self._hf_layout(name)
    if not stored.apart or len(whole) != 2:
      return whole
    site = self._sites[name.rpartition('/')[0]]
    axes = site.ins + site.outs if stored.straight else site.outs + site.ins
    return tuple(a.size for a in axes)

  def _parts(self) -> Iterator[tuple[str, nnx.Module]]:
    yield '', self.trunk
    for i, block in enumerate(self.blocks):
      yield f'layers/{i}/', block

  def _hf_name(self, name: str) -> tuple[str, Stored] | None:
    path, _, leaf = name.rpartition('/')
    layer = ''
    if path.startswith('layers/') and path not in self.hf:
      _, layer, path = path.split('/', 2)
      path = 'layers/{i}/' + path
    whole = self.hf.get(f'{path}/{leaf}')
    hf = self.hf.get(path) if whole is None else whole
    if hf is None:
      return None
    stored = Stored(hf) if isinstance(hf, str) else hf
    full = stored.name if whole is not None else f'{stored.name}.{_LEAVES[leaf]}'
    return full.replace('{i}', layer), stored


_LEAVES = {'kernel': 'weight', 'table': 'weight', 'scale': 'weight', 'bias': 'bias'}
