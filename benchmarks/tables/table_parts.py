"""What the tables of benchmarks share: fixed subsets of data, results that are kept row by row, seeds, the README."""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Row = dict[str, Any]
ROOT = pathlib.Path(__file__).resolve().parents[2]


def subset(
  source: pathlib.Path,
  target: pathlib.Path,
  *,
  rows: int,
  judged: int,
  judge_by: str = 'validation',
  scores: Mapping[str, float] | None = None,
) -> None:
  """Makes `target` with train.jsonl and validation.jsonl: rows drawn once, the latter from `judge_by`, none in both.

  `scores`: {label: what a row of it gets as `score`}.
  """
  target.mkdir()
  read = lambda s: (source / f'{s}.jsonl').read_text(encoding='utf-8').splitlines()  # noqa: E731
  lines = {s: read(s) for s in ('train', judge_by)}
  order = {s: np.random.RandomState(0).permutation(len(x)) for s, x in lines.items()}
  others = order['train'][rows:] if judge_by == 'train' else order[judge_by]
  for split, where, which in (('train', 'train', order['train'][:rows]), ('validation', judge_by, others[:judged])):
    chosen = [lines[where][i] for i in which]
    if scores:
      chosen = [json.dumps({**row, 'score': scores[row['label']]}) for row in map(json.loads, chosen)]
    (target / f'{split}.jsonl').write_text('\n'.join(chosen) + '\n', encoding='utf-8')


def flags(parser: argparse.ArgumentParser, *, data: str = '') -> None:
  """Adds where the data are (`data` in the folder of all), where results and table go, and whether to measure again."""
  parser.add_argument('--data', type=pathlib.Path, default=ROOT.parent / 'shared' / 'data' / data, help='folder')
  parser.add_argument('--results', type=pathlib.Path, default=ROOT / 'benchmarks' / 'results')
  parser.add_argument('--readme', type=pathlib.Path, default=ROOT / 'README.md')
  parser.add_argument('--again', action='store_true', help='forget what is about to be measured')


def reference(parser: argparse.ArgumentParser) -> None:
  """Adds the Python of the environment with PyTorch."""
  parser.add_argument('--reference-python', default=str(ROOT / '.venv-reference' / 'bin' / 'python'))


def check_reference(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
  """Ends the program where that Python is neither there nor 'none'."""
  if args.reference_python != 'none' and not pathlib.Path(args.reference_python).is_file():
    parser.error(f'--reference-python={args.reference_python} is no file; make it, or give none')


def stored(args: argparse.Namespace, name: str, *, drop: Callable[[Row], bool] = lambda row: False) -> list[Row]:
  """The rows of a file of results; with --again without those that `drop` names, in the file as well."""
  path = args.results / f'{name}.jsonl'
  rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
  if args.again and any(map(drop, rows)):
    rows = [r for r in rows if not drop(r)]
    path.write_text(''.join(json.dumps(r) + '\n' for r in rows))
  return rows


def keep(args: argparse.Namespace, name: str, row: Row) -> None:
  with (args.results / f'{name}.jsonl').open('a') as f:
    f.write(json.dumps(row) + '\n')


def seeded(run: Any, seed: int) -> Any:
  """The same run with another seed: of fresh parameters, dropout and the order of rows."""
  settings = dataclasses.replace(run.settings, seed=seed)
  return dataclasses.replace(run, settings=settings, order=dataclasses.replace(run.order, seed=seed))


def between(page: pathlib.Path, marker: str, text: str) -> bool:
  """Puts `text` between the lines `<!-- marker -->` and `<!-- /marker -->` of a page; whether it has them."""
  begin, end = f'<!-- {marker} -->\n', f'<!-- /{marker} -->'
  old = page.read_text(encoding='utf-8') if page.is_file() else ''
  if begin not in old or end not in old:
    return False
  head, _, rest = old.partition(begin)
  page.write_text(f'{head}{begin}{text.rstrip()}\n{end}{rest.partition(end)[2]}', encoding='utf-8')
  return True
