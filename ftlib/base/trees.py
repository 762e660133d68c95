"""Parameter trees by name: flatten, pick, join, measure.

A tree is nested dicts; a name is the path joined with '/'. Names are matched with `re.search`, so a pattern is
anchored only where it says so.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftlib.base.errors import InputError, listing
from ftlib.base.types import Flat, Params


def flatten(tree: Mapping[str, Any], prefix: str = '') -> Flat:
  """{name: leaf} in sorted order. Empty subtrees vanish."""
  flat: Flat = {}
  for key in sorted(tree, key=_natural):
    name = f'{prefix}{key}'
    if isinstance(tree[key], Mapping):
      flat.update(flatten(tree[key], f'{name}/'))
    else:
      flat[name] = tree[key]
  return flat


def unflatten(flat: Mapping[str, Any]) -> Params:
  """The nested dicts of {name: leaf}."""
  tree: Params = {}
  for name, leaf in flat.items():
    *path, last = name.split('/')
    node = tree
    for key in path:
      node = node.setdefault(key, {})
    node[last] = leaf
  return tree


def split(tree: Params, pick: Callable[[str], bool]) -> tuple[Params, Params]:
  """(leaves whose name `pick` accepts, the others), two trees that `join` puts together again."""
  flat = flatten(tree)
  chosen = {n: x for n, x in flat.items() if pick(n)}
  rest = {n: x for n, x in flat.items() if n not in chosen}
  return unflatten(chosen), unflatten(rest)


def join(*trees: Params) -> Params:
  """One tree of all leaves. Raises `ValueError` where two trees hold the same name."""
  flat: Flat = {}
  for tree in trees:
    for name, leaf in flatten(tree).items():
      if name in flat:
        raise ValueError(f'two trees hold {name}')
      flat[name] = leaf
  return unflatten(flat)


def map_named(fn: Callable[..., Any], tree: Params, *rest: Params) -> Params:
  """`fn(name, leaf, ...)` over a tree."""
  others = [flatten(r) for r in rest]
  return unflatten({n: fn(n, x, *(o[n] for o in others)) for n, x in flatten(tree).items()})


def matching(pattern: str, names: Iterable[str], *, field: str, what: str = 'parameters') -> list[str]:
  """The names that `pattern` is found in. A bad pattern, or one that matches nothing, is an error naming `field`."""
  names = list(names)
  rx = compile_pattern(pattern, field=field)
  hits = [n for n in names if rx.search(n)]
  if not hits:
    raise InputError(f'{field}={pattern!r} matches none of the {len(names)} {what}:\n{listing(folded(names))}')
  return hits


def compile_pattern(pattern: str, *, field: str) -> re.Pattern[str]:
  """`re.compile` with an error that names the config field."""
  try:
    return re.compile(pattern)
  except re.error as e:
    raise InputError(f'{field}={pattern!r} is no regular expression: {e}') from e


def size(tree: Params) -> int:
  """Number of scalars."""
  return sum(int(np.prod(np.shape(x), dtype=np.int64)) for x in jax.tree.leaves(tree))


def nbytes(tree: Any) -> int:
  """Bytes of all array leaves of any pytree (arrays or ShapeDtypeStructs)."""
  return sum(
    int(np.prod(x.shape, dtype=np.int64)) * np.dtype(x.dtype).itemsize
    for x in jax.tree.leaves(tree)
    if hasattr(x, 'shape') and not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
  )


def digest(tree: Any) -> str:
  """SHA-256 over names, shapes, dtypes and bytes of a tree's leaves: equal digests are equal bits."""
  h = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    if jnp.issubdtype(getattr(leaf, 'dtype', np.float32), jax.dtypes.prng_key):
      leaf = jax.random.key_data(leaf)
    x = np.asarray(leaf)
    h.update(f'{jax.tree_util.keystr(path)} {x.shape} {x.dtype}'.encode())
    h.update(np.ascontiguousarray(x).tobytes())
  return h.hexdigest()


def path_name(path: tuple[Any, ...]) -> str:
  """The name of a leaf from the path that JAX gives: 'layers/0/attn/q/kernel'."""
  return '/'.join(str(getattr(k, 'key', getattr(k, 'idx', getattr(k, 'name', k)))) for k in path)


def canonical(name: str) -> str:
  """The name of a stacked leaf as its first layer's: 'layers/0:6/attn/q/kernel' -> 'layers/0/attn/q/kernel'."""
  head, _, rest = name.partition('/')
  if head != 'layers':
    return name
  key, _, rest = rest.partition('/')
  return f'layers/{key.split(":")[0]}/{rest}'


def members(name: str) -> list[str]:
  """The names of what a leaf holds: 'layers/0:2/attn/q/kernel' -> those of layers 0 and 1, in their order."""
  head, _, rest = name.partition('/')
  key, _, rest = rest.partition('/')
  first, colon, stop = key.partition(':')
  if head != 'layers' or not colon:
    return [name]
  return [f'layers/{i}/{rest}' for i in range(int(first), int(stop))]


def _natural(key: str) -> tuple[int, int, str]:
  return (0, int(key), '') if key.isdigit() else (1, 0, key)


def folded(names: list[str]) -> list[str]:
  """Names with layer numbers folded: 'layers/*/attn/q' once instead of once a layer."""
  return sorted({re.sub(r'(^|/)\d+(?=/|$)', r'\1*', n) for n in names})
