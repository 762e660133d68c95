"""A method says which parameters exist beside the base, and which of all of them train.

A method file exposes `Config` and `build(config, model) -> Method`. `subset` makes methods that only choose; `adapt`
makes those that fill slots of the model, of which there may be as many as there are files here; `together.py` makes
one method of several.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection
from typing import Any, ClassVar

import jax
from flax import nnx

from ftlib.base import trees
from ftlib.base.errors import InputError
from ftlib.base.rng import salt
from ftlib.base.types import Flat, Params
from ftlib.models.layers import Proj
from ftlib.models.model import Model

_PARTS = {'head', 'pooler', 'mlm'}  # parts of a model that go by its task

Gradient = Callable[..., Flat]  # (names, *, rows, squared=False) -> {name: mean gradient over training rows}
Adjust = Callable[[Params, Params, Params, jax.Array], tuple[Params, Params]]
Project = Callable[[Params, Params], Params]


class Taken(InputError):
  """A slot that a method wants holds another method's adapter."""

  def __init__(self, site: str):
    super().__init__(f'{site} holds an adapter already; a slot takes one')
    self.site = site


@dataclasses.dataclass(frozen=True)
class Stages:
  """What trains does so from step `starts[of(name)]` on. The first start is 0; a float is a share of the run."""

  starts: tuple[int | float, ...]
  of: Callable[[str], int]

  def steps(self, total: int) -> list[int]:
    """The first step of each stage in a run of `total` steps. Raises `InputError` where it ends before the last."""
    steps = [int(s * total + 1e-6) if isinstance(s, float) else s for s in self.starts]
    if steps[-1] >= total:
      raise InputError(
        f'method.steps: the last of {len(steps)} stages begins at step {steps[-1]}, but the run has {total} steps; '
        'lower method.steps, or raise train.steps or method.layers'
      )
    return steps

  def with_first(self, names: Collection[str]) -> Stages:
    """The same, but that `names` train from the start."""
    return Stages(self.starts, lambda name: 0 if name in names else self.of(name))


@dataclasses.dataclass(frozen=True)
class Method:
  """`model` with its adapters, `trains(name)`, and the names or sites to show.

  `merge(params)` gives the parameters of a plain model (layers unstacked); None where adapters cannot be folded in.
  `prepare(flat, gradient)` gives values of the run's own parameters that depend on the pretrained ones or on the data;
  it is called once, before the first step, with layers unstacked. `penalty(trainable)` is added to the mean loss.
  `adjust(steps)`, for a run of so many, gives what follows each update inside the compiled step: `(trainable, kept,
  grads, step) -> (trainable, kept)`, and `project(trainable, kept)` goes with it: what a mean of trained parameters
  (`train.ema`, `train.swa_start`) becomes, so that it is one that `adjust` may leave (these and `penalty` see layers as
  they are stored, maybe stacked). `tokens` virtual tokens lead every row, and `packs` says whether each of several
  documents in it has them. `identity`: whether the adapted model starts as the pretrained one. `stages` says which
  parameters wait, and until when: nothing is differentiated for those, and neither `penalty` nor `adjust` sees them.
  `rates(name)` is a factor of a parameter's learning rate. `source` is the folder of a finished run on the same base:
  `flat` then holds for `prepare` how far each pretrained parameter moved there, as `moved/<name>`; and as `text` the
  token ids of `text`.
  """

  model: Model
  trains: Callable[[str], bool]
  shown: list[str]
  merge: Callable[[Params], Params] | None = lambda params: params
  prepare: Callable[[Flat, Gradient], Flat] | None = None
  penalty: Callable[[Params], jax.Array] | None = None
  adjust: Callable[[int], Adjust] | None = None
  project: Project | None = None
  tokens: int = 0
  packs: bool = True
  identity: bool = True
  stages: Stages | None = None
  rates: Callable[[str], float] | None = None
  source: str = ''
  text: str = ''

  def __post_init__(self):
    if self.adjust is not None and self.project is None:
      raise TypeError('a method with `adjust` gives `project` too: what a mean of its parameters becomes')

  def stage(self, name: str) -> int:
    """In which stage a parameter, by its layer's own name, begins to train."""
    return 0 if self.stages is None else self.stages.of(name)


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


