"""The classical optimizers against their papers' formulas in NumPy (float64), step by step, with hyperparameters away
from their defaults; then what they keep for each parameter."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ftlib.base import trees
from ftlib.base.errors import InputError
from ftlib.base.types import ParamInfo
from tests.optim.steps import INFO, MOMENTS, adam, close, config_of, draws, each, rule, walk


def rmsprop(gs, decay, eps, momentum, *, nesterov=False, centered=False):
  n = m = d = 0
  out = []
  for g in gs:
    n, m = decay * n + (1 - decay) * g * g, decay * m + (1 - decay) * g
    r = g / (np.sqrt(n - m * m if centered else n) + eps)
    d = momentum * d + r
    out.append(r + momentum * d if nesterov else d)
  return out


def adagrad(gs, initial):
  return [g / np.sqrt(initial + sum(x * x for x in gs[: t + 1])) for t, g in enumerate(gs)]


def adadelta(gs, rho, eps):
  squares = moved = 0
  out = []
  for g in gs:
    squares = rho * squares + (1 - rho) * g * g
    out.append(g * np.sqrt(moved + eps) / np.sqrt(squares + eps))
    moved = rho * moved + (1 - rho) * out[-1] ** 2
  return out


def lion(gs, b1, b2):
  m, out = 0, []
  for g in gs:
    out.append(np.sign(b1 * m + (1 - b1) * g))
    m = b2 * m + (1 - b2) * g
  return out


def adan(gs, a1, a2, a3, eps):
  """With the paper's betas, which are weights of the new term."""
  m = v = n = 0
  before, out = gs[0], []
  for t, g in enumerate(gs, 1):
    m, v = (1 - a1) * m + a1 * g, (1 - a2) * v + a2 * (g - before)
    n = (1 - a3) * n + a3 * (g + (1 - a2) * (g - before)) ** 2
    m_hat, v_hat, n_hat = (x / (1 - (1 - a) ** t) for x, a in ((m, a1), (v, a2), (n, a3)))
    out.append((m_hat + (1 - a2) * v_hat) / (np.sqrt(n_hat) + eps))
    before = g
  return out


CASES = {
  'adam': ('adam', MOMENTS, lambda gs: adam(gs, 0.6, 0.7, 0.05)),
  'nadamw': ('nadamw', MOMENTS, lambda gs: adam(gs, 0.6, 0.7, 0.05, nesterov=True)),
  'radam': (
    'radam',
    {'b1': 0.6, 'b2': 0.95, 'eps': 0.05, 'threshold': 4.2},
    lambda gs: adam(gs, 0.6, 0.95, 0.05, threshold=4.2),
  ),
  'rmsprop': ('rmsprop', {'decay': 0.6, 'eps': 0.05}, lambda gs: rmsprop(gs, 0.6, 0.05, 0)),
  'rmsprop, momentum': (
    'rmsprop',
    {'decay': 0.6, 'eps': 0.05, 'momentum': 0.5, 'nesterov': True},
    lambda gs: rmsprop(gs, 0.6, 0.05, 0.5, nesterov=True),
  ),
  'rmsprop, centred': (
    'rmsprop',
    {'decay': 0.6, 'eps': 0.05, 'momentum': 0.5, 'centered': True},
    lambda gs: rmsprop(gs, 0.6, 0.05, 0.5, centered=True),
  ),
  'adagrad': ('adagrad', {'initial': 0.3}, lambda gs: adagrad(gs, 0.3)),
  'adadelta': ('adadelta', {'rho': 0.6, 'eps': 0.05}, lambda gs: adadelta(gs, 0.6, 0.05)),
  'lion': ('lion', {'b1': 0.6, 'b2': 0.7}, lambda gs: lion(gs, 0.6, 0.7)),
  'adan': ('adan', {'b1': 0.6, 'b2': 0.7, 'b3': 0.8, 'eps': 0.05}, lambda gs: adan(gs, 0.4, 0.3, 0.2, 0.05)),
}


@pytest.mark.parametrize('case', CASES)
def test_every_number_moves_by_the_papers_formula(case):
  name, values, formula = CASES[case]
  gradients = draws(1)
  close(walk(rule(name, **values), gradients, draws(0)), each(formula, gradients))


def test_radam_that_could_never_rectify_is_an_error():
  with pytest.raises(InputError, match=r'raise b2 above 0\.667'):
    config_of('radam', b2=0.5)


def test_a_centred_second_moment_never_turns_negative():
  """Of a gradient that stays, n - m^2 is rounding; its root would be NaN where that is below 0."""
  steady = {'a': ParamInfo((64,), jnp.float32, ('embed',))}
  tx, g = rule('rmsprop', steady, centered=True, decay=0.9), draws(2, steady, 1)[0]
  step = lambda state, _: (tx.update(g, state, g)[1], tx.update(g, state, g)[0]['a'])  # noqa: E731
  _, updates = jax.lax.scan(step, tx.init(g), None, length=300)
  assert np.isfinite(updates).all()


