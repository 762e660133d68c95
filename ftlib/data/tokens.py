"""Text to token ids, with nothing of a tokenizer file's own padding and truncation left on.

Rows are kept ragged (`Tokens`): one array of ids and one of offsets.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ftlib.base.errors import InputError
from ftlib.data import gguf_tokenizer

_CHUNK = 1024
_RARE = '\u0bf5 a'  # a sign that vocabularies lack, so that the token for unknown ones is tried
_VOCABULARIES = ('tokenizer.json', 'vocab.txt', 'vocab.json', '*.model')


@dataclasses.dataclass(frozen=True)
class Tokens:
  """N tokenised rows. `ids`, `types` int32 [T] over all rows; row i is `offsets[i]:offsets[i + 1]`."""

  ids: np.ndarray
  types: np.ndarray
  offsets: np.ndarray
  truncated: int = 0  # rows that were longer than the limit

  def __len__(self) -> int:
    return len(self.offsets) - 1

  @property
  def lengths(self) -> np.ndarray:
    """Tokens of each row, int64 [N]."""
    return np.diff(self.offsets)


def load(source: pathlib.Path) -> Any:
  """The fast tokenizer of a model folder or a GGUF file. One without a padding token pads with its end of text: no mask
  here goes by the padding's id. Raises `InputError`."""
  import os

  os.environ.setdefault('TOKENIZERS_PARALLELISM', 'true')
  os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')
  import transformers

  transformers.logging.set_verbosity_error()
  tokenizer = gguf_tokenizer.load(source) if source.suffix == '.gguf' else _of_folder(source)
  if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
    tokenizer.pad_token = tokenizer.eos_token
  if tokenizer.pad_token_id is None:
    raise InputError(
      f'{source}: the tokenizer has no padding token, and none that ends a text (eos_token) to take its place; name '
      'them in tokenizer_config.json'
    )
  tokenizer.backend_tokenizer.no_truncation()  # some files (all-MiniLM-L6-v2's) have both switched on
  tokenizer.backend_tokenizer.no_padding()
  try:
    _call(tokenizer, [_RARE], None)
  except Exception as e:  # tokenizers raises nothing narrower
    raise InputError(f'{source}: the tokenizer cannot read a text: {_brief(e)}; it lacks tokens of its model') from e
  return tokenizer


def _brief(e: Exception) -> str:
  return ' '.join(str(e).split())[:300] or type(e).__name__


def _of_folder(folder: pathlib.Path) -> Any:
  import transformers

  if not any(next(folder.glob(pattern), None) for pattern in _VOCABULARIES):  # transformers would make an empty one
    raise InputError(
      f'{folder} holds no tokenizer: none of {", ".join(_VOCABULARIES)}; copy them from the model that it was made from'
    )
  try:
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
  except Exception as e:  # transformers raises many kinds here: OSError, ValueError, KeyError, tokenizers' own
    raise InputError(f'{folder}: the tokenizer cannot be loaded: {_brief(e)}') from e
  if not getattr(tokenizer, 'is_fast', False):
    raise InputError(f'{folder}: only fast tokenizers (tokenizer.json, vocab.txt) are supported')
  return tokenizer


def encode(
  tokenizer: Any, texts: Sequence[str], pairs: Sequence[str] | None, *, limit: int, together: int = 1
) -> Tokens:
  """Texts, or pairs, with the model's special tokens, each cut to `limit` tokens (the longer text of a pair first).
  `together`: texts of a row, one behind another, so that `truncated` counts rows.

  The name of a special token inside a text ('[SEP]') is text, and does not become that token.
  """
  ids, types, truncated = [], [], set()
  for start in range(0, len(texts), _CHUNK):
    a = list(texts[start : start + _CHUNK])
    b = None if pairs is None else list(pairs[start : start + _CHUNK])
    rows = _call(tokenizer, a, b)
    long = [i for i, r in enumerate(rows['input_ids']) if len(r) > limit]
    if long:
      cut = _call(
        tokenizer,
        [a[i] for i in long],
        None if b is None else [b[i] for i in long],
        truncation='longest_first',
        max_length=limit,
      )
      for j, i in enumerate(long):
        for key in rows:
          rows[key][i] = cut[key][j]
      truncated |= {(start + i) // together for i in long}
    ids += rows['input_ids']
    types += rows.get('token_type_ids') or [[0] * len(r) for r in rows['input_ids']]
  offsets = np.concatenate([[0], np.cumsum([len(r) for r in ids])]).astype(np.int64)
  flat = lambda rows: np.fromiter((t for r in rows for t in r), np.int32, int(offsets[-1]))  # noqa: E731
  return Tokens(flat(ids), flat(types), offsets, len(truncated))


def _call(tokenizer: Any, a: list[str], b: list[str] | None, **options: Any) -> dict[str, list[list[int]]]:
  out = tokenizer(a, b, return_attention_mask=False, split_special_tokens=True, **options)
  return {k: list(v) for k, v in out.items() if k in ('input_ids', 'token_type_ids')}


def ids_of(tokenizer: Any, text: str) -> np.ndarray:
  """The token ids of one text by itself, int32 [N], without special tokens. Raises `InputError` where it has none."""
  (ids,) = _call(tokenizer, [text], None, add_special_tokens=False)['input_ids']
  if text and not ids:
    raise InputError(f'{text!r}: the tokenizer makes no token of this text')
  return np.array(ids, np.int32)


def frame(tokenizer: Any) -> tuple[list[int], int]:
  """(the ids that the tokenizer puts in front of a text, that of the token which ends one). Raises `InputError`."""
  if tokenizer.eos_token_id is None:
    raise InputError(
      'the tokenizer has no token that ends a text (eos_token), so a model trained with it would never stop\n'
      'Name one as "eos_token" in its tokenizer_config.json.'
    )
  added = tokenizer('')['input_ids']
  return [i for i in added[:1] if i == tokenizer.bos_token_id], tokenizer.eos_token_id


def check_vocabulary(tokenizer: Any, *, vocab: int, where: str) -> None:
  """Every token of the tokenizer has an embedding, or an `InputError`; more embeddings than tokens are common."""
  if len(tokenizer) > vocab:
    raise InputError(
      f'{where}: the tokenizer has {len(tokenizer)} tokens, the model {vocab} embeddings; one of them is of another '
      'model, or tokens were added to the tokenizer alone'
    )


def check_ids(tokens: Tokens, *, vocab: int, types: int, where: str) -> None:
  """Every id within the embedding tables, or an `InputError`: on the device JAX would clamp it without a word."""
  if len(tokens.ids) and int(tokens.ids.max()) >= vocab:
    raise InputError(
      f'{where}: the tokenizer gives token id {int(tokens.ids.max())}, the model has {vocab} embeddings; '
      'the tokenizer belongs to another model'
    )
  if types and len(tokens.types) and int(tokens.types.max()) >= types:
    raise InputError(f'{where}: the tokenizer gives token type {int(tokens.types.max())}, the model has {types} types')
