"""Looks at each step's sums one step late: was it finite? how fast? a line of the log each `log_every` steps."""

from __future__ import annotations

import collections
import time
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from ftlib.base.errors import Diverged
from ftlib.base.types import Batch, Params
from ftlib.train.compiled import Compiled
from ftlib.train.diagnostics import plain

if TYPE_CHECKING:
  from ftlib.train.loop import Hooks, Plan, Progress  # which imports this file

_LAST = 32  # losses in the record of steps that were not finite
_PACE = 8  # steps that a speed is of at least: the time of a single one may show up in that of its neighbour


def _mean(pairs: list[list[float]]) -> float:
  """Of (sum, weight) pairs."""
  return sum(total for total, _ in pairs) / max(sum(weight for _, weight in pairs), 1e-30)


@jax.jit
def _finite(tree: Params) -> Any:
  return jax.tree.map(lambda x: jnp.isfinite(x).all(), tree)


class Watch:
  """The loop's eye on its steps. `rate_scale` is the state's, `streak` that of the last step looked at."""

  def __init__(self, plan: Plan, progress: Progress, hooks: Hooks, log: Any, step: Compiled):
    self._plan, self._progress, self._hooks, self._log, self._step = plan, progress, hooks, log, step
    self._waiting: list[tuple[int, np.ndarray, dict, int]] = []  # steps whose sums were not looked at yet
    self._began = self._compiled = 0.0
    self._steps, self._seconds = 0, 0.0  # of this process
    self._pace: collections.deque = collections.deque(maxlen=max(plan.log_every, _PACE))  # (tokens, seconds) of a step
    self._shapes = 0
    self._losses: collections.deque = collections.deque(maxlen=_LAST)
    self._bad: list[dict[str, Any]] = []  # the steps in a row, up to the last one, that were not finite
    self.rate_scale, self.streak = 1.0, 0

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
    found = jax.device_get([{n: x for n, x in sums.items() if n != 'squares'} for _, _, sums, _ in waiting])
    now, compiled = time.perf_counter(), self._step.seconds
    elapsed = now - self._began - (compiled - self._compiled)
    if waiting:
      self._began, self._compiled = now, compiled
    for (done, rows, given, tokens), sums in zip(waiting, found, strict=True):
      self._take(done, rows, sums, given.get('squares'), tokens, elapsed / len(waiting))

  def _take(self, done: int, rows: np.ndarray, sums: dict, squares: Any, tokens: int, seconds: float) -> None:
    plan = self._plan
    norm, skipped, streak = float(sums.pop('grad_norm')), int(sums.pop('skipped')), int(sums.pop('streak'))
    table, self.streak = sums.pop('groups', None), streak
    sums = {name: [float(total), float(weight)] for name, (total, weight) in sums.items()}
    loss = _mean([sums['loss']])
    self._losses.append([done, plain(loss)])
    before = skipped - (streak > 0)  # steps that the schedule, which counts updates, has not seen
    rates = self._hooks.rates(done - 1 - before, self.rate_scale)
    rate = rates.get('default', next(iter(rates.values())))
    if streak:
      self._skipped(done, rows, loss, norm, squares, streak, skipped)
    else:
      self._bad = []
    self._progress.tokens += tokens
    self._progress.seconds += seconds
    self._steps, self._seconds = self._steps + 1, self._seconds + seconds
    window = self._progress.window
    window.append({'sums': {} if streak else sums})
    del window[: -plan.log_every]
    self._pace.append((tokens, seconds))
    speed = sum(t for t, _ in self._pace) / max(sum(s for _, s in self._pace), 1e-9)
    if done % plan.log_every == 0 or done == plan.steps:
      fine = [step['sums'] for step in window if step['sums']]
      means = {name: _mean([sums[name] for sums in fine]) for name in (fine[0] if fine else ())}
      row = {**means, 'learning_rate': rate, 'grad_norm': norm, 'tokens_per_second': speed, 'skipped': skipped}
      row |= {f'learning_rate/{group}': x for group, x in rates.items()} if len(rates) > 1 else {}
      self._log.row(done, 'train', row | ({} if table is None else self._hooks.groups(table)))
    left = self._seconds / self._steps * (plan.steps - done)
    shown = None if streak else loss
    self._log.progress(done, loss=shown, learning_rate=rate, tokens_per_second=speed, seconds_left=left)

  def _skipped(
    self, done: int, rows: np.ndarray, loss: float, norm: float, squares: Any, streak: int, skipped: int
  ) -> None:
    """Warns of a step that made no update; the last one that a run may have in a row ends it."""
    names = self._hooks.name_rows(rows)
    one = {'step': done, 'loss': plain(loss), 'grad_norm': plain(norm), 'row_numbers': rows.tolist(), 'rows': names}
    self._bad = [*self._bad, one][-self._plan.max_nonfinite :]
    what = f'step {done}: loss {loss}, gradient norm {norm}'
    if streak < self._plan.max_nonfinite:
      few = ', '.join(names[:2]) + (', ...' if len(names) > 2 else '')
      said = f'no update ({streak} in a row, {self._plan.max_nonfinite} end the run; {skipped} in all). Its rows: {few}'
      return self._log.say(f'{what}: {said}')
    record = {
      'step': done,
      'in_a_row': streak,
      'skipped': skipped,
      'steps': self._bad,
      'gradient_norms': {} if squares is None else self._hooks.norms(jax.device_get(squares)),
      'last_losses': list(self._losses),
    }
    path = self._hooks.bundle(done, record)
    raise self.diverged(what + (f', {streak} steps in a row' if streak > 1 else ''), rows, kept=path)

  def check(self, done: int, rows: np.ndarray, trainable: Params) -> None:
    """Raises `Diverged` where a parameter is not finite: an update can overflow though loss and gradient did not."""
    if not all(jax.tree.leaves(jax.device_get(_finite(trainable)))):
      raise self.diverged(f'step {done}: the update left parameters that are NaN or infinite', rows)

  def diverged(self, what: str, rows: np.ndarray, *, kept: str = '') -> Diverged:
    """The error that names the rows of a step, and the file `kept` of what is known of it."""
    return Diverged(
      f'{what}; nothing of this step was saved. Its rows:\n  '
      + '\n  '.join(self._hooks.name_rows(rows))
      + (f'\n  gradient norms by layer and the last losses: {kept}' if kept else '')
      + '\n  lower optim.learning_rate, set optim.clip_norm, or look at these rows'
    )

  def _warn_of_shapes(self, done: int) -> None:
    shapes = self._step.shapes
    if len(shapes) > self._shapes and done > 1:
      self._log.say(f'step {done}: compiled for rows of {shapes[-1][-1]} tokens ({self._step.seconds:.1f} s so far)')
    self._shapes = len(shapes)