def test_a_gradient_that_was_always_zero_gives_adagrad_nothing():
  zero = {n: 0 * g for n, g in draws(1)[0].items()}
  assert not any(x.any() for x in walk(rule('adagrad'), [zero], draws(0, steps=1))[0].values())


# What is of whole matrices. `entries` takes apart by hand what the names of the axes say.


WIDE = {
  'embeddings/token/table': ParamInfo((1000, 384), jnp.float32, ('vocab', 'embed')),
  'head/out/bias': ParamInfo((2,), jnp.float32, ('classes',)),
  'layers/0:6/attn/q/bias': ParamInfo((6, 12, 32), jnp.float32, ('layers', 'heads', 'head_dim')),
  'layers/0:6/attn/q/kernel': ParamInfo((6, 384, 12, 32), jnp.float32, ('layers', 'embed', 'heads', 'head_dim')),
  'layers/0:6/mlp/up/kernel': ParamInfo((6, 384, 1536), jnp.float32, ('layers', 'embed', 'mlp')),
}
COUNT = sum(i.size for i in WIDE.values())
FACTORED = 4 * (1000 + 384 + 6 * (384 + 384) + 6 * (384 + 1536) + 2 + 6 * 384)
REST = 1000 * 384 + 2 + 6 * 384  # no kernels
SQUARES = 2 * 4 * 6 * (384**2 + 384**2 + 384**2 + 1536**2)
BYTES = {  # with moments in float32, and in bfloat16
  'adadelta': ({}, 8 * COUNT, 8 * COUNT),
  'adafactor': ({}, FACTORED, FACTORED),
  'adafactor, momentum': ({'momentum': 0.9}, FACTORED + 4 * COUNT, FACTORED + 2 * COUNT),
  'adagrad': ({}, 4 * COUNT, 4 * COUNT),
  'adam': ({}, 8 * COUNT, 6 * COUNT),
  'adamw': ({}, 8 * COUNT, 6 * COUNT),
  'adan': ({}, 16 * COUNT, 12 * COUNT),
  'lamb': ({}, 8 * COUNT, 6 * COUNT),
  'lion': ({}, 4 * COUNT, 2 * COUNT),
  'nadamw': ({}, 8 * COUNT, 6 * COUNT),
  'radam': ({}, 8 * COUNT, 6 * COUNT),
  'rmsprop': ({}, 4 * COUNT, 4 * COUNT),
  'rmsprop, momentum': ({'momentum': 0.9, 'centered': True}, 12 * COUNT, 10 * COUNT),
  'sgd': ({}, 4 * COUNT, 2 * COUNT),
  'soap': ({}, 8 * COUNT + SQUARES, 8 * COUNT - 2 * REST + SQUARES),
  'sophia': ({}, 8 * COUNT, 6 * COUNT),
}


@pytest.mark.parametrize('case', BYTES)
def test_state_bytes_are_those_of_theory(case):
  values, *wanted = BYTES[case]
  name = case.split(',')[0]
  for moments, total in zip(('float32', 'bfloat16'), wanted, strict=True):
    module, config = config_of(name, moments=moments, **values)
    rated = {'rate': lambda _: 0.1, 'decay': 0.1, 'decays': lambda _: True} if getattr(module, 'RATED', False) else {}
    tx = module.build(config, WIDE, **rated)
    for dtype in (jnp.float32, jnp.bfloat16):  # of the parameters: no matter
      params = trees.unflatten({n: jax.ShapeDtypeStruct(i.shape, dtype) for n, i in WIDE.items()})
      state = jax.eval_shape(tx.init, params)
      assert trees.nbytes(state) - 4 * sum(x.ndim == 0 for x in jax.tree.leaves(state)) == total


@pytest.mark.parametrize('case', [c for c, (_, whole, half) in BYTES.items() if whole != half])
def test_bfloat16_moments_stay_so_and_steer_alike(case):
  name, values = case.split(',')[0], BYTES[case][0]
  g, w = ([trees.unflatten(x) for x in draws(seed, steps=2)] for seed in (1, 0))

  def walked(moments: str):
    module, config = config_of(name, moments=moments, **values)
    rated = {'rate': lambda _: 1.0, 'decay': 0.0, 'decays': lambda _: True} if getattr(module, 'RATED', False) else {}
    extra = {'obj_fn': lambda p: optax.tree.vdot(p, p)} if getattr(module, 'NEEDS', ()) else {}
    tx = optax.with_extra_args_support(module.build(config, INFO, **rated))
    states, updates = [tx.init(w[0])], None
    for i in range(2):
      updates, state = tx.update(g[i], states[-1], w[i], **extra)
      states.append(state)
    return updates, states

  (ours, states), (theirs, _) = jax.jit(lambda: (walked('bfloat16'), walked('float32')))()
  first, *_, last = [[(x.shape, x.dtype) for x in jax.tree.leaves(s)] for s in states]
  assert first == last
  assert jnp.dtype('bfloat16') in {dtype for _, dtype in last}
  for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    assert x.dtype == jnp.float32
    assert np.abs(x - y).max() < 0.02 * np.abs(y).max()
