"""Rotary position embedding (Su et al. 2021) and what stretches it to longer texts.

Halves are rotated against each other, as in Hugging Face's checkpoints: dimension i pairs with i + K / 2.

Shape letters: B batch, L tokens, H heads, K head size, J = K / 2 frequencies.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftlib.base.errors import InputError, did_you_mean

KINDS = {  # rope_type -> the fields that it needs
  'default': (),
  'linear': ('factor',),
  'llama3': ('factor', 'low_freq_factor', 'high_freq_factor', 'original_max_position_embeddings'),
  'yarn': ('factor', 'original_max_position_embeddings'),
}
_OPTIONAL = {'yarn': ('beta_fast', 'beta_slow', 'attention_factor', 'mscale', 'mscale_all_dim', 'truncate')}
_COMMON = ('rope_type', 'type', 'rope_theta', 'partial_rotary_factor', 'original_max_position_embeddings')


@dataclasses.dataclass(frozen=True)
class Rope:
  """Base `theta`, and the kind of scaling with its numbers (names as in Hugging Face's `rope_scaling`)."""

  theta: float = 10000.0
  kind: str = 'default'
  numbers: tuple[tuple[str, float], ...] = ()

  def get(self, name: str, default: float | None = None) -> float | None:
    return dict(self.numbers).get(name, default)


def read(values: Mapping[str, Any] | None, *, theta: float, positions: int, where: str) -> Rope:
  """The Rope of a `rope_scaling` or `rope_parameters` object, for a model of so many positions.

  Raises `InputError` for what is not implemented.
  """
  if not values:
    return Rope(theta)
  if not isinstance(values, Mapping):
    raise InputError(f'{where}: {values!r} is no object that says how positions are turned (rope_parameters)')
  values = dict(values)
  kind = values.get('rope_type', values.get('type', 'default'))
  if not isinstance(kind, str) or kind not in KINDS:
    raise InputError(
      f'{where}: rope_type={kind!r} is not supported{did_you_mean(str(kind), KINDS)}; known: {", ".join(KINDS)}'
    )
  if 'original_max_position_embeddings' in KINDS[kind] and values.get('original_max_position_embeddings') is None:
    values['original_max_position_embeddings'] = positions  # as transformers does
  missing = [n for n in KINDS[kind] if values.get(n) is None]
  if missing:
    raise InputError(f'{where}: rope_type={kind!r} needs {", ".join(missing)}')
  known = {*_COMMON, *KINDS[kind], *_OPTIONAL.get(kind, ())}
  if odd := [n for n in values if n not in known and values[n] is not None]:
    raise InputError(f'{where}: rope_type={kind!r} has settings that are not supported: {", ".join(odd)}')
  if values.get('partial_rotary_factor') not in (None, 1, 1.0):
    raise InputError(f'{where}: partial_rotary_factor={values["partial_rotary_factor"]} is not supported')
  names = [*KINDS[kind], *_OPTIONAL.get(kind, ())]
  wrong = [f'{n}={values[n]!r}' for n in names if not _number(values.get(n), switch=n == 'truncate')]
  if not wrong and 'factor' in names and values['factor'] <= 0:
    wrong = [f'factor={values["factor"]}']
  if wrong:
    raise InputError(f'{where}: rope_type={kind!r} cannot have {", ".join(wrong)}')
  numbers = tuple((n, float(values[n])) for n in names if values.get(n) is not None)
  return Rope(base(values.get('rope_theta'), theta, where=where), kind, numbers)


def base(value: Any, default: float, *, where: str, key: str = 'rope_theta') -> float:
  """The base of a rotation as config.json has it at a key, the default where that is null. Raises `InputError` for
  what is no number above 0."""
  if value is None:
    return float(default)
  if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0 or not math.isfinite(value):
    raise InputError(f'{where}: {key}={value!r} is not a number above 0')
  return float(value)


def _number(value: Any, *, switch: bool) -> bool:
  return value is None or (isinstance(value, int | float) and (switch or not isinstance(value, bool)))


def frequencies(rope: Rope, size: int) -> tuple[np.ndarray, float]:
  """(radians a position float32 [J], factor of sine and cosine) of heads of `size` dimensions."""
  plain_J = 1.0 / rope.theta ** (np.arange(0, size, 2, dtype=np.float32) / size)
  factor = rope.get('factor', 1.0)
  if rope.kind == 'linear':
    return (plain_J / np.float32(factor)).astype(np.float32), 1.0
  if rope.kind == 'llama3':
    return _llama3(rope, plain_J, factor), 1.0
  if rope.kind == 'yarn':
    return _yarn(rope, plain_J, factor, size)
  return plain_J.astype(np.float32), 1.0


def _llama3(rope: Rope, plain_J: np.ndarray, factor: float) -> np.ndarray:
  """Long waves slowed by the factor, short ones kept, a smooth passage between (Llama 3.1)."""
  low, high = rope.get('low_freq_factor'), rope.get('high_freq_factor')
  original = rope.get('original_max_position_embeddings')
  waves_J = 2 * np.pi / plain_J
  smooth_J = np.clip((original / waves_J - low) / (high - low), 0, 1)
  return ((1 - smooth_J) * plain_J / factor + smooth_J * plain_J).astype(np.float32)


def _yarn(rope: Rope, plain_J: np.ndarray, factor: float, size: int) -> tuple[np.ndarray, float]:
  """YaRN (Peng et al. 2023): interpolation by frequency, and warmer attention."""
  original = rope.get('original_max_position_embeddings')
  fast, slow = rope.get('beta_fast', 32.0), rope.get('beta_slow', 1.0)
  dimension = lambda turns: size * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))  # noqa: E731
  low, high = dimension(fast), dimension(slow)
  if rope.get('truncate', 1.0):
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, size - 1)
  ramp_J = np.clip((np.arange(size // 2, dtype=np.float32) - low) / max(high - low, 0.001), 0, 1)
  mscale = lambda m: 0.1 * m * math.log(factor) + 1.0 if factor > 1 else 1.0  # noqa: E731
  warm = rope.get('attention_factor')
  if warm is None:
    both = rope.get('mscale'), rope.get('mscale_all_dim')
    warm = mscale(both[0]) / mscale(both[1]) if all(both) else mscale(1.0)
  return (plain_J / factor * ramp_J + plain_J * (1 - ramp_J)).astype(np.float32), warm


def tables(rope: Rope, size: int, positions_BL: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(cosine, sine) float32 [B, L, 1, J] at some positions."""
  radians_J, factor = frequencies(rope, size)
  angles = positions_BL.astype(jnp.float32)[..., None, None] * radians_J
  return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def rotate(x_BLHK: jax.Array, cos_BL1J: jax.Array, sin_BL1J: jax.Array) -> jax.Array:
  """Queries or keys turned by their positions' angles, computed in float32."""
  a, b = jnp.split(x_BLHK.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate([a * cos_BL1J - b * sin_BL1J, b * cos_BL1J + a * sin_BL1J], axis=-1)
  return turned.astype(x_BLHK.dtype)
