"""Text that is text: what a user wrote never becomes a special token, whatever it says.

Splitting at the names of special tokens is switched off by many loaders for the whole text or not at all. Here the
tokenizer is kept twice: as it is, and with its special tokens renamed to strings that no text holds. By the second,
"<|im_end|>" is seven or so ordinary tokens, and a special token stands only where its private name was written. So one
call encodes a template's own special tokens beside a user's text, in context, as the tokenizer would.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

_OPEN, _CLOSE = '\U0010fffe', '\U0010ffff'  # noncharacters: Unicode promises that no text has them
PRIVATE = re.compile(f'[{_OPEN}{_CLOSE}]')


@dataclasses.dataclass(frozen=True)
class Encoded:
  """Token ids, and where in the text each begins, in characters."""

  ids: list[int]
  starts: list[int]


@dataclasses.dataclass(frozen=True)
class Literal:
  """A tokenizer as it is (`real`), and one (`plain`) whose special tokens have the names that `private` gives them."""

  real: Any
  plain: Any
  private: Mapping[str, str]

  @functools.cached_property
  def names(self) -> re.Pattern:
    """Matches the name of a special token, the longest first; nothing where there is none."""
    return re.compile('|'.join(map(re.escape, sorted(self.private, key=len, reverse=True))) or r'(?!)')

  @functools.cached_property
  def _folded(self) -> re.Pattern:
    return re.compile('|'.join(re.escape(_fold(n)) for n in self.private) or r'(?!)')

  def mentions(self, text: str) -> bool:
    """Whether a special token's name stands in a text, be it in other letters that a normaliser may take for it."""
    return bool(self._folded.search(_fold(text)))

  def hidden(self, text: str) -> str:
    """The text with private names for those of special tokens: what becomes these by `text`."""
    return self.names.sub(lambda m: self.private[m[0]], text)

  def text(self, texts: Sequence[str]) -> list[Encoded]:
    """The tokens of texts in which only private names are special; none are added in front or behind."""
    return _encoded(self.plain, texts)

  def markup(self, texts: Sequence[str]) -> list[Encoded]:
    """The tokens of texts in which names of special tokens are special, as `tokenizer(text)` has them."""
    return _encoded(self.real, texts)


@functools.lru_cache(maxsize=4)
def literal(tokenizer: Any) -> Literal:
  """The Literal of a fast tokenizer of transformers."""
  import tokenizers

  state = json.loads(tokenizer.backend_tokenizer.to_str())
  state |= {'post_processor': None, 'truncation': None, 'padding': None}  # a byte-level one moves offsets
  real = tokenizers.Tokenizer.from_str(json.dumps(state))
  private = {}
  for i, token in enumerate(state['added_tokens']):
    if token['special']:
      private[token['content']] = name = f'{_OPEN}{i}{_CLOSE}'
      token |= {'content': name, 'normalized': False, 'single_word': False}
  model = state['model']
  if isinstance(model['vocab'], dict):
    model['vocab'] = {private.get(piece, piece): i for piece, i in model['vocab'].items()}
  else:
    model['vocab'] = [[private.get(piece, piece), score] for piece, score in model['vocab']]
  if model.get('unk_token') in private:
    model['unk_token'] = private[model['unk_token']]
  plain = tokenizers.Tokenizer.from_str(json.dumps(state))
  moved = [n for n, p in private.items() if plain.token_to_id(p) != real.token_to_id(n)]
  if moved:
    raise AssertionError(f'special tokens changed their ids: {moved}')
  return Literal(real, plain, private)


def _encoded(tokenizer: Any, texts: Sequence[str]) -> list[Encoded]:
  found = tokenizer.encode_batch(list(texts), add_special_tokens=False)
  return [Encoded(e.ids, [start for start, _ in e.offsets]) for e in found]


def _fold(text: str) -> str:
  return unicodedata.normalize('NFKC', text).casefold()
