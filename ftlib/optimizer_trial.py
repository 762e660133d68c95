"""A tiny model on which optimizers are tried and timed: `ftlib/optimizer_contract.py` has what they must keep.

Nothing of an optimizer is imitated: `optim/chain.py` builds it and `train/step.py` steps it. Layers are stacked, as in
a real run. The rate is 0 at step 0, then the file's own default.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ftlib.base import settings, trees
from ftlib.base.types import Batch, ParamInfo, Params, Sums
from ftlib.optim import chain
from ftlib.train import state as train_state
from ftlib.train.state import TrainState
from ftlib.train.step import make_train_step

STEPS, ROWS = 4, 32
PERIOD = 10  # steps
FROZEN = {'trunk/kernel': ParamInfo((16, 16), jnp.float32, ('embed', 'embed_out'))}
INFO = {
  'head/out/bias': ParamInfo((2,), jnp.float32, ('classes',)),
  'head/out/kernel': ParamInfo((16, 2), jnp.float32, ('embed', 'classes')),
  'layers/0:3/mlp/down/kernel': ParamInfo((3, 32, 16), jnp.float32, ('layers', 'mlp', 'embed')),
  'layers/0:3/mlp/up/bias': ParamInfo((3, 32), jnp.float32, ('layers', 'mlp')),
  'layers/0:3/mlp/up/kernel': ParamInfo((3, 16, 32), jnp.float32, ('layers', 'embed', 'mlp')),
  'layers/0:3/norm/scale': ParamInfo((3, 16), jnp.float32, ('layers', 'embed')),
}
ROUNDING = 1e-6  # of the parameters themselves
QUICK = {'xla_backend_optimization_level': 0}  # steps that are taken a few times: most of their time is compilation


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
  """An optimizer file and values of its section: the file's own defaults, a constant rate after step 0, no clipping."""

  module: ModuleType
  values: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @functools.cached_property
  def config(self) -> Any:
    """The section, read back."""
    plain = {'schedule': 'constant', 'warmup_steps': 1, 'clip_norm': 0.0}
    return settings.read(chain.config_of(self.module), {**plain, **self.values}, where='optim')

  def optimizer(
    self, info: Mapping[str, ParamInfo] = INFO, *, stage: Callable[[str], int] = lambda _: 0
  ) -> chain.Optimizer:
    """`chain.build` over `info`."""
    return chain.build(self.module, self.config, info, steps=100, stage=stage)

  @functools.cached_property
  def whole(self) -> chain.Optimizer:
    return self.optimizer()

  @functools.cached_property
  def step(self) -> Callable:
    """`stepper` of one device."""
    return stepper(self.whole)

  @functools.cached_property
  def path(self) -> list[TrainState]:
    """The states after 0, 1, ... `STEPS` steps."""
    return walk(self.step, start(self.whole))


# The tiny model: not a special case of anything, but every leaf has a gradient.


def filled(info: Mapping[str, ParamInfo], *, seed: int = 0, dtype: Any = jnp.float32) -> Params:
  """Normal values of deviation 0.3; the same for a name whatever else is in `info`."""
  value = lambda n, i: np.random.default_rng([seed, *n.encode()]).normal(scale=0.3, size=i.shape)  # noqa: E731
  return trees.unflatten({n: jnp.asarray(value(n, i), dtype) for n, i in info.items()})


def forward(params: Params, inputs: Batch, key: jax.Array | None) -> jax.Array:
  """[B, 18] of `inputs['x']` [B, 16]: hidden states and logits, so that gradients of matrices have full rank."""
  h_BD, layers = inputs['x'] @ params['trunk']['kernel'], params['layers']['0:3']
  h_BND = h_BD[:, None] * layers['norm']['scale']
  f_BNF = jnp.tanh(jnp.einsum('bnd,ndf->bnf', h_BND, layers['mlp']['up']['kernel']) + layers['mlp']['up']['bias'])
  h_BD = h_BD + jnp.einsum('bnf,nfd->bd', f_BNF, layers['mlp']['down']['kernel'])
  logits_BC = h_BD @ params['head']['out']['kernel'] + params['head']['out']['bias']
  return jnp.concatenate([h_BD, logits_BC], -1)


def loss(apply: Callable, batch: Batch, key: jax.Array | None) -> Sums:
  """Weighted squared errors, times `batch['scale']`."""
  wrong_B = jnp.square(apply(batch, key) - batch['y']).sum(-1)
  return {'loss': ((batch['weights'] * batch['scale'] * wrong_B).sum(), batch['weights'].sum())}


def batch(step: int, *, scale: float = 1.0) -> Batch:
  """Rows of a step, of unequal weights. All gradients are `scale` times those of scale 1."""
  rng = np.random.default_rng(step)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
  weights = jnp.asarray(rng.uniform(0.5, 2.0, ROWS), jnp.float32)
  return {'x': draw(ROWS, 16), 'y': draw(ROWS, 18), 'weights': weights, 'scale': jnp.full(ROWS, scale, jnp.float32)}


