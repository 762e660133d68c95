"""Numbers in 8 bits: a code each, and the largest absolute value of each block (Dettmers et al. 2022, section 2).

A number of a block with the largest absolute value N is N times a value of a table of at most 256. The dynamic table
(section 1.3) has a sign, k zeros that stand for 10^-k, and the 6 - k bits that are left for values evenly spaced in
0.1..1; so a number between 10^-k and 10^-(k + 1) of N is off by at most 0.45 / 2^(6 - k) of that decade, 0.7 % of N
near N. Without a sign there is a bit more for the values.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

BLOCK = 256
DECADES = 7


def table(kind: str, *, signed: bool) -> np.ndarray:
  """The values of a code, float32, sorted: 'dynamic' [256] or 'linear' (evenly spaced; [255] if signed, else [256])."""
  if kind == 'linear':
    return (np.arange(-127, 128) / 127 if signed else np.arange(256) / 255).astype(np.float32)
  edges = [np.linspace(0.1, 1, 2 ** ((6 if signed else 7) - k) + 1) for k in range(DECADES)]
  values = np.concatenate([10.0**-k * (e[1:] + e[:-1]) / 2 for k, e in enumerate(edges)])
  return np.sort(np.concatenate([[0, 1], values, -values if signed else []])).astype(np.float32)


def blocks(size: int) -> int:
  """Into how many blocks so many numbers go."""
  return math.ceil(size / BLOCK)


def encode(x: jax.Array, values: np.ndarray) -> tuple[jax.Array, jax.Array]:
  """(codes uint8 [N, size], scales float32 [N, blocks]) of `x` [N, size], to the nearest value.

  With a table without negative values, a positive number never becomes 0.
  """
  size = x.shape[1]
  x = jnp.pad(x, ((0, 0), (0, blocks(size) * BLOCK - size))).reshape(x.shape[0], -1, BLOCK)
  scales = jnp.abs(x).max(-1)
  x = x / jnp.where(scales > 0, scales, 1)[..., None]
  codes = nearest(x, values)
  codes = jnp.maximum(codes, x > 0) if values[0] == 0 else codes
  return codes.reshape(x.shape[0], -1)[:, :size].astype(jnp.uint8), scales


def nearest(x: jax.Array, values: np.ndarray) -> jax.Array:
  """int32: which of the sorted `values` is nearest to each number, the lower of two as near.

  The upper 16 bits of a float32 say behind which edges between values it lies, but for one or two, which are compared.
  (`jnp.searchsorted` reads eight edges one after the other: 12 times as slow on a CPU.)
  """
  edges = (values[1:] + values[:-1]) / 2
  words = np.arange(2**16, dtype=np.uint32) << 16
  ends = np.stack([words, words + 0xFFFF]).view(np.float32)
  ends = np.where(np.isfinite(ends), ends, np.float32(np.inf))
  behind = np.sort(np.searchsorted(edges, ends), 0)
  codes = jnp.asarray(behind[0])[jax.lax.bitcast_convert_type(x, jnp.uint32) >> 16]
  padded = jnp.asarray(np.append(edges, np.float32(np.inf)))
  for _ in range((behind[1] - behind[0]).max()):
    codes += padded[codes] < x
  return codes


def decode(codes: jax.Array, scales: jax.Array, values: np.ndarray) -> jax.Array:
  """The numbers, float32 [N, size]."""
  size = codes.shape[1]
  return (
    jnp.asarray(values)[codes] * jnp.repeat(scales, BLOCK, axis=1, total_repeat_length=blocks(size) * BLOCK)[:, :size]
  )
