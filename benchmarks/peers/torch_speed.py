"""Times PyTorch + PEFT training steps on demand, so that a driver can alternate them with ftlib's own.

A worker process for the PyTorch environment (torch, transformers, peft); nothing of ftlib is imported:

  python benchmarks/peers/torch_speed.py --model DIR --method lora --batches FILE.npz --threads 2

It loads and warms up, prints `ready`, and then answers each line of standard input:

  go N   runs N training steps and prints {"seconds", "steps", "tokens", "loss"} as one JSON line
  quit   ends it (so does the end of the input)

Tokens are counted without padding. What is timed: forward, loss, backward, clipping to norm 1, AdamW,
zero_grad. What is not: reading, tokenizing and padding, which are done before `ready`; so the peer is never
charged for its data loader.

The model is what a PEFT user gets: BertForSequenceClassification with 2 labels, transformers' default
attention (SDPA), float32, the checkpoint's own dropout, `model.train()`; LoRA of rank 8 and alpha 16 with
dropout 0.1 on query and value, and the classifier trained too. `--method full` trains everything instead.

FILE.npz holds ragged rows: `ids` (int32, all tokens), `offsets` (rows + 1), `labels` (rows), `batch` (rows a
step) and `pad_to` (0: pad to the longest of the batch; else a fixed length). Rows keep their order; a last
partial batch is left out.

`--limit-matmul` prints the GFLOP/s of a large float32 matrix product with the same threads instead, the
machine's ceiling.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

LEARNING_RATE = {'lora': 1e-3, 'full': 2e-5}
Batch = dict[str, torch.Tensor]
Step = Callable[[Batch], torch.Tensor]


def main() -> None:
  args = parse()
  torch.set_num_threads(args.threads)
  if args.limit_matmul:
    print(json.dumps(matmul_limit(size=4096, repeats=5)), flush=True)
    return
  torch.manual_seed(0)
  # Standard output is the protocol: whatever a library says while loading goes to standard error.
  with contextlib.redirect_stdout(sys.stderr):
    batches = read_batches(args.batches)
    model = build_model(args.model, method=args.method)
    step = make_step(model, learning_rate=LEARNING_RATE[args.method], compiled=args.compile)
    # A compiled step meets every shape once before it is timed, so that no compilation is counted.
    warmup = max(args.warmup, len(batches)) if args.compile else args.warmup
    for batch in itertools.islice(itertools.cycle(batches), warmup):
      step(batch)
  print('ready', flush=True)
  serve(step, itertools.cycle(batches))


def parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--model', help='Hugging Face folder with config.json and model.safetensors')
  parser.add_argument('--method', choices=sorted(LEARNING_RATE), default='lora')
  parser.add_argument('--batches', help='npz file of ragged rows')
  parser.add_argument('--threads', type=int, default=2)
  parser.add_argument('--warmup', type=int, default=3, help='steps before ready')
  parser.add_argument('--compile', action='store_true', help='torch.compile the model')
  parser.add_argument('--limit-matmul', action='store_true', help='print the float32 matmul ceiling and end')
  args = parser.parse_args()
  if not args.limit_matmul and not (args.model and args.batches):
    parser.error('--model and --batches are needed (or --limit-matmul)')
  return args


def serve(step: Step, batches: Iterator[Batch]) -> None:
  """Answers `go N` lines on standard input until `quit` or the end of the input."""
  for line in sys.stdin:
    match line.split():
      case ['go', count] if count.isdecimal():
        print(json.dumps(timed(step, batches, steps=int(count))), flush=True)
      case ['quit']:
        return
      case []:
        continue
      case _:
        sys.exit(f'torch_speed: expected "go N" or "quit", got {line!r}')


def timed(step: Step, batches: Iterator[Batch], *, steps: int) -> dict[str, float]:
  """The seconds and the real tokens of `steps` further steps, and the last step's loss."""
  chosen = list(itertools.islice(batches, steps))
  loss = torch.tensor(float('nan'))
  start = time.perf_counter()
  for batch in chosen:
    loss = step(batch)
  seconds = time.perf_counter() - start
  tokens = sum(int(batch['attention_mask'].sum()) for batch in chosen)
  return {'seconds': seconds, 'steps': steps, 'tokens': tokens, 'loss': loss.item()}


def build_model(folder: str, *, method: str) -> torch.nn.Module:
  from transformers import BertForSequenceClassification

  model = BertForSequenceClassification.from_pretrained(folder, num_labels=2, dtype=torch.float32)
  if method == 'lora':
    from peft import LoraConfig, get_peft_model

    sites = {'target_modules': ['query', 'value'], 'modules_to_save': ['classifier']}
    lora = LoraConfig(task_type='SEQ_CLS', r=8, lora_alpha=16, lora_dropout=0.1, **sites)
    model = get_peft_model(model, lora)
  return model.train()


def make_step(model: torch.nn.Module, *, learning_rate: float, compiled: bool) -> Step:
  """One training step as a function of a batch; returns the loss, detached."""
  trained = [p for p in model.parameters() if p.requires_grad]
  optimizer = torch.optim.AdamW(trained, lr=learning_rate)
  forward = torch.compile(model) if compiled else model

  def step(batch: Batch) -> torch.Tensor:
    loss = forward(**batch).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()

  return step


def read_batches(path: str) -> list[Batch]:
  """The padded batches of an npz file of ragged rows, in order."""
  with np.load(path) as stored:
    ids, offsets, labels = stored['ids'], stored['offsets'], stored['labels']
    size, pad_to = int(stored['batch']), int(stored['pad_to'])
  rows = [ids[start:end] for start, end in itertools.pairwise(offsets)]
  starts = range(0, len(rows) - size + 1, size)
  if not starts:
    raise ValueError(f'{path}: {len(rows)} rows do not fill one batch of {size}')
  return [pad(rows[i : i + size], labels[i : i + size], pad_to=pad_to) for i in starts]


def pad(rows: list[np.ndarray], labels: np.ndarray, *, pad_to: int) -> Batch:
  lengths = np.array([len(row) for row in rows])
  width = pad_to or lengths.max()
  if lengths.max() > width:
    raise ValueError(f'a row of {lengths.max()} tokens is longer than pad_to={width}')
  mask = np.arange(width) < lengths[:, None]
  tokens = np.zeros(mask.shape, np.int64)
  tokens[mask] = np.concatenate(rows)
  arrays = {'input_ids': tokens, 'attention_mask': mask.astype(np.int64), 'labels': labels.astype(np.int64)}
  return {name: torch.from_numpy(value) for name, value in arrays.items()}


def matmul_limit(*, size: int, repeats: int) -> dict[str, float]:
  """The best GFLOP/s of a square float32 matrix product over some repeats."""
  a, b = torch.randn(size, size), torch.randn(size, size)
  out = torch.empty(size, size)
  torch.matmul(a, b, out=out)  # the first call pays for threads and memory
  seconds = []
  for _ in range(repeats):
    start = time.perf_counter()
    torch.matmul(a, b, out=out)
    seconds.append(time.perf_counter() - start)
  return {'gflops': 2 * size**3 / min(seconds) / 1e9, 'size': size, 'threads': torch.get_num_threads()}


if __name__ == '__main__':
  main()
