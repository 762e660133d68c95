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
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ftlib.base import rng, trees
from ftlib.base.types import Batch, Outputs, ParamInfo, Params
from ftlib.models import stack
from ftlib.models.layers import Proj


@dataclasses.dataclass(frozen=True)
class Model:
  """`trunk` embeds the inputs and computes the head; `blocks` are the layers between.

  `trunk.start(inputs, stream) -> (h [B, L, D], context)`; `block(h, context, stream) -> h`;
  `trunk.finish(h, context, stream) -> Outputs`. `hf` maps our module paths to Hugging Face's (`{i}` is the layer).
  """

  config: Any
  trunk: nnx.Module
  blocks: tuple[nnx.Module, ...]
  hf: Mapping[str, str]
  compute: Any = jnp.float32
  remat: str = 'none'
  dropout_bits: str = 'hash'

  def apply(self, params: Params, inputs: Batch, key: jax.Array | None = None) -> Outputs:
    """The forward pass. `inputs`: `tokens, positions, segments, types` int32 [B, L], `rows` int32 [B] (numbers of the
    rows in the global batch, from which dropout masks follow); no `key`, no dropout. `params` may be stacked."""
    stream = None if key is None else rng.Stream.start(key, inputs['rows'], kind=self.dropout_bits)
    trunk = nnx.merge(nnx.graphdef(self.trunk), {k: v for k, v in params.items() if k != 'layers'})
    h_BLD, context = trunk.start(inputs, stream)
    h_BLD = h_BLD.astype(self.compute)  # every later layer casts its parameters to what it is given

    def layer(graph: Any) -> stack.LayerFn:
      def fn(p: Params, h: jax.Array, i: Any) -> jax.Array:
        return nnx.merge(graph, p)(h, context, None if stream is None else stream.layer(i))

      return fn

    fns = [layer(nnx.graphdef(b)) for b in self.blocks]
    h_BLD = stack.run(params['layers'], h_BLD, fns, remat=self.remat)
    return trunk.finish(h_BLD, context, stream)

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

  def initial(self, key: jax.Array, names: list[str] | None = None) -> Params:
    """Starting values of the named parameters (all by default), each from the key folded with its name."""
    info = self.info()
    chosen = info if names is None else {n: info[n] for n in names}
    return trees.unflatten({n: i.init(rng.key_for(key, n), i.shape, i.dtype) for n, i in chosen.items()})

  def hf_names(self) -> dict[str, str]:
    """{our name: Hugging Face name} of the base parameters (those of adapters have none)."""
    out: dict[str, str] = {}
    for name in self.info():
      if hf := self._hf_name(name):
        out[name] = hf
    return out

  def hf_shapes(self) -> dict[str, tuple[int, ...]]:
    """{our name: shape of the tensor in Hugging Face's layout} of the base parameters."""
    return {n: self._hf_layout(n)[0] for n in self.hf_names()}

  def to_hf(self, name: str, value: Any) -> Any:
    """An array in Hugging Face's layout: kernels as [out, in], biases flat, everything else as it is."""
    shape, transposed = self._hf_layout(name)
    return value.reshape(shape[::-1]).T if transposed else value.reshape(shape)

  def from_hf(self, name: str, value: Any) -> Any:
    """The inverse of `to_hf`. The shape is not checked here."""
    _, transposed = self._hf_layout(name)
    return (value.T if transposed else value).reshape(self._info[name].shape)

  @functools.cached_property
  def _info(self) -> dict[str, ParamInfo]:
    return self.info()

  @functools.cached_property
  def _sites(self) -> dict[str, Proj]:
    return self.sites()

  def _hf_layout(self, name: str) -> tuple[tuple[int, ...], bool]:
    path, _, leaf = name.rpartition('/')
    site = self._sites.get(path)
    if site is None:
      return self._info[name].shape, False
    ins, outs = (math.prod(a.size for a in axes) for axes in (site.ins, site.outs))
    return ((outs, ins), True) if leaf == 'kernel' else ((outs,), False)

  def _parts(self) -> Iterator[tuple[str, nnx.Module]]:
    yield '', self.trunk
    for i, block in enumerate(self.blocks):
      yield f'layers/{i}/', block

  def _hf_name(self, name: str) -> str | None:
    path, _, leaf = name.rpartition('/')
    layer = ''
    if path.startswith('layers/'):
      _, layer, path = path.split('/', 2)
      path = 'layers/{i}/' + path
    hf = self.hf.get(f'{path}/{leaf}') or self.hf.get(path)
    if hf is None:
      return None
    if f'{path}/{leaf}' not in self.hf:
      hf = f'{hf}.{_LEAVES[leaf]}'
    return hf.replace('{i}', layer)


_LEAVES = {'kernel': 'weight', 'table': 'weight', 'scale': 'weight', 'bias': 'bias'}
