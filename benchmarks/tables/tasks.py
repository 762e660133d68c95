"""The table of tasks: python benchmarks/tables/tasks.py [--tasks=sst2,squad] [--reference-python=PYTHON] [--table]

MiniLM fine-tuned whole for every task, beside the same fine-tuning in PyTorch (`peers/torch_tasks.py`): the same token
ids, head, hyperparameters and number of steps, 3 seeds; the means should be within 1.5 points or one pooled standard
deviation. Data: a fixed subset of each data set's training file and of its validation file (`TASKS`), drawn once.
Hyperparameters are the same for all and tuned on none: AdamW, rate 1e-4, batches of 16, no decay, gradients clipped at
1, 6 % warmup and then linearly to 0.

cola has all its rows: of fewer nothing is learned. Pairs (stsb, mrpc) go through the encoder one text at a time and are
judged by the cosine of two vectors: read together they do not get off the ground with MiniLM, a sentence encoder, on so
few rows (benchmarks/README.md).

The Chinese rows have no Chinese checkpoint to start from on this machine: MiniLM knows few characters, so they say that
the pipeline works, and not how good it can be; beside them stands the BiLSTM that starts from nothing.

What is measured is kept at once in benchmarks/results/tasks.jsonl and not measured again, so a command can be stopped
and goes on; `--again` forgets what it is about to measure. The table in Markdown is written to
benchmarks/results/tasks.md and between the markers of README.md (`--table`: only that).
"""

from __future__ import annotations

import argparse
import math
import pathlib
import statistics
import sys
import tempfile
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]

import table_parts  # noqa: E402
from methods import spoken  # noqa: E402
from table_parts import Row, keep, stored  # noqa: E402

SEEDS = [0, 1, 2]
POINTS = 0.015
COMMON = {'train.batch_size': 16, 'optim.learning_rate': 1e-4, 'optim.weight_decay': 0.0, 'optim.clip_norm': 1.0}
COMMON |= {'optim.warmup': 0.06, 'train.buckets': 2, 'train.epochs': 2.0}
SCORES = {'paraphrase': 1, 'not_paraphrase': 0}
TASKS: dict[str, dict[str, Any]] = {  # `rows`: of training; `judged`: of validation; kind: of the peer's head
  'sst2': {'config': 'classify', 'kind': 'classify', 'metric': 'accuracy', 'rows': 1000, 'judged': 400, 'length': 48},
  'cola': {'config': 'classify', 'kind': 'classify', 'metric': 'mcc', 'rows': 8514, 'judged': 1043, 'length': 24},
  'mrpc': {
    'config': 'embed',
    'kind': 'embed',
    'metric': 'roc_auc',
    'rows': 600,
    'judged': 400,
    'length': 40,
    'scores': SCORES,
  },
  'stsb': {'config': 'embed', 'kind': 'embed', 'metric': 'spearman', 'rows': 800, 'judged': 400, 'length': 32},
  'goemotions': {
    'config': 'multilabel',
    'kind': 'multilabel',
    'metric': 'average_precision',
    'rows': 1500,
    'judged': 500,
    'length': 32,
  },
  'conll2003': {'config': 'tag', 'kind': 'tag', 'metric': 'f1', 'rows': 1200, 'judged': 500, 'length': 48},
  'squad': {'config': 'extract', 'kind': 'span', 'metric': 'f1', 'rows': 500, 'judged': 150, 'length': 192},
  'semeval2010_task8': {
    'config': 'relation',
    'kind': 'marks',
    'metric': 'f1_macro',
    'rows': 1200,
    'judged': 500,
    'length': 48,
  },
  'chnsenticorp': {
    'config': 'classify',
    'kind': 'classify',
    'metric': 'accuracy',
    'rows': 600,
    'judged': 300,
    'length': 96,
  },
  'msra_ner': {'config': 'tag', 'kind': 'tag', 'metric': 'f1', 'rows': 800, 'judged': 300, 'length': 64},
}


def main() -> None:
  args = parse()
  if not args.table:
    with tempfile.TemporaryDirectory() as folder:
      measure(args, pathlib.Path(folder))
  table = render(stored(args, 'tasks'))
  (args.results / 'tasks.md').write_text(table)
  table_parts.between(args.readme, 'tasks', table)
  print(table)


def parse() -> argparse.Namespace:
  """The flags."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  table_parts.flags(parser)
  table_parts.reference(parser)
  parser.add_argument('--tasks', default=','.join(TASKS))
  parser.add_argument('--rows', type=int, default=None, help='training rows of every data set, to try things out')
  parser.add_argument('--judged', type=int, default=None, help='rows to judge by')
  parser.add_argument('--table', action='store_true', help='write the table of what is measured, and no more')
  args = parser.parse_args()
  unknown = [n for n in args.tasks.split(',') if n not in TASKS]
  if unknown:
    parser.error(f'--tasks: {unknown[0]} is none of {", ".join(TASKS)}')
  if not args.table:
    table_parts.check_reference(parser, args)
  args.results.mkdir(exist_ok=True)
  return args


def measure(args: argparse.Namespace, folder: pathlib.Path) -> None:
  """Measures the tasks that lack."""
  names = args.tasks.split(',')
  have = {r['task'] for r in stored(args, 'tasks', drop=lambda r: r['task'] in names)}
  for name in names:
    if name in have:
      continue
    spec, data = TASKS[name], folder / name
    counts = {'rows': args.rows or spec['rows'], 'judged': args.judged or spec['judged']}
    table_parts.subset(args.data / name, data, **counts, scores=spec.get('scores'))
    job = {
      'task': name,
      'config': f'configs/{spec["config"]}.py:data={data},method=full',
      'values': {**COMMON, 'train.max_length': spec['length']},
      'metric': spec['metric'],
      'kind': spec['kind'],
      'seeds': SEEDS,
      'reference_python': '' if args.reference_python == 'none' else args.reference_python,
    }
    for row in spoken([sys.executable, str(HERE / 'tasks_worker.py')], job, name):
      keep(args, 'tasks', row)
      print(f'{row["library"]:8} {name:18} {row["metric"]} {cell(row)} in {row["row_seconds"]:.0f} s', flush=True)


def render(rows: list[Row]) -> str:
  """The table in Markdown."""
  by = {(r['task'], r['library']): r for r in rows}
  out = ['| data | task | metric | rows | ftlib | PyTorch | apart |', '| --- | --- | --- | --- | --- | --- | --- |']
  for name, spec in TASKS.items():
    ours, theirs = (by.get((name, library)) for library in ('ftlib', 'pytorch'))
    if ours is not None:
      sizes = f'{spec["rows"]:,} / {ours["judged"]:,}'
      cells = [name, spec['config'], ours['metric'], sizes, cell(ours), cell(theirs), apart(ours, theirs)]
      out.append('| ' + ' | '.join(cells) + ' |')
  return '\n'.join(out) + '\n'


def cell(row: Row | None) -> str:
  return '' if row is None else f'{statistics.mean(row["scores"]):.3f} ± {statistics.stdev(row["scores"]):.3f}'


def apart(ours: Row, theirs: Row | None) -> str:
  """The difference of the means; bold where it is more than 1.5 points and more than a pooled standard deviation."""
  if theirs is None:
    return ''
  gap = statistics.mean(ours['scores']) - statistics.mean(theirs['scores'])
  pooled = math.sqrt((statistics.variance(ours['scores']) + statistics.variance(theirs['scores'])) / 2)
  return f'**{100 * gap:+.1f}**' if abs(gap) > max(POINTS, pooled) else f'{100 * gap:+.1f}'


if __name__ == '__main__':
  main()
