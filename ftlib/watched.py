"""What train.py's loop asks of a run: what is evaluated, how rows and norms are called, where faults are kept."""

from __future__ import annotations

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftlib.base import trees
from ftlib.base.types import Batch, Params
from ftlib.io import workdir as files
from ftlib.run import Run
from ftlib.train import averages, diagnostics, loop
from ftlib.train.probes import Probe
from ftlib.train.state import TrainState

FAULTS = 'nonfinite'  # a folder in the run folder


class Evaluations:
  """Evaluates a run on validation; of the weights that "best" goes by it keeps what was found at the best step and at
  the last one, so that it need not be computed again when training has ended."""

  def __init__(self, run: Run, progress: loop.Progress) -> None:
    self._run, self._progress = run, progress
    self._kept: dict[int, tuple[dict[str, Any], dict[str, np.ndarray]]] = {}

  def __call__(self, own: Params, frozen: Params, name: str, step: int) -> dict[str, Any]:
    """The metrics at a step, `name` as they are logged."""
    found = self._run.evaluate(own, frozen, 'validation')
    if name == split(self._run.settings.checkpoint.weights):
      self._kept = {k: v for k, v in self._kept.items() if k == self._progress.best_step} | {step: found}
    return found[0]

  def of(self, own: Params, frozen: Params, step: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(metrics, predictions) of a step's parameters, computed only where they are not kept."""
    return self._kept.get(step) or self._run.evaluate(own, frozen, 'validation')


def hooks(run: Run, workdir: pathlib.Path, evaluate: Evaluations) -> loop.Hooks:
  """The loop's hooks, without probes."""
  parts = run.optimizer.parts
  lowered = {group for group, part in parts.items() if part.config.schedule == 'plateau'}
  every = run.settings.train.diagnostics != 'none'
  steps = np.arange(run.steps, dtype=np.int32)
  rates_S = {group: np.asarray(part.schedule(steps)) for group, part in parts.items()}

  def rates(step: int, scale: float) -> dict[str, float]:
    return {group: float(rate_S[step]) * (scale if group in lowered else 1.0) for group, rate_S in rates_S.items()}

  def groups(table: np.ndarray) -> dict[str, float]:
    found = diagnostics.named(table, [*run.optimizer.members])
    return found if every else {name: x for name, x in found.items() if name.startswith('zeros/')}

  return loop.Hooks(
    evaluate=evaluate,
    rates=rates,
    name_rows=functools.partial(_named, run),
    variants=functools.partial(_variants, run),
    norms=functools.partial(_norms, run),
    groups=groups,
    bundle=functools.partial(_bundle, workdir),
  )


def split(weights: str) -> str:
  """What the metrics of `checkpoint.weights` on validation are logged as."""
  return 'validation' if weights == 'raw' else f'validation_{weights}'


def probe(run: Run) -> Probe | None:
  """What measures the loss around the parameters, on the first validation batch; None but for train.diagnostics=all."""
  if run.settings.train.diagnostics != 'all':
    return None

  def loss(trainable: Params, rest: Params, batch: Batch) -> jax.Array:
    model = functools.partial(run.method.model.apply, trees.join(trainable, rest))
    total, weight = run.objective(lambda inputs, _: model(inputs, None), batch, None)['loss']
    return total / jnp.maximum(weight, jnp.finfo(jnp.float32).tiny)

  return Probe(loss, lambda: next(run.eval_batches('validation'))[1])


def ended(run: Run, workdir: pathlib.Path, probe: Probe | None, last: TrainState, frozen: Params) -> dict[str, Any]:
  """{'landscape': ...} for summary.json; of a run that had ended before, what stands there."""
  found = None if probe is None else probe.landscape(last, frozen)
  if found is None and probe is not None and (workdir / 'summary.json').exists():
    found = files.read_json(workdir / 'summary.json').get('landscape')
  return {} if found is None else {'landscape': found}


def _variants(run: Run, state: TrainState) -> dict[str, Params]:
  """{'validation': parameters, 'validation_ema': ...}; an equal mean that has not begun is left out."""
  out = {}
  for name in ('raw', *run.averaging):
    if name != 'swa' or int(state.step) - int(state.skipped) > averages.first(run.settings.train.swa_start, run.steps):
      out[split(name)] = run.evaluated(state, name)
  return out


def _named(run: Run, rows: np.ndarray) -> list[str]:
  train, examples = run.dataset.splits['train'], run.examples['train']
  documents = examples.documents(rows)
  names = [train.where(int(d)) for d in (documents if examples.windows is None else examples.windows[documents])]
  return names[:16] + ([f'... and {len(names) - 16} more'] if len(names) > 16 else [])


def _norms(run: Run, squares_n: np.ndarray) -> dict[str, Any]:
  groups = {n: g for g, names in run.optimizer.members.items() for n in names}
  order = trees.flatten(trees.unflatten(dict.fromkeys(run.train_info)))
  names = {member: groups[n] for n in order for member in trees.members(n)}
  return diagnostics.by_layer(squares_n, [*names], names)


def _bundle(workdir: pathlib.Path, step: int, record: dict[str, Any]) -> str:
  path = workdir / FAULTS / f'step_{step}.json'
  path.parent.mkdir(exist_ok=True)
  files.write_json(path, record)
  return str(path)
