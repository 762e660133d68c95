"""What was found at the best and at the last step is not computed again when training has ended."""

from __future__ import annotations

import types

import numpy as np
import pytest

from ftlib import watched
from ftlib.train import loop


def made(weights: str):
  """(the evaluations of a run whose parameters are a number, the numbers it has computed, the loop's progress)."""
  computed, progress = [], loop.Progress()

  def evaluate(own, frozen, split):
    assert split == 'validation'
    computed.append(own)
    return {'f1': own / 10}, {'prediction': np.array([own])}

  settings = types.SimpleNamespace(checkpoint=types.SimpleNamespace(weights=weights))
  return watched.Evaluations(types.SimpleNamespace(evaluate=evaluate, settings=settings), progress), computed, progress


@pytest.mark.parametrize(('asked', 'again'), [(8, False), (16, True), (24, False)])
@pytest.mark.parametrize('weights', ['raw', 'ema'])
def test_the_best_and_the_last_are_kept(weights, asked, again):
  evaluations, computed, progress = made(weights)
  for step, raw in ((8, 5), (16, 3), (24, 4)):
    assert evaluations(raw, {}, 'validation', step) == {'f1': raw / 10}
    assert evaluations(raw + 100, {}, 'validation_ema', step) == {'f1': raw / 10 + 10}
    progress.best_step = 8
  before, own = len(computed), {8: 5, 16: 3, 24: 4}[asked] + (100 if weights == 'ema' else 0)
  metrics, predictions = evaluations.of(own, {}, asked)
  assert (metrics, predictions['prediction'].tolist()) == ({'f1': own / 10}, [own])
  assert computed[before:] == ([own] if again else [])


def test_a_run_that_had_ended_before_is_evaluated():
  evaluations, computed, _ = made('raw')
  assert evaluations.of(7, {}, 24)[0] == {'f1': 0.7}
  assert computed == [7]
