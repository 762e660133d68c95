"""From a source to splits that can be trained on: filters, checks every row, splits, limits, and notes what it did.

Everything a user can have wrong in the data is found here, before a tokenizer or a device is touched.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ftlib.base import settings
from ftlib.base.errors import InputError, did_you_mean, listing
from ftlib.base.settings import setting
from ftlib.data import augmentation, cleaning, sampling, splitting
from ftlib.data.columns import Unusable, check_there, sound, spared
from ftlib.data.labels import CHECKS, FAULTS, PART, STRATIFIED, Columns
from ftlib.data.sources import Rows, Source, open_source, subset

Splits = dict[str, Rows]

_CONFLICTING = ('class', 'labels', 'score', 'tags')  # kinds of labels of which a text has one and no other


@dataclasses.dataclass(frozen=True)
class Config:
  """The `data` section of a config."""

  path: str = ''  # a folder, a file, tfds:NAME, hf:NAME or package:NAME/FILE (see ftlib/data/sources.py)
  split: str = '0.8,0.1,0.1'  # ratios of train, validation and test, used where the source has one split
  group: str = ''  # a column; rows that share its value never stand in two splits
  keep: str = ''  # 'column=value|value', several separated by ';': only rows that meet them all
  split_seed: int = setting(0, low=0, high=2**32 - 1)  # of the split alone: the run's seed leaves it as it is
  limit: int | None = setting(None, low=1)  # at most so many training rows
  eval_limit: int | None = setting(None, low=1)  # at most so many rows of validation, and of test
  shots: int | None = setting(None, low=1)  # or so many of each label
  sampling: str = ''  # how often training rows are drawn: 'balanced', 'sqrt' or 'label=w,...' (ftlib/data/sampling.py)
  clean: str = ''  # what is done with every text: 'html,urls,...' or 'all' (ftlib/data/cleaning.py)
  deduplicate: str = setting('', choices=('', 'exact', 'normalised'))  # training rows that stand there twice go
  augment: str = ''  # changed copies of training rows: 'swap=0.1,delete=0.1' (ftlib/data/augmentation.py)
  copies: int = setting(1, low=1)  # of each row, by `augment`
  encoding: str = 'utf-8'
  on_bad_row: str = setting('error', choices=('error', 'skip'))  # rows that `ftlib/data/columns.py` finds a fault in


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Checked splits: `train`, `validation`, and `test` where there is one.

  Texts are as `ftlib/data/columns.py` says, labels as `labels.py` does. `fingerprint` changes with the content
  and with which rows stand in which split. `notes` has a line for each thing that the user should know.
  """

  splits: Splits
  labels: dict[str, list]
  fingerprint: str
  notes: list[str]


def load(cfg: Config, **columns: Any) -> Dataset:
  """The splits of `cfg.path`, of which the columns are checked row by row; `columns` are the fields of
  `ftlib/data/labels.py: Columns`. By labels that are classes, rows are dealt out to splits in equal shares.
  """
  read = Columns(**columns)
  if read.parts is not None:
    return _together(cfg, read.parts)
  texts, label, kind = read.texts, read.label, read.kind
  settings.read(Config, dataclasses.asdict(cfg), where='data')
  ratios, conditions = _ratios(cfg.split), _conditions(cfg.keep)
  source = open_source(cfg.path, encoding=cfg.encoding)
  notes: list[str] = []
  splits = spared(_used(source, cfg, notes), read.spare or {}, notes)
  check_there(splits, read, [('data.group', cfg.group), *(('data.keep', column) for column in conditions)])
  splits = _labelled(_kept(splits, conditions, notes), label, notes)
  splits = cleaning.cleaned(splits, _changeable(read, cfg), cfg.clean, notes, how=read.cleaned)
  unusable = {name: Unusable(skip=cfg.on_bad_row == 'skip') for name in splits}
  files = {name: rows.file for name, rows in splits.items()}
  splits = sound(splits, read, FAULTS.get(kind), group=cfg.group, unusable=unusable)
  notes += [note for name, of_split in unusable.items() for note in of_split.note(files[name])]
  splits = CHECKS[kind](splits, label, notes) if label else splits
  strata = label if kind in STRATIFIED else None
  splits = _arranged(splits, ratios, strata, cfg, notes)
  splits = cleaning.deduplicated(splits, texts or [label], label if texts else None, cfg.deduplicate, notes)
  most = {name: cfg.limit if name == 'train' else cfg.eval_limit for name in splits}
  splits = {name: _limited(rows, name, most[name], strata, cfg, notes) for name, rows in splits.items()}
  splits['train'] = _few(splits['train'], read, cfg, notes)
  _note_duplicates(splits, texts or [label], notes)
  if label and kind in _CONFLICTING:
    cleaning.note_conflicts(splits['train'], texts, label, cfg.deduplicate, notes, sets=kind == 'labels')
  splits['train'] = augmentation.augmented(
    splits['train'], _changeable(read, cfg), cfg.augment, cfg.copies, cfg.split_seed, notes
  )
  standing = hashlib.sha256(source.fingerprint.encode())
  for name, rows in splits.items():
    standing.update(name.encode() + np.asarray(rows.at, np.int64).tobytes())
  return Dataset(splits, source.labels, standing.hexdigest(), notes)


