"""The leaves of a training state as a checkpoint sees them: one name, one spec and one host copy each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from ftlib.base.errors import InputError


def named(tree: Any) -> dict[str, Any]:
  """{'opt/0/mu/w': leaf} in the tree's own order. `ValueError` for what cannot be saved faithfully."""
  leaves: dict[str, Any] = {}
  files = set()
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    if not hasattr(leaf, 'dtype') or not hasattr(leaf, 'shape'):
      raise ValueError(f'checkpoint leaf {name!r} is a {type(leaf).__name__}, not an array')
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      raise ValueError(f'checkpoint leaf {name!r} is a typed key: give jax.random.key_data of it')
    file = name.replace('/', '.')
    if file in files or not name:
      # Orbax writes {'a': {'b': x}, 'a.b': y} to one file and gives x back for both without a word
      raise ValueError(f'checkpoint leaf {name!r} has no name of its own')
    files.add(file)
    leaves[name] = leaf
  return leaves


def spec(x: Any) -> str:
  """'float32[8,128]'."""
  return f'{np.dtype(x.dtype).name}[{",".join(map(str, x.shape))}]'


def differences(saved: Mapping[str, str], asked: Mapping[str, str]) -> list[str]:
  """A line for each name whose spec is not the same on both sides."""
  names = sorted(n for n in {*saved, *asked} if saved.get(n) != asked.get(n))
  return [f'{n}: {saved.get(n, "absent")} in the checkpoint, {asked.get(n, "absent")} in this run' for n in names]


def restore_args(name: str, x: Any) -> ocp.RestoreArgs:
  """How Orbax is to give a leaf: on the sharding `x` names (`InputError` if that cannot split it), else as NumPy."""
  sharding = getattr(x, 'sharding', None)
  if sharding is None:
    return ocp.RestoreArgs(restore_type=np.ndarray)
  try:
    sharding.shard_shape(tuple(x.shape))
  except ValueError as e:
    raise InputError(f'{name} {spec(x)} cannot be laid out over the devices: {e}') from e
  return ocp.ArrayRestoreArgs(sharding=sharding, global_shape=tuple(x.shape))


class _Host(np.ndarray):
  """A snapshot that nobody writes to. Orbax deep-copies NumPy leaves before writing them; this spares that copy."""

  def __deepcopy__(self, memo: Any) -> _Host:
    return self


def snapshot(leaves: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Host copies: the caller may donate or overwrite the arrays at once, and a failed save can be tried again."""
  for x in leaves.values():
    if isinstance(x, jax.Array):
      x.copy_to_host_async()  # all transfers under way before the first is waited for
  return {n: _host(x).view(_Host) for n, x in leaves.items()}


def _host(x: Any) -> np.ndarray:
  on_accelerator = isinstance(x, jax.Array) and all(d.platform != 'cpu' for d in x.devices())
  host = np.asarray(x)
  return host if on_accelerator else np.array(host)  # on the CPU it is a view of the very buffer to be donated
