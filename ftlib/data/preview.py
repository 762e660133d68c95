"""Which tokens of a row count, made visible: what the loss sees is looked at before it is trained on."""

from __future__ import annotations

from typing import Any

from ftlib.data.batches import Examples

Piece = tuple[str, bool]  # the text of a token, and whether it is supervised

_BACK = 4  # tokens that a character may be spread over, and that spacing may look back at
_COLOUR, _PLAIN = '\x1b[30;42m', '\x1b[0m'


def pieces(examples: Examples, tokenizer: Any, i: int) -> list[Piece]:
  """(text, supervised) of each token of document i. Where a character is of several tokens, the last one has it."""
  start, stop = int(examples.tokens.offsets[i]), int(examples.tokens.offsets[i + 1])
  ids = examples.tokens.ids[start:stop].tolist()
  weights = examples.per_token['weights'][start:stop]
  ahead = 0 if 'words' in examples.per_token else 1  # of a masked token its own weight says it, else the one before's
  decode = lambda part: tokenizer.decode(part, clean_up_tokenization_spaces=False)  # noqa: E731
  out: list[Piece] = []
  whole = 0  # tokens whose text is out
  for k in range(len(ids)):
    since = max(0, whole - _BACK)
    before, now = decode(ids[since:whole]), decode(ids[since : k + 1])
    unfinished = now.endswith('\N{REPLACEMENT CHARACTER}') and k - whole < _BACK and k + 1 < len(ids)
    out.append(('' if unfinished else now[len(before) :], bool(k >= ahead and weights[k - ahead] > 0)))
    whole = whole if unfinished else k + 1
  return out


def shown(row: list[Piece], *, colour: bool) -> str:
  """The text of a row with its supervised parts on green, or in brackets [[ ]] where there are no colours."""
  begin, end = (_COLOUR, _PLAIN) if colour else ('[[', ']]')
  out, on = '', False
  for text, supervised in row:
    if supervised != on:
      out, on = out + (begin if supervised else end), supervised
    out += text
  return out + (end if on else '')
