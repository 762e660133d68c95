"""Learning-rate schedules by hand and against optax, over whole arrays of steps; and what cannot be a schedule."""

from __future__ import annotations

import math

import numpy as np
import optax
import pytest

from ftlib.base import settings
from ftlib.base.errors import InputError
from ftlib.optim.schedules import NAMES, Schedule, build

AT = np.asarray([0, 1, 3, 4, 8, 10, 12, 20])
HALF = 0.5**0.5
BY_HAND = [  # peak 2, 4 steps of warmup, 12 in all, at the steps of `AT`
  ('linear', {}, (0, 0.5, 1.5, 2, 1, 0.5, 0, 0)),
  ('linear', {'final': 0.5}, (0, 0.5, 1.5, 2, 1.5, 1.25, 1, 1)),
  ('cosine', {}, (0, 0.5, 1.5, 2, 1, 1 - HALF, 0, 0)),
  ('cosine', {'final': 0.1}, (0, 0.5, 1.5, 2, 1.1, 0.2 + 0.9 * (1 - HALF), 0.2, 0.2)),
  ('constant', {}, (0, 0.5, 1.5, 2, 2, 2, 2, 2)),
  ('plateau', {}, (0, 0.5, 1.5, 2, 2, 2, 2, 2)),
  ('polynomial', {'power': 2.0}, (0, 0.5, 1.5, 2, 0.5, 0.125, 0, 0)),
  ('polynomial', {'power': 1.0}, (0, 0.5, 1.5, 2, 1, 0.5, 0, 0)),
  ('exponential', {'decay_factor': 0.25, 'decay_steps': 4}, (0, 0.5, 1.5, 2, 0.5, 0.25, 0.125, 2 / 256)),
  (
    'exponential',
    {'decay_factor': 0.25, 'decay_steps': 4, 'final': 0.5},
    (0, 0.5, 1.5, 2, 1.25, 1.125, 1.0625, 1.00390625),
  ),
  ('step', {'decay_factor': 0.5, 'decay_steps': 4}, (0, 0.5, 1.5, 2, 1, 1, 0.5, 0.125)),
  ('step', {'decay_factor': 0.5}, (0, 0.5, 1.5, 2, 1, 0.5, 0.5, 2 / 32)),  # a third of 8 steps is 3
  ('inverse_sqrt', {'timescale': 2}, (0, 0.5, 1.5, 2, 2 / 3**0.5, 1, 2 / 5**0.5, 2 / 3)),
  ('inverse_sqrt', {}, (0, 0.5, 1.5, 2, 2 / 2**0.5, 2 / 2.5**0.5, 2 / 3**0.5, 2 / 5**0.5)),  # timescale: the warmup
  ('wsd', {'decay_share': 1 / 3}, (0, 0.5, 1.5, 2, 2, 1, 0, 0)),
  ('wsd', {'decay_share': 1 / 3, 'decay_shape': '1-sqrt', 'final': 0.5}, (0, 0.5, 1.5, 2, 2, 2 - HALF, 1, 1)),
  ('cosine_restarts', {'cycles': 2}, (0, 0.5, 1.5, 2, 2, 1, 0, 0)),
  (
    'cosine_restarts',
    {'cycles': 2, 'cycle_growth': 3.0},
    (0, 0.5, 1.5, 2, 1 + math.cos(math.pi / 3), 1 - HALF * 0 - 0.5, 0, 0),
  ),
  ('slanted', {'cut_frac': 1 / 3, 'ratio': 4.0}, (0.5, 0.875, 1.625, 2, 1.25, 0.875, 0.5, 0.5)),
  ('slanted', {'cut_frac': 0.01, 'ratio': 1.0}, (2, 2, 2, 2, 2, 2, 2, 2)),
  ('one_cycle', {'cut_frac': 1 / 3, 'ratio': 4.0}, (0.5, 1.25 - 0.75 * HALF, 1.25 + 0.75 * HALF, 2, 1, 1 - HALF, 0, 0)),
  ('cyclical', {'cycles': 1, 'final': 0.5}, (1, 1 + 1 / 6, 1.5, 1 + 4 / 6, 1 + 4 / 6, 1 + 2 / 6, 1, 1)),
  ('cyclical', {'cycles': 3}, (0, 1, 1, 0, 0, 2, 0, 0)),
]


