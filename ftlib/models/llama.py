"""Llama 1 to 3 (Touvron et al. 2023; Grattafiori et al. 2024), Mistral (Jiang et al. 2023) and SmolLM2.

RMS norm, rotary positions, grouped-query attention, gated MLP; Mistral's attention may have a window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ftlib.base.errors import InputError
from ftlib.base.types import Head
from ftlib.models import decoder, hf_config, rope
from ftlib.models.decoder import Config
from ftlib.models.model import Model

MODEL_TYPES = {  # model_type -> what an export is loaded as, by the head
  'llama': {
    'lm': 'LlamaForCausalLM',
    'classify': 'LlamaForSequenceClassification',
    'tag': 'LlamaForTokenClassification',
    'span': 'LlamaForQuestionAnswering',
  },
  'mistral': {
    'lm': 'MistralForCausalLM',
    'classify': 'MistralForSequenceClassification',
    'tag': 'MistralForTokenClassification',
    'span': 'MistralForQuestionAnswering',
  },
}
POOLING = 'last'  # what a class head sees, unless told otherwise
PREFIX = 'model.'
USED = {
  'vocab_size': 'vocab',
  'hidden_size': 'embed',
  'num_hidden_layers': 'layers',
  'num_attention_heads': 'heads',
  'num_key_value_heads': 'kv_heads',
  'head_dim': 'head_dim',
  'intermediate_size': 'mlp',
  'max_position_embeddings': 'positions',
  'hidden_act': 'activation',
  'rms_norm_eps': 'epsilon',
  'initializer_range': 'init_std',
  'attention_dropout': 'attention_dropout',
  'attention_bias': 'qkv_bias',
  'mlp_bias': 'mlp_bias',
  'tie_word_embeddings': 'tied',
}
DEFAULTS = {
  'kv_heads': None,
  'head_dim': None,
  'positions': 2048,
  'activation': 'silu',
  'epsilon': 1e-6,
  'init_std': 0.02,
  'attention_dropout': 0.0,
  'qkv_bias': False,
  'mlp_bias': False,
  'tied': False,
}
ROPE = ('rope_theta', 'rope_scaling', 'rope_parameters')
PARTS = {  # our module -> Hugging Face's
  'layers/{i}/attn/q': 'layers.{i}.self_attn.q_proj',
  'layers/{i}/attn/k': 'layers.{i}.self_attn.k_proj',
  'layers/{i}/attn/v': 'layers.{i}.self_attn.v_proj',
  'layers/{i}/attn/o': 'layers.{i}.self_attn.o_proj',
  'layers/{i}/attn_norm': 'layers.{i}.input_layernorm',
  'layers/{i}/mlp/gate': 'layers.{i}.mlp.gate_proj',
  'layers/{i}/mlp/up': 'layers.{i}.mlp.up_proj',
  'layers/{i}/mlp/down': 'layers.{i}.mlp.down_proj',
  'layers/{i}/mlp_norm': 'layers.{i}.post_attention_layernorm',
  'embed/token': 'embed_tokens',
  'norm': 'norm',
}
HEADS = {'head/out': 'score', 'unembed': 'lm_head'}
TABLE = {**{n: PREFIX + h for n, h in PARTS.items()}, **HEADS}


def from_hf(values: Mapping[str, Any], *, where: str = 'config.json', allow: str = '') -> Config:
  """The Config of a Llama or Mistral `config.json`."""
  mistral = values.get('model_type') == 'mistral'
  got = read(values, USED, DEFAULTS, where=where, allow=allow, by_hand=('sliding_window',) if mistral else ())
  if mistral:
    got['windows'] = windows(['sliding_attention'] * got['layers'], values.get('sliding_window', 4096), where=where)
  span_prefix = '' if mistral else 'transformer.'  # alone among its kind, LlamaForQuestionAnswering keeps this name
  return decoder.checked(Config(**got, out_bias=got['qkv_bias'], span_prefix=span_prefix), where)


def read(
  values: Mapping[str, Any],
  used: Mapping[str, str],
  defaults: Mapping[str, Any],
  *,
  where: str,
  allow: str = '',
  by_hand: tuple[str, ...] = (),
  fixed: Mapping[str, tuple[Any, ...]] | None = None,
  theta: float = 10000.0,
) -> dict[str, Any]:
  """Fields of a decoder's Config by the table `used`, with `rope` and the sizes that follow from others.

  `by_hand` are keys that the caller looks at itself, `fixed` those with one value that is implemented, `theta` the base
  of the rotation where none is given. Raises `InputError`.
  """
  plain = {k: v for k, v in values.items() if k not in (*ROPE, *by_hand)}
  got = hf_config.read(plain, used, Config, defaults=defaults, where=where, allow=allow, fixed=fixed)
  scaling = values.get('rope_parameters') or values.get('rope_scaling') or {}
  if not isinstance(scaling, Mapping):
    raise InputError(f'{where}: rope_scaling={scaling!r} is no object')
  if any(isinstance(v, Mapping) for v in scaling.values()):  # one for each kind of layer
    scaling = scaling.get('full_attention') or {}
  theta = rope.base(values.get('rope_theta'), theta, where=where)
  got['rope'] = rope.read(scaling, theta=theta, positions=got['positions'], where=where)
  got['kv_heads'] = got['kv_heads'] or got['heads']
  got['head_dim'] = got['head_dim'] or got['embed'] // max(got['heads'], 1)
  return got


def windows(types: Sequence[str], window: int | None, *, where: str) -> tuple[int, ...]:
  """The window of each layer by its `layer_types`; () where all layers see all. Raises `InputError`."""
  odd = [t for t in types if t not in ('full_attention', 'sliding_attention')]
  if odd:
    raise InputError(f'{where}: layer_types has {odd[0]!r}; known: full_attention, sliding_attention')
  if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window < 0):
    raise InputError(f'{where}: sliding_window={window!r} is not a whole number of at least 0')
  out = tuple(window or 0 if t == 'sliding_attention' else 0 for t in types)
  return out if any(out) else ()


def build(config: Config, *, head: Head, **options: Any) -> Model:
  """The model with a head; `options` are `Model`'s."""
  table = TABLE
  if head.kind == 'span' and config.span_prefix:
    table = {n: config.span_prefix + h.removeprefix(PREFIX) if h.startswith(PREFIX) else h for n, h in TABLE.items()}
  return decoder.make(config, head=head, hf=table, **options)
