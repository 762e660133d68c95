"""One optimizer and one training method of benchmarks/tables/optimizers.py: a run that is compiled once for all rates.

The learning rate is an argument of the compiled step: the config has the schedule `plateau` at a rate of 1, and before
each step `TrainState.rate_scale` is set to the step's rate. So a grid of rates costs no compilation.
"""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

from ftlib import cli  # noqa: F401 - sets the environment before JAX is imported

import jax  # isort: skip
import numpy as np
from table_parts import seeded

from ftlib import config_file, optimizer_trial, recipe
from ftlib import run as runs
from ftlib.base import trees
from ftlib.base.errors import Diverged

STREAK = 3  # steps in a row that are not finite, after which a training has diverged


def config(recipe_file: str, method: str, optimizer: str, data: dict[str, Any]) -> Any:
  """The config of a training. `data` is {path, text, label, epochs, max_length, batch_size}."""
  c = config_file.load(f'{recipe_file}:method={method},optim={optimizer},data={data["path"]}')
  c.task = recipe.component_section('task', 'classify', text=data['text'], label=data['label'], pooling='cls')
  c.objective = recipe.component_section('objective', 'classification')
  c.train.epochs, c.train.batch_size = float(data['epochs']), data['batch_size']
  c.train.max_length, c.train.buckets = data['max_length'], 2
  c.optim.learning_rate, c.optim.schedule, c.optim.warmup = 1.0, 'plateau', data['warmup']
  return c


class Trainer:
  """Trains with one optimizer at any rate and seed, and steps alone to be timed."""

  def __init__(self, recipe_file: str, method: str, optimizer: str, data: dict[str, Any]):
    self.run = runs.build(config(recipe_file, method, optimizer, data))
    self._stays = optimizer.rpartition('.')[2].startswith('schedule_free')
    self._timed: tuple[Any, Any, Any] | None = None

  def trained(self, rate: float, *, seed: int, judged_by: str, looks: int = 1) -> dict[str, Any]:
    """{'curve': [[step, accuracy, loss], ...]} of `looks` evaluations, the last at the end, by a split.

    Where it diverges the curve is cut short and 'diverged' is the step.

    After warmup the rate falls linearly to 0, but stays for schedule-free optimizers, as their paper has it.
    """
    run, other = self.run, seeded(self.run, seed)  # `run` compiles, once for all seeds
    own, frozen = other.load()
    state, curve = other.start(own, frozen), []
    at = {max(1, round(run.steps * (i + 1) / looks)) for i in range(looks)}
    warm = round(run.settings.optim.warmup * run.steps)
    for i in range(run.steps):
      falls = 1.0 if self._stays else 1 - max(0, i - warm) / max(1, run.steps - warm)
      state, sums = run.train_step(self._rated(state, rate * falls), frozen, other.batch(i)[1])
      if (i + 1 in at or i % 8 == 7) and int(sums['streak']) >= STREAK:
        return {'curve': curve, 'diverged': i + 1}
      if i + 1 in at:
        try:
          metrics = run.evaluate(run.evaluated(state), frozen, judged_by)[0]
        except Diverged:
          return {'curve': curve, 'diverged': i + 1}
        curve.append([i + 1, float(metrics['accuracy']), float(metrics['loss'])])
    return {'curve': curve} if math.isfinite(curve[-1][2]) else {'curve': curve[:-1], 'diverged': run.steps}

  def costs(self, other: Trainer, *, rounds: int = 20) -> dict[str, Any]:
    """Bytes of state a trainable parameter, and the times of an update and of a whole step over those of `other`."""
    size = trees.size(self.run.abstract_state.trainable)
    update = lambda t: optimizer_trial.Updates(t.run.optimizer.tx, t.run.train_info)  # noqa: E731
    updates, _ = optimizer_trial.alternated(update(self), update(other), rounds=rounds, seconds=30.0)
    steps, spent = optimizer_trial.alternated(self, other, rounds=rounds, seconds=30.0)
    return {
      'trainable': size,
      'bytes_per_parameter': trees.nbytes(self.run.abstract_state.opt) / size,
      'update_over_adamw': updates,
      'step_over_adamw': steps,
      'step_seconds': spent,
    }

  def seconds(self) -> float:
    """Of one training step on the first batch."""
    if self._timed is None:
      own, frozen = self.run.load()
      self._timed = self._rated(self.run.start(own, frozen), 1e-6), frozen, self.run.batch(0)[1]
    state, frozen, batch = self._timed
    began = time.perf_counter()
    state = jax.block_until_ready(self.run.train_step(state, frozen, batch)[0])
    spent = time.perf_counter() - began
    self._timed = state, frozen, batch
    return spent

  def _rated(self, state: Any, rate: float) -> Any:
    return dataclasses.replace(state, rate_scale=jax.device_put(np.float32(rate), self.run.layout.replicated))