@pytest.mark.parametrize(('name', 'options', 'wanted'), BY_HAND)
def test_schedules_by_hand(name, options, wanted):
  schedule = build(Schedule(name, warmup_steps=4, **options), peak=2.0, total=12)
  np.testing.assert_allclose(schedule(AT), wanted, atol=2e-6)
  np.testing.assert_allclose([float(schedule(t)) for t in AT[3:5]], wanted[3:5], atol=2e-6)


def test_every_schedule_is_tried_and_has_a_rate_in_the_shortest_run():
  assert {name for name, _, _ in BY_HAND} == set(NAMES)
  for name in NAMES:
    if name != 'cyclical':  # which starts at `final`
      assert float(build(Schedule(name, warmup=0.0, cycles=1), peak=3.0, total=1)(0)) > 0, name
  assert not np.asarray(build(Schedule('cyclical', cycles=1), peak=3.0, total=1)(0))


def test_one_cycle_is_that_of_optax():
  ours = build(Schedule('one_cycle', cut_frac=0.3, ratio=25.0, final=1 / (25 * 1e4)), peak=0.1, total=50)
  theirs = optax.cosine_onecycle_schedule(50, 0.1)
  steps = np.arange(51)
  np.testing.assert_allclose(ours(steps), [float(theirs(t)) for t in steps], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize('name', ['one_cycle', 'slanted', 'cyclical'])
def test_what_rises_by_itself_takes_no_warmup(name):
  plain, warmed = (build(Schedule(name, warmup_steps=n, cycles=1), peak=0.1, total=8) for n in (None, 20))
  np.testing.assert_array_equal(plain(np.arange(8)), warmed(np.arange(8)))


def test_restarts_are_those_of_optax():
  """Cycles of 10, 20 and 40 steps."""
  ours = build(Schedule('cosine_restarts', warmup=0.0, cycle_growth=2.0, final=0.1), peak=0.5, total=70)
  cycles = [
    {'init_value': 0.5, 'peak_value': 0.5, 'warmup_steps': 0, 'decay_steps': n, 'end_value': 0.05} for n in (10, 20, 40)
  ]
  theirs = optax.sgdr_schedule(cycles)
  np.testing.assert_allclose(ours(np.arange(71)), [float(theirs(t)) for t in range(71)], rtol=1e-5)


@pytest.mark.parametrize(
  ('warmup', 'steps', 'total', 'count'), [(0.1, None, 100, 10), (0.06, None, 8, 0), (0.0, None, 5, 0), (0.5, 3, 100, 3)]
)
def test_warmup_is_a_share_or_a_number(warmup, steps, total, count):
  rate = np.asarray(build(Schedule('constant', warmup, steps), peak=1.0, total=total)(np.arange(total)))
  assert (rate < 1).sum() == count


@pytest.mark.parametrize(
  ('values', 'words'),
  [
    ({'warmup_steps': 10}, '10 warmup steps, but the run has 10; lower optim.warmup_steps or optim.warmup'),
    ({'warmup_steps': 11}, '11 warmup steps, but the run has 10'),
    ({'warmup': 0.96}, '10 warmup steps, but the run has 10'),
    ({'schedule': 'wsd', 'warmup': 0.3, 'decay_share': 0.8}, '3 warmup steps and 8 of decay, but the run has 10'),
    ({'schedule': 'cosine_restarts', 'cycles': 11}, 'optim.cycles=11 do not fit in 9 steps'),
    ({'schedule': 'cyclical', 'cycles': 5, 'cycle_growth': 9.0}, 'optim.cycles=5 do not fit in 10 steps'),
    ({'schedule': 'warmup_stable_decay'}, "schedule='warmup_stable_decay' is not one of linear, cosine"),
    ({'schedule': 'one_cicle'}, 'did you mean "one_cycle"?'),
    ({'decay_shape': 'sqrt'}, 'did you mean "1-sqrt"?'),
    ({'timescale': 0}, 'optim.timescale=0 is out of range'),
  ],
)
def test_what_cannot_be(values, words):
  with pytest.raises(InputError) as e:
    build(settings.read(Schedule, values, where='optim'), peak=1.0, total=10)
  assert words in str(e.value)


def test_a_schedule_that_no_choice_guards_is_named():
  """A file may redefine the field without its choices."""
  with pytest.raises(InputError, match=r'no schedule; did you mean "cosine"'):
    build(Schedule('cosin'), peak=1.0, total=10)
