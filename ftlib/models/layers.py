"""Layers shared by every family, with the slots that methods fill.

Modules hold no arrays: a `Param` is a shape with axis names and an initialiser, and values come in as a plain tree
(`ftlib/models/model.py`). Every slot is a module with an `adapter`, empty until a method fills it: `Proj` and `Embed`
(LoRA and its kin), `Hidden` (bottleneck adapters), `Memory` (prefixes), `Prompt` and `Shared`. Model files never
mention a method.

Shape letters: B batch, L tokens, D embed, F mlp, H heads, K head size, V vocabulary, C classes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn import initializers

from ftlib.base.errors import InputError
from ftlib.base.rng import Stream
from ftlib.base.types import Batch

Init = Callable[..., jax.Array]
TIED = (
  'an adapter on a table of embeddings that is the output matrix as well (tied): it would act on the inputs alone, and '
  "merged on both; leave the table out of the method's sites"
)


class Axis(NamedTuple):
  """A logical dimension: its name (as in the sharding rules) and its size."""

  name: str
  size: int


def shape(axes: tuple[Axis, ...]) -> tuple[int, ...]:
  """The sizes of axes."""
  return tuple(a.size for a in axes)


def size(axes: tuple[Axis, ...]) -> int:
  """The product of the sizes of axes."""
  return math.prod(shape(axes))


def param(axes: tuple[Axis, ...], init: Init) -> nnx.Param:
  """A float32 parameter without a value yet."""
  return nnx.Param(jax.ShapeDtypeStruct(shape(axes), jnp.float32), axes=tuple(a.name for a in axes), init=init)


def contract(x: jax.Array, kernel: jax.Array, ins: int) -> jax.Array:
  """`x` [..., *ins] times `kernel` [*ins, *outs], summed over the `ins` input dimensions.

  The backward pass is written out: of the two sides of the kernel's gradient a CPU turns the left one before it
  multiplies, JAX puts the outputs' gradient there, and XLA does the turning inside what makes that gradient, entry by
  entry. For the wide side of a gated MLP this took as long as a product; here the narrower side is the left one.
  """
  return _product(x, kernel.astype(x.dtype), ins)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x, kernel, ins):
  return _dot(x, kernel, range(x.ndim - ins, x.ndim), range(ins))


def _product_forward(x, kernel, ins):
  y = _product(x.value, kernel.value, ins)
  return y, (x.value if kernel.perturbed else None, kernel.value if x.perturbed else None)


def _product_back(ins, saved, g):
  x, kernel = saved
  return (
    None if kernel is None else _dot(g, kernel, range(g.ndim - kernel.ndim + ins, g.ndim), range(ins, kernel.ndim)),
    None if x is None else _kernel_gradient(x, g, x.ndim - ins),
  )


_product.defvjp(_product_forward, _product_back, symbolic_zeros=True)


def _kernel_gradient(x: jax.Array, g: jax.Array, batch: int) -> jax.Array:
  """`x` [..., *ins] and `g` [..., *outs] summed over their first `batch` dimensions: [*ins, *outs]."""
  rows = range(batch)
  if math.prod(x.shape[batch:]) <= math.prod(g.shape[batch:]):
    return _dot(x, g, rows, rows)
  turned = _dot(g, x, rows, rows)
  outs = g.ndim - batch
  return turned.transpose(*range(outs, turned.ndim), *range(outs))


def _dot(a: jax.Array, b: jax.Array, of_a: Sequence[int], of_b: Sequence[int]) -> jax.Array:
  return jax.lax.dot_general(a, b, ((tuple(of_a), tuple(of_b)), ((), ())))


class Proj(nnx.Module):
  """A linear map over named axes: `x` [B, ..., *ins] to [B, ..., *outs]; the one place where an adapter acts."""

  def __init__(self, ins: tuple[Axis, ...], outs: tuple[Axis, ...], *, init: Init, bias: bool = True):
    self.ins, self.outs = ins, outs
    self.kernel = param(ins + outs, init)
    self.bias = param(outs, initializers.zeros) if bias else nnx.data(None)
    self.adapter = nnx.data(None)

  def __call__(self, x: jax.Array, stream: Stream | None = None) -> jax.Array:
    y = contract(x, self.kernel[...], len(self.ins))
    if self.bias is not None:
      y = y + self.bias[...].astype(x.dtype)
    return y if self.adapter is None else self.adapter(self, x, y, stream)


class Norm(nnx.Module):
  """Layer normalisation over the last axis in float32 (Ba et al. 2016)."""

  def __init__(self, axis: Axis, *, epsilon: float):
    self.epsilon = epsilon
    self.scale = param((axis,), initializers.ones)
    self.bias = param((axis,), initializers.zeros)

  def __call__(self, x: jax.Array) -> jax.Array:
    hat = standardise(x.astype(jnp.float32), self.epsilon)
    return (hat * self.scale[...].astype(jnp.float32) + self.bias[...].astype(jnp.float32)).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def standardise(x: jax.Array, epsilon: float) -> jax.Array:
  """`x` [..., D] with mean 0 and variance 1 over D.

  The backward pass is written out, as (g - mean(g) - hat * mean(g * hat)) / sigma: what XLA makes of the derivative of
  mean and variance takes longer on a CPU than the MLP's matrix product beside it.
  """
  return _standardise(x, epsilon)[0]


def _standardise(x, epsilon):
  centred = x - x.mean(-1, keepdims=True)
  inverse = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + epsilon)
  hat = centred * inverse
  return hat, (hat, inverse)


def _standardise_back(epsilon, saved, g):
  hat, inverse = saved
  along = (g * hat).mean(-1, keepdims=True)
  return (inverse * (g - g.mean(-1, keepdims=True) - hat * along),)


standardise.defvjp(_standardise, _standardise_back)


class RmsNorm(nnx.Module):
  """Root-mean-square normalisation over the last axis in float32 (Zhang & Sennrich 2019), scaled by the weight or, with
  `unit_offset`, by 1 + weight."""

  def __init__(self, axis: Axis, *, epsilon: float, unit_offset: bool = False):
    self.epsilon, self.unit_offset = epsilon, unit_offset
    self.scale = param((axis,), initializers.zeros if unit_offset else initializers.ones)

  def __call__(self, x: jax.Array) -> jax.Array:
    scale = self.scale[...].astype(jnp.float32)
    return (unit_rms(x.astype(jnp.float32), self.epsilon) * (1 + scale if self.unit_offset else scale)).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def unit_rms(x: jax.Array, epsilon: float) -> jax.Array:
  """`x` [..., D] with root mean square 1 over D; the backward pass is written out, as in `standardise`."""
  return _unit_rms(x, epsilon)[0]


def _unit_rms(x, epsilon):
  inverse = jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + epsilon)
  hat = x * inverse
  return hat, (hat, inverse)


def _unit_rms_back(epsilon, saved, g):
  hat, inverse = saved
  return (inverse * (g - hat * (g * hat).mean(-1, keepdims=True)),)


unit_rms.defvjp(_unit_rms, _unit_rms_back)


class Embed(nnx.Module):
  """A table of vectors: int ids [...] to [..., D]. Ids are checked on the host; JAX would clamp them silently."""

  def __init__(self, rows: Axis, axis: Axis, *, init: Init):
    self.rows, self.axis = rows, axis
    self.table = param((rows, axis), init)
    self.adapter = nnx.data(None)

  def __call__(self, ids: jax.Array, stream: Stream | None = None) -> jax.Array:
    y = jnp.take(self.table[...], ids, axis=0, mode='clip')
    return y if self.adapter is None else self.adapter(self, ids, y, stream)

  def attend(self, x: jax.Array) -> jax.Array:
    """Logits over the rows with the table as a tied output matrix: [..., D] to float32 [..., V].

    Raises `InputError` where the table has an adapter: it acts on what the table embeds, and merged would act here too.
    """
    if self.adapter is not None:
      raise InputError(TIED)
    dims = ((x.ndim - 1,), (1,)), ((), ())
    return jax.lax.dot_general(x, self.table[...].astype(x.dtype), dims, preferred_element_type=jnp.float32)


class Hidden(nnx.Module):
  """A slot on the way of the hidden state: `y` [B, L, D] passes, or what an adapter makes of it.

  `x` is what the part read whose output `y` is; `context` is the blocks' (segments, mask).
  """

  def __init__(self, axis: Axis):
    self.axis, self.adapter = axis, nnx.data(None)

  def __call__(self, x: jax.Array, y: jax.Array, context: Any, stream: Stream | None) -> jax.Array:
    return y if self.adapter is None else self.adapter(self, x, y, context, stream)


class Memory(nnx.Module):
  """A slot for keys and values that every query sees beside those of its row: an adapter gives `k, v` [P, H, K]."""

  def __init__(self, heads: Axis, size: Axis):
    self.heads, self.size, self.adapter = heads, size, nnx.data(None)

  def __call__(
    self, k_BLHK: jax.Array, v_BLHK: jax.Array, mask_B1QL: jax.Array, context: Any, stream: Stream | None
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Keys, values and mask with the memory in front."""
    if self.adapter is None:
      return k_BLHK, v_BLHK, mask_B1QL
    k_PHK, v_PHK = self.adapter(self, context, stream)
    before = lambda m, x: jnp.concatenate(  # noqa: E731
      [jnp.broadcast_to(m.astype(x.dtype), (x.shape[0], *m.shape)), x], axis=1
    )
    seen = jnp.ones((*mask_B1QL.shape[:3], k_PHK.shape[0]), bool)
    return before(k_PHK, k_BLHK), before(v_PHK, v_BLHK), jnp.concatenate([seen, mask_B1QL], axis=-1)


