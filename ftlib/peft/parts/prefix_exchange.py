"""Prefixes in PEFT's format: one tensor of the keys and values of all layers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ftlib.base.errors import InputError
from ftlib.base.types import ParamInfo
from ftlib.peft.parts.virtual_tokens import TENSOR, virtual_tokens, whole

PEFT_TYPE = 'PREFIX_TUNING'
SHARED = 'shared/adapter'


def peft_config(config: Any) -> dict[str, Any]:
  """PEFT's file holds the keys and values that a reparametrisation gives, so there it has none."""
  return {'num_virtual_tokens': config.length, 'prefix_projection': False}


def config_of_peft(values: Mapping[str, Any]) -> dict[str, Any]:
  """The fields that follow from an adapter_config.json: with or without projection, its file holds plain vectors."""
  return {'length': virtual_tokens(values), 'reparametrise': False}


def to_peft_whole(config: Any, flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The one tensor of PEFT's file: [P, layers * 2 * D], key before value in each layer."""
  sites = sorted({m[0] for n in flat if (m := re.match(r'layers/\d+/attn/memory/adapter', n))}, key=_layer)
  if [_layer(s) for s in sites] != list(range(len(sites))) or not sites:
    raise InputError(f'PEFT puts a prefix on every layer, but method.target={config.target!r} chose some alone')
  return {TENSOR: np.concatenate([_pair(config, flat, s).reshape(config.length, -1) for s in sites], 1)}


def from_peft_whole(
  config: Any, tensors: Mapping[str, np.ndarray], info: Mapping[str, ParamInfo]
) -> dict[str, np.ndarray]:
  """The inverse of `to_peft_whole`."""
  names = sorted((n for n in info if re.match(r'layers/\d+/attn/memory/adapter/k$', n)), key=_layer)
  if config.reparametrise or not names:
    raise InputError("PEFT's file holds keys and values; they cannot be turned back: set method.reparametrise=False")
  length, heads, size = info[names[0]].shape
  vectors = whole(tensors, (length, len(names) * 2 * heads * size)).reshape(length, len(names), 2, heads, size)
  return {f'{n[:-1]}{x}': vectors[:, i, j] for i, n in enumerate(names) for j, x in enumerate('kv')}


def _layer(name: str) -> int:
  return int(name.split('/')[1])


def _pair(config: Any, flat: Mapping[str, np.ndarray], site: str) -> np.ndarray:
  """The keys and values of one layer, [P, 2, H, K]."""
  of = lambda name: np.asarray(flat[name], np.float32)  # noqa: E731
  if not config.reparametrise:
    return np.stack([of(f'{site}/k'), of(f'{site}/v')], 1)
  h = np.tanh(of(f'{SHARED}/table') @ of(f'{SHARED}/first/kernel') + of(f'{SHARED}/first/bias'))
  return np.tensordot(h, of(f'{site}/second/kernel'), 1) + of(f'{site}/second/bias')
