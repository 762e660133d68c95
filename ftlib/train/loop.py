"""The training loop: one page, one order.

Step; look at the step before (its loss is fetched while the next one runs: `watch.py`); evaluate; lower the rate; save;
obey signals. Whatever a resumed run needs is in the checkpoint: the state, and `Progress`.
"""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import jax
import numpy as np

from ftlib.base.errors import Diverged, Stopped
from ftlib.base.types import Batch, Params
from ftlib.train.compiled import Compiled
from ftlib.train.state import TrainState, storable
from ftlib.train.watch import Watch


@dataclasses.dataclass(frozen=True)
class Plan:
  """When what happens, in steps. `metric` on `split` is what "best" means.

  `max_nonfinite` steps in a row without an update end the run. After each `plateau_patience` evaluations in a row
  without a gain the state's `rate_scale` is multiplied by `plateau_factor` (1: never), down to `plateau_min`.
  `eval_start` evaluates before the first step too; that is never "best".
  """

  steps: int
  eval_every: int
  save_every: int
  log_every: int
  patience: int | None
  min_delta: float
  metric: str
  higher_is_better: bool
  split: str = 'validation'
  max_nonfinite: int = 3
  plateau_factor: float = 1.0
  plateau_patience: int = 1
  plateau_min: float = 0.0
  eval_start: bool = False


@dataclasses.dataclass
class Progress:
  """What the loop remembers besides the state; JSON in a checkpoint's meta."""

  best: float | None = None
  best_step: int | None = None
  evaluations_without_gain: int = 0
  tokens: int = 0  # counted, padding left out
  seconds: float = 0.0  # in training steps, without compiling, evaluating and saving
  mean_from: int | None = None  # the first update in the equal mean of the parameters
  window: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # of the steps that the next row is a mean of

  def out_of_patience(self, plan: Plan) -> bool:
    return plan.patience is not None and self.evaluations_without_gain >= plan.patience


@dataclasses.dataclass(frozen=True)
class Hooks:
  """What the loop calls: `evaluate(own, frozen, split, step) -> metrics`, `split` as it is logged and `step` the last
  one done; `rates(step, rate_scale) -> {group: learning rate}`; `name_rows(row numbers)`.

  `variants(state) -> {split as it is logged: parameters}` says what is evaluated side by side. `before(state)` is
  called before each step that is evaluated after, and `measure(state, frozen) -> metrics` after it. `norms(squares)`
  and `groups(table)` name what the step gives of `diagnostics`; `bundle(step, record)` keeps the record of steps that
  were not finite and says where.
  """

  evaluate: Callable[[Params, Params, str, int], dict[str, Any]]
  rates: Callable[[int, float], dict[str, float]]
  name_rows: Callable[[np.ndarray], list[str]]
  variants: Callable[[TrainState], dict[str, Params]] = lambda state: {'validation': state.own}
  before: Callable[[TrainState], None] = lambda state: None
  measure: Callable[[TrainState, Params], dict[str, float]] = lambda state, frozen: {}
  norms: Callable[[np.ndarray], dict[str, Any]] = lambda squares: {}
  groups: Callable[[np.ndarray], dict[str, float]] = lambda table: {}
  bundle: Callable[[int, dict[str, Any]], str] = lambda step, record: ''


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
  each a mean over the `log_every` steps up to it, wherever the run was resumed. A step whose loss or gradient is not
  finite made no update and is warned of; raises `Diverged` after `plan.max_nonfinite` of them in a row, naming the step
  and its rows, and where parameters or an evaluation are not finite; checkpoints from before are kept. Raises `Stopped`
  after a signal, once the state is saved.
  """
  done = int(state.step)
  watch = Watch(plan, progress, hooks, log, step)
  if plan.plateau_factor < 1:
    watch.rate_scale = float(state.rate_scale)
  if plan.eval_start and not done:
    _log(log, 0, start := {'validation': hooks.evaluate(state.own, frozen, 'validation', 0)})
    log.say(f'step 0  validation {plan.metric} {start["validation"][plan.metric]:.4f}  (before training)')
  with Signals() as signals:
    while done < plan.steps and not progress.out_of_patience(plan):
      rows, batch, tokens = next(batches)
      last = done + 1 == plan.steps
      evaluates = last or (done + 1) % plan.eval_every == 0
      if evaluates:
        hooks.before(state)
      watch.begin(batch)
      state, sums = step(state, frozen, batch)
      done += 1
      caught = signals.caught  # read once: one that comes later is obeyed after the next step
      saves = last or done % plan.save_every == 0 or bool(caught)
      watch.end(done, rows, sums, tokens, settle=evaluates or saves)
      saves = saves and (last or bool(caught) or not watch.streak)  # what may be broken takes no good one's place
      if evaluates or saves:
        watch.check(done, rows, state.trainable)
      metric = None
      if evaluates:
        try:
          found = {n: hooks.evaluate(own, frozen, n, done) for n, own in hooks.variants(state).items()}
        except Diverged as e:
          raise watch.diverged(f'step {done}: {e}', rows) from None
        first = next(iter(found))
        found[first] = {**found[first], **hooks.measure(state, frozen)}
        metric = _evaluated(plan, found, progress, log, done)
        state = _reduced(plan, state, progress, watch, log, done)
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


def _evaluated(plan: Plan, found: dict[str, dict], progress: Progress, log: Any, done: int) -> float:
  """Logs the metrics of each split; gives the one that "best" goes by, of the first split where it is not yet there."""
  _log(log, done, found)
  split = plan.split if plan.split in found else next(iter(found))
  value = float(found[split][plan.metric])
  sign = 1 if plan.higher_is_better else -1
  if progress.best is None or sign * (value - progress.best) > plan.min_delta:
    progress.best, progress.best_step, progress.evaluations_without_gain = value, done, 0
  else:
    progress.evaluations_without_gain += 1
  others = ''.join(f'  {n} {m[plan.metric]:.4f}' for n, m in found.items() if n != split)
  best = f'(best {progress.best:.4f} at {progress.best_step})'
  log.say(f'step {done}  {split} {plan.metric} {value:.4f}  {best}{others}')
  return value


def _log(log: Any, done: int, found: dict[str, dict]) -> None:
  for split, metrics in found.items():
    scalars = {n: v for n, v in metrics.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    log.row(done, split, scalars)


def _reduced(plan: Plan, state: TrainState, progress: Progress, watch: Watch, log: Any, done: int) -> TrainState:
  """The state, its rates lowered where the metric has not gained for another `plateau_patience` evaluations."""
  waited = progress.evaluations_without_gain
  if plan.plateau_factor == 1 or not waited or waited % plan.plateau_patience:
    return state
  scale = max(watch.rate_scale * plan.plateau_factor, plan.plateau_min)
  scale = float(np.float32(scale))  # as a resumed run reads it
  if scale < watch.rate_scale:
    log.say(f'step {done}: {waited} evaluations without a gain; learning rates are {scale:.3g} of the schedule')
  watch.rate_scale = scale
  return dataclasses.replace(state, rate_scale=jax.device_put(np.float32(scale), state.rate_scale.sharding))


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
