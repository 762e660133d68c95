"""The table of optimizers: python benchmarks/tables/optimizers.py [--optimizers=A,B] [--minutes=60] [--table]

Every optimizer of ftlib/optim (but l-bfgs, which is for convex problems) on MiniLM + sst2, with full fine-tuning and
with LoRA. One rule for all; what an optimizer gets does not depend on which it is:

- Data: a fixed subset of the training file, batches of 16, one epoch; 400 rows of its validation file to judge by.
  Rates are chosen by 400 other rows of the training file, at seed 100, so that neither the table's seeds nor its
  validation rows take part.
- Learning rates: one grid, all powers of the square root of 10. Each optimizer tries the same number of its points (6)
  by the same search: first the point nearest to its file's own default (moved by `SHIFT`, the same for all) and both
  neighbours, then always the untried neighbour of the best one, or else the nearer end. A best at the end of what was
  tried is marked. The best has the highest accuracy, of equals the lowest loss.
- Schedule: 6 % warmup, then linearly to 0; schedule-free ones stay, as their paper has it. No weight decay; gradients
  are clipped at a norm of 1; every other setting is the file's default.
- Then 3 seeds at the chosen rate, evaluated 8 times on the way: final accuracy, and the steps to reach 97 % of the best
  mean that any optimizer reached with that method (median of the seeds).
- Costs: bytes of optimizer state a trainable parameter, and the times of an update alone and of a whole training step
  over adamw's, in turns in this process, means of 10 or 20 steps: what soap and sophia do every 10 steps is in them,
  galore's decomposition every 200 is not. An optimizer that evaluates the loss again (sam, sophia) pays for it in the
  step alone.

The rates of an optimizer share one compiled step (`optimizers_worker.py`). What is measured is kept at once in
benchmarks/results/optimizers.jsonl and not measured again, so a command can be stopped and goes on; `--minutes` stops
it by itself; `--again` forgets what it is about to measure. The table in Markdown and the plot are written to
benchmarks/results/optimizers.{md,svg} and between the markers of README.md (`--table`: only that).
"""

from __future__ import annotations

import argparse
import math
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]

import table_parts  # noqa: E402
from table_parts import Row, keep, stored  # noqa: E402

RECIPE = str(ROOT / 'configs' / 'methods.py')
DATA = {'text': 'text', 'label': 'label', 'max_length': 48, 'batch_size': 16, 'epochs': 1, 'warmup': 0.06}
METHODS = ('full', 'lora')
SHIFT = {'full': -2, 'lora': 1}  # points of the grid from a default to the method's rate: adamw 1e-3, 1e-4 and 3e-3
LEFT_OUT = ('lbfgs',)
ROWS, JUDGED, POINTS, SEEDS, LOOKS, TUNING_SEED = 1000, 400, 6, 3, 8, 100
SHARE = 0.97
MARKER = 'optimizers'


def main() -> None:
  args = parse()
  if not args.table:
    with tempfile.TemporaryDirectory() as folder:
      measure(args, pathlib.Path(folder))
  rows = [r for r in stored(args, 'optimizers') if r['setting'] == setting(args)]
  text = render(rows)
  (args.results / 'optimizers.md').write_text(text)
  if drawn := plot(rows):
    (args.results / 'optimizers.svg').write_text(drawn)
    text += f'\n![accuracy by optimizer]({os.path.relpath(args.results / "optimizers.svg", args.readme.parent)})\n'
  print(text)
  if not table_parts.between(args.readme, MARKER, text):
    print(f'{args.readme} has no lines <!-- {MARKER} --> and <!-- /{MARKER} -->, so the table is not in it')


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
  """The flags."""
  from ftlib.base import lookup
  from ftlib.base.errors import InputError

  names = [n for n in lookup.names('optim') if n not in LEFT_OUT]
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--optimizers', default=','.join(names), help='names with commas; dotted ones of your own too')
  parser.add_argument('--methods', default=','.join(METHODS))
  table_parts.flags(parser, data='sst2')
  parser.add_argument('--rows', type=int, default=ROWS, help='training rows')
  parser.add_argument('--judged', type=int, default=JUDGED, help='rows to judge by')
  parser.add_argument('--points', type=int, default=POINTS, help='rates that each optimizer tries, 3 or more')
  parser.add_argument('--seeds', type=int, default=SEEDS)
  parser.add_argument('--looks', type=int, default=LOOKS, help='evaluations of a training')
  parser.add_argument('--minutes', type=float, default=math.inf, help='begin nothing new after so long')
  parser.add_argument('--table', action='store_true')
  args = parser.parse_args(words)
  args.optimizers, args.methods = args.optimizers.split(','), args.methods.split(',')
  for method in args.methods:
    if method not in METHODS:
      parser.error(f'--methods: {method} is none of {", ".join(METHODS)}')
  if args.points < 3 or args.seeds < 1 or args.looks < 1:
    parser.error('--points is at least 3, --seeds and --looks at least 1')
  try:
    for name in args.optimizers:
      lookup.component('optim', name, field='--optimizers')
  except InputError as e:
    parser.error(str(e))
  args.results = args.results.resolve()
  args.results.mkdir(exist_ok=True, parents=True)
  return args


