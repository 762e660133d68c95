"""Reading Hugging Face's `config.json` with an allow-list.

Every key is one of: used (it sets a field), fixed (only the value that we implement is accepted), or harmless (it does
not change what the model computes). Anything else is an error: a setting that is silently ignored is a wrong model.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

from ftlib.base.errors import InputError, listing

# fmt: off
HARMLESS = frozenset({
  '_attn_implementation_autoset', '_commit_hash', '_name_or_path', '_num_labels', 'adapter_fusion', 'adapters',
  'architectures', 'attn_implementation', 'bos_token_id', 'classifier_bias', 'cls_token_id', 'directionality',
  'dtype', 'eos_token_id', 'finetuning_task', 'ftlib_pooling', 'gradient_checkpointing', 'id2label',
  'initializer_factor', 'initializer_range', 'keys_to_ignore_at_inference', 'label2id', 'language',
  'mask_token_id', 'max_length', 'min_length', 'model_max_length', 'model_type', 'name_or_path', 'num_labels',
  'output_attentions', 'output_hidden_states', 'output_past', 'pad_token_id', 'pooler_fc_size',
  'pooler_num_attention_heads', 'pooler_num_fc_layers', 'pooler_size_per_head', 'pooler_type', 'prefix',
  'problem_type', 'return_dict', 'sep_token_id', 'sinusoidal_pos_embds', 'task_specific_params', 'tie_weights_',
  'tokenizer_class', 'torch_dtype', 'torchscript', 'transformers_version', 'unk_token_id', 'use_bfloat16',
  'use_cache', 'vocab_file', 'xla_device',
})
# fmt: on
FIXED: dict[str, tuple[Any, ...]] = {  # key: accepted values
  'add_cross_attention': (False,),
  'chunk_size_feed_forward': (0,),
  'cross_attention_hidden_size': (None,),
  'is_decoder': (False,),
  'is_encoder_decoder': (False,),
  'position_embedding_type': ('absolute', None),
  'pretraining_tp': (1, None),
  'pruned_heads': ({}, None),
  'quantization_config': (None,),
  'tie_encoder_decoder': (False,),
  'tie_word_embeddings': (True, None),
}
_KINDS = {'int': 'a whole number of at least 0', 'float': 'a number', 'str': 'a name', 'bool': 'true or false'}


def read(
  values: Mapping[str, Any],
  used: Mapping[str, str],
  config: type,
  *,
  defaults: Mapping[str, Any],
  where: str,
  allow: str = '',
  fixed: Mapping[str, tuple[Any, ...]] | None = None,
) -> dict[str, Any]:
  """{our field: value} by the table `used` {Hugging Face key: our field}, each of the type that `config` gives it.

  `defaults` {our field: value} holds what transformers assumes for a key that is absent; a field in neither is missing.
  `allow` is a pattern of further keys that the user vouches for, `fixed` has more of `FIXED`, of one family.
  Raises `InputError` naming `where` and every bad key.
  """
  problems, fixed, unknown = [], FIXED | dict(fixed or {}), False
  for key, value in values.items():
    if key in fixed and key not in used and value not in fixed[key]:
      problems.append(f'{key}={value!r} is not supported (only {" or ".join(map(repr, fixed[key]))})')
    elif key not in used and key not in fixed and key not in HARMLESS and not (allow and re.search(allow, key)):
      problems.append(f'{key}={value!r} is not known')
      unknown = True
  kinds = {f.name: f.type for f in dataclasses.fields(config)}
  for key, ours in used.items():
    if values.get(key) is not None and not _fits(values[key], kinds.get(ours, 'bool')):
      problems.append(f'{key}={values[key]!r} is not {_KINDS[kinds.get(ours, "bool")]}')
    elif 'dropout' in ours and not 0 <= (values.get(key) or 0) < 1:
      problems.append(f'{key}={values[key]!r} is no share of at least 0 and below 1')
  got = {ours: values[key] for key, ours in used.items() if key in values and values[key] is not None}
  got = {**defaults, **got}
  problems += [f'{key} is missing' for key, ours in used.items() if ours not in got]
  if problems:
    hint = '  unknown keys that you know to be harmless can be allowed by --config.model.allow_config=PATTERN'
    raise InputError(
      f'{where}: settings that ftlib does not implement, and will not ignore:\n{listing(problems)}'
      + (f'\n{hint}' if unknown else '')
    )
  return got


def identity(values: Mapping[str, Any], weights: str) -> bytes:
  """What a model computes follows from: the fingerprint of its weights, and `config.json` but for what is harmless."""
  meant = {k: v for k, v in values.items() if k not in HARMLESS or k == 'model_type'}
  return weights.encode() + json.dumps(meant, sort_keys=True).encode()


def _fits(value: Any, kind: str) -> bool:
  number = isinstance(value, int) and not isinstance(value, bool)
  if kind == 'int':
    return number and value >= 0
  return isinstance(value, float) or number if kind == 'float' else isinstance(value, {'str': str, 'bool': bool}[kind])
