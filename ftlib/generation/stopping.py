"""Where a text ends, and how much of it may be shown yet.

Stop texts are looked for on the host, in what the tokenizer makes of a row's tokens, between pieces of the compiled
loop: a text that begins inside one token and ends inside another is found, whatever the vocabulary. The price is that
rows run on for up to a piece (`generator.PIECE` tokens) behind it, which is cut off again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ftlib.base.errors import InputError

_BROKEN = '\ufffd'  # what stands for bytes that are no UTF-8 yet


def eos_ids(tokenizer: Any, *values: Mapping[str, Any], also: Sequence[int] = ()) -> tuple[int, ...]:
  """The ids that end a row: the tokenizer's, those in `generation_config.json` and `config.json`, and `also`.

  Raises `InputError` where there is none.
  """
  found = {*also}
  for given in (tokenizer.eos_token_id, *(v.get('eos_token_id') for v in values)):
    found |= set() if given is None else {int(i) for i in (given if isinstance(given, list | tuple) else [given])}
  if not found:
    raise InputError(
      'the tokenizer has no end-of-sequence token, nor do config.json and generation_config.json name one: no '
      'text would end before its last token\n'
      '  name the token in tokenizer_config.json (eos_token), or give its id: --eos=ID'
    )
  return tuple(sorted(found))


def decoded(tokenizer: Any, ids: Sequence[int]) -> str:
  """The text of some tokens, special ones left out."""
  return tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)


def found(text: str, stops: Sequence[str]) -> int:
  """Where the first of the stop texts begins, -1 for none."""
  places = [i for i in (text.find(s) for s in stops) if i >= 0]
  return min(places, default=-1)


def tokens_until(ids: np.ndarray, stops: Sequence[str], decode: Callable[[np.ndarray], str], start: int) -> int:
  """How many tokens it takes until a stop text is complete; it was not after the first `start`."""
  return next((n for n in range(start + 1, len(ids) + 1) if found(decode(ids[:n]), stops) >= 0), len(ids))


def ready(text: str, stops: Sequence[str]) -> str:
  """The part of a text still growing that will not change: without bytes of an unfinished character at its end, and
  without what may become a stop text."""
  text = text.rstrip(_BROKEN)
  longest = max((n for s in stops for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
  return text[: len(text) - longest]