def setting(args: argparse.Namespace) -> dict[str, Any]:
  """What rows of one table have in common."""
  return {n: getattr(args, n) for n in ('rows', 'judged', 'points', 'looks')}


def measure(args: argparse.Namespace, folder: pathlib.Path) -> None:
  """Measures what lacks, an optimizer and method after the other."""
  import optimizers_worker

  data = {**DATA, 'path': str(split(args, folder))}
  ours = lambda r: r['optimizer'] in args.optimizers and r['method'] in args.methods  # noqa: E731
  rows, until = stored(args, 'optimizers', drop=ours), time.monotonic() + 60 * args.minutes
  made: dict[tuple[str, str], Any] = {}

  def trainer(optimizer: str, method: str) -> Any:
    if (optimizer, method) not in made:
      for old in [k for k in made if k != ('adamw', method)]:  # that one is what the others' costs are compared with
        del made[old]
      made[optimizer, method] = optimizers_worker.Trainer(RECIPE, method, optimizer, data)
    return made[optimizer, method]

  for method in args.methods:
    for optimizer in args.optimizers:
      job = Job(args, rows, optimizer, method, trainer)
      while time.monotonic() < until and (step := job.next()) is not None:
        try:
          rows.append(step())
        except Exception as e:  # one that fails must not end the night
          print(f'{optimizer} ({method}): {type(e).__name__}: {str(e)[:500]}', flush=True)
          break
        keep(args, 'optimizers', rows[-1])
        print(said(rows[-1]), flush=True)


def split(args: argparse.Namespace, folder: pathlib.Path) -> pathlib.Path:
  """The data: `validation`, of the training file, chooses rates; `test`, of the validation file, judges."""
  for name in ('train', 'validation'):
    table_parts.subset(args.data, folder / name, rows=args.rows, judged=args.judged, judge_by=name)
  (folder / 'validation' / 'validation.jsonl').rename(folder / 'train' / 'test.jsonl')
  return folder / 'train'


class Job:
  """What is still to be measured of an optimizer and a method."""

  def __init__(
    self, args: argparse.Namespace, rows: list[Row], optimizer: str, method: str, trainer: Callable[..., Any]
  ):
    self._args, self._rows, self._trainer = args, rows, trainer
    self._key = {'optimizer': optimizer, 'method': method, 'setting': setting(args)}

  def next(self) -> Callable[[], Row] | None:
    """What makes the next row; None where none lacks."""
    tried = {r['point']: r for r in self._own('rate')}
    if len(tried) < self._args.points:
      return lambda: self._rate(next_point(tried, self._start()))
    done = {r['seed'] for r in self._own('seed')}
    point = best_point(tried)
    for seed in range(self._args.seeds):
      if seed not in done:
        return lambda seed=seed: self._seed(point, seed)
    return None if self._own('costs') else self._costs

  def _own(self, kind: str) -> list[Row]:
    return [r for r in self._rows if r['kind'] == kind and self._key.items() <= r.items()]

  def _train(self) -> Any:
    return self._trainer(self._key['optimizer'], self._key['method'])

  def _start(self) -> int:
    from ftlib.base import lookup
    from ftlib.optim import chain

    module = lookup.component('optim', self._key['optimizer'], field='--optimizers')
    default = chain.config_of(module)().learning_rate
    return round(2 * math.log10(default)) + SHIFT[self._key['method']]

  def _rate(self, point: int) -> Row:
    got = self._train().trained(rate_of(point), seed=TUNING_SEED, judged_by='validation')
    return {**self._key, 'kind': 'rate', 'point': point, **got}

  def _seed(self, point: int, seed: int) -> Row:
    got = self._train().trained(rate_of(point), seed=seed, judged_by='test', looks=self._args.looks)
    return {**self._key, 'kind': 'seed', 'seed': seed, 'point': point, **got}

  def _costs(self) -> Row:
    other = self._trainer('adamw', self._key['method'])
    return {**self._key, 'kind': 'costs', **self._train().costs(other)}


# Rates.


def rate_of(point: int) -> float:
  """The rate of a point of the grid: 10^(point / 2)."""
  return float(f'{10 ** (point / 2):.3g}')


def worth(row: Row) -> tuple[float, float]:
  """(accuracy, -loss) at the end; the worst where it diverged."""
  if 'diverged' in row or not row['curve']:
    return -math.inf, -math.inf
  _, accuracy, loss = row['curve'][-1]
  return accuracy, -loss


def best_point(tried: Mapping[int, Row]) -> int:
  return max(sorted(tried), key=lambda k: worth(tried[k]))


def next_point(tried: Mapping[int, Row], start: int) -> int:
  """The point to try: `start` and its neighbours, then the untried neighbour of the best, then the nearer end."""
  for point in (start, start - 1, start + 1):
    if point not in tried:
      return point
  best, low, high = best_point(tried), min(tried), max(tried)
  down, up = best - (low - 1), (high + 1) - best
  return high + 1 if up <= down else low - 1


# Showing.


