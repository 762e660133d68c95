"""GPT-2 (Radford et al. 2019), and DialoGPT, which is one: layer norm, learned positions, biases.

Its files hold query, key and value in one matrix, and matrices as [in, out]; here they are apart, as in every family.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ftlib.base.types import Head
from ftlib.models import decoder, hf_config
from ftlib.models.decoder import Config
from ftlib.models.model import Model, Stored

MODEL_TYPES = {  # model_type -> what an export is loaded as, by the head
  'gpt2': {
    'lm': 'GPT2LMHeadModel',
    'classify': 'GPT2ForSequenceClassification',
    'tag': 'GPT2ForTokenClassification',
    'span': 'GPT2ForQuestionAnswering',
  },
}
POOLING = 'last'  # what a class head sees, unless told otherwise
PREFIX = 'transformer.'
USED = {
  'vocab_size': 'vocab',
  'n_embd': 'embed',
  'n_layer': 'layers',
  'n_head': 'heads',
  'n_inner': 'mlp',
  'n_positions': 'positions',
  'activation_function': 'activation',
  'layer_norm_epsilon': 'epsilon',
  'resid_pdrop': 'dropout',
  'embd_pdrop': 'embed_dropout',
  'attn_pdrop': 'attention_dropout',
  'initializer_range': 'init_std',
  'tie_word_embeddings': 'tied',
}
DEFAULTS = {
  'vocab': 50257,
  'embed': 768,
  'layers': 12,
  'heads': 12,
  'mlp': 0,
  'positions': 1024,
  'activation': 'gelu_new',
  'epsilon': 1e-5,
  'dropout': 0.1,
  'embed_dropout': 0.1,
  'attention_dropout': 0.1,
  'init_std': 0.02,
  'tied': True,
}
FIXED = {'scale_attn_weights': (True,), 'scale_attn_by_inverse_layer_idx': (False,)}
HARMLESS = '^(n_ctx|reorder_and_upcast_attn|summary_.*)$'  # of a head that is not used here, or rounding alone
PARTS = {  # our module -> Hugging Face's
  **{f'layers/{{i}}/attn/{x}': Stored('h.{i}.attn.c_attn', k, 3, straight=True) for k, x in enumerate('qkv')},
  'layers/{i}/attn/o': Stored('h.{i}.attn.c_proj', straight=True),
  'layers/{i}/attn_norm': Stored('h.{i}.ln_1'),
  'layers/{i}/mlp/up': Stored('h.{i}.mlp.c_fc', straight=True),
  'layers/{i}/mlp/down': Stored('h.{i}.mlp.c_proj', straight=True),
  'layers/{i}/mlp_norm': Stored('h.{i}.ln_2'),
  'embed/token': Stored('wte'),
  'embed/position': Stored('wpe'),
  'norm': Stored('ln_f'),
}
HEADS = {'head/out': 'score', 'unembed': 'lm_head'}
TABLE = {**{n: s._replace(name=PREFIX + s.name) for n, s in PARTS.items()}, **HEADS}


def from_hf(values: Mapping[str, Any], *, where: str = 'config.json', allow: str = '') -> Config:
  """The Config of a GPT-2 `config.json`."""
  allow = f'{allow}|{HARMLESS}' if allow else HARMLESS
  got = hf_config.read(values, USED, Config, defaults=DEFAULTS, where=where, allow=allow, fixed=FIXED)
  got['mlp'] = got['mlp'] or 4 * got['embed']
  sizes = {'kv_heads': got['heads'], 'head_dim': got['embed'] // max(got['heads'], 1)}
  switches = ('learned_positions', 'layer_norm', 'qkv_bias', 'out_bias', 'mlp_bias')
  return decoder.checked(Config(**got, **sizes, gated=False, **dict.fromkeys(switches, True)), where)


def build(config: Config, *, head: Head, **options: Any) -> Model:
  """The model with a head; `options` are `Model`'s."""
  return decoder.make(config, head=head, hf=TABLE, tag='classifier', **options)
