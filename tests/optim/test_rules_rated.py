"""AdEMAMix, ADOPT, MARS, schedule-free, Prodigy and D-Adaptation against the formulas of their papers in NumPy."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax.contrib
import pytest

from ftlib.base import trees
from tests.optim.numpy_rules import DECAYED, INFO, close, draw, info_of, module_and_config, rule, walk

GRADIENTS = [draw(s) for s in range(4)]
RATE = lambda step: 0.1 + 0.05 * step  # noqa: E731
WARMUP = lambda step: 0.5 * jnp.minimum(step, 2)  # noqa: E731 - 0, 0.5, 1, 1
FALLING = lambda step: 0.4 - 0.1 * step  # noqa: E731
LARGE = lambda step: 0.5 + 0.25 * step  # noqa: E731


def zeros(info=INFO):
  return {n: np.zeros(i.shape) for n, i in info.items()}


@pytest.mark.parametrize('ramp', [0, 3])
def test_ademamix(ramp):
  b1, b2, b3, alpha, eps = 0.6, 0.7, 0.9, 3.0, 1e-2
  tx = rule('ademamix', b1=b1, b2=b2, b3=b3, alpha=alpha, eps=eps, ramp_steps=ramp)
  m1, m2, v, wanted = zeros(), zeros(), zeros(), []
  for t, g in enumerate(GRADIENTS, 1):
    share = min(1.0, t / ramp) if ramp else 1.0
    slow = np.exp(np.log(b1) * np.log(b3) / ((1 - share) * np.log(b3) + share * np.log(b1)))  # equation of appendix
    slow = min(slow, b3)
    m1 = {n: b1 * m1[n] + (1 - b1) * g[n] for n in g}
    m2 = {n: slow * m2[n] + (1 - slow) * g[n] for n in g}
    v = {n: b2 * v[n] + (1 - b2) * g[n].astype(float) ** 2 for n in g}
    wanted.append({n: (m1[n] / (1 - b1**t) + share * alpha * m2[n]) / (np.sqrt(v[n] / (1 - b2**t)) + eps) for n in g})
  close(walk(tx, GRADIENTS, draw(9))[0], wanted)


@pytest.mark.parametrize('clip', [True, False])
def test_adopt(clip):
  b1, b2, eps = 0.6, 0.7, 0.4
  v, m, wanted = {n: g.astype(float) ** 2 for n, g in GRADIENTS[0].items()}, zeros(), [zeros()]
  for t, g in enumerate(GRADIENTS[1:], 1):
    ratio = {n: g[n] / np.maximum(np.sqrt(v[n]), eps) for n in g}
    bound = t**0.25 if clip else np.inf
    m = {n: b1 * m[n] + (1 - b1) * np.clip(ratio[n], -bound, bound) for n in g}
    v = {n: b2 * v[n] + (1 - b2) * g[n].astype(float) ** 2 for n in g}
    wanted.append(m)
  ours = walk(rule('adopt', b1=b1, b2=b2, eps=eps, clipping=clip), GRADIENTS, draw(9))[0]
  close(ours, wanted)
  assert any(
    (np.abs(g / np.sqrt(1e-9 + h**2)) > 1).any() for g, h in zip(GRADIENTS[1]['a/kernel'], GRADIENTS[0]['a/kernel'])
  )


def test_mars_on_a_stack_and_alone():
  """Norms are of a layer: two layers in a stack go as each by itself. Some are above 1 and some are not."""
  b1, b2, eps, gamma = 0.6, 0.7, 1e-2, 0.5
  info = info_of(stack__kernel=((2, 2, 3), 'layers embed mlp'), b__bias=((3,), 'mlp'))
  gradients = [draw(s, info) for s in range(4)]
  for g in gradients:
    g['stack/kernel'][1] *= 0.1
  tx = rule('mars', info, b1=b1, b2=b2, eps=eps, gamma=gamma)
  m, v, wanted, norms = zeros(info), zeros(info), [], []
  for t, g in enumerate(gradients, 1):
    last = gradients[t - 2] if t > 1 else g
    c = {n: g[n] + gamma * b1 / (1 - b1) * (g[n].astype(float) - last[n]) for n in g}
    size = {
      'b/bias': np.linalg.norm(c['b/bias']),
      'stack/kernel': np.linalg.norm(c['stack/kernel'].reshape(2, -1), axis=1)[:, None, None],
    }
    norms += [*np.ravel(size['stack/kernel'])]
    c = {n: c[n] / np.maximum(1, size[n]) for n in g}
    m = {n: b1 * m[n] + (1 - b1) * c[n] for n in g}
    v = {n: b2 * v[n] + (1 - b2) * c[n] ** 2 for n in g}
    wanted.append({n: m[n] / (1 - b1**t) / (np.sqrt(v[n] / (1 - b2**t)) + eps) for n in g})
  assert min(norms) < 1 < max(norms)
  close(walk(tx, gradients, draw(9, info))[0], wanted)


@pytest.mark.parametrize(('name', 'rates'), [('adamw', RATE), ('adamw', WARMUP), ('sgd', FALLING)])
def test_schedule_free(name, rates):
  """y, z and the average x of the paper, kept one by one; `averaged` gives x."""
  b1, b2, eps, power, decay = 0.7, 0.6, 1e-2, 1.5, 0.2
  options = {'b1': b1, 'weight_power': power, **({'b2': b2, 'eps': eps} if name == 'adamw' else {})}
  tx = rule(f'schedule_free_{name}', rate=rates, decay=decay, **options)
  module, _ = module_and_config(f'schedule_free_{name}')
  start = draw(9)
  x, z, v = ({n: s.astype(float) for n, s in start.items()} for _ in range(3))
  v, weights, largest, wanted, averages = zeros(), 0.0, 0.0, [], []
  for t, g in enumerate(GRADIENTS):
    y = {n: b1 * x[n] + (1 - b1) * z[n] for n in g}
    rate = float(rates(t))
    v = {n: b2 * v[n] + (1 - b2) * g[n].astype(float) ** 2 for n in g}
    direction = {n: g[n] / (np.sqrt(v[n] / (1 - b2 ** (t + 1))) + eps) if name == 'adamw' else g[n] for n in g}
    z = {n: z[n] - rate * (direction[n] + decay * DECAYED(n) * y[n]) for n in g}
    largest = max(largest, rate)
    weights += largest**power
    c = largest**power / weights if weights else 0.0
    x = {n: (1 - c) * x[n] + c * z[n] for n in g}
    wanted.append({n: b1 * x[n] + (1 - b1) * z[n] for n in g})
    averages.append(x)
  updates, states, params = walk(tx, GRADIENTS, start)
  close(params, wanted)
  got = [trees.flatten(module.averaged(s, trees.unflatten(p))) for s, p in zip(states, params, strict=True)]
  close(got, averages)
  assert all((np.abs(params[-1][n] - averages[-1][n]) > 1e-3).any() for n in start)  # another thing than is trained
  if rates is WARMUP:
    assert all((u == 0).all() for u in updates[0].values())  # not even by rounding


def test_schedule_free_is_that_of_optax():
  base = optax.chain(optax.scale_by_rms(0.999, 1e-8, eps_in_sqrt=False, bias_correction=True), optax.scale(-0.1))
  theirs = walk(optax.contrib.schedule_free(base, 0.1, b1=0.8), GRADIENTS, draw(9))[2]
  close(walk(rule('schedule_free_adamw', rate=lambda _: 0.1, b1=0.8), GRADIENTS, draw(9))[2], theirs)


def quadratic(t, params):
  """Gradients that go on pointing one way, so that the estimates of d grow; a different batch each step."""
  noise = trees.unflatten(draw(t, scale=0.05))
  return jax.tree.map(lambda p, n: p - 3.0 + n, params, noise)


def norm1(tree):
  return sum(np.abs(x).sum() for x in tree.values())


def dot(a, b):
  return sum((a[n] * b[n]).sum() for n in a)


@pytest.mark.parametrize(('safeguard', 'rates'), [(True, LARGE), (False, LARGE), (True, WARMUP), (False, WARMUP)])
def test_prodigy(safeguard, rates):
  b1, b2, eps, d0, coef, decay, steps = 0.6, 0.7, 1e-2, 1e-2, 1.5, 0.2, 6
  options = {'b1': b1, 'b2': b2, 'eps': eps, 'd0': d0, 'd_coef': coef, 'safeguard_warmup': safeguard}
  tx = rule('prodigy', rate=rates, decay=decay, **options)
  start, seen = draw(9), []
  update = lambda t, p: seen.append(trees.flatten(jax.device_get(quadratic(t, p)))) or quadratic(t, p)  # noqa: E731
  _, states, params = walk(tx, update, start, steps=steps)
  w = {n: s.astype(float) for n, s in start.items()}
  m, v, s, r, d, b3, wanted, ds = zeros(), zeros(), zeros(), 0.0, d0, b2**0.5, [], []
  for t, g in enumerate(seen, 1):
    a = float(rates(t - 1)) * np.sqrt(1 - b2**t) / (1 - b1**t)
    m = {n: b1 * m[n] + (1 - b1) * d * g[n] for n in g}
    v = {n: b2 * v[n] + (1 - b2) * d**2 * g[n].astype(float) ** 2 for n in g}
    r = b3 * r + (1 - b3) * a * d**2 * dot(g, {n: start[n] - w[n] for n in g})
    s = {n: b3 * s[n] + (1 - b3) * (1 if safeguard else a) * d**2 * g[n] for n in g}
    w = {n: w[n] - a * d * (m[n] / (np.sqrt(v[n]) + d * eps) + decay * DECAYED(n) * w[n]) for n in g}
    d = max(d, coef * r / norm1(s)) if norm1(s) else d
    wanted.append(w)
    ds.append(d)
  close(params, wanted, tolerance=1e-4)
  np.testing.assert_allclose([x.d for x in states], ds, rtol=1e-4)
  assert d > 2 * d0  # the estimate is of consequence


@pytest.mark.parametrize('rates', [LARGE, WARMUP])
def test_dadapt_adamw(rates):
  b1, b2, eps, d0, decay, steps = 0.6, 0.7, 1e-2, 1e-1, 0.2, 6
  tx = rule('dadapt_adamw', rate=rates, decay=decay, b1=b1, b2=b2, eps=eps, d0=d0)
  start, seen = draw(9), []
  update = lambda t, p: seen.append(trees.flatten(jax.device_get(quadratic(t, p)))) or quadratic(t, p)  # noqa: E731
  _, states, params = walk(tx, update, start, steps=steps)
  w = {n: s.astype(float) for n, s in start.items()}
  m, v, s, r, d, b3, wanted, ds = zeros(), zeros(), zeros(), 0.0, d0, b2**0.5, [], []
  for t, g in enumerate(seen, 1):
    a = d * float(rates(t - 1)) * np.sqrt(1 - b2**t) / (1 - b1**t)
    r = b3 * r + (1 - b3) * a * dot(g, {n: s[n] / (np.sqrt(v[n]) + eps) for n in g})
    m = {n: b1 * m[n] + (1 - b1) * a * g[n] for n in g}
    v = {n: b2 * v[n] + (1 - b2) * g[n].astype(float) ** 2 for n in g}
    s = {n: b3 * s[n] + (1 - b3) * a * g[n] for n in g}
    w = {n: w[n] - m[n] / (np.sqrt(v[n]) + eps) - a * decay * DECAYED(n) * w[n] for n in g}
    d = max(d, r / ((1 - b3) * norm1(s))) if norm1(s) else d
    wanted.append(w)
    ds.append(d)
  close(params, wanted, tolerance=1e-4)
  np.testing.assert_allclose([x.d for x in states], ds, rtol=1e-4)
  assert d > 1.1 * d0


@pytest.mark.parametrize('name', ['prodigy', 'dadapt_adamw'])
def test_estimates_agree_with_optax(name):
  """With defaults, where eps does not matter; a constant rate of 1, since theirs is not finite at a rate of 0."""
  theirs = walk(getattr(optax.contrib, name)(1.0), quadratic, draw(9))[2]
  options = {'safeguard_warmup': False} if name == 'prodigy' else {}
  close(walk(rule(name, rate=lambda _: 1.0, **options), quadratic, draw(9))[2], theirs)


MOMENTS = {  # fields that follow `moments`
  'ademamix': ('m1',),
  'adopt': ('mu',),
  'mars': ('last', 'adam/mu'),
  'prodigy': ('mu',),
  'dadapt_adamw': ('mu',),
  'galore': ('adam/mu', 'rest/inner_state/mu'),
  'muon': ('mu',),
  'sam': ('mu',),  # that of the rule inside
  'lookahead': ('rule/mu',),
}
KINDS = info_of(a__kernel=((12, 10), 'embed mlp'), b__bias=((4,), 'mlp'))


@pytest.mark.parametrize('name', sorted(MOMENTS))
def test_first_moments_follow_the_setting_and_second_ones_do_not(name):
  """By shapes alone: before and after an update, with float32 and bfloat16 parameters; and no leaf is another."""
  rate = (lambda _: 0.1) if name in ('prodigy', 'dadapt_adamw', 'lookahead') else None
  for moments in ('float32', 'bfloat16'):
    tx = rule(name, KINDS, rate=rate, moments=moments)
    for dtype in (jnp.float32, jnp.bfloat16):
      params = trees.unflatten({n: jax.ShapeDtypeStruct(i.shape, dtype) for n, i in KINDS.items()})
      state = jax.eval_shape(tx.init, params)
      step = functools.partial(tx.update, grad_fn=lambda p, i: p)
      after = jax.eval_shape(step, params, state, params)[1]
      for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(after), strict=True):
        leaf = trees.path_name(path)
        follows = any(f'/{field}/' in f'/{leaf}' for field in MOMENTS[name])
        wanted = jnp.bfloat16 if follows and moments == 'bfloat16' else jnp.float32
        assert x.dtype == y.dtype, leaf
        assert x.dtype == wanted or x.ndim == 0, leaf
      if moments == 'bfloat16':
        assert sum(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(state)) >= 2


@pytest.mark.parametrize('name', ['prodigy', 'dadapt_adamw', 'schedule_free_sgd', 'lookahead', 'lbfgs', 'adam8bit'])
def test_no_leaf_of_the_state_is_the_buffer_of_another(name):
  """The training step is given parameters and state to overwrite: one buffer twice is an error there."""
  tx = rule(name, rate=None if name == 'adam8bit' else RATE)
  params = trees.unflatten({n: jnp.asarray(x) for n, x in draw(9).items()})
  leaves = [x for x in jax.tree.leaves((params, tx.init(params))) if x.ndim]
  assert len({x.unsafe_buffer_pointer() for x in leaves}) == len(leaves)
