"""Running an optimizer file's own transformation beside a formula in NumPy (float64), step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ftlib.base import lookup, settings, trees
from ftlib.base.types import ParamInfo
from ftlib.optim import chain

Tree = dict[str, np.ndarray]
DECAYED = lambda name: name.endswith('kernel')  # noqa: E731


def info_of(**shapes: tuple[tuple[int, ...], str]) -> dict[str, ParamInfo]:
  """{name: shape and axes in one text}, '__' in a name standing for '/'."""
  return {n.replace('__', '/'): ParamInfo(s, jnp.float32, tuple(axes.split())) for n, (s, axes) in shapes.items()}


INFO = info_of(a__kernel=((3, 4), 'embed mlp'), b__bias=((4,), 'mlp'))


def module_and_config(name: str, **values: Any):
  module = lookup.component('optim', name, field='optim.name')
  return module, settings.read(chain.config_of(module), values, where='optim')


def rule(
  name: str, info=INFO, *, rate: Callable[[Any], Any] | None = None, decay: float = 0.0, **values: Any
) -> optax.GradientTransformationExtraArgs:
  """The file's transformation; with `rate`, of one that has its rate in its rule."""
  module, config = module_and_config(name, **values)
  assert getattr(module, 'RATED', False) == (rate is not None)
  rated = {} if rate is None else {'rate': rate, 'decay': decay, 'decays': DECAYED}
  return optax.with_extra_args_support(module.build(config, info, **rated))


def draw(seed: int, info=INFO, *, scale: float = 1.0) -> Tree:
  """{name: normal numbers}, float32."""
  rng = np.random.default_rng(seed)
  return {n: (scale * rng.normal(size=i.shape)).astype(np.float32) for n, i in info.items()}


def walk(
  tx: optax.GradientTransformation,
  gradient: Callable[[int, Any], Any] | list[Tree],
  start: Tree,
  *,
  steps: int = 4,
  apply: bool = True,
  extra: Callable[[Any], dict[str, Any]] = lambda params: {},
) -> tuple[list[Tree], list[Any], list[Tree]]:
  """(updates, states, parameters) of steps in a row; parameters stay where `apply` is false. One compilation."""

  def step(params, state, grads):
    updates, state = tx.update(grads, state, params, **extra(params))
    return updates, state, optax.apply_updates(params, updates) if apply else params

  fn, params = jax.jit(step), trees.unflatten({n: jnp.asarray(x) for n, x in start.items()})
  state = tx.init(params)
  updates, states, after = [], [], []
  for t in range(steps):
    grads = gradient(t, params) if callable(gradient) else trees.unflatten(gradient[t])
    update, state, params = fn(params, state, grads)
    updates.append(trees.flatten(jax.device_get(update)))
    states.append(jax.device_get(state))
    after.append(trees.flatten(jax.device_get(params)))
  return updates, states, after


def close(ours: list[Tree], wanted: list[Tree], *, tolerance: float = 3e-5) -> None:
  assert len(ours) == len(wanted)
  for step, (got, want) in enumerate(zip(ours, wanted, strict=True)):
    assert set(got) == set(want)
    for name, x in want.items():
      scale = max(1e-12, float(np.abs(x).max()))
      np.testing.assert_allclose(got[name], x, rtol=tolerance, atol=tolerance * scale, err_msg=f'{name}, step {step}')


def nbytes(tx: optax.GradientTransformation, info) -> int:
  """Bytes of state, by shapes alone."""
  shapes = trees.unflatten({n: jax.ShapeDtypeStruct(i.shape, i.dtype) for n, i in info.items()})
  return trees.nbytes(jax.eval_shape(tx.init, shapes))
