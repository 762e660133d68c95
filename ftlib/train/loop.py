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

  `batches` gives (row numbers, batch, counted tokens). Raises `Diverged` on a loss or gradient that is not finite,
  naming the step and its rows, with the last good checkpoint kept; `Stopped` after a signal, once the state is saved.
  """
  done = int(state.step)
  watch = _Watch(plan, hooks, log, step)
  with Signals() as signals:
    while done < plan.steps and not progress.out_of_patience(plan):
      rows, batch, tokens = next(batches)
      watch.begin()
      state, sums = step(state, frozen, batch)
      done += 1
      last = done == plan.steps
      evaluates = last or done % plan.eval_every == 0
      caught = signals.caught  # read once: one that comes later is obeyed after the next step
      saves = last or done % plan.save_every == 0 or bool(caught)
      watch.end(done, rows, sums, tokens, progress, settle=evaluates or saves)
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


@jax.jit
def _finite(tree: Params) -> Any:
  return jax.tree.map(lambda x: jnp.isfinite(x).all(), tree)


class _Watch:
  """Looks at each step's sums one step late: finite? how fast? a line of the log each `log_every` steps."""

  def __init__(self, plan: Plan, hooks: Hooks, log: Any, step: Compiled):
    self._plan, self._hooks, self._log, self._step = plan, hooks, log, step
    self._pending: tuple[int, np.ndarray, dict] | None = None
    self._began = self._compiled = 0.0
    self._sums: dict[str, np.ndarray] = {}
    self._tokens, self._seconds = 0, 0.0
    self._shapes = 0

  def begin(self) -> None:
    if not self._began:
      self._began, self._compiled = time.perf_counter(), self._step.seconds

  def end(self, done: int, rows: np.ndarray, sums: dict, tokens: int, progress: Progress, *, settle: bool) -> None:
    """Takes in a step. `settle` waits for it, so that nothing is evaluated or saved before it is known to be finite."""
    self._warn_of_shapes(done)
    if self._pending is not None:
      self._look(*self._pending)
    self._pending = (done, rows, sums)
    if settle:
      self._look(*self._pending)
      self._pending = None
    now = time.perf_counter()
    seconds = now - self._began - (self._step.seconds - self._compiled)
    self._began, self._compiled = (0.0 if settle else now), self._step.seconds
    self._tokens += tokens
    self._seconds += seconds
    progress.tokens += tokens
    progress.seconds += seconds

  def _look(self, done: int, rows: np.ndarray, sums: dict) -> None:
    sums = jax.device_get(sums)
    norm = float(sums.pop('grad_norm'))
    total, weight = sums['loss']
    loss = float(total) / max(float(weight), 1e-30)
    if not (math.isfinite(loss) and math.isfinite(norm)):
      raise self.diverged(f'step {done}: loss {loss}, gradient norm {norm}', rows)
    for name, pair in sums.items():
      self._sums[name] = self._sums.get(name, 0) + np.asarray(pair, np.float64)
    rate = self._hooks.learning_rate(done - 1)
    speed = self._tokens / self._seconds if self._seconds else None
    if done % self._plan.log_every == 0 or done == self._plan.steps:
      means = {n: float(s / max(w, 1e-30)) for n, (s, w) in self._sums.items()}
      self._log.row(done, 'train', {**means, 'learning_rate': rate, 'grad_norm': norm, 'tokens_per_second': speed})
      self._sums, self._tokens, self._seconds = {}, 0, 0.0
    self._log.progress(done, loss=loss, learning_rate=rate, tokens_per_second=speed)

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
