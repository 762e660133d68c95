"""Texts longer than a row: which part of them is kept, or windows over all of it whose answers are pooled.

Of a pair the longer text is cut, and both only where each is longer than half of the row. Special tokens stay as the
model wants them; what is cut are tokens of texts. W windows, N rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ftlib.base.errors import InputError
from ftlib.base.settings import setting
from ftlib.data import tokens
from ftlib.data.batches import Examples
from ftlib.data.tokens import Tokens

_CHUNK = 1024


@dataclasses.dataclass(frozen=True)
class Cut:
  """`truncate`: what is done with a text that is too long: 'tail' cuts its end off, 'head' its beginning, 'both' its
  middle, so that `head_share` of what is left is its beginning (Sun et al. 2019 keep 128 of 510 tokens so); 'windows'
  makes documents of it that share `stride` tokens with the one before, each with the row's label, and pools their
  answers by `window_pooling`."""

  truncate: str = setting('tail', choices=('tail', 'head', 'both', 'windows'))
  head_share: float = setting(0.25, above=0, below=1)
  stride: int = setting(64, low=0)
  window_pooling: str = setting('mean', choices=('mean', 'max', 'vote'))


def examples(
  tokenizer: Any,
  texts: Sequence[str],
  pairs: Sequence[str] | None,
  extra: Mapping[str, np.ndarray],
  *,
  limit: int,
  cut: Cut,
) -> Examples:
  """Texts, or pairs, as documents of at most `limit` tokens; `extra` {name: [N, ...]} is what their rows have.

  `Examples.windows` is set where a row was made into several. Raises `InputError` where `cut.stride` leaves no room.
  """
  if cut.truncate == 'tail':
    return Examples(tokens.encode(tokenizer, texts, pairs, limit=limit), dict(extra))
  if cut.truncate == 'windows':
    _check_stride(tokenizer, limit, cut, pair=pairs is not None)
  ids, types, rows, long = [], [], [], 0
  for start in range(0, len(texts), _CHUNK):
    a = list(texts[start : start + _CHUNK])
    b = [] if pairs is None else [list(pairs[start : start + _CHUNK])]
    found = tokenizer(a, *b, return_attention_mask=False, split_special_tokens=True)
    for i, row in enumerate(found['input_ids']):
      kinds = found['token_type_ids'][i] if 'token_type_ids' in found else [0] * len(row)
      pieces = [range(len(row))]
      if len(row) > limit:
        pieces = _pieces(found.sequence_ids(i), limit, cut)
        long += 1
      ids += [[row[t] for t in piece] for piece in pieces]
      types += [[kinds[t] for t in piece] for piece in pieces]
      rows += [start + i] * len(pieces)
  offsets = np.concatenate([[0], np.cumsum([len(r) for r in ids])]).astype(np.int64)
  flat = lambda parts: np.fromiter((t for p in parts for t in p), np.int32, int(offsets[-1]))  # noqa: E731
  windows = np.asarray(rows, np.int64) if len(rows) > len(texts) else None
  extra = {n: x if windows is None else x[windows] for n, x in extra.items()}
  return Examples(Tokens(flat(ids), flat(types), offsets, long), extra, windows=windows)


def of_rows(found: Examples, name: str) -> np.ndarray:
  """`found.extra[name]` of the rows [N, ...], whichever documents they were made into."""
  values = found.extra[name]
  return values if found.windows is None else values[_starts(found.windows)]


def pooled(windows_W: np.ndarray, values_WC: np.ndarray, how: str) -> np.ndarray:
  """The answers of rows [N, C] from those of their windows: the mean, the greatest of each column, or ('vote') the
  share of windows in which a column is the greatest, the mean deciding between as many."""
  starts_N = _starts(windows_W)
  counts_N1 = np.diff(np.append(starts_N, len(windows_W)))[:, None]
  values_WC = np.asarray(values_WC, np.float64)
  if how == 'max':
    return np.maximum.reduceat(values_WC, starts_N)
  mean_NC = np.add.reduceat(values_WC, starts_N) / counts_N1
  if how == 'mean':
    return mean_NC
  votes_WC = np.eye(values_WC.shape[1])[values_WC.argmax(1)]
  return ballot(windows_W, votes_WC, mean_NC)


def ballot(windows_W: np.ndarray, votes_WC: np.ndarray, mean_NC: np.ndarray) -> np.ndarray:
  """(votes + mean) / (windows + 1) [N, C]: a mean between 0 and 1 is one vote more, which never outweighs one."""
  starts_N = _starts(windows_W)
  counts_N1 = np.diff(np.append(starts_N, len(windows_W)))[:, None]
  return (np.add.reduceat(votes_WC, starts_N) + mean_NC) / (counts_N1 + 1)


def _starts(windows_W: np.ndarray) -> np.ndarray:
  """Where the windows of each row begin, int64 [N]; they stand in the order of the rows."""
  return np.flatnonzero(np.diff(windows_W, prepend=-1))


def _pieces(owners: Sequence[int | None], limit: int, cut: Cut) -> list[list[int]]:
  """The tokens of a row that its documents keep; `owners` says of each token which text it is of, None of neither."""
  texts = [[t for t, o in enumerate(owners) if o == text] for text in (0, 1)]
  room = limit - (len(owners) - sum(map(len, texts)))
  short = min(map(len, texts))
  if texts[1] and short > room // 2:
    rooms = [room - room // 2, room // 2]
  else:
    rooms = [len(t) if len(t) == short else room - short for t in texts]
  special = [t for t, o in enumerate(owners) if o is None]
  if cut.truncate != 'windows':
    kept = [_kept(t, r, cut) for t, r in zip(texts, rooms)]
    return [sorted([*special, *kept[0], *kept[1]])]
  longer = int(len(texts[1]) > len(texts[0]))
  other = texts[1 - longer][: rooms[1 - longer]]
  size, text = rooms[longer], texts[longer]
  starts = range(0, max(1, len(text) - cut.stride), size - cut.stride)
  return [sorted([*special, *other, *text[s : s + size]]) for s in starts]


def _kept(text: list[int], room: int, cut: Cut) -> list[int]:
  if len(text) <= room:
    return text
  head = {'head': 0, 'both': round(room * cut.head_share)}[cut.truncate]
  return text[:head] + text[len(text) - (room - head) :]


def _check_stride(tokenizer: Any, limit: int, cut: Cut, *, pair: bool) -> None:
  room = limit - tokenizer.num_special_tokens_to_add(pair=pair)
  room = room // 2 if pair else room
  if cut.stride >= room:
    raise InputError(
      f'task.stride={cut.stride}: a window has room for {room} tokens of a text'
      f'{" beside the other of the pair" if pair else ""}, all of which it would share with the one before; lower it, '
      'or raise train.max_length'
    )
