"""A method says which parameters exist beside the base, and which of all of them train.

A method file exposes `Config` and `build(config, model) -> Method`. `subset` makes methods that only choose; `adapt`
makes those that put an adapter on sites of the model, of which there may be as many as there are files here.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import jax
from flax import nnx

from ftlib.base import trees
from ftlib.base.rng import salt
from ftlib.base.types import Params
from ftlib.models.layers import Proj
from ftlib.models.model import Model


@dataclasses.dataclass(frozen=True)
class Method:
  """`model` with its adapters, `trains(name)`, and the names or sites to show. `merge` folds adapters into the base."""

  model: Model
  trains: Callable[[str], bool]
  shown: list[str]
  merge: Callable[[Params], Params] = lambda params: params


class Adapter(nnx.Module):
  """What stands in the slot of a `Proj`. `salt` (a number of the site's name) keeps its random draws apart.

  `__call__(site, x [B, ..., *ins], y [B, ..., *outs], stream)` gives the new output; `delta()` what merging adds to the
  kernel [*ins, *outs].
  """

  def __call__(self, site: Proj, x: jax.Array, y: jax.Array, stream) -> jax.Array:
    raise TypeError(f'{type(self).__name__} does not define __call__')

  def delta(self) -> jax.Array:
    raise TypeError(f'{type(self).__name__} cannot be merged')


def subset(model: Model, pattern: str, *, also: str = '', field: str) -> Method:
  """Trains the parameters that `pattern` (or `also`) is found in; nothing is added.

  Raises `InputError` for a pattern that matches nothing.
  """
  names = list(model.info())
  chosen = set(trees.matching(pattern, names, field=field))
  if also:
    chosen |= set(trees.matching(also, names, field='method.also'))
  return Method(model, chosen.__contains__, sorted(chosen, key=names.index))


def adapt(model: Model, pattern: str, make: Callable[[Proj, int], Adapter], *, also: str = '') -> Method:
  """Puts `make(site, salt)` on every site that `pattern` is found in, and trains the adapters and `also`.

  Raises `InputError` for a pattern that matches no site, listing the sites.
  """
  model = model.copy()
  sites = model.sites()
  chosen = trees.matching(pattern, sites, field='method.target', what='sites')
  for name in chosen:
    within = re.sub(r'^layers/\d+/', '', name)  # the same in every layer: layers may be stacked
    sites[name].adapter = nnx.data(make(sites[name], int(salt(within))))
  base = [n for n in model.info() if '/adapter/' not in n]
  extra = set(trees.matching(also, base, field='method.also')) if also else set()
  prefixes = tuple(f'{n}/adapter/' for n in chosen)
  return Method(
    model=model,
    trains=lambda name: name in extra or name.startswith(prefixes),
    shown=chosen + sorted(extra),
    merge=lambda params: _merge(model, chosen, params),
  )


def _merge(model: Model, chosen: list[str], params: Params) -> Params:
  flat = trees.flatten(params)
  modules = model.modules()
  for name in chosen:
    own = {n.rpartition('/')[2]: flat.pop(n) for n in list(flat) if n.startswith(f'{name}/adapter/')}
    adapter = nnx.merge(nnx.graphdef(modules[name].adapter), own)
    kernel = f'{name}/kernel'
    flat[kernel] = flat[kernel] + adapter.delta().astype(flat[kernel].dtype)
  return trees.unflatten(flat)
