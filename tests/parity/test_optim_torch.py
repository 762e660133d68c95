"""The rules of torch.optim against ours, live: the same gradients in float64 there and in float32 here.

Where the formulas differ the case makes them meet. RAdam adds eps before the bias is taken out of the second moment; it
is tiny here. NAdam warms its first decay up: with a `momentum_decay` so large that it is there from the first step.
Adafactor factors every matrix, adds nothing to squares, scales by the parameter's size and bounds the rate by
1 / sqrt(t), which it is below here.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from ftlib.base import lookup, settings, trees
from ftlib.base.types import ParamInfo
from ftlib.optim import chain

pytestmark = pytest.mark.reference

STEPS = 8
INFO = {
  'out/bias': ParamInfo((3,), jnp.float32, ('classes',)),
  'out/kernel': ParamInfo((4, 3), jnp.float32, ('embed', 'classes')),
}
ADAM, BETAS = {'b1': 0.8, 'b2': 0.9, 'eps': 1e-3}, {'betas': (0.8, 0.9), 'eps': 1e-3}
CASES = {  # ours, its fields, torch's, its arguments
  'sgd': ('sgd', {'momentum': 0.7}, 'SGD', {'momentum': 0.7}),
  'sgd, nesterov': ('sgd', {'momentum': 0.7, 'nesterov': True}, 'SGD', {'momentum': 0.7, 'nesterov': True}),
  'sgd, plain': ('sgd', {'momentum': 0.0}, 'SGD', {}),
  'adam': ('adam', ADAM, 'Adam', BETAS),
  'adam, l2': ('adam', {**ADAM, 'l2': 0.3, 'no_decay': ''}, 'Adam', {**BETAS, 'weight_decay': 0.3}),
  'adamw': ('adamw', {**ADAM, 'weight_decay': 0.3, 'no_decay': ''}, 'AdamW', {**BETAS, 'weight_decay': 0.3}),
  'rmsprop': ('rmsprop', {'decay': 0.8, 'eps': 1e-3}, 'RMSprop', {'alpha': 0.8, 'eps': 1e-3}),
  'rmsprop, centred': (
    'rmsprop',
    {'decay': 0.8, 'eps': 1e-3, 'centered': True, 'momentum': 0.6},
    'RMSprop',
    {'alpha': 0.8, 'eps': 1e-3, 'centered': True, 'momentum': 0.6},
  ),
  'adagrad': ('adagrad', {'initial': 0.2}, 'Adagrad', {'initial_accumulator_value': 0.2}),
  'adadelta': ('adadelta', {'rho': 0.8, 'eps': 1e-3}, 'Adadelta', {'rho': 0.8, 'eps': 1e-3}),
  'nadamw': (
    'nadamw',
    {**ADAM, 'weight_decay': 0.3, 'no_decay': ''},
    'NAdam',
    {**BETAS, 'momentum_decay': 1e6, 'weight_decay': 0.3, 'decoupled_weight_decay': True},
  ),
  'radam': ('radam', {**ADAM, 'eps': 1e-9}, 'RAdam', {'betas': (0.8, 0.9), 'eps': 1e-9}),
  'adafactor': (
    'adafactor',
    {'decay_rate': 0.7, 'min_dim': 1, 'scale_parameter': True},
    'Adafactor',
    {'beta2_decay': -0.7, 'd': 1.0},
  ),
}


def ours(name, fields, gradients, start, rate):
  """{name: parameters} after each step, by the whole chain."""
  module = lookup.component('optim', name, field='optim.name')
  plain = {'learning_rate': rate, 'schedule': 'constant', 'warmup': 0.0, 'clip_norm': 0.0}
  tx = chain.build(
    module, settings.read(chain.config_of(module), {**plain, **fields}, where='optim'), INFO, steps=100
  ).tx
  params = trees.unflatten({n: jnp.asarray(x, jnp.float32) for n, x in start.items()})
  state, update, out = tx.init(params), jax.jit(tx.update), []
  for g in gradients:
    tree = trees.unflatten({n: jnp.asarray(x, jnp.float32) for n, x in g.items()})
    updates, state = update(tree, state, params)
    params = jax.tree.map(jnp.add, params, updates)
    out.append(trees.flatten(params))
  return out


def theirs(name, arguments, gradients, start, rate):
  """The same, in PyTorch and float64."""
  import torch

  torch.set_num_threads(1)
  params = {n: torch.nn.Parameter(torch.tensor(x, dtype=torch.float64)) for n, x in start.items()}
  optimizer, out = getattr(torch.optim, name)(list(params.values()), lr=rate, **arguments), []
  for g in gradients:
    for n, p in params.items():
      p.grad = torch.tensor(g[n], dtype=torch.float64)
    optimizer.step()
    out.append({n: p.detach().numpy().copy() for n, p in params.items()})
  return out


@pytest.mark.parametrize('case', CASES)
def test_steps_are_those_of_pytorch(case):
  name, fields, their_name, arguments = CASES[case]
  rng = np.random.default_rng(0)
  # growing, so that Adafactor's updates are clipped
  start, *gradients = ({n: (1 + t) * rng.normal(size=i.shape) for n, i in INFO.items()} for t in range(STEPS + 1))
  got, wanted = (
    ours(name, fields, gradients, start, 0.05),
    theirs(their_name, arguments, gradients, start, 0.05),
  )
  for step in range(STEPS):
    for n in INFO:
      assert_allclose(got[step][n], wanted[step][n], rtol=0, atol=5e-6, err_msg=f'{n}, step {step}')
  assert all(np.abs(wanted[-1][n] - start[n]).max() > 1e-3 for n in INFO)
