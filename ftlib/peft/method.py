"""A method says which parameters exist beside the base, and which of all of them train.

A method file exposes `Config` and `build(config, model) -> Method`. `subset` makes methods that only choose; `adapt`
makes those that fill slots of the model, of which there may be as many as there are files here; `together` makes one
method of several.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any, ClassVar

import jax
from flax import nnx

from ftlib.base import trees
from ftlib.base.rng import salt
from ftlib.base.types import Flat, Params
from ftlib.models.layers import Proj
from ftlib.models.model import Model

Gradient = Callable[..., Flat]  # (names, *, rows, squared=False) -> {name: mean gradient over training rows}


@dataclasses.dataclass(frozen=True)
class Method:
  """`model` with its adapters, `trains(name)`, and the names or sites to show.

  `merge(params)` gives the parameters of a plain model (layers unstacked); None where adapters cannot be folded in.
  `prepare(flat, gradient)` gives values of the run's own parameters that depend on the pretrained ones or on the data;
  it is called once, before the first step, with layers unstacked. `penalty(trainable)` is added to the mean loss.
  `adjust(trainable, kept, grads, step) -> (trainable, kept)` follows each update, inside the compiled step (these two
  see layers as they are stored, maybe stacked). `tokens` virtual tokens lead every row.
  """

  model: Model
  trains: Callable[[str], bool]
  shown: list[str]
  merge: Callable[[Params], Params] | None = lambda params: params
  prepare: Callable[[Flat, Gradient], Flat] | None = None
  penalty: Callable[[Params], jax.Array] | None = None
  adjust: Callable[[Params, Params, Params, jax.Array], tuple[Params, Params]] | None = None
  tokens: int = 0


class Adapter(nnx.Module):
  """What stands in a slot. One for a `Proj` is called as

  `__call__(site, x [B, ..., *ins], y [B, ..., *outs], stream)`, `y` being the site's output, and gives the new output.
  `merged(kernel [*ins, *outs], bias [*outs] or None)` gives the pair that computes the same without an adapter; where
  only a sum is added to the kernel, `delta()` is enough. `KEPT` names parameters that are saved but not trained.
  """

  KEPT: ClassVar[tuple[str, ...]] = ()

  def __call__(self, site: Any, *args: Any) -> Any:
    raise TypeError(f'{type(self).__name__} does not define __call__')

  def delta(self) -> jax.Array:
    raise TypeError(f'{type(self).__name__} defines neither delta nor merged')

  def merged(self, kernel: jax.Array, bias: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
    return kernel + self.delta().astype(kernel.dtype), bias


def added(name: str) -> bool:
  """Whether a parameter is an adapter's, and not of the base."""
  return 'adapter' in name.split('/')


def subset(model: Model, pattern: str, *, also: str = '', field: str) -> Method:
  """Trains the parameters that `pattern` (or `also`) is found in; nothing is added.

  Raises `InputError` for a pattern that matches nothing.
  """
  names = [n for n in model.info() if not added(n)]
  chosen = set(trees.matching(pattern, names, field=field))
  if also:
    chosen |= set(trees.matching(also, names, field='method.also'))
  return Method(model, chosen.__contains__, sorted(chosen, key=names.index))


def adapt(
  model: Model,
  pattern: str,
  make: Callable[[Any, str, int], Adapter],
  *,
  also: str = '',
  kind: type = Proj,
  merges: bool | None = None,
  **options: Any,
) -> Method:
  """Puts `make(site, name, salt)` on every site of a kind that `pattern` is found in; trains the adapters and `also`.

  `salt`, the same in every layer because layers may be stacked, keeps the random draws of sites apart. `merges` says
  whether adapters can be folded into the base, by default those of `Proj`. `options` are fields of `Method`. Raises
  `InputError` for a pattern that matches no site, listing the sites.
  """
  model = model.copy()
  sites = model.sites(kind)
  chosen = trees.matching(pattern, sites, field='method.target', what='sites')
  kept = set()
  for name in chosen:
    within = re.sub(r'^layers/\d+/', '', name)
    sites[name].adapter = nnx.data(make(sites[name], name, int(salt(within))))
    kept |= {f'{name}/adapter/{k}' for k in type(sites[name].adapter).KEPT}
  base = [n for n in model.info() if not added(n)]
  extra = set(trees.matching(also, base, field='method.also')) if also else set()
  prefixes = tuple(f'{n}/adapter/' for n in chosen)
  if merges is None:
    merges = kind is Proj
  return Method(
    model=model,
    trains=lambda name: name in extra or (name.startswith(prefixes) and name not in kept),
    shown=chosen + sorted(extra),
    merge=(lambda params: _merge(model, chosen, params)) if merges else None,
    **options,
  )


def _merge(model: Model, chosen: list[str], params: Params) -> Params:
  flat = trees.flatten(params)
  modules = model.modules()
  for name in chosen:
    prefix = f'{name}/adapter/'
    own = trees.unflatten({n.removeprefix(prefix): flat.pop(n) for n in list(flat) if n.startswith(prefix)})
    adapter = nnx.merge(nnx.graphdef(modules[name].adapter), own)
    kernel, bias = adapter.merged(flat[f'{name}/kernel'], flat.get(f'{name}/bias'))
    flat[f'{name}/kernel'] = kernel
    if bias is not None:
      flat[f'{name}/bias'] = bias
  return trees.unflatten(flat)
