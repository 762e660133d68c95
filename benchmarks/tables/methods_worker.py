"""What benchmarks/tables/methods.py measures of one method, in a process of its own: `quality`, `tune` or `costs`.

The job is JSON on standard input; a line `row {...}` comes on standard output as soon as something is measured.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]

from ftlib import cli  # noqa: E402, F401, I001 - sets the environment before JAX is imported

import jax  # noqa: E402
import numpy as np  # noqa: E402
from table_parts import seeded  # noqa: E402

from ftlib import config_file, peft_config, recipe, show  # noqa: E402
from ftlib import run as runs  # noqa: E402
from ftlib.base import lookup, trees  # noqa: E402
from ftlib.base.errors import InputError  # noqa: E402
from ftlib.train.state import storable  # noqa: E402

COST_ROWS = 16  # of a batch
ROUNDS = 9


def main() -> None:
  job = json.load(sys.stdin)
  what = {'quality': quality, 'tune': tune, 'costs': costs}[job['what']]
  for row in what(job):
    print('row', json.dumps({'method': job['method'], **row}), flush=True)


def config(method: str, data: dict[str, Any], *, seed: int = 0, rate: float | None = None) -> Any:
  """The config of a row: configs/methods.py on one of the data sets of `methods.DATA`, with `path` its folder."""
  c = config_file.load(f'{ROOT}/configs/methods.py:method={method},data={data["path"]}')
  first, _, second = data['text'].partition(',')
  c.task = recipe.component_section('task', data['task'], text=first, pair=second, label=data['label'])
  module = lookup.component('tasks', data['task'], field='task')
  c.objective = recipe.component_section('objective', module.OBJECTIVE)
  if c.task.get('pooling') == '':
    c.task.pooling = 'cls'  # as PEFT's side
  c.seed, c.train.epochs, c.train.batch_size = seed, float(data['epochs']), data['batch_size']
  c.train.max_length, c.train.buckets = data['max_length'], 2
  c.optim.learning_rate = rate or float(f'{c.optim.learning_rate * data.get("rate", 1):.2g}')
  return c


def trained(run: runs.Run, seed: int) -> tuple[Any, Any, float]:
  """(state, frozen, seconds of training without compiling) after all steps; `run` compiles once for all seeds."""
  own = seeded(run, seed)
  params, frozen = own.load()
  state = own.start(params, frozen)
  began, compiled = time.perf_counter(), run.train_step.seconds
  for i in range(run.steps):
    state, _ = run.train_step(state, frozen, own.batch(i)[1])
  jax.block_until_ready(state.trainable)
  return state, frozen, time.perf_counter() - began - (run.train_step.seconds - compiled)


def quality(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
  """A row for each data set: the metric of every seed, and what PEFT is to be told to train the same."""
  for name, data in job['data'].items():
    began = time.perf_counter()
    run = runs.build(config(job['method'], data))
    scores, seconds = [], []
    for seed in job['seeds']:
      state, frozen, spent = trained(run, seed)
      scores.append(float(run.evaluate(run.evaluated(state), frozen, 'validation')[0][data['metric']]))
      seconds.append(spent)
    yield {
      'data': name,
      'library': 'ftlib',
      'metric': data['metric'],
      'scores': scores,
      'trainable': show.counts(run)['params_trainable'],
      'steps': run.steps,
      'learning_rate': float(run.settings.optim.learning_rate),
      'train_seconds': statistics.median(seconds),
      'row_seconds': time.perf_counter() - began,
      'peft': peft_fields(job['method'], run),
    }


def tune(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
  """A row for each rate of the grid: metric and loss of one seed."""
  (data,) = job['data'].values()
  for factor in job['grid']:
    rate = float(f'{config(job["method"], data).optim.learning_rate * factor:.2g}')
    run = runs.build(config(job['method'], data, rate=rate))
    state, frozen, _ = trained(run, job['seeds'][0])
    metrics = run.evaluate(run.evaluated(state), frozen, 'validation')[0]
    score, loss = float(metrics[data['metric']]), float(metrics['loss'])
    yield {'learning_rate': rate, 'factor': factor, 'score': score, 'loss': loss}


def costs(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
  """One row: bytes, peak memory of the process with this method alone, and the step's time beside full and LoRA.

  Medians over rounds in which they take turns on one batch. A staged method has `stages`, the step of each of them over
  full fine-tuning's; its other ratios are of the mean of a run, in which stages are of about one length.
  """
  data = next(iter(job['data'].values())) | {'batch_size': COST_ROWS}
  run = runs.build(config(job['method'], data))
  batch, here = run.batch(0)[1], _Stepper(run)
  starts = [0] if run.method.stages is None else run.method.stages.steps(run.steps)
  for start in starts:
    for _ in range(3):
      here.at(start).seconds(batch)
  memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  others = {n: _Stepper(runs.build(config(n, data))) for n in ('full', 'lora') if n != job['method']}
  stages = [turns(here.at(start), others, batch) for start in starts]
  ratio = lambda n: statistics.mean(r.get(n, 1.0) for _, r in stages)  # noqa: E731
  yield {
    **show.counts(run),
    'checkpoint_bytes': trees.nbytes(storable(here.state)),
    'peak_memory_bytes': memory,
    'step_seconds': statistics.mean(seconds for seconds, _ in stages),
    'step_over_full': ratio('full'),
    'step_over_lora': ratio('lora'),
    **({'stages': [r['full'] for _, r in stages]} if len(stages) > 1 else {}),
    'tokens': list(batch['tokens'].shape),
  }


def turns(one: _Stepper, others: dict[str, _Stepper], batch: Any) -> tuple[float, dict[str, float]]:
  """(seconds of a step, {other: that over the other's}), medians of rounds; before the first all have compiled."""
  own, ratios = [], {n: [] for n in others}
  for stepper in (one, *others.values()):
    stepper.seconds(batch)
  for _ in range(ROUNDS):
    own.append(one.seconds(batch))
    for name, stepper in others.items():
      ratios[name].append(own[-1] / stepper.seconds(batch))
  return statistics.median(own), {n: statistics.median(r) for n, r in ratios.items()}


class _Stepper:
  """A run to be stepped: `state` is that after the steps so far; of a staged one each step is the first of a stage."""

  def __init__(self, run: runs.Run):
    self._run, self._first = run, 0
    own, self._frozen = run.load()
    self.state = run.start(own, self._frozen)

  def at(self, first: int) -> _Stepper:
    """Goes to the stage that begins at a step."""
    self._first = first
    return self

  def seconds(self, batch: Any) -> float:
    if self._run.method.stages is not None:
      step = jax.device_put(np.asarray(self._first, self.state.step.dtype), self.state.step.sharding)
      self.state = dataclasses.replace(self.state, step=step)
    start = time.perf_counter()
    self.state, _ = jax.block_until_ready(self._run.train_step(self.state, self._frozen, batch))
    return time.perf_counter() - start


def peft_fields(method: str, run: runs.Run) -> dict[str, Any] | None:
  """What PEFT is told of the method ({} for full fine-tuning); None where it has none that trains alike."""
  if method == 'full':
    return {}
  module = lookup.component('peft', method, field='method.name')
  if not hasattr(module, 'PEFT_TYPE') or method == 'lora_fa':  # PEFT loads LoRA-FA as LoRA, and would train its A
    return None
  try:
    fields = peft_config.of_run(module, run.settings.method, run.method.model, base='', save=[])
  except InputError:  # sparse by a density: PEFT counts by a rank
    return None
  if fields['peft_type'] == 'ADALORA':
    total = fields['total_step']
    fields |= {'total_step': run.steps, **{k: fields[k] * run.steps // total for k in ('tinit', 'tfinal')}}
  if fields.get('prefix_projection') is False and getattr(run.settings.method, 'reparametrise', False):
    hidden = run.settings.method.hidden or run.method.model.config.embed
    fields |= {'prefix_projection': True, 'encoder_hidden_size': hidden}  # in its file are what the projection gives
  common = ('auto_mapping', 'base_model_name_or_path', 'inference_mode', 'modules_to_save', 'peft_version', 'revision')
  return {k: v for k, v in fields.items() if k not in common}


if __name__ == '__main__':
  main()
