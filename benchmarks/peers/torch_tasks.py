"""Fine-tunes a whole encoder in PyTorch for one of several kinds of task, and writes the logits of rows to judge.

For the PyTorch environment; nothing of ftlib is imported:

  python benchmarks/peers/torch_tasks.py --model DIR --examples FILE.npz --output FILE.npz --kind tag --classes 9 \\
      --seed 0 --epochs 2 --batch-size 16 --clip-norm 1.0

FILE.npz has the ragged documents of both splits (`train_ids`, `train_types`, `train_offsets`, `validation_ids`, ...; of
kind `embed` two a row, one behind the other) and what their loss needs: `train_labels` of kind `classify` (int),
`multilabel` (0 or 1, [N, C]) and `marks` (int, with `train_marks` [N, M] and `validation_marks`, the tokens that are
read), `train_targets` and `train_weights` a token of kind `tag`, `train_starts`, `train_ends` and, a token,
`train_candidates` of kind `span`, `train_cosines` of kind `embed`. `rates` has the learning rate of each step,
and `bias`, where it is there, at what the bias of the head starts.

The models are transformers' own for these heads (`marks`: dropout and a linear layer over the hidden states of the
marked tokens side by side; `embed`: no head, the cosine of the means of the hidden states of two documents, whose
squared error is the loss), in float32 with the checkpoint's dropout; the losses are those they come with, in which
every row, or word, of a batch counts the same, but that the softmax of `span` is over candidates alone, as ftlib's.
AdamW (moments 0.9 and 0.999, epsilon 1e-8) without decay; the gradient of all parameters is clipped by its norm; the
order of epoch e is numpy's permutation of seed [SEED, e]; batches are padded to their longest row. The output has
`logits` [rows, ...], of kinds `tag` and `span` padded with zeros, `steps` taken, and `seconds` of training.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
import transformers
from torch.nn import functional

CLASSES = {
  'classify': transformers.AutoModelForSequenceClassification,
  'multilabel': transformers.AutoModelForSequenceClassification,
  'tag': transformers.AutoModelForTokenClassification,
  'span': transformers.AutoModelForQuestionAnswering,
}
Arrays = dict[str, np.ndarray]


class Marked(torch.nn.Module):
  """An encoder whose head reads marked tokens."""

  def __init__(self, folder: str, classes: int, marks: int):
    super().__init__()
    self.encoder = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32)
    config = self.encoder.config
    self.dropout = torch.nn.Dropout(config.hidden_dropout_prob)
    self.out = torch.nn.Linear(marks * config.hidden_size, classes)
    torch.nn.init.normal_(self.out.weight, std=config.initializer_range)
    torch.nn.init.zeros_(self.out.bias)

  def forward(self, marks: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
    hidden = self.encoder(**inputs).last_hidden_state
    read = torch.take_along_dim(hidden, marks[..., None], dim=1).flatten(1)
    return self.out(self.dropout(read))


class Pair(torch.nn.Module):
  """An encoder of two documents a row, of which the first ones of a batch come first; it gives their cosines [B, 1]."""

  def __init__(self, folder: str):
    super().__init__()
    self.encoder = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32)

  def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
    mask = inputs['attention_mask'][..., None]
    means = (self.encoder(**inputs).last_hidden_state * mask).sum(1) / mask.sum(1)
    return functional.cosine_similarity(*means.chunk(2))[:, None]


def main() -> None:
  args = parse()
  torch.set_num_threads(args.threads)
  torch.manual_seed(args.seed)
  with np.load(args.examples) as stored:
    values = {k: stored[k] for k in stored.files}
  splits = {
    s: {k.removeprefix(f'{s}_'): v for k, v in values.items() if k.startswith(s)} for s in ('train', 'validation')
  }
  train, count = splits['train'], rows_of(splits['train'])
  model = build(args, train)
  if 'bias' in values:
    model.classifier.bias.data.copy_(torch.from_numpy(values['bias']))
  optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
  orders = [np.random.default_rng([args.seed, epoch]).permutation(count) for epoch in range(args.epochs)]
  batches = [order[i : i + args.batch_size] for order in orders for i in range(0, count, args.batch_size)]
  began = time.perf_counter()
  model.train()
  for rate, rows in zip(values['rates'], batches, strict=True):
    optimizer.param_groups[0]['lr'] = float(rate)
    optimizer.zero_grad()
    loss(args.kind, logits(model, args.kind, batch(train, rows)), train, rows).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip_norm)
    optimizer.step()
  seconds = time.perf_counter() - began
  np.savez(args.output, logits=judged(model.eval(), args, splits['validation']), seconds=seconds, steps=len(batches))


def parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--model', required=True)
  parser.add_argument('--examples', required=True)
  parser.add_argument('--output', required=True)
  parser.add_argument('--kind', choices=(*CLASSES, 'marks', 'embed'), required=True)
  parser.add_argument('--classes', type=int, required=True)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--epochs', type=int, default=2)
  parser.add_argument('--batch-size', type=int, default=16)
  parser.add_argument('--clip-norm', type=float, default=1.0)
  parser.add_argument('--threads', type=int, default=2)
  return parser.parse_args()


def build(args: argparse.Namespace, train: Arrays) -> torch.nn.Module:
  if args.kind == 'marks':
    return Marked(args.model, args.classes, train['marks'].shape[1])
  if args.kind == 'embed':
    return Pair(args.model)
  return CLASSES[args.kind].from_pretrained(args.model, num_labels=args.classes, dtype=torch.float32)


def rows_of(split: Arrays) -> int:
  documents = len(split['offsets']) - 1
  return documents // 2 if 'cosines' in split else documents


def batch(split: Arrays, rows: np.ndarray) -> dict[str, torch.Tensor]:
  """The rows padded to the longest of them; of two documents a row all first ones, and then all second ones."""
  if 'cosines' in split:
    rows = np.concatenate([2 * rows, 2 * rows + 1])
  starts, stops = split['offsets'][rows], split['offsets'][rows + 1]
  width = int((stops - starts).max())
  out = {name: np.zeros((len(rows), width), np.int64) for name in ('input_ids', 'token_type_ids', 'attention_mask')}
  for i, (a, b) in enumerate(zip(starts, stops)):
    out['input_ids'][i, : b - a], out['token_type_ids'][i, : b - a] = split['ids'][a:b], split['types'][a:b]
    out['attention_mask'][i, : b - a] = 1
  if 'marks' in split:
    out['marks'] = split['marks'][rows].astype(np.int64)
  return {name: torch.from_numpy(value) for name, value in out.items()}


def logits(model: torch.nn.Module, kind: str, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
  """[B, C], or [B, L, C] of kind tag and [B, L, 2] of kind span."""
  if kind in ('marks', 'embed'):
    return model(**inputs)
  found = model(**inputs)
  return torch.stack([found.start_logits, found.end_logits], dim=-1) if kind == 'span' else found.logits


def loss(kind: str, found: torch.Tensor, split: Arrays, rows: np.ndarray) -> torch.Tensor:
  if kind == 'tag':
    values = np.where(split['weights'] > 0, split['targets'], -100)
    targets = padded(values, split, rows, found.shape[1], -100)
    return functional.cross_entropy(found.flatten(0, 1), targets.flatten())
  if kind == 'span':
    others = padded(split['candidates'], split, rows, found.shape[1], 0) == 0
    found = found.masked_fill(others[..., None], -1e30)
    ends = [torch.from_numpy(split[name][rows].astype(np.int64)) for name in ('starts', 'ends')]
    return sum(functional.cross_entropy(found[..., i], y) for i, y in enumerate(ends)) / 2
  if kind == 'embed':
    return functional.mse_loss(found[:, 0], torch.from_numpy(split['cosines'][rows]))
  labels = torch.from_numpy(split['labels'][rows])
  if kind == 'multilabel':
    return functional.binary_cross_entropy_with_logits(found, labels.float())
  return functional.cross_entropy(found, labels.long())


def padded(values: np.ndarray, split: Arrays, rows: np.ndarray, width: int, fill: int) -> torch.Tensor:
  """What `values` has of each token of some rows, int64 [B, width]."""
  out = np.full((len(rows), width), fill, np.int64)
  for i, row in enumerate(rows):
    here = values[split['offsets'][row] : split['offsets'][row + 1]]
    out[i, : len(here)] = here
  return torch.from_numpy(out)


@torch.no_grad()
def judged(model: torch.nn.Module, args: argparse.Namespace, split: Arrays) -> np.ndarray:
  count, parts = rows_of(split), []
  for i in range(0, count, args.batch_size):
    parts.append(logits(model, args.kind, batch(split, np.arange(i, min(i + args.batch_size, count)))).numpy())
  if parts[0].ndim == 2:
    return np.concatenate(parts)
  width = max(p.shape[1] for p in parts)
  return np.concatenate([np.pad(p, [(0, 0), (0, width - p.shape[1]), (0, 0)]) for p in parts])


if __name__ == '__main__':
  main()
