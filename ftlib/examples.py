"""From the rows of a data set to examples that fit the model: cut to its length, checked against it, packed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from ftlib.base.errors import InputError, did_you_mean
from ftlib.data import packing, tokens
from ftlib.data.batches import Examples
from ftlib.data.preparation import Dataset
from ftlib.data.sources import subset
from ftlib.peft.method import Method
from ftlib.recipe import Settings
from ftlib.tasks.task import Task

_DRAWN = (64, 48, 32, 24, 16, 12, 8, 4)  # lengths of drawn rows


def make(
  s: Settings,
  task: Task,
  dataset: Dataset,
  tokenizer: Any,
  split: str | Sequence[str] | None,
  *,
  limit: int,
  arch: Any,
  method: Method,
) -> tuple[dict[str, Examples], list[str]]:
  """(the examples of a split, of several, or of all with those of training packed; notes). No `split` means all.

  From then on the splits of `dataset` have a row for each example, dropped ones are gone.
  `limit`: tokens of a row at most; `arch`: the model's config.
  """
  notes = []
  if getattr(s.modules['task'], 'HEADLESS', False):
    tokens.check_vocabulary(tokenizer, vocab=arch.vocab, where=s.model.pretrained)
  wanted = [split] if isinstance(split, str) else split
  splits = dataset.splits if wanted is None else [_known_split(dataset, name) for name in dict.fromkeys(wanted)]
  made = {name: task.examples(dataset.splits[name], tokenizer, limit=limit) for name in splits}
  for name, found in made.items():
    tokens.check_ids(found.tokens, vocab=arch.vocab, types=arch.types, where=f'{s.model.pretrained} on {name}')
    notes += [*found.notes, *_length_notes(found, name, limit=limit, positions=arch.max_length)]
    if not method.packs and found.packs is not None:
      raise InputError(
        f'task.name={s.names["task"]}: several documents stand in one row, and the {method.tokens} virtual tokens of '
        f'method.name={s.names["method"]} would be seen by the first alone; take another method'
      )
    if found.rows is not None:  # from here on a document is a row of its split
      dataset.splits[name] = subset(dataset.splits[name], found.rows)
      made[name] = dataclasses.replace(found, rows=None)
  if s.train.packing and split is None:
    made['train'] = _packed(made['train'], limit, method)
  return made, [*dict.fromkeys(notes)]


def drawn(vocab: int, limit: int) -> dict[str, Examples]:
  """A few rows of token ids drawn by a fixed seed, of different length up to `limit`, for want of a data set."""
  rng = np.random.default_rng(0)
  rows = [rng.integers(0, vocab, max(1, min(limit, n))).tolist() for n in _DRAWN]
  offsets = np.concatenate([[0], np.cumsum([len(r) for r in rows])]).astype(np.int64)
  ids = np.concatenate(rows).astype(np.int32)
  return {'validation': Examples(tokens.Tokens(ids, np.zeros_like(ids), offsets, 0), {})}


def limit(s: Settings, tokenizer: Any, *, positions: int, virtual: int) -> int:
  """The tokens that a row is cut to; `virtual` ones of the method take positions too."""
  if virtual >= positions:
    raise InputError(
      f'method.name={s.names["method"]}: its {virtual} virtual tokens leave none of the {positions} positions that the '
      'model has'
    )
  positions -= virtual
  special = tokenizer.num_special_tokens_to_add(pair=bool(getattr(s.task, 'pair', '')))
  if 0 < s.train.max_length <= special:
    raise InputError(
      f'train.max_length={s.train.max_length} leaves no room for text beside the {special} special tokens of a row; '
      f'raise it, or give 0 for the {positions} tokens that the model has positions for'
    )
  return min(s.train.max_length or positions, positions)


def _known_split(dataset: Dataset, split: str) -> str:
  if split not in dataset.splits:
    raise InputError(f'--split={split}: the data has {", ".join(dataset.splits)}{did_you_mean(split, dataset.splits)}')
  return split


def _packed(examples: Examples, limit: int, method: Method) -> Examples:
  if not method.packs:
    raise InputError(
      f'train.packing=true: the {method.tokens} virtual tokens of the method stand in front of a row, and only its '
      'first document would see them; set --config.train.packing=false'
    )
  return packing.pack(examples, limit)


def _length_notes(rows: Examples, name: str, *, limit: int, positions: int) -> list[str]:
  cut, count = rows.tokens.truncated, len(rows) if rows.windows is None else int(rows.windows[-1]) + 1
  if rows.windows is None and limit == positions and cut > 0.5 * count:
    raise InputError(
      f'{name}: {cut} of {count} rows are longer than the {positions} tokens that the model has positions for; '
      'cut the texts into pieces, or take a model with more positions'
    )
  made = None if rows.windows is None else len(rows) - count + cut
  return [cut_note(name, cut, count, made, limit=limit)] if cut else []


def cut_note(name: str, cut: int, count: int, windows: int | None, *, limit: int) -> str:
  """What became of `cut` of `count` rows that are longer than the `limit` tokens of a document."""
  became = f'were cut to {limit} tokens' if windows is None else f'were made into {windows} windows of {limit} tokens'
  return f'{name}: {cut} of {count} rows ({cut / count:.1%}) {became}'
