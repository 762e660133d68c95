"""Every training row of the log is a mean over the same number of steps, also the last and the first after a resume."""

import copy
import dataclasses
import types

import numpy as np
import pytest

from ftlib.train import loop, watch

WEIGHTS = [1.0, 3.0, 2.0, 1.0, 5.0, 1.0, 2.0, 1.0, 4.0, 1.0, 1.0, 7.0]
LOSSES = [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.25, 0.125]
PLAN = loop.Plan(
  steps=11, eval_every=4, save_every=4, log_every=3, patience=None, min_delta=0.0, metric='f1', higher_is_better=True
)


class Clock:
  """Stands for `time`: passes when something is waited for, and at no other time."""

  def __init__(self):
    self.now = 1.0

  def perf_counter(self):
    return self.now

  def wait(self, until):
    self.now = max(self.now, until)


class Later:
  """A number that is there at a time, and is waited for."""

  def __init__(self, value, clock, ready):
    self.value, self.clock, self.ready = value, clock, ready

  def __array__(self, dtype=None, copy=None):
    self.clock.wait(self.ready)
    return np.asarray(self.value, np.float32)


class Step:
  """Stands for a compiled step: takes 10 ms, at once or (`queued`) behind the caller's back; compiling takes 100."""

  def __init__(self, clock, queued):
    self.seconds, self.shapes, self.clock, self.queued, self.free = 0.0, [], clock, queued, 0.0

  def __call__(self, state, frozen, batch):
    if batch['tokens'].shape not in self.shapes:
      self.clock.wait(self.clock.now + 0.1)
      self.seconds += 0.1
      self.shapes.append(batch['tokens'].shape)
    self.free = max(self.free, self.clock.now) + 0.01
    if not self.queued:
      self.clock.wait(self.free)
    i = int(state.step)
    later = lambda value: Later(value, self.clock, self.free)  # noqa: E731
    sums = {
      'loss': (later(LOSSES[i] * WEIGHTS[i]), later(WEIGHTS[i])),
      'grad_norm': later(1.0),
      'skipped': 0,
      'streak': 0,
    }
    return types.SimpleNamespace(step=np.int32(i + 1), trainable={'w': np.zeros(2)}, own={}), sums


class Saved:
  """Stands for `Checkpoints` and `Log`."""

  def __init__(self):
    self.rows, self.shown, self.meta = {}, [], {}

  def save(self, step, state, meta, *, metric=None):
    self.meta[step] = meta

  def wait(self):
    pass

  say = print

  def row(self, step, split, values):
    if split == 'train':
      self.rows[step] = values

  def progress(self, step, **values):
    self.shown.append((step, values))


@pytest.fixture
def fit(monkeypatch):
  monkeypatch.setattr(loop, 'storable', lambda state: state)

  def call(plan, *, start=0, progress=None, length=lambda i: 8, queued=True):
    saved, clock = Saved(), Clock()
    monkeypatch.setattr(watch, 'time', clock)
    hooks = loop.Hooks(
      lambda *_: clock.wait(clock.now + 0.05) or {'f1': 0.5}, lambda i, scale: {'default': 0.1}, lambda rows: []
    )
    batches = ((np.arange(2), {'tokens': np.zeros((2, length(i)))}, 100) for i in range(start, plan.steps))
    state = types.SimpleNamespace(step=np.int32(start))
    loop.fit(
      plan,
      state,
      {},
      copy.deepcopy(progress) or loop.Progress(),
      step=Step(clock, queued),
      batches=batches,
      hooks=hooks,
      log=saved,
      checkpoints=saved,
    )
    return saved

  return call


def mean(first, last):
  """Of the losses of steps `first` to `last`, by weight."""
  of = slice(first - 1, last)
  return np.average(LOSSES[of], weights=WEIGHTS[of])


def test_the_last_row_is_a_mean_over_a_whole_window(fit):
  saved = fit(PLAN)
  assert list(saved.rows) == [3, 6, 9, 11]
  wanted = [mean(1, 3), mean(4, 6), mean(7, 9), mean(9, 11)]
  np.testing.assert_allclose([r['loss'] for r in saved.rows.values()], wanted)
  (only,) = fit(dataclasses.replace(PLAN, steps=2)).rows.values()
  np.testing.assert_allclose(only['loss'], mean(1, 2))


def test_a_row_after_a_resume_is_that_of_the_run_never_stopped(fit):
  whole = fit(PLAN)
  for start in (4, 8):
    again = fit(PLAN, start=start, progress=loop.Progress(**whole.meta[start]))
    assert {s: r['loss'] for s, r in again.rows.items()} == {s: whole.rows[s]['loss'] for s in again.rows}
    assert list(again.rows) == [s for s in whole.rows if s > start]


def test_more_steps_and_other_windows_go_on_from_what_there_is(fit):
  end = fit(PLAN).meta[11]
  more = dataclasses.replace(PLAN, steps=12)
  np.testing.assert_allclose(fit(more, start=11, progress=loop.Progress(**end)).rows[12]['loss'], mean(10, 12))
  short = dataclasses.replace(more, log_every=2)
  np.testing.assert_allclose(fit(short, start=11, progress=loop.Progress(**end)).rows[12]['loss'], mean(11, 12))
  del end['window']  # as a checkpoint of an earlier ftlib
  assert fit(more, start=11, progress=loop.Progress(**end)).rows[12]['loss'] == LOSSES[11]


@pytest.mark.parametrize('queued', [True, False])
@pytest.mark.parametrize('log_every', [1, 3])
def test_speed_and_time_left_are_of_steps_alone(fit, queued, log_every):
  """From the first step shown on: neither compiling (also of later lengths) nor evaluating counts. A step that is
  computed at once and not queued shares its time with the one before, of which it may have taken all."""
  for eval_every in (2, 11):
    plan = dataclasses.replace(PLAN, eval_every=eval_every, log_every=log_every)
    saved = fit(plan, length=lambda i: 8 * (1 + i // 2), queued=queued)
    assert [step for step, _ in saved.shown] == list(range(1, 12))
    for step, values in saved.shown:
      seconds = 100 / values['tokens_per_second'], values['seconds_left'] / max(11 - step, 1)
      if queued:
        assert seconds == pytest.approx((0.01, 0.01 * (step < 11))), step
      else:
        assert 0.0049 < min(seconds[: 1 + (step < 11)]) <= max(seconds) < 0.021, step
    assert all(0.0049 < 100 / row['tokens_per_second'] < 0.021 for row in saved.rows.values())
