"""The loop: few compiles, and how it ends: at the last step, out of patience, diverged, by a signal."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import pytest

from ftlib import run
from ftlib.base import trees
from ftlib.base.errors import Diverged, Stopped
from ftlib.train import loop
from tests.contract import runs

PLAN = loop.Plan(
  steps=12, eval_every=4, save_every=100, log_every=3, patience=None, min_delta=0.0, metric='f1', higher_is_better=True
)


@pytest.fixture(scope='module')
def head(tiny_bert, uneven_data):
  """A run that trains the head alone, on rows of three lengths."""
  return run.build(runs.config(tiny_bert, uneven_data, method='head', train__buckets=3, train__steps=24))


class Saved:
  """Stands for `Checkpoints` and `Log`: keeps what it is given."""

  def __init__(self) -> None:
    self.states: dict[int, tuple[str, dict, float | None]] = {}
    self.waited = False
    self.rows: list[tuple[int, str, dict]] = []
    self.said: list[str] = []

  def save(self, step: int, state: Any, meta: dict, *, metric: float | None = None) -> None:
    self.states[step] = trees.digest(state.trainable), meta, metric
    self.waited = False

  def wait(self) -> None:
    self.waited = True

  def row(self, step: int, split: str, values: dict) -> None:
    self.rows.append((step, split, values))

  def progress(self, step: int, **values: Any) -> None:
    assert values['loss'] is None or np.isfinite(values['loss'])

  def say(self, text: str) -> None:
    self.said.append(text)


def steady() -> Iterator[float]:
  value = 0.0
  while True:
    value += 1.0
    yield value


def fit(
  r: run.Run,
  *,
  metrics: Iterator[float] | None = None,
  batch: Callable[[int, Any], Any] = lambda i, batch: batch,
  evaluating: Callable[[], None] = lambda: None,
  **plan: Any,
):
  """(state, saved, progress) of `loop.fit`; a failure is raised with `saved` as its attribute."""
  metrics, saved, progress = metrics or steady(), Saved(), loop.Progress()
  plan = dataclasses.replace(PLAN, **plan)

  def evaluate(trainable, frozen, split, step):
    evaluating()
    return {'f1': next(metrics), 'per_class': {}}

  def stream():
    for i in range(plan.steps):
      rows, made, tokens = r.batch(i)
      yield rows, batch(i, made), tokens

  trainable, frozen = r.load()
  hooks = loop.Hooks(evaluate, lambda i, scale: {'default': 0.1}, lambda rows: [f'train.jsonl:{n + 1}' for n in rows])
  try:
    state = loop.fit(
      plan,
      r.start(trainable, frozen),
      frozen,
      progress,
      step=r.train_step,
      batches=stream(),
      hooks=hooks,
      log=saved,
      checkpoints=saved,
    )
  except Exception as e:
    e.saved = saved
    raise
  return state, saved, progress


def test_two_epochs_take_one_compile_a_bucket(head):
  steps = 2 * head.order.steps_per_epoch
  lengths = {head.batch(i)[1]['tokens'].shape for i in range(steps)}
  assert len(lengths) > 1
  state, saved, progress = fit(head, steps=steps)
  assert int(state.step) == steps
  assert set(head.train_step.shapes) == lengths
  assert len(head.train_step.shapes) <= 3
  again = list(head.train_step.shapes)
  fit(head, steps=steps)
  assert head.train_step.shapes == again
  assert len([s for s in saved.said if 'compiled for' in s]) == len(lengths) - 1  # all but the first are told
  assert progress.tokens == 2 * int(head.examples['train'].tokens.lengths.sum())


def test_what_is_logged_and_saved(head):
  _, saved, progress = fit(head, steps=11, save_every=5)
  assert [s for s, split, _ in saved.rows if split == 'train'] == [3, 6, 9, 11]
  assert [s for s, split, _ in saved.rows if split == 'validation'] == [4, 8, 11]
  assert list(saved.states) == [4, 5, 8, 10, 11]  # each better evaluation, each fifth step, the last
  assert {s: m for s, (_, _, m) in saved.states.items()} == {4: 1.0, 5: None, 8: 2.0, 10: None, 11: 3.0}
  assert len({d for d, _, _ in saved.states.values()}) == 5
  assert saved.states[8][1]['best_step'] == 8
  assert (progress.best, progress.best_step) == (3.0, 11)
  assert saved.waited


@pytest.mark.parametrize(
  ('metrics', 'options', 'end', 'best'),
  [
    ((0.5, 0.6, 0.6, 0.55, 0.9), {}, 8, (0.6, 4)),
    ((0.5, 0.6, 0.6, 0.61, 0.61, 0.6), {}, 12, (0.61, 8)),
    ((0.5, 0.6, 0.65, 0.65, 0.9), {'min_delta': 0.1 - 1e-9}, 8, (0.6, 4)),
    ((0.5, 0.4, 0.45, 0.41, 0.1), {'higher_is_better': False}, 8, (0.4, 4)),
    ((0.5, 0.6, 0.7, 0.8, 0.9, 1.0), {}, 12, (1.0, 12)),
  ],
)
def test_early_stopping(head, metrics, options, end, best):
  """Ends after two evaluations in a row without a gain."""
  state, saved, progress = fit(head, metrics=iter(metrics), eval_every=2, patience=2, **options)
  assert int(state.step) == end
  assert (progress.best, progress.best_step) == best
  assert max(saved.states) == end  # the last state is saved, so that a resumed run knows it is over
  assert best[1] in saved.states
  assert saved.waited


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_a_loss_that_is_not_finite_ends_the_run(head, value):
  """At step 6, whose sums are looked at one step late, where one is the most; nothing of it is saved."""
  poison = lambda i, b: {**b, 'weights': b['weights'].at[3].set(value)} if i == 5 else b  # noqa: E731
  with pytest.raises(Diverged) as e:
    fit(head, batch=poison, eval_every=4, save_every=2, max_nonfinite=1)
  text = str(e.value)
  assert e.value.exit_code == 3
  assert text.startswith('step 6:')
  rows = head.batch(5)[0]
  assert all(f'train.jsonl:{r + 1}\n' in text for r in rows)
  assert text.count('train.jsonl:') == len(rows)
  assert list(e.value.saved.states) == [2, 4]


@pytest.mark.filterwarnings('ignore:overflow encountered')
def test_a_parameter_that_is_not_finite_is_never_saved(tiny_bert, uneven_data):
  """The loss of the step before is fine: only the update overflows."""
  r = run.build(runs.config(tiny_bert, uneven_data, method='head', train__buckets=1, optim__learning_rate=1e39))
  with pytest.raises(Diverged, match='step 1'):
    fit(r, eval_every=100, save_every=1)


@pytest.mark.parametrize(('number', 'code'), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_run_after_saving(head, number, code):
  """It comes while the batch of step 6 is made: that step is taken and saved."""
  before = signal.getsignal(number)
  kill = lambda i, b: (os.kill(os.getpid(), number) if i == 5 else None, b)[1]  # noqa: E731
  with pytest.raises(Stopped, match='saved at step 6') as e:
    fit(head, batch=kill)
  assert e.value.exit_code == code
  assert list(e.value.saved.states) == [4, 6]
  assert e.value.saved.waited
  assert signal.getsignal(number) is before


@pytest.mark.parametrize('better', [True, False])
def test_a_signal_during_evaluation_is_obeyed_after_saving(head, better):
  """At step 8, whether or not that step would have been saved anyway."""
  calls = iter(range(100))
  kill = lambda: os.kill(os.getpid(), signal.SIGTERM) if next(calls) == 1 else None  # noqa: E731
  with pytest.raises(Stopped, match='saved at step 8') as e:
    fit(head, metrics=iter((0.5, 0.6 if better else 0.4)), evaluating=kill)
  assert list(e.value.saved.states) == [4, 8]
  assert e.value.saved.waited


def test_a_signal_at_the_last_step_changes_nothing(head):
  kill = lambda i, b: (os.kill(os.getpid(), signal.SIGTERM) if i == 11 else None, b)[1]  # noqa: E731
  state, saved, _ = fit(head, batch=kill)
  assert int(state.step) == 12
  assert 12 in saved.states
  jax.block_until_ready(state.trainable)


def test_an_evaluation_before_the_first_step_is_logged_and_never_the_best(head):
  _, saved, progress = fit(head, metrics=iter((9.0, 0.1, 0.3, 0.2)), eval_start=True)
  assert [(step, values['f1']) for step, split, values in saved.rows if split == 'validation'] == [
    (0, 9.0),
    (4, 0.1),
    (8, 0.3),
    (12, 0.2),
  ]
  assert (progress.best, progress.best_step) == (0.3, 8)
  assert 0 not in saved.states
