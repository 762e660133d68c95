"""AdaLoRA's budget: how many singular values are left after which step, and which (Zhang et al. 2023; `adalora.py`).

After step t a triple (column of P, singular value, row of Q) has the importance S = s(E_k) + mean s(P_ik) +
mean s(Q_kj), s being the product of two running means of |w dL/dw|, its value's and its fluctuation's (equations 8 to
11). Over all sites together the triples of least importance lose their singular value, so that on average b(t) a
site are left: `init_rank` to step `tinit`, then falling with the cube of the time left (equation 12) to `target_rank`
at `total_steps - tfinal`, from where on which are left stays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftlib.base import trees
from ftlib.base.types import Flat, Params
from ftlib.peft.method import Adjust, Project

MEANS = tuple(f'{leaf}_{mean}' for leaf in 'aeb' for mean in ('sensitivity', 'uncertainty'))  # of each parameter, two


def triples(tree: Params, sites: list[str]) -> dict[str, tuple[jax.Array, jax.Array, jax.Array]]:
  """{the adapter's name: (a [(N,) inputs, R], e [(N,) R], b [(N,) R, outputs])}, N being that of stacked layers."""
  flat, mine = trees.flatten(tree), {f'{n}/adapter/e' for n in sites}
  out = {}
  for name, e in flat.items():
    if trees.canonical(name) in mine:
      at = name.removesuffix('e')
      out[at] = flat[f'{at}a'].reshape(*e.shape[:-1], -1, e.shape[-1]), e, flat[f'{at}b'].reshape(*e.shape, -1)
  return out


def check_plan(config: Any) -> None:
  """Raises `ValueError` for a Config whose budget cannot fall."""
  if config.target_rank > config.init_rank:
    raise ValueError(f'target_rank={config.target_rank} is above init_rank={config.init_rank}')
  if config.tinit >= config.total_steps - config.tfinal:
    raise ValueError(
      f'tinit={config.tinit} and tfinal={config.tfinal} leave no step of total_steps={config.total_steps} to lower the '
      'budget in'
    )


def stretched(config: Any, steps: int) -> Any:
  """The same plan for a run of `steps` steps."""
  tinit, tfinal = (n * steps // config.total_steps for n in (config.tinit, config.tfinal))
  return dataclasses.replace(config, total_steps=steps, tinit=tinit, tfinal=tfinal)


def budgets(config: Any, sites: int) -> np.ndarray:
  """int32: the singular values left to all sites together after the steps 0, `interval`, 2 * `interval`, ..."""
  first, last, end = config.init_rank * sites, config.target_rank * sites, config.total_steps - config.tfinal
  left = (1 - max(step - config.tinit, 0) / (end - config.tinit) for step in range(0, end + 1, config.interval))
  return np.array([int((first - last) * x**3 + last) for x in left], np.int32)


def allocator(config: Any, sites: list[str]) -> Adjust:
  """What follows an update: the running means up to step `total_steps - tfinal`, and the mask."""
  table, end = jnp.asarray(budgets(config, len(sites))), config.total_steps - config.tfinal

  def means(kept: Flat, name: str, value: jax.Array, grad: jax.Array, step: jax.Array) -> Flat:
    s, u = kept[f'{name}_sensitivity'], kept[f'{name}_uncertainty']
    now = jnp.abs(value * grad)
    new_s = config.beta1 * s + (1 - config.beta1) * now
    new_u = config.beta2 * u + (1 - config.beta2) * jnp.abs(now - new_s)
    on = step < end
    return {f'{name}_sensitivity': jnp.where(on, new_s, s), f'{name}_uncertainty': jnp.where(on, new_u, u)}

  def adjust(trainable: Params, kept: Params, grads: Params, step: jax.Array) -> tuple[Params, Params]:
    values, saved, grad = (trees.flatten(t) for t in (trainable, kept, grads))
    scores = {}
    for at in triples(trainable, sites):
      for leaf in 'aeb':
        saved |= means(saved, at + leaf, values[at + leaf], grad[at + leaf], step)
      own = {leaf: saved[f'{at}{leaf}_sensitivity'] * saved[f'{at}{leaf}_uncertainty'] for leaf in 'aeb'}
      a, e, b = triples(trees.unflatten({at + leaf: x for leaf, x in own.items()}), sites)[at]
      scores[at] = e + a.mean(-2) + b.mean(-1)
    ranked = jnp.sort(jnp.concatenate([s.reshape(-1) for s in scores.values()]))
    budget = jnp.where(step == end, config.target_rank * len(sites), table[jnp.minimum(step, end) // config.interval])
    gone = ranked.size - budget
    threshold = jnp.where(gone > 0, ranked[jnp.maximum(gone, 1) - 1], -1.0)  # no importance is below 0
    deal = (step == end) | ((step > config.tinit) & (step < end) & (step % config.interval == 0))
    for at, score in scores.items():
      mask = jnp.where(deal, (score > threshold).astype(jnp.float32), saved[f'{at}mask'])
      saved[f'{at}mask'] = mask
      values[f'{at}e'] = jnp.where(deal | (step > end), values[f'{at}e'] * mask, values[f'{at}e'])
    return trees.unflatten(values), trees.unflatten(saved)

  return adjust


def masked(sites: list[str]) -> Project:
  """An average without the singular values that the last allocation took."""
  mine = {f'{n}/adapter/e' for n in sites}

  def project(trainable: Params, kept: Params) -> Params:
    saved = trees.flatten(kept)
    mask = lambda name, x: x * saved[f'{name[:-1]}mask'] if trees.canonical(name) in mine else x  # noqa: E731
    return trees.map_named(mask, trainable)

  return project


def off_orthogonal(of: Mapping[str, tuple[jax.Array, jax.Array, jax.Array]]) -> jax.Array:
  """The mean over all matrices of the Frobenius norm of P^T P - I (or Q Q^T - I)."""
  norms = []
  for a, _, b in of.values():
    for m in (a.mT, b):
      gram = jnp.matmul(m, m.mT, precision=jax.lax.Precision.HIGHEST) - jnp.eye(m.shape[-2])
      norms.append(jnp.sqrt(jnp.square(gram).sum((-2, -1)) + 1e-12).reshape(-1))  # its derivative at 0 is 0, not NaN
  return jnp.concatenate(norms).mean()
