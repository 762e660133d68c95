"""What is done to gradients before a rule and to parameters after it, the same whatever the rule.

All of it depends on a parameter's entries alone, not on whether its layers lie stacked (`matrices.view`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from ftlib.base import rng, trees
from ftlib.base.types import ParamInfo, Params
from ftlib.optim import matrices


def clipper(kind: str, limit: float, info: Mapping[str, ParamInfo]) -> Callable[[Params, Params], Params]:
  """`(gradients, parameters) -> gradients`, clipped to `limit` by their 'global' norm, that of each 'block', of each
  unit of weights ('adaptive': `optax.adaptive_grad_clip`, a unit being an output of a matrix, else the block) or by
  'value'."""

  def block(name: str, g: jax.Array, _: jax.Array) -> jax.Array:
    norm = matrices.norm(g, info[name])
    return g * jnp.minimum(1, limit / jnp.maximum(norm, jnp.finfo(jnp.float32).tiny)).astype(g.dtype)

  def adaptive(name: str, g: jax.Array, p: jax.Array) -> jax.Array:
    view = matrices.view(info[name])
    axes = (-2,) if view.is_matrix else tuple(range(-len(view.dims), 0))
    clip = optax.adaptive_grad_clip(limit, axis=axes)
    return clip.update(g.reshape(view.shape), clip.init(p), p.reshape(view.shape))[0].reshape(g.shape)

  if limit == 0:
    return lambda gradients, params: gradients
  if kind in ('block', 'adaptive'):
    fn = {'block': block, 'adaptive': adaptive}[kind]
    return lambda gradients, params: trees.map_named(fn, gradients, params)
  whole = {'global': optax.clip_by_global_norm, 'value': optax.clip}[kind](limit)
  return lambda gradients, params: whole.update(gradients, whole.init(params))[0]


def centralized(g: jax.Array, info: ParamInfo) -> jax.Array:
  """A matrix's gradient without its mean over the inputs, for each output (Yong et al. 2020, equation 1). What is no
  matrix of weights is as it was. (`optax.centralize` takes the mean over all dimensions but the first, which in
  PyTorch's order is that of the outputs; here it is that of the inputs.)"""
  if not matrices.is_kernel(info):
    return g
  x = g.reshape(matrices.view(info).shape)
  return (x - x.mean(-2, keepdims=True)).reshape(g.shape)


def noise(
  name: str, info: ParamInfo, *, seed: int, step: jax.Array, drawn: Callable[..., jax.Array] = jax.random.normal
) -> jax.Array:
  """Standard normal numbers, or what `drawn(key, shape)` gives, a function of (seed, step, name) in the parameter's
  shape. A layer's are its own, stacked or not."""
  key = jax.random.fold_in(jax.random.key(seed), step)
  found = re.match(r'layers/(\d+)(:\d+)?/(.*)', name)
  if found is None:
    return drawn(rng.key_for(key, name), info.shape)
  first, stack, rest = found.groups()
  key = rng.key_for(key, rest)
  draw = lambda i: drawn(jax.random.fold_in(key, i), info.shape[1:] if stack else info.shape)  # noqa: E731
  return jax.vmap(draw)(int(first) + jnp.arange(info.shape[0])) if stack else draw(int(first))


def soft_threshold(x: jax.Array, limit: jax.Array) -> jax.Array:
  """sign(x) max(|x| - limit, 0): what minimises (y - x)^2 / 2 + limit |y| over y."""
  return jnp.sign(x) * jnp.maximum(jnp.abs(x) - limit, 0)


def depths(name: str, top: int) -> list[int]:
  """How far below the top layer, whose number is `top`, a parameter is: one number, or one a layer of a stack. The
  embeddings are one further than layer 0; what else is in no layer, heads and last norms, is at 0."""
  if not name.startswith('layers/'):
    return [top + 1 if name.startswith('embed') else 0]
  return [top - int(n.split('/')[1]) for n in trees.members(name)]
