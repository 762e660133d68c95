"""The table of tasks: python benchmarks/tables/tasks.py [--tasks=sst2,squad] [--reference-python=PYTHON] [--table]

MiniLM fine-tuned whole for every task, beside the same fine-tuning in PyTorch (`peers/torch_tasks.py`): the same token
ids, head, loss, hyperparameters, rates and order of rows, 3 seeds; the means should be within 1.5 points or one pooled
standard deviation. Heads and dropout are drawn by each library for itself; where ours starts the bias of a head at the
best constant answer (`objective.prior`), so does the other side. Data: a fixed subset of each data set's training file
and of its validation file (`TASKS`), drawn once. Hyperparameters are the same for all and tuned on none: AdamW, rate
1e-4, batches of 16, no decay, gradients clipped at 1, 6 % warmup and then linearly to 0, 2 epochs.

cola has all its rows: of fewer nothing is learned. Pairs (stsb, mrpc_vectors) go through the encoder one text at a time
and are judged by the cosine of two vectors: read together, with a head whose bias starts at 0 as in transformers, they
do not get off the ground with MiniLM, a sentence encoder, on so few rows (benchmarks/README.md). `mrpc` reads them
together all the same, for accuracy and F1 as they are published: beside those of the larger class they say that both
libraries do alike.

The Chinese rows have no Chinese checkpoint to start from on this machine: MiniLM knows few characters, so they say that
the pipeline works, and not how good it can be; beside them stands the BiLSTM that starts from nothing, by its recipe's
rate and epochs, which has no other side.

What is measured is kept at once in benchmarks/results/tasks.jsonl, by task, library and numbers of rows, and not
measured again, so a command can be stopped and goes on; `--again` forgets what it is about to measure. The table in
Markdown, of rows at their full size, is written to benchmarks/results/tasks.md and between the markers of README.md
(`--table`: only that).
"""

from __future__ import annotations

import argparse
import dataclasses
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
COMMON |= {'train.grouped': False}  # a permutation an epoch, which PyTorch's side draws too
BILSTM = {'optim.learning_rate': 2e-3, 'train.epochs': 8.0}  # those of configs/bilstm.py
CLS = {'task.pooling': 'cls'}  # as transformers' classes of these heads read a text
PAIR = {'task.text': 'text_a', 'task.pair': 'text_b'}
PARAPHRASE = {'paraphrase': 1, 'not_paraphrase': 0}
KINDS = {  # recipe: the peer's kind of head
  'classify': 'classify',
  'embed': 'embed',
  'multilabel': 'multilabel',
  'tag': 'tag',
  'extract': 'span',
  'relation': 'marks',
}


@dataclasses.dataclass(frozen=True)
class Task:
  """`rows` of training and `judged` ones of validation, of at most `length` tokens; `data`: the folder where it is not
  called as the task; `scores`: {label: the score of a row that has it}; `bilstm`: in place of MiniLM."""

  recipe: str
  metrics: tuple[str, ...]
  rows: int
  judged: int
  length: int
  data: str = ''
  values: dict[str, Any] = dataclasses.field(default_factory=dict)
  scores: dict[str, float] | None = None
  bilstm: bool = False

  @property
  def model(self) -> str:
    return 'BiLSTM from nothing' if self.bilstm else 'MiniLM'


TASKS = {
  'sst2': Task('classify', ('accuracy',), 1000, 400, 48, values=CLS),
  'cola': Task('classify', ('mcc',), 8514, 526, 24, values=CLS),
  'mrpc': Task('classify', ('accuracy', 'f1'), 600, 400, 80, values={**CLS, **PAIR}),
  'mrpc_vectors': Task('embed', ('roc_auc',), 600, 400, 40, data='mrpc', scores=PARAPHRASE),
  'stsb': Task('embed', ('spearman',), 800, 400, 32),
  'goemotions': Task('multilabel', ('lrap',), 1500, 500, 32, values={**CLS, 'task.threshold': 0.5}),
  'conll2003': Task('tag', ('f1',), 1200, 500, 48),
  'squad': Task('extract', ('f1',), 1500, 300, 256),
  'semeval2010_task8': Task('relation', ('f1_macro',), 1200, 500, 48),
  'chnsenticorp': Task('classify', ('accuracy',), 600, 300, 96, values=CLS),
  'chnsenticorp_bilstm': Task('classify', ('accuracy',), 600, 300, 96, data='chnsenticorp', values=BILSTM, bilstm=True),
  'msra_ner': Task('tag', ('f1',), 800, 300, 64),
  'msra_ner_bilstm': Task('tag', ('f1',), 8000, 300, 64, data='msra_ner', values=BILSTM, bilstm=True),
}


