"""What the folder of a language model holds besides weights: tokenizer, chat template, `generation_config.json`; and
that of a model of vectors."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from ftlib.data import tokens
from ftlib.data.literal import literal
from ftlib.generation import stopping
from ftlib.io import hf

_PROBES = (
  'The quick brown fox, 12 of them; "jumps"  over\n\tthe lazy dog.',
  "Ça n'est pas vrai: 東京, Ελλάδα, 🙂 and_snake_case(x=3.5)!",
  '',
)
_CONVERSATION = [{'role': 'user', 'content': 'mirum'}, {'role': 'assistant', 'content': 'quidem'}]


def save_tokenizer(tokenizer: Any, folder: pathlib.Path) -> None:
  """Writes the tokenizer as it is loaded, with its chat template, and reads it back.

  Raises `RuntimeError` where what is read back gives other ids for a text, or another text for a conversation.
  """
  tokenizer.save_pretrained(str(folder))
  back = tokens.load(folder)
  texts = (*_PROBES, ''.join(tokenizer.all_special_tokens))
  if len(back) != len(tokenizer) or any(back(t)['input_ids'] != tokenizer(t)['input_ids'] for t in texts):
    raise RuntimeError(f'{folder}: the tokenizer that was saved gives other ids when it is read back')
  if _rendered(back) != _rendered(tokenizer):
    raise RuntimeError(f'{folder}: the chat template that was saved gives another text when it is read back')


def turn_end(tokenizer: Any) -> int | None:
  """The special token that ends an assistant's turn by the chat template; None where there is no template, or none."""
  text = _rendered(tokenizer) or ''
  _, answer, rest = text.rpartition(_CONVERSATION[-1]['content'])
  found = literal(tokenizer).names.match(rest.lstrip()) if answer else None
  return tokenizer.convert_tokens_to_ids(found[0]) if found and found[0] else None


def generation_config(tokenizer: Any, values: Mapping[str, Any], base: pathlib.Path) -> dict[str, Any]:
  """What generation goes by: the base folder's, with every token that ends a text: those of the tokenizer, of the base
  (`values` of its config.json), and the one that ends a turn."""
  there = hf.read_generation_config(base)
  end = turn_end(tokenizer)
  eos = stopping.eos_ids(tokenizer, values, there, also=() if end is None else (end,))
  ids = {'bos_token_id': tokenizer.bos_token_id, 'pad_token_id': tokenizer.pad_token_id}
  ids = {k: v for k, v in ids.items() if v is not None}
  there = {k: v for k, v in there.items() if k != 'transformers_version'}
  return {**ids, **there, 'eos_token_id': [*eos] if len(eos) > 1 else eos[0]}


def sentence_transformer(pooling: str, width: int, limit: int) -> dict[str, Any]:
  """{file: content} by which Sentence-Transformers makes a text's vector of hidden states: pooled, of length 1.

  `width`: of the hidden states; `limit`: tokens that a text is cut to.
  """
  parts = {'': 'Transformer', '1_Pooling': 'Pooling', '2_Normalize': 'Normalize'}
  modules = [
    {'idx': i, 'name': str(i), 'path': path, 'type': f'sentence_transformers.models.{name}'}
    for i, (path, name) in enumerate(parts.items())
  ]
  modes = {f'pooling_mode_{name}': pooling == kind for kind, name in hf.POOLING.items()}
  return {
    'modules.json': modules,
    'sentence_bert_config.json': {'max_seq_length': limit, 'do_lower_case': False},
    '1_Pooling/config.json': {'word_embedding_dimension': width, **modes},
  }


def _rendered(tokenizer: Any) -> str | None:
  import jinja2

  if not tokenizer.chat_template:
    return None
  try:
    return tokenizer.apply_chat_template(_CONVERSATION, tokenize=False)
  except (jinja2.exceptions.TemplateError, ValueError):  # a template for conversations of another kind
    return None
