"""The training loop: one page, one order.

Step; look at the step before (its loss is fetched while the next one runs); evaluate; save; obey signals. Whatever a
resumed run needs is in the checkpoint: the state, and `Progress`.
"""

from __future__ import annotations

import dataclasses
import math
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftlib.base.errors import Diverged, Stopped
from ftlib.base.types import Batch, Params
from ftlib.train.compiled import Compiled
from ftlib.train.state import TrainState, storable


@dataclasses.dataclass(frozen=True)
class Plan:
  """When what happens, in steps. `metric` is what "best" means."""

  steps: int
  eval_every: int
  save_every: int
  log_every: int
  patience: int | None
  min_delta: float
  metric: str
  higher_is_better: bool


@dataclasses.dataclass
class Progress:
  """What the loop remembers besides the state; JSON in a checkpoint's meta."""

  best: float | None = None
  best_step: int | None = None
  evaluations_without_gain: int = 0
  tokens: int = 0  # counted, padding left out
  seconds: float = 0.0  # in training steps, without compiling, evaluating and saving
  window: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # of the steps that the next row is a mean of

  def out_of_patience(self, plan: Plan) -> bool:
    return plan.patience is not None and self.evaluations_without_gain >= plan.patience


@dataclasses.dataclass(frozen=True)
class Hooks:
  """What the loop calls: `evaluate(own, frozen) -> metrics`; `learning_rate(step)`; `name_rows(row numbers)`."""

  evaluate: Callable[[Params, Params], dict[str, Any]]
  learning_rate: Callable[[int], float]
  name_rows: Callable[[np.ndarray], list[str]]


def fit(
  plan: Plan,
  state: TrainState,
  frozen: Params,
  progress: Progress,
  *,
  step: Compiled,
  batches: Iterator[tuple[np.ndarray, Batch, int]],
  hooks: Hooks,
  log: Any,
  checkpoints: Any,
) -> TrainState:
  """Trains from `state.step` to `plan.steps`, or until patience ends; gives the last state, saved.

  `batches` gives (row numbers, batch, counted tokens). The log gets a row each `log_every` steps and at the last one,
  each a mean over the `log_every` steps up to it, wherever the run was resumed. Raises `Diverged` on a loss or gradient
  that is not finite, naming the step and its rows, with the last good checkpoint kept; `Stopped` after a signal, once
  the state is saved.
  """
  done = int(state.step)
  watch = _Watch(plan, progress, hooks, log, step)
  with Signals() as signals:
    while done < plan.steps and not progress.out_of_patience(plan):
      rows, batch, tokens = next(batches)
      watch.begin(batch)
      state, sums = step(state, frozen, batch)
      done += 1
      last = done == plan.steps
      evaluates = last or done % plan.eval_every == 0
      caught = signals.caught  # read once: one that comes later is obeyed after the next step
      saves = last or done % plan.save_every == 0 or bool(caught)
      watch.end(done, rows, sums, tokens, settle=evaluates or saves)
      if evaluates or saves:
        watch.check(done, rows, state.trainable)
      metric = None
      if evaluates:
        try:
          metrics = hooks.evaluate(state.own, frozen)
        except Diverged as e:
          raise watch.diverged(f'step {done}: {e}', rows) from None
        metric = _evaluated(plan, metrics, progress, log, done)
        caught = signals.caught
        saves = saves or bool(caught) or progress.best_step == done or progress.out_of_patience(plan)
      if saves:
        checkpoints.save(done, storable(state), dataclasses.asdict(progress), metric=metric)
      if caught and not last:
        checkpoints.wait()
        name = signal.Signals(caught).name
        raise Stopped(f'{name}: saved at step {done}; the same command goes on from there', signum=caught)
  checkpoints.wait()
  return state


def _evaluated(plan: Plan, metrics: dict[str, Any], progress: Progress, log: Any, done: int) -> float:
  scalars = {n: v for n, v in metrics.items() if isinstance(v, int | float) and not isinstance(v, bool)}
  log.row(done, 'validation', scalars)
  value = float(metrics[plan.metric])
  sign = 1 if plan.higher_is_better else -1
  if progress.best is None or sign * (value - progress.best) > plan.min_delta:
    progress.best, progress.best_step, progress.evaluations_without_gain = value, done, 0
  else:
    progress.evaluations_without_gain += 1
  log.say(f'step {done}  validation {plan.metric} {value:.4f}  (best {progress.best:.4f} at {progress.best_step})')
  return value


def _mean(pairs: list[list[float]]) -> float:
  """Of (sum, weight) pairs."""
  return sum(total for total, _ in pairs) / max(sum(weight for _, weight in pairs), 1e-30)


@jax.jit
def _finite(tree: Params) -> Any:
  return jax.tree.map(lambda x: jnp.isfinite(x).all(), tree)


