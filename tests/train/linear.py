"""A model of two stacked layers and a head that compiles in no time, with dropout by row, and data for it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from ftlib.base import lookup, settings, trees
from ftlib.base.types import Outputs, ParamInfo
from ftlib.optim import chain

INFO = {
  'head/kernel': ParamInfo((4, 2), jnp.float32, ('embed', 'classes')),
  'layers/0:2/mlp/kernel': ParamInfo((2, 4, 4), jnp.float32, ('layers', 'embed', 'embed_out')),
}
ROWS = 8
PLAIN = {'learning_rate': 0.05, 'schedule': 'constant', 'warmup': 0.0, 'clip_norm': 0.0}


def apply(params, batch, key):
  """Logits [B, 2]; `params` may hold a frozen 'bias' [2]. Where `edge` is 0 the loss has no derivative."""
  h = batch['x']
  for kernel in params['layers']['0:2']['mlp']['kernel']:
    h = jnp.tanh(h @ kernel)
  if key is not None:
    keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(batch['rows'])
    h = h * jax.vmap(lambda k: jax.random.bernoulli(k, 0.8, (4,)))(keys)
  kernel = params['head']['kernel']
  root = 0.1 * jnp.sqrt(batch['edge'] * jnp.square(kernel).sum())
  return Outputs(h, logits=h @ kernel + params.get('bias', 0.0) + root[:, None])


def objective(model, batch, key):
  """Half the squared error, weighted by row."""
  error = jnp.square(model(batch, key).logits - batch['y']).sum(1)
  return {'loss': ((batch['weights'] * error).sum() / 2, batch['weights'].sum())}


def parameters(seed: int = 0):
  rng = np.random.default_rng(seed)
  return trees.unflatten({n: jnp.asarray(0.5 * rng.normal(size=i.shape), jnp.float32) for n, i in INFO.items()})


def batch(i: int):
  """Of step i. `tokens` gives the shape that the loop goes by."""
  rng = np.random.default_rng(100 + i)
  x, y, weights = rng.normal(size=(ROWS, 4)), rng.normal(size=(ROWS, 2)), rng.uniform(0.5, 2.0, size=ROWS)
  made = {'x': x, 'y': y, 'weights': weights, 'tokens': np.zeros((ROWS, 1)), 'edge': np.ones(ROWS)}
  return {**{n: jnp.asarray(v, jnp.float32) for n, v in made.items()}, 'rows': jnp.arange(ROWS)}


def optimizer(name: str = 'adamw', *, steps: int = 20, **values) -> chain.Optimizer:
  """A constant rate, no warmup, no clipping, unless `values` say otherwise."""
  module = lookup.component('optim', name, field='optim.name')
  config = settings.read(chain.config_of(module), {**PLAIN, **values}, where='optim')
  return chain.build(module, config, INFO, steps=steps)


def flat(tree) -> dict[str, np.ndarray]:
  """{name: host copy} of any pytree of arrays."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {trees.path_name(path): np.array(x) for path, x in leaves}
