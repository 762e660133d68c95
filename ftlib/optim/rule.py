"""One group's transformation: a file's rule, and around it what every optimizer shares.

The state is {'step': int32 [], the run's updates so far, 'rule': the file's own state} and, with `l2_sp`, 'start': the
parameters as they were. While a group waits for its stage, only `step` changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ftlib.base import trees
from ftlib.base.errors import InputError
from ftlib.base.types import ParamInfo, Params
from ftlib.optim import around, fields

State = dict[str, Any]


def group(
  module: ModuleType,
  config: Any,
  info: Mapping[str, ParamInfo],
  *,
  schedule: optax.Schedule,
  rates: Callable[[str], Sequence[float]],
  seed: int,
  where: str,
) -> optax.GradientTransformationExtraArgs:
  """The updates of the parameters `info` by the rule of an optimizer file.

  `schedule` is of the run's step; `rates` gives a factor of the learning rate for each parameter, or one for each layer
  of a stack. A file that is `RATED` gives the whole update; its `rate` answers for the run's step whatever step the
  file asks for, so that a group that waited is at the rate of the others. `seed` is that of gradient noise; a file that
  is `SEEDED` is given it too. Raises `InputError` where settings need a learning rate after the rule and the file has
  it inside.
  """
  needs, rated = fields.needs_of(module), getattr(module, 'RATED', False)
  factors = {n: np.asarray(rates(n), np.float32) for n in info}
  factors = {n: x[0] if x.size == 1 else x.reshape(-1, *[1] * (len(info[n].shape) - 1)) for n, x in factors.items()}
  decayed = dict(zip(info, map(decays(config, where=where), info), strict=True)).__getitem__
  if rated and (config.l1 or any((x != 1).any() for x in factors.values())):
    what = f'{where}.l1' if config.l1 else 'a learning rate for each layer (optim.layer_decay, or the method)'
    raise InputError(f'{what} does not go with the optimizer {fields.name_of(module)}, which has its rate in its rule')

  changed = [f for f in ('noise', 'centralize') if getattr(config, f)]
  if changed and fields.searches(module):
    raise InputError(
      f'{where}.{changed[0]} does not go with the optimizer {fields.name_of(module)}, which searches by the loss: that '
      'would change the gradient alone'
    )

  def rule(rate: jax.Array | float) -> optax.GradientTransformationExtraArgs:
    own = {'rate': lambda _: rate, 'decay': config.weight_decay, 'decays': decayed} if rated else {}
    own |= {'seed': seed} if getattr(module, 'SEEDED', False) else {}
    return optax.with_extra_args_support(module.build(config, dict(info), **own))

  fixed = None if rated else rule(0.0)

  def before(name: str, g: jax.Array, p: jax.Array, start: jax.Array | None, step: jax.Array) -> jax.Array:
    if config.centralize:
      g = around.centralized(g, info[name])
    if config.noise:
      scale = jnp.sqrt(config.noise / (1 + step.astype(jnp.float32)) ** config.noise_decay)
      g = g + (scale * around.noise(name, info[name], seed=seed, step=step)).astype(g.dtype)
    if config.l2 and decayed(name):
      g = g + config.l2 * p
    if config.l2_sp and decayed(name):
      g = g + config.l2_sp * (p - start)
    return g

  def after(name: str, direction: jax.Array, p: jax.Array, rate: jax.Array) -> jax.Array:
    if config.weight_decay and decayed(name):
      direction = direction + config.weight_decay * p
    rate = jnp.asarray(rate * factors[name], direction.dtype)
    update = -rate * direction
    return around.soft_threshold(p + update, config.l1 * rate) - p if config.l1 and decayed(name) else update

  def init(params: Params) -> State:
    start = {'start': jax.tree.map(jnp.copy, params)} if config.l2_sp else {}  # two leaves, not one donated twice
    return {'step': jnp.zeros((), jnp.int32), 'rule': (fixed or rule(0.0)).init(params), **start}

  def update(
    gradients: Params, state: State, params: Params, *, rate_scale: jax.Array | float = 1.0, **extra: Any
  ) -> tuple[Params, State]:
    step = state['step']
    rate = schedule(step) * (rate_scale if config.schedule == 'plateau' else 1.0)
    start = state.get('start', params)
    treated = lambda g, p: trees.map_named(lambda *leaf: before(*leaf, step), g, p, start)  # noqa: E731
    gradients = treated(gradients, params)
    given = {n: extra[n] for n in needs}
    if 'grad_fn' in given:
      given['grad_fn'] = lambda p, *i: treated(extra['grad_fn'](p, *i), p)
    if config.l2 or config.l2_sp:  # the loss has them as its gradient does
      pull = lambda p: _pull(p, start, config, decayed)  # noqa: E731
      for n in ('value_fn', 'obj_fn'):
        if n in given:
          given[n] = lambda p, fn=extra[n]: fn(p) + pull(p)
      if 'value' in given:
        given['value'] = extra['value'] + pull(params)
      if 'grad' in given:
        given['grad'] = jax.tree.map(jnp.add, extra['grad'], jax.grad(pull)(params))
    updates, own = (fixed or rule(rate)).update(gradients, state['rule'], params, **given)
    if not rated:
      updates = trees.map_named(lambda *leaf: after(*leaf, rate), updates, params)
    return updates, {**state, 'step': optax.safe_increment(step), 'rule': own}

  return optax.GradientTransformationExtraArgs(init, update)


def decays(config: Any, *, where: str) -> Callable[[str], bool]:
  """`name -> whether it decays`, by `no_decay`. Raises `InputError` for a stack of which some layers do."""
  rx = trees.compile_pattern(config.no_decay, field=f'{where}.no_decay')

  def decayed(name: str) -> bool:
    spared = {bool(rx.search(n)) for n in trees.members(name)} if config.no_decay else {False}
    if len(spared) > 1:
      raise InputError(f'{where}.no_decay={config.no_decay!r} takes some layers of the stack {name}')
    return not spared.pop()

  return decayed


def _pull(params: Params, start: Params, config: Any, decayed: Callable[[str], bool]) -> jax.Array:
  """What L2 and L2-SP add to the loss: their gradients are those that are added."""
  begun = trees.flatten(start)
  pairs = [(p, begun[n]) for n, p in trees.flatten(params).items() if decayed(n)]
  square = lambda x: jnp.square(x.astype(jnp.float32)).sum() / 2  # noqa: E731
  return sum((config.l2 * square(p) + config.l2_sp * square(p - s) for p, s in pairs), jnp.zeros(()))


def waiting(tx: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
  """No update, and a state as it was but for the run's step."""

  def update(gradients: Params, state: State, params: Any = None, **_: Any) -> tuple[Params, State]:
    return jax.tree.map(jnp.zeros_like, gradients), {**state, 'step': optax.safe_increment(state['step'])}

  return optax.GradientTransformationExtraArgs(tx.init, update)