@dataclasses.dataclass(frozen=True)
class _Joined(Rows):
  """Rows of several sources, one behind another: `at` counts from 0 through all of `parts`."""

  parts: Sequence[Rows] = dataclasses.field(default=(), repr=False)

  def where(self, i: int) -> str:
    number = self.at[i]
    for part in self.parts:
      if number < len(part):
        return part.where(number)
      number -= len(part)
    raise IndexError(i)


def _together(cfg: Config, parts: Mapping[str, tuple[str, Columns]]) -> Dataset:
  """The splits of several sources, each read by itself, one behind another."""
  if not parts:
    raise InputError("task.parts names none; write --config.task.parts='NAME=TASK,FIELD=VALUE; NAME=TASK'")
  found, standing = {}, hashlib.sha256()
  for name, (path, columns) in parts.items():
    whole = path if re.match(r'\w\w+:', path) else os.path.join(cfg.path, path)
    try:
      found[name] = load(dataclasses.replace(cfg, path=whole), **columns._asdict())
    except InputError as e:
      raise InputError(f'part {name} of task.parts: {e}') from e
    standing.update(f'{name} {found[name].fingerprint}\n'.encode())
  splits = {}
  for split in ('train', 'validation', 'test'):
    own = {name: part.splits[split] for name, part in found.items() if split in part.splits}
    rows, parts = [{**row, PART: n} for n, part in own.items() for row in part], [*own.values()]
    if own:
      splits[split] = _Joined(rows, split, f'{cfg.path} ({", ".join(found)})', range(len(rows)), parts=parts)
  notes = [f'{name}: {note}' for name, part in found.items() for note in part.notes]
  return Dataset(splits, {}, standing.hexdigest(), notes)


def label_values(rows: Rows, column: str) -> list:
  """The distinct labels, integers by value, strings as a dictionary has them; rows without one do not count."""
  found = {row.get(column) for row in rows} - {None}
  return sorted(found, key=lambda v: (isinstance(v, str), v))


# --- what the settings say


def _ratios(spec: str) -> list[float]:
  try:
    ratios = [float(part) for part in spec.split(',')]
  except ValueError:
    ratios = []
  if len(ratios) != 3 or min(ratios) < 0 or not math.isclose(sum(ratios), 1, abs_tol=1e-6) or 0 in ratios[:2]:
    raise InputError(
      f'data.split={spec!r} is no split: wanted three ratios of train, validation and test that sum to 1, the first '
      'two above 0\nFor example --config.data.split=0.8,0.1,0.1 (or 0.9,0.1,0 for no test split).'
    )
  return [ratio / sum(ratios) for ratio in ratios]


def _conditions(spec: str) -> dict[str, list[str]]:
  """{column: values that are kept}."""
  conditions: dict[str, list[str]] = {}
  for part in filter(str.strip, spec.split(';')):
    column, equals, values = part.partition('=')
    if not equals or not column.strip() or column.strip() in conditions:
      raise InputError(f"data.keep={spec!r} is no filter: write --config.data.keep='column=value|value;column=value'")
    conditions[column.strip()] = [v.strip() for v in values.split('|')]
  return conditions