class _Watch:
  """Looks at each step's sums one step late: finite? how fast? a line of the log each `log_every` steps."""

  def __init__(self, plan: Plan, progress: Progress, hooks: Hooks, log: Any, step: Compiled):
    self._plan, self._progress, self._hooks, self._log, self._step = plan, progress, hooks, log, step
    self._waiting: list[tuple[int, np.ndarray, dict, int]] = []  # steps whose sums were not looked at yet
    self._began = self._compiled = 0.0
    self._steps, self._seconds = 0, 0.0  # of this process
    self._shapes = 0

  def begin(self, batch: Batch) -> None:
    """Before a step. One that compiles waits for the step before, whose time would else hide behind the compiling."""
    if batch['tokens'].shape not in self._step.shapes:
      self._settle()
    if not self._began:
      self._began, self._compiled = time.perf_counter(), self._step.seconds

  def end(self, done: int, rows: np.ndarray, sums: dict, tokens: int, *, settle: bool) -> None:
    """Takes in a step. `settle` waits for it, so that nothing is evaluated or saved before it is known to be finite."""
    self._warn_of_shapes(done)
    if not settle:
      self._look()
    self._waiting.append((done, rows, sums, tokens))
    if settle:
      self._settle()

  def _settle(self) -> None:
    self._look()
    self._began = 0.0

  def _look(self) -> None:
    """At the steps that wait, which have an equal share of the time since the last look."""
    waiting, self._waiting = self._waiting, []
    found = jax.device_get([sums for _, _, sums, _ in waiting])
    now, compiled = time.perf_counter(), self._step.seconds
    elapsed = now - self._began - (compiled - self._compiled)
    if waiting:
      self._began, self._compiled = now, compiled
    for (done, rows, _, tokens), sums in zip(waiting, found, strict=True):
      self._take(done, rows, sums, tokens, elapsed / len(waiting))

  def _take(self, done: int, rows: np.ndarray, sums: dict, tokens: int, seconds: float) -> None:
    norm = float(sums.pop('grad_norm'))
    sums = {name: [float(total), float(weight)] for name, (total, weight) in sums.items()}
    loss = _mean([sums['loss']])
    if not (math.isfinite(loss) and math.isfinite(norm)):
      raise self.diverged(f'step {done}: loss {loss}, gradient norm {norm}', rows)
    self._progress.tokens += tokens
    self._progress.seconds += seconds
    self._steps, self._seconds = self._steps + 1, self._seconds + seconds
    window = self._progress.window
    window.append({'sums': sums, 'tokens': tokens, 'seconds': seconds})
    del window[: -self._plan.log_every]
    rate = self._hooks.learning_rate(done - 1)
    speed = sum(step['tokens'] for step in window) / max(sum(step['seconds'] for step in window), 1e-9)
    if done % self._plan.log_every == 0 or done == self._plan.steps:
      means = {name: _mean([step['sums'][name] for step in window]) for name in sums}
      self._log.row(done, 'train', {**means, 'learning_rate': rate, 'grad_norm': norm, 'tokens_per_second': speed})
    left = self._seconds / self._steps * (self._plan.steps - done)
    self._log.progress(done, loss=loss, learning_rate=rate, tokens_per_second=speed, seconds_left=left)

  def check(self, done: int, rows: np.ndarray, trainable: Params) -> None:
    """Raises `Diverged` where a parameter is not finite: an update can overflow though loss and gradient did not."""
    if not all(jax.tree.leaves(jax.device_get(_finite(trainable)))):
      raise self.diverged(f'step {done}: the update left parameters that are NaN or infinite', rows)

  def diverged(self, what: str, rows: np.ndarray) -> Diverged:
    """The error that names the rows of a step."""
    return Diverged(
      f'{what}; nothing of this step was saved. Its rows:\n  '
      + '\n  '.join(self._hooks.name_rows(rows))
      + '\n  lower optim.learning_rate, set optim.clip_norm, or look at these rows'
    )

  def _warn_of_shapes(self, done: int) -> None:
    shapes = self._step.shapes
    if len(shapes) > self._shapes and done > 1:
      self._log.say(f'step {done}: compiled for rows of {shapes[-1][-1]} tokens ({self._step.seconds:.1f} s so far)')
    self._shapes = len(shapes)


class Signals:
  """While open, SIGTERM and SIGINT are remembered in `caught` instead of ending the process; a second one ends it."""

  def __init__(self) -> None:
    self.caught = 0
    self._before: dict[int, Any] = {}

  def __enter__(self) -> Signals:
    for number in (signal.SIGTERM, signal.SIGINT):
      self._before[number] = signal.signal(number, self._catch)
    return self

  def __exit__(self, *exc: object) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _catch(self, number: int, frame: FrameType | None) -> None:
    if self.caught:
      signal.signal(number, signal.SIG_DFL)
      signal.raise_signal(number)
    self.caught = number