def main() -> None:
  args = parse()
  lacking = []
  if not args.table:
    with tempfile.TemporaryDirectory() as folder:
      lacking = measure(args, pathlib.Path(folder))
  table = render(stored(argparse.Namespace(results=args.results, again=False), 'tasks'))
  (args.results / 'tasks.md').write_text(table)
  table_parts.between(args.readme, 'tasks', table)
  print(table)
  if lacking:
    sys.exit(f'not measured: {", ".join(lacking)}')


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


def key(row: Row) -> tuple[Any, ...]:
  """What a row is of."""
  return row['task'], row['library'], row['rows'], row['judged']


def measure(args: argparse.Namespace, folder: pathlib.Path) -> list[str]:
  """Measures the rows that lack; those that could not be measured, 'task (library)'."""
  sides = ['ftlib'] if args.reference_python == 'none' else ['ftlib', 'pytorch']
  wanted: dict[str, dict[tuple[Any, ...], str]] = {}
  for name in args.tasks.split(','):
    task = TASKS[name]
    sizes = args.rows or task.rows, args.judged or task.judged
    wanted[name] = {(name, side, *sizes): side for side in (['ftlib'] if task.bilstm else sides)}
  every = {k for keys in wanted.values() for k in keys}
  have = {key(r) for r in stored(args, 'tasks', drop=lambda r: key(r) in every)}
  for name, keys in wanted.items():
    lacking = {k: side for k, side in keys.items() if k not in have}
    if not lacking:
      continue
    _, _, rows, judged = next(iter(lacking))
    task, data = TASKS[name], folder / name
    table_parts.subset(args.data / (task.data or name), data, rows=rows, judged=judged, scores=task.scores)
    recipe = f'bilstm.py:task={task.recipe},' if task.bilstm else f'{task.recipe}.py:'
    job = {
      'task': name,
      'config': f'configs/{recipe}data={data},method=full',
      'values': {**COMMON, 'train.max_length': task.length, **task.values},
      'metrics': task.metrics,
      'kind': KINDS[task.recipe],
      'libraries': [*lacking.values()],
      'seeds': SEEDS,
      'reference_python': args.reference_python,
    }
    for row in spoken([sys.executable, str(HERE / 'tasks_worker.py')], job, name):
      row = {**row, 'rows': rows, 'judged': judged}
      keep(args, 'tasks', row)
      have.add(key(row))
      scores = ', '.join(f'{metric} {cell(row, metric)}' for metric in task.metrics)
      print(f'{row["library"]:8} {name:18} {scores} in {row["row_seconds"]:.0f} s', flush=True)
  return [f'{name} ({side})' for name, keys in wanted.items() for k, side in keys.items() if k not in have]


def render(rows: list[Row]) -> str:
  """The table in Markdown, of rows at their full size."""
  by = {key(r): r for r in rows}
  out = ['| data | task | model | metric | rows | ftlib | PyTorch | apart |', f'|{" --- |" * 8}']
  for name, task in TASKS.items():
    ours, theirs = (by.get((name, library, task.rows, task.judged)) for library in ('ftlib', 'pytorch'))
    for metric in task.metrics if ours else ():
      cells = [task.data or name, task.recipe, task.model, metric, f'{task.rows:,} / {task.judged:,}']
      out.append(
        '| ' + ' | '.join([*cells, cell(ours, metric), cell(theirs, metric), apart(ours, theirs, metric)]) + ' |'
      )
  return '\n'.join(out) + '\n'


def cell(row: Row | None, metric: str) -> str:
  """Mean and standard deviation over the seeds."""
  if row is None:
    return ''
  scores = row['scores'][metric]
  return f'{statistics.mean(scores):.3f} ± {statistics.stdev(scores):.3f}'


def apart(ours: Row, theirs: Row | None, metric: str) -> str:
  """The difference of the means; bold where it is more than 1.5 points and more than a pooled standard deviation."""
  if theirs is None:
    return ''
  a, b = ours['scores'][metric], theirs['scores'][metric]
  gap = statistics.mean(a) - statistics.mean(b)
  pooled = math.sqrt((statistics.variance(a) + statistics.variance(b)) / 2)
  return f'**{100 * gap:+.1f}**' if abs(gap) > max(POINTS, pooled) else f'{100 * gap:+.1f}'


if __name__ == '__main__':
  main()
