"""The tokenizer that a GGUF file carries, built with the `tokenizers` package.

transformers (5.23) builds these too, but imports PyTorch for it, and some come out unlike those that the models were
trained with: smollm's digits, Qwen's NFC, SentencePiece's prefix before a leading blank. Two kinds are read: 'gpt2',
byte-level BPE whose pre-tokenizer has a name in `tokenizer.ggml.pre`, and 'llama', SentencePiece's BPE whose merges
follow from the tokens' scores.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from ftlib.base import gguf_header
from ftlib.base.errors import InputError, did_you_mean

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # llama.cpp's kinds of tokens
_SPACE = '\u2581'  # as SentencePiece writes a blank
_LLAMA3 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r'[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]', r'[\p{Ll}\p{Lm}\p{Lo}\p{M}]'
_TEKKEN = (
  rf'[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*'
  r'|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
_SPLITS = {  # name of a pre-tokenizer -> its pattern; '' is GPT-2's own, 'digits' GPT-2's after single digits
  'gpt-2': '',
  'smollm': 'digits',
  'starcoder': 'digits',
  'refact': 'digits',
  'command-r': 'digits',
  'llama-bpe': _LLAMA3,
  'llama3': _LLAMA3,
  'llama-v3': _LLAMA3,
  'tekken': _TEKKEN,
  'qwen2': _LLAMA3.replace('{1,3}', ''),
  'deepseek-r1-qwen': _LLAMA3.replace('{1,3}', ''),
}
_WHOLE = ('llama-bpe', 'llama3', 'llama-v3', 'tekken')  # a word that is a token is one; and texts begin with bos
_COMPOSED = ('qwen2', 'command-r')  # normalised to NFC


def load(path: pathlib.Path) -> Any:
  """The tokenizer, with its special tokens, ids, chat template and added bos and eos. Raises `InputError`."""
  import transformers

  metadata = gguf_header.read(path).metadata
  m = {k.removeprefix('tokenizer.ggml.'): v for k, v in metadata.items()}
  kind, pieces = m.get('model'), m.get('tokens')
  builders = {'gpt2': _byte_level, 'llama': _sentencepiece}
  if not isinstance(pieces, list) or not pieces:
    raise InputError(f'{path} holds no tokenizer: tokenizer.ggml.tokens is missing')
  if kind not in builders:
    raise InputError(f'{path}: tokenizer.ggml.model={kind!r} is not supported; known: {", ".join(builders)}')
  if len(set(pieces)) != len(pieces):
    raise InputError(f'{path}: tokenizer.ggml.tokens has {len(pieces) - len(set(pieces))} tokens twice')
  _check_ids(m, path)
  try:
    inner, options = builders[kind](m, path)
  except InputError:
    raise
  except Exception as e:  # what `tokenizers` raises for merges that do not fit the tokens is a bare Exception
    raise InputError(f'{path}: the tokenizer cannot be built: {e}') from e
  kinds = m.get('token_type') or [1] * len(pieces)
  special = {_CONTROL: True, _UNKNOWN: True, _USER_DEFINED: False}
  added = [(p, special[k]) for p, k in zip(_pieces(m), kinds) if k in special]
  inner.add_tokens([AddedToken(p, normalized=False, special=s) for p, s in added if not s])
  inner.add_special_tokens([AddedToken(p, normalized=False, special=True) for p, s in added if s])
  if inner.get_vocab_size() != len(pieces):
    raise InputError(f'{path}: the tokenizer has {inner.get_vocab_size()} tokens where the file lists {len(pieces)}')
  for name, key in (('bos', 'bos'), ('eos', 'eos'), ('unk', 'unknown'), ('pad', 'padding')):
    if (number := m.get(f'{key}_token_id')) is not None:
      options[f'{name}_token'] = AddedToken(_pieces(m)[number], normalized=False, special=True)
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=inner,
    add_bos_token=bool(m.get('add_bos_token', options.pop('bos'))),
    add_eos_token=bool(m.get('add_eos_token', False)),
    chat_template=metadata.get('tokenizer.chat_template'),
    clean_up_tokenization_spaces=False,
    model_input_names=['input_ids', 'attention_mask'],
    **options,
  )


def _check_ids(m: Mapping[str, Any], path: pathlib.Path) -> None:
  pieces = m['tokens']
  for key in ('token_type', 'scores'):
    if key in m and len(m[key]) != len(pieces):
      raise InputError(f'{path}: tokenizer.ggml.{key} has {len(m[key])} entries for {len(pieces)} tokens')
  for key in ('bos', 'eos', 'unknown', 'padding'):
    number = m.get(f'{key}_token_id')
    if number is not None and not 0 <= number < len(pieces):
      raise InputError(f'{path}: tokenizer.ggml.{key}_token_id={number} is none of the {len(pieces)} tokens')


def _byte_level(m: Mapping[str, Any], path: pathlib.Path) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
  pre = m.get('pre')
  if pre not in _SPLITS:
    raise InputError(
      f'{path}: tokenizer.ggml.pre={pre!r} is no pre-tokenizer that ftlib has{did_you_mean(str(pre), _SPLITS)}; '
      f'a wrong one would give other tokens than the model was trained on\n  known: {", ".join(_SPLITS)}'
    )
  if 'merges' not in m:
    raise InputError(f'{path}: tokenizer.ggml.merges is missing')
  merges = [tuple(x.split(' ', 1)) for x in m['merges']]
  vocab = {p: i for i, p in enumerate(m['tokens'])}
  inner = tokenizers.Tokenizer(BPE(vocab, merges, ignore_merges=pre in _WHOLE))
  plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=_SPLITS[pre] in ('', 'digits'))
  first = {'': [], 'digits': [pre_tokenizers.Digits(individual_digits=True)]}.get(_SPLITS[pre])
  if first is None:
    first = [pre_tokenizers.Split(Regex(_SPLITS[pre]), behavior='isolated')]
  inner.pre_tokenizer = pre_tokenizers.Sequence([*first, plain])
  inner.decoder = decoders.ByteLevel()
  if pre in _COMPOSED:
    inner.normalizer = normalizers.NFC()
  return inner, {'bos': pre in _WHOLE}


def _sentencepiece(m: Mapping[str, Any], path: pathlib.Path) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
  pieces, gemma = _pieces(m), _is_gemma(m)
  if not gemma and 'scores' not in m:
    raise InputError(f'{path}: tokenizer.ggml.scores is missing')
  number = m.get('unknown_token_id')
  unknown = {} if number is None else {'unk_token': pieces[number]}
  vocab = {p: i for i, p in enumerate(pieces)}
  rank = [-i for i in range(len(pieces))] if gemma else m['scores']  # Gemma's scores do not follow its merges
  merges = _merges(vocab, rank)
  inner = tokenizers.Tokenizer(BPE(vocab, merges, fuse_unk=True, byte_fallback=True, **unknown))
  prefix = not gemma and m.get('add_space_prefix', True)  # before every text, and after a special token
  blanks = normalizers.Replace(' ', _SPACE)
  inner.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), blanks]) if prefix else blanks
  back = [decoders.Replace(_SPACE, ' '), decoders.ByteFallback(), decoders.Fuse()]
  inner.decoder = decoders.Sequence([*back, decoders.Strip(content=' ', left=1)] if prefix else back)
  return inner, {'bos': True}


def _is_gemma(m: Mapping[str, Any]) -> bool:
  return m['model'] == 'llama' and str(m.get('general.architecture')).startswith('gemma')


def _pieces(m: Mapping[str, Any]) -> list[str]:
  """The tokens; Gemma's runs of blanks, which the converter writes as blanks, as the vocabulary spells them."""
  if not _is_gemma(m):
    return m['tokens']
  return [_SPACE * len(p) if p and not p.strip(' ') else p for p in m['tokens']]


def _merges(vocab: Mapping[str, int], rank: list[float]) -> list[tuple[str, str]]:
  """Every pair of tokens that make a token, the token of the best rank first."""
  found = []
  for piece, i in vocab.items():
    for cut in range(1, len(piece)):
      left, right = piece[:cut], piece[cut:]
      if left in vocab and right in vocab:
        found.append((-rank[i], i, vocab[left], vocab[right], left, right))
  return [(left, right) for *_, left, right in sorted(found)]
