"""Random gradients, an optimizer file's own transformation over them, and formulas of single numbers."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ftlib.base import lookup, settings, trees
from ftlib.base.types import ParamInfo
from ftlib.optim import chain

Q, OUT, BIAS = 'layers/0:2/attn/q/kernel', 'head/out/kernel', 'head/out/bias'
INFO = {
  BIAS: ParamInfo((3,), jnp.float32, ('classes',)),
  OUT: ParamInfo((6, 3), jnp.float32, ('embed', 'classes')),
  Q: ParamInfo((2, 4, 2, 2), jnp.float32, ('layers', 'embed', 'heads', 'head_dim')),
}
STEPS = 5
MOMENTS = {'b1': 0.6, 'b2': 0.7, 'eps': 0.05}


def config_of(name: str, **values):
  module = lookup.component('optim', name, field='optim.name')
  return module, settings.read(chain.config_of(module), values, where='optim')


def rule(name: str, info=INFO, **values) -> optax.GradientTransformationExtraArgs:
  """An optimizer file's own transformation."""
  module, config = config_of(name, **values)
  return optax.with_extra_args_support(module.build(config, info))


def draws(seed: int, info=INFO, steps: int = STEPS) -> list[dict[str, np.ndarray]]:
  """{name: normal numbers} for each step."""
  rng = np.random.default_rng(seed)
  return [{n: rng.normal(size=i.shape).astype(np.float32) for n, i in info.items()} for _ in range(steps)]


def walk(tx, gradients, params) -> list[dict[str, np.ndarray]]:
  """{name: update} of steps in a row, the parameters of each step being given."""
  state, out = tx.init(trees.unflatten(params[0])), []
  update = jax.jit(tx.update)
  for g, w in zip(gradients, params, strict=True):
    updates, state = update(trees.unflatten(g), state, trees.unflatten(w))
    out.append(trees.flatten(updates))
  return out


def close(got, wanted, *, tolerance: float = 2e-5):
  for step, (ours, theirs) in enumerate(zip(got, wanted, strict=True)):
    for name, x in theirs.items():
      np.testing.assert_allclose(ours[name], x, rtol=tolerance, atol=tolerance, err_msg=f'{name}, step {step}')


def each(formula, gradients) -> list[dict[str, np.ndarray]]:
  """A formula over the gradients of one array -> its updates, for every name."""
  names = {n: formula([g[n].astype(np.float64) for g in gradients]) for n in gradients[0]}
  return [{n: steps[t] for n, steps in names.items()} for t in range(len(gradients))]


# What is the same for every number.


def adam(gs, b1, b2, eps, *, nesterov=False, threshold=None):
  m = v = 0
  out = []
  for t, g in enumerate(gs, 1):
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    root, mean = np.sqrt(v / (1 - b2**t)) + eps, m / (1 - b1**t)
    if nesterov:  # Dozat 2016: the momentum of the next step, the gradient of this one
      mean = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
    scale = 1 / root
    if threshold is not None:
      end = 2 / (1 - b2) - 1
      rho = end - 2 * t * b2**t / (1 - b2**t)
      if rho < threshold:
        scale = 1
      else:
        scale *= math.sqrt((rho - 4) * (rho - 2) * end / ((end - 4) * (end - 2) * rho))
    out.append(mean * scale)
  return out
