"""Gemma 1 to 3 (Google 2024, 2025): norms that scale by 1 + weight, scaled embeddings, a gate through gelu.

Gemma 2 norms what attention and MLP give as well, caps logits by tanh and alternates windows with layers that see all.
Gemma 3 (its text models) norms query and key in place of the caps, and turns windowed layers by a rotation of their
own. In bfloat16 transformers rounds the factor of the embeddings to it; here it is float32's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ftlib.base.errors import InputError
from ftlib.base.types import Head
from ftlib.models import decoder, llama, rope
from ftlib.models.decoder import Config
from ftlib.models.model import Model

MODEL_TYPES = {  # model_type -> what an export is loaded as, by the head
  'gemma': {
    'lm': 'GemmaForCausalLM',
    'classify': 'GemmaForSequenceClassification',
    'tag': 'GemmaForTokenClassification',
  },
  'gemma2': {
    'lm': 'Gemma2ForCausalLM',
    'classify': 'Gemma2ForSequenceClassification',
    'tag': 'Gemma2ForTokenClassification',
  },
  'gemma3_text': {'lm': 'Gemma3ForCausalLM', 'classify': 'Gemma3TextForSequenceClassification'},
}
POOLING = 'last'  # what a class head sees, unless told otherwise
PREFIX = llama.PREFIX
USED1 = {k: v for k, v in llama.USED.items() if k != 'mlp_bias'}
USED2 = {
  **{k: v for k, v in USED1.items() if k != 'hidden_act'},
  'hidden_activation': 'activation',
  'query_pre_attn_scalar': 'query_scale',
  'attn_logit_softcapping': 'attention_cap',
  'final_logit_softcapping': 'logit_cap',
}
DEFAULTS1 = {**llama.DEFAULTS, 'positions': 8192, 'activation': 'gelu_pytorch_tanh', 'head_dim': 256, 'tied': True}
DEFAULTS2 = {**DEFAULTS1, 'query_scale': 256, 'attention_cap': 0.0, 'logit_cap': 0.0}
FIXED = {'use_bidirectional_attention': (False, None), 'hidden_act': ('gelu_pytorch_tanh', 'gelu', None)}
FIXED1 = {**FIXED, 'hidden_activation': ('gelu_pytorch_tanh', None)}
HARMLESS = '^cache_implementation$'
BY_HAND2 = ('sliding_window', 'layer_types')
BY_HAND3 = (*BY_HAND2, 'sliding_window_pattern', '_sliding_window_pattern', 'rope_local_base_freq')
TABLE1 = llama.TABLE
TABLE = {
  **TABLE1,
  'layers/{i}/attn_post_norm': PREFIX + 'layers.{i}.post_attention_layernorm',
  'layers/{i}/mlp_norm': PREFIX + 'layers.{i}.pre_feedforward_layernorm',
  'layers/{i}/mlp_post_norm': PREFIX + 'layers.{i}.post_feedforward_layernorm',
  'layers/{i}/attn/q_norm': PREFIX + 'layers.{i}.self_attn.q_norm',
  'layers/{i}/attn/k_norm': PREFIX + 'layers.{i}.self_attn.k_norm',
}


def from_hf(values: Mapping[str, Any], *, where: str = 'config.json', allow: str = '') -> Config:
  """The Config of a `config.json` of Gemma 1, Gemma 2 or a text model of Gemma 3."""
  allow = f'{allow}|{HARMLESS}' if allow else HARMLESS
  kind = values.get('model_type')
  own = _first(values, where, allow) if kind == 'gemma' else _second(values, where, allow, third=kind == 'gemma3_text')
  own |= {'unit_offset': True, 'scale_embeddings': True, 'out_bias': own['qkv_bias']}
  return decoder.checked(Config(**own), where)


def _first(values: Mapping[str, Any], where: str, allow: str) -> dict[str, Any]:
  got = llama.read(values, USED1, DEFAULTS1, where=where, allow=allow, fixed=FIXED1)
  if got['activation'] == 'gelu':  # as the first folders say, and do not mean
    got['activation'] = 'gelu_pytorch_tanh'
  return got


def _second(values: Mapping[str, Any], where: str, allow: str, *, third: bool) -> dict[str, Any]:
  defaults = DEFAULTS2 | ({'positions': 131072} if third else {'attention_cap': 50.0, 'logit_cap': 30.0})
  # A cap of null is none at all, while one that is absent has its default.
  caps = {k: 0.0 for k in ('attn_logit_softcapping', 'final_logit_softcapping') if k in values and values[k] is None}
  by_hand, theta = (BY_HAND3, 1e6) if third else (BY_HAND2, 10000.0)
  options = {'where': where, 'allow': allow, 'by_hand': by_hand, 'fixed': FIXED, 'theta': theta}
  got = llama.read({**values, **caps}, USED2, defaults, **options)
  every = (values.get('sliding_window_pattern') or values.get('_sliding_window_pattern') or 6) if third else 2
  if isinstance(every, bool) or not isinstance(every, int) or every < 1:
    raise InputError(f'{where}: sliding_window_pattern={every!r} is not a whole number above 0')
  types = ['sliding_attention' if (i + 1) % every else 'full_attention' for i in range(got['layers'])]
  got['windows'] = llama.windows(values.get('layer_types') or types, values.get('sliding_window', 4096), where=where)
  if not got['query_scale']:
    raise InputError(f'{where}: query_pre_attn_scalar=0 leaves no scale of queries')
  got |= {'query_scale': got['query_scale'] ** -0.5, 'post_norms': True, 'qk_norm': third}
  return got | ({'local_rope': _local(values, got['positions'], where)} if third else {})


def _local(values: Mapping[str, Any], positions: int, where: str) -> rope.Rope:
  """The rotation of layers with a window."""
  key = 'rope_local_base_freq'
  theta = rope.base(values.get(key), 10000.0, where=where, key=key)
  own = (values.get('rope_parameters') or {}).get('sliding_attention')
  return rope.read(own, theta=theta, positions=positions, where=where)


def build(config: Config, *, head: Head, **options: Any) -> Model:
  """The model with a head; `options` are `Model`'s."""
  return decoder.make(config, head=head, hf=TABLE if config.post_norms else TABLE1, **options)
