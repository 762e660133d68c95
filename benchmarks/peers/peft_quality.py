"""Trains a classifier, predictor of scores or encoder of pairs with PEFT, and prints its metrics as one JSON line.

For the PyTorch environment (torch, transformers, peft, scikit-learn); nothing of ftlib is imported:

  python benchmarks/peers/peft_quality.py --model DIR --data DIR --seed 0 --epochs 2

With --jobs it trains many, one after the other in this process: JSON on standard input, {"seeds": [0, 1], "jobs":
[{"name": "a", "data": DIR, "learning_rate": 0.001, ...}]} where a job's fields are the arguments below by their names.
A line `row {"name": ..., "results": [one a seed]}` comes as soon as a job is done.

The recipe, all of it:

- Data: DIR/{train,validation}.jsonl with `--text` (one column, or two with a comma) and `--label`; labels are
  numbered in sorted order, or with `--regression` or `--embed` are scores.
  `--limit N` keeps the first N training rows after one shuffle by the seed, `--evaluate N` the first N of validation.
  Texts are cut to `--max-length` tokens, special ones included.
- Order: every epoch is a new permutation, drawn from (seed, epoch); the last, smaller batch is kept. Each
  batch is padded to its longest row.
- Model: AutoModelForSequenceClassification in float32 with the checkpoint's own dropout. LoRA on `--target`,
  scale alpha / rank, A by PEFT's default (Kaiming uniform), B zero, or what `--peft` says, the JSON of another
  method's adapter_config.json; a new classifier is trained whole. All else is frozen. `--peft '{}'` is no PEFT:
  the whole model is trained.
  With `--embed` it is AutoModel without a pooler, which reads the two texts of a row each by itself; the score is the
  cosine of the means of their last hidden states.
- Loss: mean cross-entropy over the rows of the batch, or the mean squared error; with `--embed` that of the
  cosine from the score, the least and the greatest of training standing for 0 and 1. Gradients are clipped to a global
  norm of `--clip`.
- AdamW: betas 0.9 and 0.999, eps 1e-8, decay on weight matrices only. The rate rises linearly from 0 over the
  first ceil(warmup * steps) steps and falls linearly to 0 at the end, as transformers' `linear` schedule
  does: the first step has rate 0.
- Evaluation: the final weights on the whole of validation; no checkpoint is chosen. `f1` is that of the
  second label where there are two, as in GLUE, and the macro average otherwise; `f1_macro` is always the
  latter. Of scores: `pearson`, `spearman`, `mse` and `mae`. `roc_auc` of the second of two labels or scores.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import peft
import torch
import transformers
from scipy import stats
from sklearn import metrics

Rows = list[tuple[list[tuple[list[int], list[int]]], float]]  # tokens and types of each text, and what is to be found


def main() -> None:
  args = parse()
  torch.set_num_threads(args.threads)
  if not args.jobs:
    return print(json.dumps(quietly(args)), flush=True)
  todo = json.load(sys.stdin)
  for job in todo['jobs']:
    begun = time.perf_counter()
    fields = {**job, 'data': Path(job['data']), 'peft': json.dumps(job['peft'])}
    own = [argparse.Namespace(**{**vars(args), **fields, 'seed': seed}) for seed in todo['seeds']]
    row = {'name': job['name'], 'results': list(map(quietly, own)), 'row_seconds': time.perf_counter() - begun}
    print('row', json.dumps(row), flush=True)


def quietly(args: argparse.Namespace) -> dict:
  """The result of a run; what a library says meanwhile goes to standard error."""
  with contextlib.redirect_stdout(sys.stderr):
    return run(args)


def parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--model', required=True, help='Hugging Face folder of a pretrained encoder')
  parser.add_argument('--jobs', action='store_true', help='read many from standard input')
  parser.add_argument('--data', type=Path, help='folder with train and validation .jsonl')
  parser.add_argument('--label', default='label')
  parser.add_argument('--regression', action='store_true', help='labels are scores')
  parser.add_argument('--embed', action='store_true', help='labels are scores of the cosine of two texts')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--epochs', type=int, default=2)
  parser.add_argument('--text', default='text', help='one column, or two with a comma')
  parser.add_argument('--evaluate', type=int, default=None, help='validation rows')
  parser.add_argument('--peft', default='', help='JSON of a method other than LoRA: peft_type and its fields')
  parser.add_argument('--batch-size', type=int, default=32)
  parser.add_argument('--learning-rate', type=float, default=1e-3)
  parser.add_argument('--warmup', type=float, default=0.06, help='fraction of all steps')
  parser.add_argument('--rank', type=int, default=8)
  parser.add_argument('--alpha', type=float, default=16)
  parser.add_argument('--lora-dropout', type=float, default=0.1)
  parser.add_argument('--target', default='query,value', help='module names, with commas')
  parser.add_argument('--max-length', type=int, default=128)
  parser.add_argument('--weight-decay', type=float, default=0.0)
  parser.add_argument('--clip', type=float, default=1.0)
  parser.add_argument('--limit', type=int, default=None, help='training rows, after a seeded shuffle')
  parser.add_argument('--threads', type=int, default=2)
  return parser.parse_args()


def run(args: argparse.Namespace) -> dict:
  torch.manual_seed(args.seed)
  start = time.perf_counter()
  tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
  train, validation, labels = read_data(args, tokenizer)
  model = build_model(args, max(1, len(labels)))
  steps = args.epochs * math.ceil(len(train) / args.batch_size)
  optimizer, schedule = build_optimizer(args, model, steps=steps)
  losses = []
  for rows in training_batches(args, train):
    losses.append(train_step(model, collate(rows, tokenizer), optimizer, clip=args.clip))
    schedule.step()
    if hasattr(model.base_model, 'update_and_allocate'):  # AdaLoRA's budget
      model.base_model.update_and_allocate(len(losses) - 1)
    report(losses, steps=steps)
  trained_in = time.perf_counter() - start
  scores = evaluate(model, validation, tokenizer, batch_size=args.batch_size)
  return {
    **scores,
    'validation_rows': len(validation),
    'labels': labels,
    'train_rows': len(train),
    'steps': steps,
    'last_loss': float(np.mean(losses[-50:])),
    'trained_parameters': sum(p.numel() for p in model.parameters() if p.requires_grad),
    'train_seconds': round(trained_in, 1),
    'args': {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()},
    'versions': {m.__name__: m.__version__ for m in (torch, transformers, peft)},
  }


def read_data(args: argparse.Namespace, tokenizer) -> tuple[Rows, Rows, list[str]]:
  """Tokenized training and validation rows and the label names in the order of their numbers, none of scores."""
  train = read_jsonl(args.data / 'train.jsonl')
  validation = read_jsonl(args.data / 'validation.jsonl')
  scored = args.regression or args.embed
  labels = [] if scored else sorted({str(row[args.label]) for row in train})
  target = (lambda row: float(row[args.label])) if scored else (lambda row: labels.index(str(row[args.label])))
  if args.embed:
    low, high = (bound(float(row[args.label]) for row in train) for bound in (min, max))
    target = lambda row: (float(row[args.label]) - low) / (high - low)  # noqa: E731
  if args.limit:
    order = np.random.default_rng(args.seed).permutation(len(train))
    train = [train[i] for i in order[: args.limit]]

  def encode(rows: list[dict]) -> Rows:
    texts = [[row[column] for row in rows] for column in args.text.split(',')]
    parts = [(column,) for column in texts] if args.embed else [texts]
    encoded = [tokenizer(*part, truncation=True, max_length=args.max_length) for part in parts]
    documents = [zip(e['input_ids'], e['token_type_ids'], strict=True) for e in encoded]
    return [(list(read), target(row)) for read, row in zip(zip(*documents, strict=True), rows, strict=True)]

  return encode(train), encode(validation[: args.evaluate]), labels


def read_jsonl(path: Path) -> list[dict]:
  return [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines() if line.strip()]


class Pair(torch.nn.Module):
  """The cosine of the means of an encoder's vectors of two texts; rows hold all first texts, then all second ones."""

  def __init__(self, encoder: torch.nn.Module):
    super().__init__()
    self.encoder, self.base_model, self.config = encoder, encoder.base_model, encoder.config

  def forward(self, labels: torch.Tensor, **inputs: torch.Tensor) -> types.SimpleNamespace:
    mask = inputs['attention_mask'][..., None]
    means = (self.encoder(**inputs).last_hidden_state * mask).sum(1) / mask.sum(1)
    cosines = torch.nn.functional.cosine_similarity(*means.chunk(2))
    loss = ((cosines - labels) ** 2).mean() + self.orthogonality()
    return types.SimpleNamespace(loss=loss, logits=cosines[:, None])

  def orthogonality(self) -> torch.Tensor | float:
    """AdaLoRA's term, which PEFT adds by itself only where the model gives the loss."""
    if not hasattr(self.base_model, 'update_and_allocate'):
      return 0.0
    weight = self.encoder.peft_config['default'].orth_reg_weight
    named = list(self.encoder.named_parameters())
    grams = [p @ p.T for n, p in named if 'lora_A' in n] + [p.T @ p for n, p in named if 'lora_B' in n]
    return weight * sum(torch.norm(g - torch.eye(len(g)), p='fro') for g in grams) / len(grams)