@functools.cache
def gradient() -> dict[str, np.ndarray]:
  """{name: mean gradient at the start over the batches of a walk}, in float64."""

  def mean(params: Params) -> jax.Array:
    pairs = [loss(functools.partial(forward, params), batch(i), None)['loss'] for i in range(STEPS)]
    return sum(total / weight for total, weight in pairs)

  params = trees.join(filled(INFO), filled(FROZEN))
  flat = trees.flatten(jax.device_get(jax.jit(jax.grad(mean), compiler_options=QUICK)(params)))
  return {n: np.asarray(flat[n], np.float64) for n in INFO}


def stepper(
  optimizer: chain.Optimizer, tx: optax.GradientTransformation | None = None, *, places: Any = None, **options
):
  """The jitted training step, `(state, frozen, batch) -> (state, sums)`, compiled quickly and not to be timed; `tx` may
  be one of `optimizer.staged`."""
  step = make_train_step(forward, loss, tx or optimizer.tx, needs=optimizer.needs, **options)
  where = {} if places is None else {'out_shardings': places}
  return jax.jit(step, compiler_options=QUICK, **where)


def start(optimizer: chain.Optimizer, params: Params | None = None) -> TrainState:
  """The state at step 0, made by one program."""
  create = functools.partial(train_state.create, kept={}, tx=optimizer.tx, seed=0)
  return jax.jit(create, compiler_options=QUICK)(filled(INFO) if params is None else params)


def walk(step: Callable, state: TrainState, *, begin: int = 0, steps: int = STEPS, rest: Any = None, **options: Any):
  """The states from `state` on over steps `begin`, `begin` + 1, ...; `rest` is frozen besides `FROZEN`."""
  states, frozen = [state], trees.join(filled(FROZEN), rest or {})
  for i in range(begin, begin + steps):
    states.append(step(states[-1], frozen, batch(i, **options))[0])
  return states


def moved(before: TrainState, after: TrainState) -> dict[str, np.ndarray]:
  """{name: change}, in float64."""
  old, new = (trees.flatten(jax.device_get(s.trainable)) for s in (before, after))
  return {n: np.asarray(new[n], np.float64) - np.asarray(old[n], np.float64) for n in old}


def apart(first: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> tuple[str, float]:
  """(name, distance over the distance moved) of the leaf where two changes differ most beyond rounding."""
  norm = lambda x: float(np.linalg.norm(np.ravel(x)))  # noqa: E731
  noise = {n: ROUNDING * 0.3 * np.sqrt(x.size) for n, x in first.items()}
  ratios = {n: max(0.0, norm(x - other[n]) - noise[n]) / max(norm(x), noise[n]) for n, x in first.items()}
  worst = max(ratios, key=lambda n: ratios[n] if np.isfinite(ratios[n]) else np.inf)
  return worst, ratios[worst]


def extras(grads: Params, params: Params) -> dict[str, Any]:
  """What the training step hands to `update` besides, for the loss sum |p|^2, whose gradient is 2 p."""
  value = lambda p: sum(jnp.square(x.astype(jnp.float32)).sum() for x in jax.tree.leaves(p))  # noqa: E731
  return {
    'value': value(params),
    'grad': grads,
    'value_fn': value,
    'obj_fn': value,
    'grad_fn': lambda p, _: jax.tree.map(lambda x: 2 * x, p),
    'rate_scale': jnp.ones((), jnp.float32),
  }


class Updates:
  """An optimizer to be timed: `seconds()` of one update in place, its gradients ready."""

  def __init__(self, tx: optax.GradientTransformation, info: Mapping[str, ParamInfo]):
    tx = optax.with_extra_args_support(tx)
    self.params, self._grads = filled(info), filled(info, seed=1)
    self._opt = tx.init(self.params)

    def update(params: Params, opt: Any, grads: Params) -> tuple[Params, Any]:
      updates, opt = tx.update(grads, opt, params, **extras(grads, params))
      return optax.apply_updates(params, updates), opt

    self._step = jax.jit(update, donate_argnums=(0, 1))

  def seconds(self) -> float:
    began = time.perf_counter()
    self.params, self._opt = jax.block_until_ready(self._step(self.params, self._opt, self._grads))
    return time.perf_counter() - began


def alternated(first: Any, second: Any, *, rounds: int, seconds: float) -> tuple[float, float]:
  """(ratio of the times of two things with `seconds()`, mean time of `first`), in turns; after `seconds` it ends at the
  next multiple of `PERIOD`. Means, so that what an optimizer does every tenth step counts a tenth."""
  for one in (first, second, first, second):
    one.seconds()
  began, times = time.perf_counter(), []
  while len(times) < rounds and (len(times) % PERIOD or not times or time.perf_counter() - began < seconds):
    times.append((first.seconds(), second.seconds()))
  one, other = (statistics.fmean(t) for t in zip(*times, strict=True))
  return one / other, one
