"""Optimizers, schedules and the classification loss against PyTorch's, computed there in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose
from reference import DATA

from ftlib.base import trees
from ftlib.base.types import Outputs, ParamInfo
from ftlib.objectives import classification
from ftlib.optim import adamw, chain, sgd
from ftlib.train import state
from ftlib.train.step import make_train_step

STEPS, TOTAL = 5, 10  # steps stored, steps that the schedule is made for
CASES = {
  'adamw': (adamw, {'learning_rate': 0.1, 'weight_decay': 0.01, 'warmup_steps': 2}),
  'sgd': (sgd, {'learning_rate': 0.05, 'nesterov': True, 'schedule': 'constant', 'warmup': 0.0, 'clip_norm': 0.0}),
}
INFO = {'out/bias': ParamInfo((), jnp.float32, ()), 'out/kernel': ParamInfo((4,), jnp.float32, ('embed',))}


@pytest.fixture(scope='module')
def ref():
  with np.load(DATA / 'optim_loss.npz') as stored:
    return dict(stored)


def optimizer(name):
  module, values = CASES[name]
  return chain.build(module, chain.config_of(module)(**values), INFO, steps=TOTAL)


def logistic(apply, batch, key):
  """Sums of the loss of a logistic regression."""
  z_B = apply(batch, key).logits
  losses_B = optax.sigmoid_binary_cross_entropy(z_B, batch['y'])
  return {'loss': (losses_B.sum(), jnp.float32(len(z_B)))}


def linear(params, batch, key):
  return Outputs(batch['x'], logits=batch['x'] @ params['out']['kernel'] + params['out']['bias'])


@pytest.mark.parametrize('micro', [1, 4])
@pytest.mark.parametrize('name', CASES)
def test_five_steps_are_those_of_pytorch(ref, name, micro):
  built = optimizer(name)
  step = jax.jit(make_train_step(linear, logistic, built.tx, micro=micro))
  now = state.create(trees.unflatten({'out/bias': ref['b0'], 'out/kernel': ref['w0']}), {}, tx=built.tx, seed=0)
  for i in range(STEPS):
    assert_allclose(built.schedules['default'](i), ref[f'{name}_rate'][i], rtol=1e-6)
    now, sums = step(now, {}, {'x': ref['x'][i], 'y': ref['y'][i]})
    assert_allclose(sums['loss'][0] / sums['loss'][1], ref[f'{name}_loss'][i], rtol=1e-5)
    assert_allclose(sums['grad_norm'], ref[f'{name}_norm'][i], rtol=1e-5)
    assert_allclose(now.trainable['out']['kernel'], ref[f'{name}_w'][i], rtol=0, atol=1e-5)
    assert_allclose(now.trainable['out']['bias'], ref[f'{name}_b'][i], rtol=0, atol=1e-5)
  assert int(now.step) == STEPS


VARIANTS = {
  'plain': classification.Config(),
  'weights': classification.Config(class_weights='a=0.5,c=2.5'),
  'smooth': classification.Config(label_smoothing=0.1),
  'both': classification.Config(label_smoothing=0.1, class_weights='c=2.5,a=0.5'),
}
each_variant = pytest.mark.parametrize('variant', VARIANTS)


@pytest.fixture
def sums_of(ref, variant):
  """(logits [B, C], labels [B], weights of rows [B]) -> the objective's sums."""
  objective = classification.build(VARIANTS[variant], labels=['a', 'b', 'c'], counts=np.array([2, 2, 2]))

  def compute(logits_BC, labels_B, rows_B):
    return objective(lambda *_: Outputs(None, logits=logits_BC), {'labels': labels_B, 'weights': rows_B}, None)

  return compute


@each_variant
def test_cross_entropy_is_that_of_pytorch(ref, sums_of, variant):
  def mean(logits):
    total, weight = sums_of(logits, ref['ce_labels'], np.ones(6, np.float32))['loss']
    return total / weight

  value, grad = jax.value_and_grad(mean)(ref['ce_logits'])
  assert_allclose(value, ref[f'ce_{variant}_loss'], rtol=1e-6)
  assert_allclose(grad, ref[f'ce_{variant}_grad'], rtol=0, atol=1e-6)


@each_variant
def test_micro_batches_and_padding_add_up_to_the_same_sums(ref, sums_of, variant):
  logits, labels, ones = ref['ce_logits'], ref['ce_labels'], np.ones(6, np.float32)
  whole = sums_of(logits, labels, ones)
  parts = [sums_of(logits[i : i + 2], labels[i : i + 2], ones[:2]) for i in (0, 2, 4)]
  real = np.arange(6) < 4
  padded = sums_of(np.where(real[:, None], logits, np.inf), np.where(real, labels, 0), ones * real)
  for name in ('loss', 'accuracy'):
    for i in range(2):  # the sum, its weight
      assert_allclose(sum(p[name][i] for p in parts), whole[name][i], rtol=1e-6)
      assert_allclose(sum(p[name][i] for p in parts[:2]), padded[name][i], rtol=1e-6)
  if 'weights' in variant or variant == 'both':  # where parts weigh differently, the mean of means is another number
    assert abs(np.mean([p['loss'][0] / p['loss'][1] for p in parts]) - ref[f'ce_{variant}_loss']) > 0.01


def test_balanced_class_weights_are_those_of_scikit_learn():
  counts = np.array([1, 3, 4])
  got = classification.class_weights('balanced', ['a', 'b', 'c'], counts)
  assert_allclose(got, [8 / 3, 8 / 9, 8 / 12])