def _used(source: Source, cfg: Config, notes: list[str]) -> Splits:
  """The splits that training takes part in; a source's only split, whatever its name, is `all`."""
  for rows in source.splits.values():
    if not len(rows):
      raise InputError(f'{rows.file}: holds no rows')
    if rows.passed:
      notes.append(f'{rows.file}: {rows.passed} blank line{"s" * (rows.passed > 1)} left out')
  if len(source.splits) == 1:
    return {'all': next(iter(source.splits.values()))}
  if 'train' not in source.splits:
    raise InputError(f'data.path={cfg.path}: has no train split, but:\n{listing(source.splits)}')
  used = {name: source.splits[name] for name in ('train', 'validation', 'test') if name in source.splits}
  if unused := [name for name in source.splits if name not in used]:
    notes.append(f'splits of the source that are not used: {", ".join(unused)}')
  return used


# --- which rows remain


def _kept(splits: Splits, conditions: Mapping[str, list[str]], notes: list[str]) -> Splits:
  if not conditions:
    return splits
  for column, values in conditions.items():
    there = Counter(_spelt(row.get(column)) for rows in splits.values() for row in rows)
    for value in values:
      if value not in there:  # most likely a slip, which would drop a class without a word
        common = [v for v, _ in there.most_common()]
        raise InputError(
          f'data.keep: no row has {column}={value}{did_you_mean(value, common)}\n'
          f'Values of {column}, the most frequent first:\n{listing(common)}'
        )
  wanted = {column: set(values) for column, values in conditions.items()}
  kept = {}
  for name, rows in splits.items():
    picked = [i for i, row in enumerate(rows) if all(_spelt(row.get(c)) in values for c, values in wanted.items())]
    if not picked:
      raise InputError(f'data.keep leaves no row of {rows.file}\nLoosen --config.data.keep=.')
    if len(picked) < len(rows):
      notes.append(f'{rows.file}: {len(picked)} of {len(rows)} rows kept by data.keep')
    kept[name] = subset(rows, picked)
  return kept


def _spelt(value: Any) -> str:
  """A value as a filter names it: JSON's true and false in small letters, anything else as it prints."""
  return str(value).lower() if isinstance(value, bool) else str(value)


def _labelled(splits: Splits, label: str | None, notes: list[str]) -> Splits:
  """Without a test split none of whose rows has a label: benchmarks publish those with the labels hidden."""
  if not label or 'test' not in splits or any(row.get(label) not in (None, '') for row in splits['test']):
    return splits
  notes.append(f'test: left out, since none of its {len(splits["test"])} rows has a label')
  return {name: rows for name, rows in splits.items() if name != 'test'}


# --- which split a row stands in


def _arranged(splits: Splits, ratios: Sequence[float], label: str | None, cfg: Config, notes: list[str]) -> Splits:
  """`train`, `validation` and, where there is one, `test`: those of the source, or what is missing cut from them."""
  if len(splits) == 1:
    rows = next(iter(splits.values()))
    parts = _divided(rows, dict(zip(('train', 'validation', 'test'), ratios)), label, cfg)
    notes.append(f'{rows.file}: split into {", ".join(f"{len(p)} {name}" for name, p in parts.items())} by data.split')
    return parts
  if cfg.group:
    _check_apart(splits, cfg.group)
  if 'validation' in splits:
    return splits
  share = ratios[1] / (ratios[0] + ratios[1])
  parts = _divided(splits['train'], {'train': 1 - share, 'validation': share}, label, cfg)
  notes.append(f'validation: the source has none, so {len(parts["validation"])} rows of train were set apart for it')
  return parts | {'test': splits['test']}


def _check_apart(splits: Splits, group: str) -> None:
  values = {name: {row[group] for row in rows} for name, rows in splits.items()}
  for a, b in itertools.combinations(values, 2):
    if shared := values[a] & values[b]:
      raise InputError(
        f'data.group: {len(shared)} values of "{group}" stand in both {a} and {b} of the source:\n'
        f'{listing(sorted(map(str, shared)), limit=5)}\nPut all rows in one file, to be split by group, or set '
        '--config.data.group= to nothing, to take the splits as they are.'
      )


