"""Random bits as a pure function of (run key, step, row, site, position).

Drawing dropout masks from threefry takes longer than the layers they act on (a CPU step 2.4x slower,
`docs/architecture.md`). `Stream.dropout` instead hashes the global index of every entry with the finaliser of
MurmurHash3 (Appleby 2011), which fuses into its consumer, needs no storage, and is a function of the row's number in
the global batch: so masks are the same under accumulation, under more padding and on any number of devices.
`bits='threefry'` is the slow reference; both are tested for mean, variance and correlation.
"""

from __future__ import annotations

import dataclasses
import zlib

import jax
import jax.numpy as jnp
import numpy as np

_GOLDEN = np.uint32(0x9E3779B9)
KINDS = ('hash', 'threefry')


def mix(x: jax.Array) -> jax.Array:
  """MurmurHash3's 32-bit finaliser: a bijection of uint32 whose every output bit depends on every input bit."""
  x = x ^ (x >> 16)
  x = x * np.uint32(0x85EBCA6B)
  x = x ^ (x >> 13)
  x = x * np.uint32(0xC2B2AE35)
  return x ^ (x >> 16)


def salt(name: str) -> np.uint32:
  """The number of a name (CRC-32)."""
  return np.uint32(zlib.crc32(name.encode()))


def key_for(key: jax.Array, name: str) -> jax.Array:
  """A typed key for a named thing: independent of what else exists."""
  return jax.random.fold_in(key, salt(name))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stream:
  """One uint32 seed for each row of the batch, folded from layer and site names on the way down the model."""

  seed_B: jax.Array
  kind: str = dataclasses.field(default='hash', metadata={'static': True})

  @classmethod
  def start(cls, key: jax.Array, rows_B: jax.Array, *, kind: str = 'hash') -> Stream:
    """The stream of a step: `key` is the step's typed key, `rows_B` each row's number in the global batch."""
    word = jax.random.bits(key, (2,), np.uint32)
    return cls(mix(mix(rows_B.astype(np.uint32) * _GOLDEN + word[0]) ^ word[1]), kind)

  def at(self, name: str) -> Stream:
    """The stream of a named site below this one."""
    return dataclasses.replace(self, seed_B=mix(self.seed_B ^ salt(name)))

  def layer(self, index: int | jax.Array) -> Stream:
    """The stream of a numbered layer; `index` may be traced, so that scanned layers equal unrolled ones."""
    return dataclasses.replace(self, seed_B=mix(self.seed_B + _GOLDEN * (jnp.uint32(index) + np.uint32(1))))

  def bits(self, shape: tuple[int, ...]) -> jax.Array:
    """Uniform uint32 of `shape`; `shape[0]` is the batch."""
    if self.kind == 'threefry':
      one_row = lambda s: jax.random.bits(jax.random.key(s), shape[1:], np.uint32)  # noqa: E731
      return jax.vmap(one_row)(self.seed_B)
    h = self.seed_B
    for n in shape[1:]:  # one dimension at a time: only the last, full-size hash costs anything,
      h = jax.lax.optimization_barrier(h)  # as long as XLA does not fuse the smaller ones into it
      h = mix(h[..., None] ^ (jnp.arange(1, n + 1, dtype=np.uint32) * _GOLDEN))
    return h

  def keep(self, shape: tuple[int, ...], rate: float | jax.Array) -> jax.Array:
    """Booleans of `shape`, each True with probability `1 - rate`."""
    threshold = jnp.asarray(rate, np.float32) * np.float32(2**24)
    return (self.bits(shape) >> 8) >= threshold.astype(np.uint32)


def dropout(x: jax.Array, rate: float | jax.Array, stream: Stream | None) -> jax.Array:
  """`x` with entries zeroed with probability `rate` and the rest scaled by `1 / (1 - rate)` (Srivastava et al. 2014).

  `x` [B, ...]; no stream, or a rate of the Python number 0, leaves it as it is.
  """
  if stream is None or (isinstance(rate, int | float) and rate == 0):
    return x
  scale = (1.0 / (1.0 - rate)) if isinstance(rate, float) else 1.0 / (1.0 - jnp.asarray(rate, x.dtype))
  return jnp.where(stream.keep(x.shape, rate), x * jnp.asarray(scale, x.dtype), jnp.zeros((), x.dtype))
