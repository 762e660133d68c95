"""What benchmarks/tables/tasks.py measures of one task, in a process of its own: ftlib's seeds and PyTorch's.

The job is JSON on standard input; a line `row {...}` comes on standard output as soon as a library of the job's is
measured. Both train on the same token ids, in the same order and at the same rates, and the logits of PyTorch go
through the task's own `predict` and `metrics`, so that nothing but the training differs.
"""

from __future__ import annotations

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]

from methods_worker import trained  # noqa: E402, I001 - sets the environment before JAX is imported

import numpy as np  # noqa: E402

from ftlib import config_file  # noqa: E402
from ftlib import run as runs  # noqa: E402
from ftlib.base.types import Outputs  # noqa: E402
from ftlib.evals import evaluate  # noqa: E402
from ftlib.io import hf  # noqa: E402


def main() -> None:
  job = json.load(sys.stdin)
  for row in measured(job):
    print('row', json.dumps({'task': job['task'], **row}), flush=True)


def measured(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
  """A row for each of the job's `libraries`, 'ftlib' and 'pytorch': every seed's value of each of its `metrics`."""
  run = runs.build(config_file.load(str(ROOT / job['config']), [(k, str(v)) for k, v in job['values'].items()]))
  with tempfile.TemporaryDirectory() as folder:
    for library in job['libraries']:
      began = time.perf_counter()
      if library == 'ftlib':
        found = [own(run, seed) for seed in job['seeds']]
      else:
        found = [peer(run, job, seed, pathlib.Path(folder)) for seed in job['seeds']]
      yield {
        'library': library,
        'scores': {name: [float(metrics[name]) for metrics, _ in found] for name in job['metrics']},
        'steps': run.steps,
        'train_seconds': statistics.median(seconds for _, seconds in found),
        'row_seconds': time.perf_counter() - began,
      }


def own(run: runs.Run, seed: int) -> tuple[dict[str, Any], float]:
  """(metrics, seconds of training) of ftlib."""
  state, frozen, seconds = trained(run, seed)
  return run.evaluate(run.evaluated(state), frozen, 'validation')[0], seconds


def peer(run: runs.Run, job: dict[str, Any], seed: int, folder: pathlib.Path) -> tuple[dict[str, Any], float]:
  """(metrics, seconds of training) of PyTorch on the run's examples."""
  logits, seconds = peer_logits(run, job, seed, folder)
  return judged(run, logits), seconds


def peer_logits(run: runs.Run, job: dict[str, Any], seed: int, folder: pathlib.Path) -> tuple[np.ndarray, float]:
  """(logits of the validation documents, seconds of training). Raises `RuntimeError` where PyTorch took other steps."""
  given, output = folder / 'examples.npz', folder / 'logits.npz'
  if not given.exists():
    arrays = {'rates': np.asarray(run.optimizer.schedules['default'](np.arange(run.steps)))}
    for split in ('train', 'validation'):
      examples = run.examples[split]
      parts = {'ids': examples.tokens.ids, 'types': examples.tokens.types, 'offsets': examples.tokens.offsets}
      arrays |= {f'{split}_{k}': v for k, v in {**parts, **examples.extra, **examples.per_token}.items()}
    if head_bias := run.head_bias:
      arrays['bias'] = np.asarray(*head_bias.values())
    np.savez(given, **arrays)
  s, head = run.settings, run.task.head
  command = [job['reference_python'], str(ROOT / 'benchmarks' / 'peers' / 'torch_tasks.py')]
  options = {
    'model': hf.resolve(s.model.pretrained),
    'examples': given,
    'output': output,
    'kind': job['kind'],
    'classes': head.classes,
    'seed': seed,
    'epochs': round(s.train.epochs),
    'batch-size': s.train.batch_size,
    'clip-norm': s.optim.clip_norm,
  }
  command += [part for name, value in options.items() for part in (f'--{name}', str(value))]
  waits = {**os.environ, 'OMP_WAIT_POLICY': 'PASSIVE'}
  subprocess.run(command, check=True, stdout=sys.stderr, env=waits)
  with np.load(output) as stored:
    logits, seconds, steps = stored['logits'], float(stored['seconds']), int(stored['steps'])
  if steps != run.steps:
    raise RuntimeError(f'PyTorch took {steps} steps and ftlib {run.steps}')
  return logits, seconds


def judged(run: runs.Run, logits: np.ndarray) -> dict[str, Any]:
  """Metrics of logits over the validation split, [documents, ...] in its order; of vectors, of cosines [rows, 1]."""
  if run.task.head.kind == 'embed':
    return run.task.metrics(run.examples['validation'], {'cosine': logits[:, 0]})
  examples, at = run.examples['validation'].unpacked, []

  def batches() -> Iterator[Any]:
    for numbers, batch in run.eval_batches('validation'):
      at[:] = [numbers]
      yield numbers, batch

  def step(batch: Any) -> tuple[dict, dict]:
    size, wide = batch['tokens'].shape
    found = logits[at[0]]
    found = found[:, :wide] if found.ndim == 3 else found
    padded = np.zeros((size, wide, found.shape[2]) if found.ndim == 3 else (size, found.shape[1]), np.float32)
    padded[tuple(slice(n) for n in found.shape)] = found
    return {}, run.task.predict(Outputs(None, logits=padded), batch)

  predictions = evaluate.evaluate(step, batches(), rows=len(examples))[1]
  if examples.windows is not None:
    predictions = run.task.combined(examples, predictions)
  return run.task.metrics(examples, predictions)


if __name__ == '__main__':
  main()