@dataclasses.dataclass(frozen=True)
class Targets:
  """Fields of many a method's Config. `target`: pattern of site names; `also`: of base parameters to train as well."""

  target: str = r'attn/(q|v)$'
  also: str = '^head/'


def check_rank(rank: int, inputs: int, outputs: int) -> None:
  """Raises `InputError` for a rank that a matrix cannot have."""
  if rank > min(inputs, outputs):
    raise InputError(f'method.rank={rank} is larger than a matrix of {inputs} x {outputs} it acts on')


def added(name: str) -> bool:
  """Whether a parameter is an adapter's, and not of the base."""
  return 'adapter' in name.split('/')


def besides(also: str, names: Collection[str]) -> set[str]:
  """The names of base parameters that a method's `also` is found in, none for ''.

  Raises `InputError` where it is found in none, unless the model has no 'head/' and `also` is of parts that go by the
  task (`_PARTS`), as the defaults are ('^head/'): a language model has none of these.
  """
  if not also:
    return set()
  parts = re.fullmatch(r'\^\(?(\w+(\|\w+)*)\)?/', also)
  if parts and {*parts[1].split('|')} <= _PARTS and not any(n.startswith('head/') for n in names):
    return {n for n in names if re.search(also, n)}
  return {*trees.matching(also, names, field='method.also')}


def subset(model: Model, pattern: str, *, also: str = '', field: str) -> Method:
  """Trains the parameters that `pattern` (or `also`) is found in; nothing is added.

  Raises `InputError` for a pattern that matches nothing.
  """
  names = [n for n in model.info() if not added(n)]
  chosen = set(trees.matching(pattern, names, field=field))
  chosen |= besides(also, names)
  return Method(model, chosen.__contains__, sorted(chosen, key=names.index))


def adapt(
  model: Model,
  pattern: str,
  make: Callable[[Any, str, int], Adapter],
  *,
  also: str = '',
  kind: type = Proj,
  merges: bool | None = None,
  field: str = 'method.target',
  **options: Any,
) -> Method:
  """Puts `make(site, name, salt)` on every site of a kind that `pattern` is found in; trains the adapters and `also`.

  `salt`, the same in every layer because layers may be stacked, keeps the random draws of sites apart. `merges` says
  whether adapters can be folded into the base, by default those of `Proj`. `field` is where the pattern stands in the
  config, for errors; `options` are fields of `Method`. Raises
  `InputError` for a pattern that matches no site, listing the sites, and `Taken` for a slot that is full.
  """
  model = model.copy()
  sites = model.sites(kind)
  chosen = trees.matching(pattern, sites, field=field, what='sites')
  kept = set()
  for name in chosen:
    within = re.sub(r'^layers/\d+/', '', name)
    if sites[name].adapter is not None:
      raise Taken(name)
    sites[name].adapter = nnx.data(make(sites[name], name, int(salt(within))))
    kept |= {f'{name}/adapter/{k}' for k in type(sites[name].adapter).KEPT}
  base = [n for n in model.info() if not added(n)]
  extra = besides(also, base)
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


def adapt_more(method: Method, pattern: str, make: Callable[[Any, str, int], Adapter], **options: Any) -> Method:
  """The method with adapters in more slots, as `adapt` puts them there with these options."""
  more = adapt(method.model, pattern, make, **options)
  return dataclasses.replace(
    method,
    model=more.model,
    trains=lambda name: method.trains(name) or more.trains(name),
    shown=method.shown + more.shown,
    merge=method.merge and more.merge and (lambda params: method.merge(more.merge(params))),
  )


def _merge(model: Model, chosen: list[str], params: Params) -> Params:
  flat = trees.flatten(params)
  modules = model.modules()
  for name in chosen:
    prefix = f'{name}/adapter/'
    own = trees.unflatten({n.removeprefix(prefix): flat.pop(n) for n in list(flat) if n.startswith(prefix)})
    adapter = nnx.merge(nnx.graphdef(modules[name].adapter), own)
    matrix = f'{name}/table' if f'{name}/table' in flat else f'{name}/kernel'
    flat[matrix], bias = adapter.merged(flat[matrix], flat.get(f'{name}/bias'))
    if bias is not None:
      flat[f'{name}/bias'] = bias
  return trees.unflatten(flat)
