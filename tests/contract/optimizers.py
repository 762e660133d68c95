"""What the tests of optimizers share: a small tree of parameters, its optimizer, and the steps it takes."""

from __future__ import annotations

import functools
from collections.abc import Collection
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ftlib.base import lookup, settings, trees
from ftlib.base.types import Flat, ParamInfo, Params
from ftlib.models import stack
from ftlib.optim import chain

OPTIMIZERS = (*lookup.names('optim'), 'tests.outside.odd_optim')
INFO = {
  'head/out/bias': ParamInfo((2,), jnp.float32, ('classes',)),
  'head/out/kernel': ParamInfo((16, 2), jnp.float32, ('embed', 'classes')),
  'layers/0:2/mlp/up/kernel': ParamInfo((2, 16, 32), jnp.float32, ('layers', 'embed', 'mlp')),
  'layers/0:2/mlp_norm/scale': ParamInfo((2, 16), jnp.float32, ('layers', 'embed')),
}
UNSTACKED = {
  'head/out/bias': INFO['head/out/bias'],
  'head/out/kernel': INFO['head/out/kernel'],
  **{f'layers/{i}/mlp/up/kernel': ParamInfo((16, 32), jnp.float32, ('embed', 'mlp')) for i in range(2)},
  **{f'layers/{i}/mlp_norm/scale': ParamInfo((16,), jnp.float32, ('embed',)) for i in range(2)},
}
DECAYED = {n for n in INFO if n.endswith('kernel')}
PLAIN = {'learning_rate': 0.1, 'schedule': 'constant', 'warmup': 0.0, 'clip_norm': 0.0, 'weight_decay': 0.0}


def component(name: str) -> ModuleType:
  """An optimizer file."""
  return lookup.component('optim', name, field='optim.name')


def make(
  module: ModuleType | str, *, steps: int = 10, info=INFO, stage=lambda _: 0, seed=0, **values
) -> chain.Optimizer:
  """A constant rate of 0.1, no warmup, no decay, no clipping, unless `values` say otherwise."""
  module = component(module) if isinstance(module, str) else module
  config = settings.read(chain.config_of(module), {**PLAIN, **values}, where='optim')
  return chain.build(module, config, info, steps=steps, stage=stage, seed=seed)


def filled(value: float | None = None, *, seed: int = 0, info=INFO) -> Params:
  """A tree of one number, or of normal ones, which are the same for a name whatever else is in `info`."""
  normal = lambda n, i: np.random.default_rng([seed, *n.encode()]).normal(size=i.shape)  # noqa: E731
  leaf = lambda n, i: normal(n, i) if value is None else np.full(i.shape, value)  # noqa: E731
  return trees.unflatten({n: jnp.asarray(leaf(n, i), jnp.float32) for n, i in info.items()})


def extras(needs: Collection[str], gradient: Params, params: Params, *, rate_scale: float = 1.0) -> dict[str, Any]:
  """What `update` needs, of the loss whose gradient is `gradient` everywhere."""
  value_fn = lambda p: optax.tree.vdot(gradient, p)  # noqa: E731
  every = {
    'value': lambda: value_fn(params),
    'grad': lambda: gradient,
    'value_fn': lambda: value_fn,
    'obj_fn': lambda: value_fn,
    'grad_fn': lambda: lambda p, i=None: gradient,
    'rate_scale': lambda: jnp.asarray(rate_scale, jnp.float32),
  }
  return {n: every[n]() for n in needs}


def walk(
  optimizer: chain.Optimizer, gradients, *, params: Params | None = None, hold: bool = False, **extra
) -> tuple[list[Flat], Params, Any]:
  """({name: change} of each step, the last parameters, the last state); with `hold`, parameters stay as they are."""
  params = filled() if params is None else params
  state, out = optimizer.tx.init(params), []
  for gradient in gradients:
    updates, state = update(optimizer, gradient, state, params, **extra)
    out.append({n: np.asarray(x) for n, x in trees.flatten(updates).items()})
    params = params if hold else optax.apply_updates(params, updates)
  return out, params, state


def update(optimizer: chain.Optimizer, gradient: Params, state: Any, params: Params, **extra) -> tuple[Params, Any]:
  """(updates, state) of one step, compiled once for an optimizer."""
  return _compiled(optimizer.tx, tuple(extra.items()), optimizer.needs)(gradient, state, params)


@functools.cache
def _compiled(tx: optax.GradientTransformation, extra: tuple, needs: frozenset[str]):
  step = lambda g, s, p: tx.update(g, s, p, **extras(needs, g, p, **dict(extra)))  # noqa: E731
  return jax.jit(step)


def changes(optimizer: chain.Optimizer, gradients, **options) -> list[Flat]:
  """{name: change} of each of several steps in a row."""
  return walk(optimizer, gradients, **options)[0]


def close(ours: Flat, wanted: Flat, names=None, **tolerance) -> None:
  """Asserts that two flat trees agree on `names` (all)."""
  for name in wanted if names is None else names:
    np.testing.assert_allclose(ours[name], wanted[name], err_msg=name, **tolerance)


def unstacked(flat: Flat) -> Flat:
  """Every layer under its own name."""
  return trees.flatten(stack.unstack(trees.unflatten(flat)))


def apply(params: Params, inputs: dict, key: jax.Array | None) -> jax.Array:
  """[B, 2] of `inputs['x']` [B, 16]: a frozen matrix, two layers and a head."""
  h_BD = inputs['x'] @ params['trunk']['kernel']
  layers = params['layers']['0:2']
  for i in range(2):
    h_BD = jnp.tanh((h_BD * layers['mlp_norm']['scale'][i]) @ layers['mlp']['up']['kernel'][i])[:, :16]
  return h_BD @ params['head']['out']['kernel'] + params['head']['out']['bias']


def objective(apply, batch: dict, key: jax.Array | None) -> dict:
  """Squared errors."""
  return {'loss': (jnp.square(apply(batch, key) - batch['y']).sum(), jnp.float32(len(batch['y'])))}


def batch(seed: int = 0, rows: int = 8) -> dict:
  """Rows for `apply`."""
  rng = np.random.default_rng(seed)
  return {n: jnp.asarray(rng.normal(size=(rows, d)), jnp.float32) for n, d in (('x', 16), ('y', 2))}