def _divided(rows: Rows, ratios: Mapping[str, float], label: str | None, cfg: Config) -> Splits:
  names = [name for name, ratio in ratios.items() if ratio > 0]
  shares = np.array([ratios[name] for name in names])
  labels = _strata(rows, label)
  if cfg.group:
    groups = [row[cfg.group] for row in rows]
    split_of = splitting.by_group(groups, labels, shares, cfg.split_seed, column=cfg.group)
  else:
    split_of = splitting.dealt(labels, shares, cfg.split_seed)
  parts = {name: subset(rows, np.flatnonzero(split_of == s).tolist(), name=name) for s, name in enumerate(names)}
  for name, part in parts.items():
    if not len(part):
      values, why = len({repr(value) for value in labels}), f'{rows.file} has only {len(rows)}'
      if 2 * values > len(rows):
        why += f', with {values} values of "{label}": is that the column of the labels?'
      raise InputError(
        f'data.split={cfg.split} leaves {name} without a row: {why}\n'
        'Give more rows, or other ratios by --config.data.split=.'
      )
  return parts


def _limited(rows: Rows, name: str, most: int | None, label: str | None, cfg: Config, notes: list[str]) -> Rows:
  """At most `most` rows of the split called `name`, labels by their shares."""
  if most is None or most >= len(rows):
    return rows
  notes.append(f'{name}: {most} of {len(rows)} rows taken (data.{"limit" if name == "train" else "eval_limit"})')
  return subset(rows, splitting.some(_strata(rows, label), most, cfg.split_seed))


def _strata(rows: Rows, label: str | None) -> list:
  """What rows are dealt out by."""
  return [row[label] for row in rows] if label else [''] * len(rows)


def _few(train: Rows, read: Columns, cfg: Config, notes: list[str]) -> Rows:
  """`cfg.shots` rows of each label."""
  if cfg.shots is None:
    return train
  if cfg.limit is not None:
    raise InputError(f'data.shots={cfg.shots} and data.limit={cfg.limit} both say how many rows are taken; set one')
  if not read.label or read.kind not in ('class', 'labels'):
    raise InputError(f'data.shots={cfg.shots} is for tasks whose rows have labels; data.limit takes any rows')
  taken = sampling.few([row[read.label] for row in train], cfg.shots, cfg.split_seed)
  notes.append(f'train: {len(taken)} of {len(train)} rows taken, {cfg.shots} of each label (data.shots)')
  return subset(train, taken)


def _changeable(read: Columns, cfg: Config) -> list[str]:
  """The columns whose texts may be changed. Raises `InputError` where labels point into them, or texts are answers."""
  if read.label and read.kind not in ('class', 'labels', 'score'):
    for field in ('clean', 'augment'):
      if getattr(cfg, field):
        raise InputError(
          f'data.{field}={getattr(cfg, field)} is for texts with a class, labels or a score; here labels point into '
          f'the texts, or are texts themselves\nClean the file instead, and set --config.data.{field}= to nothing.'
        )
  if cfg.augment and read.cleaned:
    raise InputError(
      f'data.augment={cfg.augment} moves words about, and here labels are of marked places in the texts\n'
      'Set --config.data.augment= to nothing.'
    )
  if cfg.augment and not read.label:
    raise InputError(f'data.augment={cfg.augment} is for texts with a class, labels or a score, and here are no labels')
  return [c for c in read.texts if (read.kinds or {}).get(c, 'text') in ('text', 'optional')]


def _note_duplicates(splits: Splits, texts: Sequence[str], notes: list[str]) -> None:
  key = lambda row: tuple(str(row[c]) for c in texts)  # noqa: E731
  trained = {key(row) for row in splits['train']}
  for name in ('validation', 'test'):
    if name in splits and (found := sum(key(row) in trained for row in splits[name])):
      notes.append(f'{name}: {found} of {len(splits[name])} rows have exactly the text of a training row')
