"""Qwen 2 and 2.5 (Yang et al. 2024): Llama with biases on query, key and value; Qwen 3 (2025): with norms of query and
key instead.

Upper layers may see a window only (`use_sliding_window`, off in what was published).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ftlib.base.types import Head
from ftlib.models import decoder, llama
from ftlib.models.decoder import Config
from ftlib.models.model import Model

MODEL_TYPES = {  # model_type -> what an export is loaded as, by the head
  'qwen2': {
    'lm': 'Qwen2ForCausalLM',
    'classify': 'Qwen2ForSequenceClassification',
    'tag': 'Qwen2ForTokenClassification',
    'span': 'Qwen2ForQuestionAnswering',
  },
  'qwen3': {
    'lm': 'Qwen3ForCausalLM',
    'classify': 'Qwen3ForSequenceClassification',
    'tag': 'Qwen3ForTokenClassification',
    'span': 'Qwen3ForQuestionAnswering',
  },
}
POOLING = 'last'  # what a class head sees, unless told otherwise
PREFIX = llama.PREFIX
BIASES = ('attention_bias', 'mlp_bias')
USED2 = {k: v for k, v in llama.USED.items() if k not in BIASES}
USED3 = {k: v for k, v in llama.USED.items() if k != 'mlp_bias'}
DEFAULTS = {**llama.DEFAULTS, 'positions': 32768}
BY_HAND = ('use_sliding_window', 'sliding_window', 'max_window_layers', 'layer_types')
TABLE = {
  **llama.TABLE,
  'layers/{i}/attn/q_norm': PREFIX + 'layers.{i}.self_attn.q_norm',
  'layers/{i}/attn/k_norm': PREFIX + 'layers.{i}.self_attn.k_norm',
}


def from_hf(values: Mapping[str, Any], *, where: str = 'config.json', allow: str = '') -> Config:
  """The Config of a Qwen 2, 2.5 or 3 `config.json`."""
  third = values.get('model_type') == 'qwen3'
  defaults = DEFAULTS | ({'head_dim': 128} if third else {})
  got = llama.read(values, USED3 if third else USED2, defaults, where=where, allow=allow, by_hand=BY_HAND)
  on, first = values.get('use_sliding_window', False), values.get('max_window_layers', 28)
  types = ['sliding_attention' if on and i >= first else 'full_attention' for i in range(got['layers'])]
  types, window = values.get('layer_types') or types, values.get('sliding_window', 4096) if on else 0
  got['windows'] = llama.windows(types, window, where=where)
  more = {'qk_norm': True, 'out_bias': got['qkv_bias']} if third else {'qkv_bias': True}
  return decoder.checked(Config(**{**got, **more}), where)


def build(config: Config, *, head: Head, **options: Any) -> Model:
  """The model with a head; `options` are `Model`'s."""
  return decoder.make(config, head=head, hf=TABLE, **options)