def build_model(args: argparse.Namespace, outputs: int) -> torch.nn.Module:
  if args.embed:
    base = transformers.AutoModel.from_pretrained(args.model, dtype=torch.float32, add_pooling_layer=False)
  else:
    base = transformers.AutoModelForSequenceClassification.from_pretrained(
      args.model, num_labels=outputs, dtype=torch.float32
    )
  around = Pair if args.embed else (lambda model: model)
  if args.peft == '{}':
    return around(base)
  sizes = {'r': args.rank, 'lora_alpha': args.alpha, 'lora_dropout': args.lora_dropout}
  fields = {'peft_type': 'LORA', 'target_modules': args.target.split(','), **sizes}
  # task_type SEQ_CLS makes PEFT train modules named `classifier` or `score` whole.
  task_type = 'FEATURE_EXTRACTION' if args.embed else 'SEQ_CLS'
  fields = {**(json.loads(args.peft) if args.peft else fields), 'task_type': task_type}
  kind = peft.PEFT_TYPE_TO_CONFIG_MAPPING[fields.pop('peft_type')]
  return around(peft.get_peft_model(base, kind(**fields)))


def build_optimizer(args: argparse.Namespace, model: torch.nn.Module, *, steps: int):
  """AdamW over what trains, and the linear schedule with warm-up."""
  trained = [p for p in model.parameters() if p.requires_grad]
  groups = [
    {'params': [p for p in trained if p.ndim > 1], 'weight_decay': args.weight_decay},
    {'params': [p for p in trained if p.ndim <= 1], 'weight_decay': 0.0},
  ]
  optimizer = torch.optim.AdamW(groups, lr=args.learning_rate, betas=(0.9, 0.999), eps=1e-8)
  warmup = math.ceil(args.warmup * steps)

  def factor(step: int) -> float:
    if step < warmup:
      return step / warmup
    return (steps - step) / max(1, steps - warmup)

  return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def training_batches(args: argparse.Namespace, rows: Rows) -> Iterator[Rows]:
  for epoch in range(args.epochs):
    order = np.random.default_rng([args.seed, epoch]).permutation(len(rows))
    for i in range(0, len(rows), args.batch_size):
      yield [rows[j] for j in order[i : i + args.batch_size]]


