"""Rules that store a matrix as less than itself do so by layer, and estimates of a rate are of a group."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from ftlib.base import trees
from ftlib.optim import blockwise
from tests.contract.optimizers import INFO, UNSTACKED, changes, close, filled, make, unstacked, walk

HEAD = {n: i for n, i in INFO.items() if n.startswith('head/')}


@pytest.mark.parametrize(
  ('name', 'values'),
  [('adafactor', {'min_dim': 4, 'momentum': 0.5}), ('adam8bit', {'min_size': 0}), ('adam8bit', {'min_size': 100})],
)
def test_a_layer_moves_the_same_stacked_or_not(name, values):
  """What `tests/contract/test_optimizers.py` asks of all, with parameters that are large enough for it: row and column
  means of each layer, and blocks that do not begin in one layer and end in the next (a gain of 16 is less than one)."""
  gradients = [filled(seed=s) for s in range(3)]
  for gradient in gradients:  # layers of unlike size, so that a scale or mean of both would show
    kernel = gradient['layers']['0:2']['mlp']['up']
    kernel['kernel'] = kernel['kernel'] * np.array([1.0, 1e-3], np.float32)[:, None, None]
  apart = lambda tree: trees.unflatten(unstacked(trees.flatten(tree)))  # noqa: E731
  together = make(name, clip='block', clip_norm=1.0, **values)
  stacked = changes(together, gradients)
  alone = changes(
    make(name, info=UNSTACKED, clip='block', clip_norm=1.0, **values), [*map(apart, gradients)], params=apart(filled())
  )
  for ours, theirs in zip(stacked, alone, strict=True):
    close(unstacked(ours), theirs, rtol=1e-4, atol=1e-6)
  sizes = {trees.path_name(p).rpartition('/rule/')[2]: x for p, x in _leaves(together)}
  kernel = 'layers/0:2/mlp/up/kernel'
  wanted = {'adafactor': {f'0/rows/{kernel}': (2, 16)}, 'adam8bit': {f'mu_scales/{kernel}': (2, 2)}}[name]
  assert {n: sizes[n].shape for n in wanted} == wanted


def _leaves(optimizer):
  return jax.tree_util.tree_leaves_with_path(jax.eval_shape(optimizer.tx.init, filled()))


@pytest.mark.parametrize('name', ['prodigy', 'dadapt_adamw'])
def test_every_group_has_an_estimate_of_its_own(name):
  """That of the head beside layers whose gradients are 0, and whose estimate stays, is that of the head alone."""
  values = {'learning_rate': 10.0, 'd0': 1e-2}
  gradients = [{**filled(seed=3), 'layers': filled(0.0)['layers']}] * 12
  both = make(name, groups={'head': {'pattern': '^head/'}}, **values)
  _, _, state = walk(both, gradients, params=filled())
  own = lambda tree: trees.split(tree, HEAD.__contains__)[0]  # noqa: E731
  _, _, alone = walk(make(name, info=HEAD, **values), [*map(own, gradients)], params=own(filled()))
  np.testing.assert_allclose(state['head']['rule'].d, alone['default']['rule'].d, rtol=1e-5)
  assert state['head']['rule'].d > 1.2 * values['d0']
  np.testing.assert_allclose(state['default']['rule'].d, values['d0'], rtol=1e-6)


@pytest.mark.parametrize(('size', 'signed'), [(3, True), (257, True), (257, False)])
def test_what_8_bits_lose_is_bounded(size, signed):
  """Of a row shorter than a block, and of one with a number more than that. The decade k below a block's largest number
  has 2^(6 - k) values, evenly spaced (2^(7 - k) without a sign), so a number is off by half of such a step at most."""
  rng, values = np.random.default_rng(size), blockwise.table('dynamic', signed=signed)
  x = 10 ** rng.uniform(-6.5, 0, (2, size)) * rng.choice([1, -1] if signed else [1], (2, size)) * [[1], [1e-5]]
  back = np.asarray(jax.jit(lambda x: blockwise.decode(*blockwise.encode(x, values), values))(x.astype(np.float32)))
  for start in range(0, size, blockwise.BLOCK):
    own, block = (a[:, start : start + blockwise.BLOCK].astype(np.float64) for a in (x, back))
    top = np.abs(own).max(1, keepdims=True)
    decade = np.floor(-np.log10(np.abs(own) / top) + 1e-9)
    half = 0.45 / 2 ** ((6 if signed else 7) - decade) * 10**-decade * top
    assert (np.abs(block - own) <= half * (1 + 1e-4)).all()
    assert (np.sign(block) == np.sign(own)).all()
