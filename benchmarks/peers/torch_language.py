"""Times SmolLM2 in PyTorch on demand, training with PEFT or generating; see `torch_speed.py` for the protocol.

  python benchmarks/peers/torch_language.py --model FILE.gguf --method lora --batches FILE.npz --threads 2
  python benchmarks/peers/torch_language.py --model FILE.gguf --prompts FILE.json --new 64 --threads 2

FILE.npz holds ragged documents: `ids`, `targets` (the next token), `weights` (1 where that is learnt), `offsets`,
`batch` (documents a step) and `pad_to` (0: to the longest of the batch). Nothing of ftlib is imported. What is timed of
a step: forward, loss over the learnt tokens (transformers' own), backward, clipping to norm 1, AdamW, zero_grad.
Generating is `generate` with its default cache, greedy; prompts are padded on the left, and tokens count up to the end
of a text.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import pathlib
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from torch_speed import Batch, make_step, serve

RATE = {'lora': 1e-3, 'full': 5e-5}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--model', required=True, type=pathlib.Path)
  parser.add_argument('--method', choices=sorted(RATE), default='lora')
  parser.add_argument('--batches')
  parser.add_argument('--prompts', type=pathlib.Path)
  parser.add_argument('--new', type=int, default=64)
  parser.add_argument('--threads', type=int, default=2)
  args = parser.parse_args()
  torch.set_num_threads(args.threads)
  torch.manual_seed(0)
  with contextlib.redirect_stdout(sys.stderr):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {'gguf_file': args.model.name}
    model = AutoModelForCausalLM.from_pretrained(args.model.parent, dtype=torch.float32, **where)
    if args.prompts:
      tokenizer = AutoTokenizer.from_pretrained(args.model.parent, padding_side='left', **where)
      work = generating(model.eval(), tokenizer, json.loads(args.prompts.read_text()), args.new)
      work()
    else:
      step = make_step(adapted(model, args.method).train(), learning_rate=RATE[args.method], compiled=False)
      batches = read_batches(args.batches)
      step(batches[0])
  print('ready {}', flush=True)
  if not args.prompts:
    return serve(step, itertools.cycle(batches))
  for line in sys.stdin:
    words = line.split()
    if words[:1] == ['quit']:
      return None
    start = time.perf_counter()
    tokens = sum(work() for _ in range(int(words[1])))
    print(json.dumps({'seconds': time.perf_counter() - start, 'tokens': tokens}), flush=True)
  return None


def adapted(model: torch.nn.Module, method: str) -> torch.nn.Module:
  if method == 'full':
    return model
  from peft import LoraConfig, get_peft_model

  sites = {'target_modules': ['q_proj', 'v_proj']}
  return get_peft_model(model, LoraConfig(task_type='CAUSAL_LM', r=8, lora_alpha=16, lora_dropout=0.1, **sites))


def generating(model: torch.nn.Module, tokenizer: object, prompts: list[str], new: int) -> Callable[[], int]:
  """Decodes all prompts and gives how many tokens came of it."""
  if tokenizer.pad_token_id is None:
    tokenizer.pad_token = tokenizer.eos_token
  inputs = tokenizer(prompts, return_tensors='pt', padding=True)
  ends = model.generation_config.eos_token_id
  ends = {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id} - {None}

  def work() -> int:
    with torch.no_grad():
      out = model.generate(
        **inputs, do_sample=False, max_new_tokens=new, eos_token_id=sorted(ends), pad_token_id=tokenizer.pad_token_id
      )
    rows = out[:, inputs['input_ids'].shape[1] :].tolist()
    return sum(next((i + 1 for i, t in enumerate(r) if t in ends), len(r)) for r in rows)

  return work


def read_batches(path: str) -> list[Batch]:
  """The padded batches of an npz file of ragged documents, in order."""
  with np.load(path) as stored:
    values = {k: stored[k] for k in stored.files}
  size, pad_to, offsets = int(values['batch']), int(values['pad_to']), values['offsets']
  batches = []
  for start in range(0, len(offsets) - size, size):
    places = list(itertools.pairwise(offsets[start : start + size + 1]))
    width = pad_to or max(b - a for a, b in places)
    ids, labels, mask = (np.full((size, width), fill, np.int64) for fill in (0, -100, 0))
    for i, (a, b) in enumerate(places):
      ids[i, : b - a], mask[i, : b - a] = values['ids'][a:b], 1
      learnt = np.where(values['weights'][a:b] > 0, values['targets'][a:b], -100)
      labels[i, 1 : b - a] = learnt[:-1]  # transformers shifts them back by one
    arrays = {'input_ids': ids, 'attention_mask': mask, 'labels': labels}
    batches.append({name: torch.from_numpy(value) for name, value in arrays.items()})
  return batches


if __name__ == '__main__':
  main()
