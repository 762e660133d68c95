"""Tiny models and data, made here from seeds: nothing is downloaded and nothing is stored."""

from __future__ import annotations

import json
import pathlib
import random

import jax
import numpy as np

from ftlib import recipe
from ftlib.base import trees
from ftlib.base.types import Head
from ftlib.io import hf
from ftlib.models import bert

GOOD = 'good great fine superb lovely bright warm'.split()
BAD = 'bad awful poor dull cold weak grim'.split()
NEUTRAL = 'the a film movie story plot actor scene is was very with and of it this that'.split()
SPECIAL = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
CONFIG = {
  'model_type': 'bert',
  'architectures': ['BertModel'],
  'vocab_size': 64,
  'hidden_size': 32,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'intermediate_size': 64,
  'max_position_embeddings': 40,
  'type_vocab_size': 2,
  'hidden_act': 'gelu',
  'hidden_dropout_prob': 0.1,
  'attention_probs_dropout_prob': 0.1,
  'layer_norm_eps': 1e-12,
  'initializer_range': 0.2,
  'pad_token_id': 0,
}


def bert_folder(folder: pathlib.Path, **changes) -> pathlib.Path:
  """A BERT folder: config.json, model.safetensors (base model with pooler), vocab.txt, tokenizer_config.json."""
  values = {**CONFIG, **changes}
  model = bert.build(bert.from_hf(values), head=Head('none'))
  flat = trees.flatten(model.initial(jax.random.key(0)))
  tensors = {name: np.asarray(model.to_hf(ours, flat[ours])) for ours, name in model.hf_names().items()}
  hf.save(folder, tensors, values)
  vocab = SPECIAL + GOOD + BAD + NEUTRAL + [f'##{c}' for c in 'abcdefghij']
  vocab += [f'[unused{i}]' for i in range(values['vocab_size'] - len(vocab))]
  (folder / 'vocab.txt').write_text('\n'.join(vocab) + '\n')
  names = {f'{n}_token': f'[{n.upper()}]' for n in ('pad', 'unk', 'cls', 'sep', 'mask')}
  (folder / 'tokenizer_config.json').write_text(
    json.dumps({'tokenizer_class': 'BertTokenizer', 'do_lower_case': True, 'model_max_length': 40, **names})
  )
  return folder


def rows(count: int, seed: int) -> list[dict]:
  """Sentences of 3 to 14 words, 'good' or 'bad' by the words in them."""
  rng = random.Random(seed)
  out = []
  for i in range(count):
    label = ('good', 'bad')[i % 2]
    words = rng.choices(NEUTRAL, k=rng.randint(2, 12)) + rng.choices(GOOD if label == 'good' else BAD, k=2)
    rng.shuffle(words)
    out.append({'text': ' '.join(words), 'label': label})
  return out


def data_folder(folder: pathlib.Path, *, train: int = 96) -> pathlib.Path:
  """train, validation and test as JSON lines."""
  for seed, (name, count) in enumerate((('train', train), ('validation', 32), ('test', 24))):
    lines = [json.dumps(r) for r in rows(count, seed)]
    (folder / f'{name}.jsonl').write_text('\n'.join(lines) + '\n')
  return folder


def config(model: pathlib.Path, data: pathlib.Path, *, method: str = 'lora', optim: str = 'adamw', **values):
  """A small, quick config; `values` are dotted fields with '__' for '.': `train__steps=3`."""
  c = recipe.recipe(task='classify', method=method, optim=optim)
  c.model.pretrained, c.data.path = str(model), str(data)
  c.train.batch_size, c.train.eval_batch_size, c.train.buckets, c.mesh.shape = 16, 32, 1, 'data=1'
  c.model.layers = 'unroll'
  c.train.steps, c.train.eval_every, c.train.log_every = 8, 4, 2
  c.optim.learning_rate = 1e-2
  for name, value in values.items():
    *path, last = name.split('__')
    section = c
    for key in path:
      section = section[key]
    section[last] = value
  return c