class Prompt(nnx.Module):
  """A slot for virtual tokens in front of a row: an adapter gives their vectors [P, D] in place of embedded tokens.

  They are of the row's first segment and have the positions 0 to P - 1; the row's own positions follow.
  """

  def __init__(self, axis: Axis):
    self.axis, self.adapter = axis, nnx.data(None)

  def __call__(self, h_BLD: jax.Array, inputs: Batch, stream: Stream | None) -> tuple[jax.Array, Batch, int]:
    """(embedded tokens [B, P + L, D], inputs of that length, P)."""
    if self.adapter is None:
      return h_BLD, inputs, 0
    p_PD = self.adapter(self, stream)
    count, rows = p_PD.shape[0], h_BLD.shape[0]
    wide = lambda x: jnp.broadcast_to(x, (rows, count))  # noqa: E731
    front = {
      'tokens': wide(inputs['tokens'][:, :1]),
      'types': wide(jnp.zeros((), jnp.int32)),
      'segments': wide(inputs['segments'][:, :1]),
      'positions': wide(jnp.arange(count, dtype=jnp.int32)),
    }
    longer = {
      n: jnp.concatenate([x, inputs[n] + (count if n == 'positions' else 0)], 1)
      for n, x in front.items()
      if n in inputs
    }
    vectors = jnp.broadcast_to(p_PD.astype(h_BLD.dtype), (rows, *p_PD.shape))
    return jnp.concatenate([vectors, h_BLD], 1), {**inputs, **longer}, count

  def behind(self, inputs: Batch) -> Batch:
    """The inputs of tokens that follow a row whose virtual tokens a cache holds: their positions come after those."""
    count = 0 if self.adapter is None else self.adapter(self, None).shape[0]
    return {**inputs, 'positions': inputs['positions'] + count}


