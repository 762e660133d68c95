"""Averages under methods that move their parameters after each update: what is evaluated is a model of the method."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from ftlib import run
from ftlib.base import trees
from ftlib.base.types import Head
from ftlib.models import bert
from ftlib.peft.method import Method
from tests import tiny

AVERAGES = {'train__ema': 0.9, 'train__swa_start': 0.25, 'optim__learning_rate': 0.1}
BUDGET = {'init_rank': 4, 'target_rank': 2, 'tfinal': 250, 'interval': 1, 'target': 'attn/q$'}


def trained(config, method: str, **values) -> dict[str, dict[str, np.ndarray]]:
  """{'raw', 'ema' and 'swa': what is evaluated} after all of its 8 steps."""
  built = run.build(config(method=method, **AVERAGES, **values))
  own, frozen = built.load()
  state = built.start(own, frozen)
  for step in range(built.steps):
    state, _ = built.train_step(state, frozen, built.batch(step)[1])
  found = {n: jax.device_get(built.evaluated(state, n)) for n in ('raw', 'ema', 'swa')}
  return {n: trees.flatten(tree) for n, tree in found.items()}


@pytest.mark.parametrize('layers', ['unroll', 'scan'])
def test_frames_are_orthonormal_in_an_average(config, layers):
  found = trained(config, 'loreft', model__layers=layers)
  for name in (n for n in found['raw'] if n.endswith('/rotation')):
    for average in ('ema', 'swa'):
      x = found[average][name]
      assert np.abs(x - found['raw'][name]).max() > 1e-3  # it is another one than the last
      np.testing.assert_allclose(x @ x.mT, np.broadcast_to(np.eye(4), (*x.shape[:-2], 4, 4)), atol=1e-5)


@pytest.mark.parametrize('method', ['adalora', 'adalora+bitfit'])
def test_what_was_taken_is_in_no_average(config, method):
  part = 'method__adalora__' if '+' in method else 'method__'
  found = trained(config, method, **{f'{part}{k}': x for k, x in BUDGET.items()})
  masks = {n: x for n, x in found['raw'].items() if n.endswith('/mask')}
  assert sum(x.sum() for x in masks.values()) == 4  # of 8
  for average in ('raw', 'ema', 'swa'):
    for name, mask in masks.items():
      np.testing.assert_array_equal(found[average][name.replace('/mask', '/e')] != 0, mask > 0, average)


def test_a_method_that_moves_its_parameters_says_what_a_mean_becomes():
  model = bert.build(bert.from_hf(tiny.CONFIG), head=Head('classify', 2))
  with pytest.raises(TypeError, match='gives `project` too'):
    Method(model, lambda name: True, [], adjust=lambda steps: lambda own, kept, grads, step: (own, kept))