def collate(rows: Rows, tokenizer) -> dict[str, torch.Tensor]:
  """Rows padded to the longest of them, with labels; all first texts come before all second ones."""
  texts, labels = zip(*rows, strict=True)
  ids, kinds = zip(*(text for column in zip(*texts, strict=True) for text in column), strict=True)
  padded = tokenizer.pad({'input_ids': list(ids), 'token_type_ids': list(kinds)}, return_tensors='pt')
  return {**padded, 'labels': torch.tensor(labels)}


def train_step(
  model: torch.nn.Module, batch: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer, *, clip: float
) -> float:
  model.train()
  optimizer.zero_grad()
  loss = model(**batch).loss
  loss.backward()
  torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], clip)
  optimizer.step()
  return loss.item()


def report(losses: list[float], *, steps: int) -> None:
  if len(losses) % 50 == 0:
    print(f'step {len(losses)}/{steps} loss {np.mean(losses[-50:]):.4f}', file=sys.stderr, flush=True)


@torch.no_grad()
def evaluate(model: torch.nn.Module, rows: Rows, tokenizer, *, batch_size: int) -> dict[str, float]:
  """Metrics of the model as it stands, over all rows."""
  model.eval()
  logits = [model(**collate(rows[i : i + batch_size], tokenizer)).logits for i in range(0, len(rows), batch_size)]
  logits, truth = torch.cat(logits).numpy(), np.array([label for _, label in rows])
  if logits.shape[1] == 1:
    return of_scores(truth, logits[:, 0])
  guesses = logits.argmax(-1)
  macro = metrics.f1_score(truth, guesses, average='macro')
  binary = model.config.num_labels == 2
  return {
    **({'roc_auc': metrics.roc_auc_score(truth, logits[:, 1] - logits[:, 0])} if binary else {}),
    'accuracy': metrics.accuracy_score(truth, guesses),
    'f1': metrics.f1_score(truth, guesses) if binary else macro,
    'f1_macro': macro,
    'mcc': metrics.matthews_corrcoef(truth, guesses),
  }


def of_scores(truth: np.ndarray, guesses: np.ndarray) -> dict[str, float]:
  binary = len(set(truth)) == 2
  return {
    **({'roc_auc': float(metrics.roc_auc_score(truth == truth.max(), guesses))} if binary else {}),
    'pearson': float(stats.pearsonr(truth, guesses).statistic),
    'spearman': float(stats.spearmanr(truth, guesses).statistic),
    'mse': float(np.mean((truth - guesses) ** 2)),
    'mae': float(np.mean(np.abs(truth - guesses))),
  }


if __name__ == '__main__':
  main()