class Positions(nnx.Module):
  """A slot for other positions than the row's own, where no table holds them: an adapter gives them, int [B, L]."""

  def __init__(self) -> None:
    self.adapter = nnx.data(None)

  def __call__(self, positions_BL: jax.Array) -> jax.Array:
    return positions_BL if self.adapter is None else self.adapter(self, positions_BL)


class Shared(nnx.Module):
  """A slot for what an adapter computes once for all layers; they find it in their context."""

  def __init__(self) -> None:
    self.adapter = nnx.data(None)

  def __call__(self, stream: Stream | None) -> Any:
    return None if self.adapter is None else self.adapter(self, stream)


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
  """x times the normal distribution function of x (Hendrycks & Gimpel 2016), by erf.

  The backward pass computes erf again from x: the arrays that autodiff would keep cost more to write than erf does.
  """
  return x * _normal_cdf(x)


def _normal_cdf(x):
  return 0.5 * (1 + jax.lax.erf(x * np.asarray(0.5**0.5, x.dtype)))


def _gelu_back(x, g):
  density = np.asarray((2 * np.pi) ** -0.5, x.dtype) * jnp.exp(-0.5 * x * x)
  return (g * (_normal_cdf(x) + x * density),)


gelu.defvjp(lambda x: (x * _normal_cdf(x), x), _gelu_back)  # not gelu itself, which has no forward-mode derivative


def gelu_tanh(x: jax.Array) -> jax.Array:
  """The tanh approximation of gelu ('gelu_new' in Hugging Face configs)."""
  return jax.nn.gelu(x, approximate=True)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  'gelu': gelu,
  'gelu_new': gelu_tanh,
  'gelu_pytorch_tanh': gelu_tanh,
  'relu': jax.nn.relu,
  'silu': jax.nn.silu,
  'swish': jax.nn.silu,
  'tanh': jnp.tanh,
}


def normal(stddev: float) -> Init:
  """Normal values of mean 0, as BERT initialises its matrices."""
  return initializers.normal(stddev)


def uniform(inputs: int) -> Init:
  """Uniform values within 1 / sqrt(inputs), as PyTorch initialises its matrices."""
  bound = inputs**-0.5
  return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


def float0_like(x: jax.Array) -> np.ndarray:
  """The cotangent of an integer argument in a custom VJP."""
  return np.zeros(x.shape, jax.dtypes.float0)