def said(row: Row) -> str:
  """A line for the terminal."""
  head = f'{row["method"]:5} {row["optimizer"]:20} {row["kind"]:5} '
  if row['kind'] == 'costs':
    return head + f'{row["bytes_per_parameter"]:.2f} B, update {row["update_over_adamw"]:.2f} x adamw'
  what = f'rate {rate_of(row["point"]):g}' + (f', seed {row["seed"]}' if row['kind'] == 'seed' else '')
  if 'diverged' in row:
    return head + f'{what}: diverged by step {row["diverged"]}'
  return head + f'{what}: accuracy {row["curve"][-1][1]:.3f}, loss {row["curve"][-1][2]:.3f}'


def results(rows: Sequence[Row], method: str) -> dict[str, dict[str, Any]]:
  """{optimizer: its numbers}, best mean first; those without a finished training are left out."""
  out: dict[str, dict[str, Any]] = {}
  for name in dict.fromkeys(r['optimizer'] for r in rows):
    own = [r for r in rows if (r['optimizer'], r['method']) == (name, method)]
    tried = {r['point']: r for r in own if r['kind'] == 'rate'}
    seeds = [r for r in own if r['kind'] == 'seed']
    if seeds and tried:
      finals = [max(0.0, worth(r)[0]) for r in seeds]
      point = seeds[0]['point']
      out[name] = {
        'mean': statistics.mean(finals),
        'spread': statistics.stdev(finals) if len(finals) > 1 else None,
        'rate': rate_of(point),
        'edge': point in (min(tried), max(tried)),
        'curves': [r['curve'] for r in seeds],
        **next((r for r in own if r['kind'] == 'costs'), {}),
      }
  target = SHARE * max((r['mean'] for r in out.values()), default=0.0)
  for r in out.values():
    reached = [next((s for s, accuracy, _ in curve if accuracy >= target), math.inf) for curve in r['curves']]
    r['steps'] = statistics.median(reached)
  return dict(sorted(out.items(), key=lambda item: -item[1]['mean']))


def render(rows: Sequence[Row]) -> str:
  """The table in Markdown: a line an optimizer, by the mean of its means."""
  found = {m: results(rows, m) for m in METHODS}
  found = {m: r for m, r in found.items() if r}
  heads = ['optimizer']
  for m in found:
    heads += [f'{m}: accuracy', 'rate', f'steps to {SHARE:.0%}', 'state, bytes', 'update', 'step']
  out = [heads, ['---'] * len(heads)]
  names = dict.fromkeys(n for r in found.values() for n in r)
  mean = lambda n: statistics.mean(r[n]['mean'] for r in found.values() if n in r)  # noqa: E731
  for name in sorted(names, key=lambda n: (-mean(n), n)):
    out.append([f'`{name}`', *(c for r in found.values() for c in cells(r.get(name)))])
  lines = '\n'.join('| ' + ' | '.join(line) + ' |' for line in out)
  return f'{lines}\n' if names else 'The table of optimizers is not measured yet.\n'


def cells(r: Mapping[str, Any] | None) -> list[str]:
  """Of one method; `*` marks a rate at the end of those tried."""
  if r is None:
    return [''] * 6
  spread = '' if r['spread'] is None else f' ± {r["spread"]:.3f}'
  steps = '-' if math.isinf(r['steps']) else f'{r["steps"]:.0f}'
  costs = [f'{r[k]:.2f}' if k in r else '' for k in ('bytes_per_parameter', 'update_over_adamw', 'step_over_adamw')]
  return [f'{r["mean"]:.3f}{spread}', f'{r["rate"]:g}' + '*' * r['edge'], steps, *costs]


def plot(rows: Sequence[Row]) -> str:
  """Accuracy of every optimizer and method with its deviation, as a file of SVG; '' without rows."""
  from ftlib.evals import plots

  found = {m: results(rows, m) for m in METHODS}
  names = list(dict.fromkeys(n for r in found.values() for n in r))
  if not names:
    return ''
  mean = lambda n: statistics.mean(r[n]['mean'] for r in found.values() if n in r)  # noqa: E731
  names.sort(key=mean)

  def paint(figure: Any) -> None:
    axes = figure.subplots()
    for shift, (method, color) in zip((-0.12, 0.12), zip(METHODS, (plots.BLUE, plots.RUST), strict=True), strict=True):
      own = [(i + shift, found[method][n]) for i, n in enumerate(names) if n in found[method]]
      style = {'fmt': 'o', 'color': color, 'markersize': 5, 'linewidth': 1.2, 'label': method}
      if own:
        axes.errorbar(
          [r['mean'] for _, r in own], [y for y, _ in own], xerr=[r['spread'] or 0 for _, r in own], **style
        )
    axes.set(xlabel='accuracy on validation, mean and deviation of the seeds', yticks=range(len(names)))
    axes.set_yticklabels(names)
    axes.legend(loc='upper left')

  svg = plots.render('optimizers', paint, size=(6.4, 1.2 + 0.28 * len(names)))
  space = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
  return svg.replace('<svg', f'<svg {space} font-family="sans-serif" style="background: white"', 1) + '\n'


if __name__ == '__main__':
  main()
