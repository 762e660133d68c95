"""Several documents in one row, so that little of a batch is padding.

Best fit decreasing: the longest documents first, each into the row with the least room that it fits in (Johnson 1973:
at most 11/9 of the fewest rows, and 6/9 more). Documents of a row are segments of their own, which see nothing of each
other; positions begin again (`ftlib/data/batches.py: collate`).
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence

import numpy as np

from ftlib.base.errors import InputError
from ftlib.data.batches import Examples


def best_fit(lengths: Sequence[int], window: int) -> list[list[int]]:
  """Document numbers by row, each row of at most `window` tokens; in n log n. No document is longer than that."""
  order = np.argsort(-np.asarray(lengths), kind='stable').tolist()
  packs: list[list[int]] = []
  rows_with: dict[int, list[int]] = {}  # room -> rows that have it
  rooms: list[int] = []  # its keys, sorted
  for d in order:
    k = bisect.bisect_left(rooms, lengths[d])
    if k == len(rooms):
      room, row = window, len(packs)
      packs.append([])
    else:
      room = rooms[k]
      row = rows_with[room].pop()
      if not rows_with[room]:
        del rows_with[room], rooms[k]
    packs[row].append(d)
    left = room - lengths[d]
    if left not in rows_with:
      bisect.insort(rooms, left)
      rows_with[left] = []
    rows_with[left].append(row)
  return packs


def pack(examples: Examples, window: int) -> Examples:
  """The Examples with their documents packed into rows of `window` tokens, what all have in common left as it is.

  Raises `InputError` for rows with labels, and for documents that belong together.
  """
  labelled = not examples.per_token or any((x != x[:1]).any() for x in examples.extra.values())
  if labelled or examples.packs is not None:
    raise InputError(
      'train.packing=true is for tasks that predict tokens (lm, sft, mask); a label belongs to a whole row'
    )
  lengths = examples.tokens.lengths.tolist()
  packs = [np.array(p) for p in best_fit(lengths, window)]
  return dataclasses.replace(examples, packs=packs, window=window)


def waste(examples: Examples) -> float:
  """The share of the tokens of packed rows that is padding."""
  return 1 - int(examples.tokens.lengths.sum()) / (len(examples) * examples.window)
