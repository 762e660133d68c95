"""Tiny models and data, made here from seeds: nothing is downloaded and nothing is stored."""

from __future__ import annotations

import json
import pathlib
import random

import jax

from ftlib import recipe
from ftlib.base import trees
from ftlib.base.types import Head
from ftlib.io import hf
from ftlib.models import bert, llama

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
LLAMA = {
  'model_type': 'llama',
  'architectures': ['LlamaForCausalLM'],
  'vocab_size': 320,
  'hidden_size': 32,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'head_dim': 8,
  'intermediate_size': 64,
  'max_position_embeddings': 128,
  'hidden_act': 'silu',
  'rms_norm_eps': 1e-5,
  'rope_theta': 10000.0,
  'attention_bias': False,
  'mlp_bias': False,
  'initializer_range': 0.2,
  'tie_word_embeddings': True,
  'pad_token_id': 0,
  'bos_token_id': 1,
  'eos_token_id': 2,
}
CHAT_SPECIAL = ['<|endoftext|>', '<|im_start|>', '<|im_end|>']
CHAT_TEMPLATE = (
  "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
  "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def bert_folder(folder: pathlib.Path, **changes) -> pathlib.Path:
  """A BERT folder: config.json, model.safetensors (base model with pooler), vocab.txt, tokenizer_config.json."""
  values = {**CONFIG, **changes}
  model = bert.build(bert.from_hf(values), head=Head('none'))
  flat = trees.flatten(model.initial(jax.random.key(0)))
  hf.save(folder, model.tensors(flat), values)
  vocab = SPECIAL + GOOD + BAD + NEUTRAL + [f'##{c}' for c in 'abcdefghij']
  vocab += [f'[unused{i}]' for i in range(values['vocab_size'] - len(vocab))]
  (folder / 'vocab.txt').write_text('\n'.join(vocab) + '\n')
  names = {f'{n}_token': f'[{n.upper()}]' for n in ('pad', 'unk', 'cls', 'sep', 'mask')}
  (folder / 'tokenizer_config.json').write_text(
    json.dumps({'tokenizer_class': 'BertTokenizer', 'do_lower_case': True, 'model_max_length': 40, **names})
  )
  return folder


def llama_folder(folder: pathlib.Path, **changes) -> pathlib.Path:
  """A Llama folder: config.json, model.safetensors (tied language model), tokenizer.json with a chat template, in which
  <|endoftext|> (0) pads, <|im_start|> (1) begins and <|im_end|> (2) ends. `changes` are of config.json."""
  values = {**LLAMA, **changes}
  model = llama.build(llama.from_hf(values), head=Head('lm'))
  flat = trees.flatten(model.initial(jax.random.key(0)))
  hf.save(folder, model.tensors(flat), values)
  return chat_tokenizer(folder, size=values['vocab_size'])


def chat_tokenizer(folder: pathlib.Path, *, size: int) -> pathlib.Path:
  """A byte-level BPE of at most `size` tokens, trained on the words of `rows`; 259 are bytes and special ones."""
  import tokenizers
  from tokenizers import decoders, models, pre_tokenizers, trainers

  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=size,
    show_progress=False,
    special_tokens=CHAT_SPECIAL,
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
  )
  tokenizer.train_from_iterator([' '.join(GOOD + BAD + NEUTRAL), 'user assistant system'] * 4, trainer)
  tokenizer.save(str(folder / 'tokenizer.json'))
  values = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'bos_token': CHAT_SPECIAL[1],
    'eos_token': CHAT_SPECIAL[2],
    'pad_token': CHAT_SPECIAL[0],
    'unk_token': CHAT_SPECIAL[0],
    'model_max_length': 128,
    'chat_template': CHAT_TEMPLATE,
  }
  (folder / 'tokenizer_config.json').write_text(json.dumps(values))
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
