"""A tag for every word: named entities, by schemes that say where one begins and ends, or parts of speech.

Words become sub-words, of which the first one's logits are the word's; rows that are too long become windows, and a
word is answered for by the one in which most stands around it. In Chinese every character is a word."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftlib.base import tags
from ftlib.base.errors import InputError, did_you_mean, listing
from ftlib.base.settings import setting
from ftlib.base.tags import Entity
from ftlib.base.types import Batch, Head, Outputs
from ftlib.data import words
from ftlib.data.batches import Examples
from ftlib.data.labels import Columns
from ftlib.evals import counted, entities
from ftlib.objectives import crf

OBJECTIVE = 'tagging'
_PADDING = -1  # behind the words of a row


@dataclasses.dataclass(frozen=True)
class Config:
  """`text`, `label`: the columns of words and tags, lists of equal length. A text in their place is cut up, as `units`
  says: at spaces, into characters, or ('') into whatever there are as many of as tags.

  `scheme`: how tags mean entities (`ftlib/base/tags.py`), 'bio', 'bioes' or not at all ('plain'); '' is what the
  training data use. Data in another scheme, or with broken sequences, are read as entities and written in this one.
  `repair`: what a predicted tag is that goes on with nothing: where an entity begins ('begin', as conlleval reads it),
  outside ('drop'), left as it is ('none'), or none is predicted: 'constrain' looks for the best sequence that is legal.
  `crf`: whether transitions are learnt (`ftlib/objectives/crf.py`). `stride`: tokens that a window of a row shares with
  the one before, at most half of those that fit."""

  text: str = 'tokens'
  label: str = 'tags'
  units: str = setting('', choices=('', 'words', 'characters'))
  scheme: str = setting('', choices=('', *tags.SCHEMES))
  repair: str = setting('begin', choices=('begin', 'drop', 'constrain', 'none'))
  crf: bool = False
  stride: int = setting(32, low=0)


def columns(config: Config) -> Columns:
  """What is read of the data."""
  row = functools.partial(checked, config)
  return Columns([config.text], config.label, 'tags', ('text', 'label'), kinds={config.text: 'words'}, row=row)


def checked(config: Config, row: dict) -> dict:
  """The row with lists of words and, where it has some, of as many tags. Raises `ValueError`."""
  found, given = row[config.text], row.get(config.label)
  given = given.split() if isinstance(given, str) else given
  if isinstance(found, str):
    found = _cut_up(found, config.units, None if given is None else len(given))
  if given is not None and len(given) != len(found):
    unit = 'words' if isinstance(row[config.text], list) else 'words (or characters)'
    raise ValueError(f'"{config.label}" has {len(given)} tags for the {len(found)} {unit} of "{config.text}"')
  return {**row, config.text: found} | ({} if given is None else {config.label: given})


def _cut_up(text: str, units: str, count: int | None) -> list[str]:
  ways = {'words': text.split(), 'characters': words.characters(text)}
  if units:
    return ways[units]
  if count is None:
    return ways['characters' if words.unspaced(text) else 'words']
  return next((w for w in (*ways.values(), list(text)) if len(w) == count), ways['words'])


def build(config: Config, *, train: Sequence[Mapping[str, Any]] | None, known: list | None) -> Tag:
  """The task over a label list: that of a stored run or of the data's own schema, else what the training rows hold.

  Raises `InputError` where the scheme does not fit all tags but most, or there are no two tags.
  """
  seen = Counter(tag for row in train or () for tag in row[config.label])
  labels = list(known) if known else sorted(seen, key=lambda v: (isinstance(v, str), v))
  if not known and config.scheme != 'plain' and (strays := tags.strays(seen)):
    raise _stray(strays, labels, train, config.label)
  found = tags.scheme_of(labels)
  scheme = config.scheme or found
  if scheme != 'plain':
    if found == 'plain':
      names = ', '.join(map(str, labels[:10])) or 'none at all'
      raise InputError(
        f'task.scheme={scheme}: the tags of "{config.label}" are {names}; this scheme has O and tags as B-PER, I-PER'
      )
    labels = tags.label_list(tags.kinds(labels), scheme)
  if len(labels) < 2:
    only = f'only one tag, {labels[0]!r}' if labels else 'no tag at all'
    raise InputError(f'task.label={config.label!r}: the training rows have {only}; there is nothing to tell apart')
  task = Tag(config, labels, np.zeros(len(labels), np.int64), scheme)
  counts = Counter(tag for row in train or () for tag in task.written(row[config.label]))
  return dataclasses.replace(task, counts=np.array([counts[l] for l in labels], np.int64))


def _stray(strays: set, labels: list, train: Sequence[Mapping[str, Any]], column: str) -> InputError:
  where = getattr(train, 'where', lambda i: f'row {i + 1}')
  at = [(i, tag) for i, row in enumerate(train) for tag in row[column] if tag in strays]
  i, first = at[0]
  known = [tags.OUTSIDE, *(l for l in labels if l not in strays and l != tags.OUTSIDE)]
  alike = [l for l in known if l.casefold() == str(first).strip().casefold()]
  return InputError(
    f'{where(i)}: the tag {first!r} is in no scheme, and most of "{column}" are{did_you_mean(first, alike or known)} '
    f'({len({i for i, _ in at})} such rows)\n  in no scheme:\n{listing(sorted(map(repr, strays)), limit=5)}\n'
    f'  in one: {", ".join(known[:20])}\nMend it or, where tags mean no entities, set --config.task.scheme=plain.'
  )


@dataclasses.dataclass(frozen=True)
class Tag:
  """The task; see `ftlib/tasks/task.py`. `scheme`: that of `labels`."""

  config: Config
  labels: list
  counts: np.ndarray
  scheme: str

  @property
  def metric(self) -> str:
    return 'token_accuracy' if self.scheme == 'plain' else 'f1'

  @property
  def metric_names(self) -> dict[str, bool]:
    if self.scheme == 'plain':
      return entities.TOKEN_METRICS
    return {**entities.ENTITY_METRICS, 'illegal_tags': False}

  @property
  def head(self) -> Head:
    return Head('tag', len(self.labels), transitions=self.config.crf)

  @property
  def about(self) -> str:
    names = [str(l) for l in self.labels] if self.scheme == 'plain' else self.types
    more = f', ... ({len(names)})' if len(names) > 10 else ''
    what = 'tags' if self.scheme == 'plain' else f'types of entities ({self.scheme})'
    return f'{len(names)} {what}: {", ".join(names[:10])}{more}' + (', with a CRF' if self.config.crf else '')

  @property
  def types(self) -> list[str]:
    """The types of entities."""
    return tags.kinds(self.labels)

  def written(self, row: Sequence) -> list:
    """A row's tags in the task's scheme."""
    return list(row) if self.scheme == 'plain' else tags.written(tags.entities(row), len(row), self.scheme)

  def placeholder(self, row: Mapping[str, Any]) -> list:
    """Tags for a row that has none, or others than are wanted."""
    text = row.get(self.config.text)
    found = _cut_up(text, self.config.units, None) if isinstance(text, str) else text
    return [self.labels[0]] * (len(found) if isinstance(found, list) else 1)

  def examples(self, rows: Sequence[Mapping[str, Any]], tokenizer: Any, *, limit: int) -> Examples:
    """Besides tokens, for each of them `targets`, `weights` (1 where a word begins that this window answers for) and
    `chain` (1 where any does); rows without tags have the first label everywhere."""
    c, name = self.config, getattr(rows, 'name', 'rows')
    where = getattr(rows, 'where', lambda i: f'row {i + 1}')
    given = [row.get(c.label) for row in rows]
    notes = self._check(given, where, name)
    index = {l: i for i, l in enumerate(self.labels)}
    gold = [self.written(t) if t is not None else [self.labels[0]] * len(r[c.text]) for t, r in zip(given, rows)]
    found = words.encode(tokenizer, [row[c.text] for row in rows], limit=limit, stride=c.stride)
    if found.unknown:
      notes.append(f'{name}: {found.unknown} words of which the tokenizer knows nothing are read as unknown ones')
    numbers = [np.array([index[t] for t in row], np.int32) for row in gold]
    flat, begins = np.concatenate(numbers), found.word >= 0
    per_token = {
      'targets': np.where(begins, flat[found.word], 0).astype(np.int32),
      'weights': found.own.astype(np.float32),
      'chain': begins.astype(np.int32),
    }
    host = {'tags': numbers}
    if self.scheme != 'plain':
      host['entities'] = [tags.entities(row) for row in gold]
    spans = {'places': found.places}
    return Examples(found.tokens, {}, per_token, windows=found.rows, host=host, spans=spans, notes=notes)

  def _check(self, given: Sequence[Sequence | None], where: Callable[[int], str], name: str) -> list[str]:
    """Notes on the tags of a split. Raises `InputError` for those that the label list does not have."""
    there = [(i, row) for i, row in enumerate(given) if row is not None]
    entity = self.scheme != 'plain'
    known = {'', *self.types} if entity else {*self.labels}
    means = _type if entity else (lambda tag: tag)
    odd = {tag for _, row in there for tag in {*row} if means(tag) not in known}
    unknown = [(i, means(t)) for i, row in there for t in row if t in odd] if odd else []
    if unknown:
      self._refuse(unknown, where)
    if not entity:
      return []
    closed = any(tags.split(t)[0] == 'E' for _, row in there for t in row)
    broken = {i: n for i, row in there if (n := tags.faults(row, closed=closed))}
    notes = []
    if broken and tags.is_iob1(row for _, row in there):
      notes.append(f'{name}: the tags are IOB1 (B only between neighbours), and were read as such')
    elif broken:
      notes.append(
        f'{name}: {len(broken)} of {len(given)} rows have tags that go on with nothing or break off, at '
        f'{sum(broken.values())} places, the first in {where(min(broken))}; an entity was read where one is meant'
      )
    other = Counter(t for _, row in there for t in row)
    for label in self.labels:
      other.pop(label, None)
    if other:
      some = ', '.join(sorted(other)[:5])
      notes.append(f'{name}: {sum(other.values())} tags of another scheme ({some}) are written as {self.scheme}')
    return notes

  def _refuse(self, unknown: list[tuple[int, Any]], where: Callable[[int], str]) -> None:
    i, first = unknown[0]
    names = [str(l) for l in (self.labels if self.scheme == 'plain' else self.types)]
    what = 'tag' if self.scheme == 'plain' else 'type of entity'
    raise InputError(
      f"{where(i)}: the {what} {first!r} is not among the run's{did_you_mean(str(first), names)} "
      f'({len({i for i, _ in unknown})} such rows)\n  unknown here:\n'
      f'{listing(sorted({str(t) for _, t in unknown}), limit=5)}\n  known: {", ".join(names[:20])}'
    )

  def predict(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
    """`tags` int16 [B, L], the label of the word that begins at a token, and how probable it is, `confidence`."""
    logits_BLC, mask_BL = outputs.logits.astype(jnp.float32), batch['chain'] > 0
    may = jnp.asarray(tags.legal(self.labels, self.scheme)) if self.config.repair == 'constrain' else True
    if outputs.transitions is not None:
      table_SS = jnp.where(may, outputs.transitions, crf.FORBIDDEN)
      tags_BL = crf.best(logits_BLC, mask_BL, table_SS)
      probabilities_BLC = crf.marginals(logits_BLC, mask_BL, table_SS)
    else:
      probabilities_BLC = jax.nn.softmax(logits_BLC)
      tags_BL = logits_BLC.argmax(-1)
      if self.config.repair == 'constrain':
        tags_BL = crf.best(jax.nn.log_softmax(logits_BLC), mask_BL, jnp.where(may, 0.0, crf.FORBIDDEN))
    own_BL = jnp.take_along_axis(probabilities_BLC, tags_BL[..., None], axis=2)[..., 0]
    return {
      'tags': jnp.where(mask_BL, tags_BL, 0).astype(jnp.int16),
      'confidence': jnp.where(mask_BL, own_BL, 0),
    }

  def combined(self, examples: Examples, predictions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of the words of rows: `tags` int16 [N, words of the longest row] with -1 behind the last, repaired, their
    `confidence`, and `illegal` int32 [N], how many tags went on with nothing or broke off before they were repaired."""
    places = examples.spans['places']
    lengths = np.array([len(p) for p in places])
    there = np.arange(max(lengths, default=0)) < lengths[:, None]
    first_N = np.searchsorted(examples.windows, np.arange(len(places)))
    windows_X, places_X = np.concatenate(places).T
    out = {'tags': np.full(there.shape, _PADDING, np.int16), 'confidence': np.zeros(there.shape, np.float32)}
    for name, values in out.items():
      values[there] = predictions[name][np.repeat(first_N, lengths) + windows_X, places_X]
    out['illegal'] = np.zeros(len(lengths), np.int32)
    if self.scheme != 'plain':
      self._repair(out)
    return out

  def _repair(self, out: dict[str, np.ndarray]) -> None:
    """Counts what is illegal, and changes the tags of these rows."""
    may = tags.legal(self.labels, self.scheme)
    path = np.pad(np.where(out['tags'] == _PADDING, len(self.labels), out['tags']), ((0, 0), (1, 1)))
    path[:, [0, -1]] = len(self.labels)
    out['illegal'][:] = (~may[path[:, :-1], path[:, 1:]]).sum(1)
    if self.config.repair == 'none':
      return
    index = {l: i for i, l in enumerate(self.labels)}
    for i in np.flatnonzero(out['illegal']):
      row = self._labels(out['tags'][i])
      read = tags.strict_entities(row, self.scheme) if self.config.repair == 'drop' else tags.entities(row)
      out['tags'][i, : len(row)] = [index[t] for t in tags.written(read, len(row), self.scheme)]

  def _labels(self, row: np.ndarray) -> list:
    """The labels of a row of numbers, without padding."""
    return [self.labels[t] for t in row.tolist() if t != _PADDING]

  def metrics(self, examples: Examples, predictions: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Entities by `ftlib/evals/entities.py`; without a scheme, words by their tags. `illegal_tags` is a share of
    words."""
    found = self._scores(self._counts(examples, predictions).sum(0))
    if self.scheme == 'plain':
      flat = predictions['tags'][predictions['tags'] != _PADDING].astype(np.int64)
      gold = np.concatenate(examples.host['tags'])
      found['confusion'] = entities.confusion(gold, flat, len(self.labels)).tolist()
    return found

  def resampled(self, examples: Examples, predictions: Mapping[str, np.ndarray]) -> counted.Counted:
    """The scalars of `metrics` and `per_class` over rows that stand there so many times."""
    return counted.sums(self._counts(examples, predictions), self._scores)

  def _counts(self, examples: Examples, predictions: Mapping[str, np.ndarray]) -> np.ndarray:
    """What the measures of each row follow from, int64 [N, S]: words by tag (right, predicted, true) or, with a scheme,
    entities by type, and then illegal tags, right words and words."""
    lengths = np.array([len(t) for t in examples.host['tags']])
    flat = predictions['tags'][predictions['tags'] != _PADDING].astype(np.int64)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    gold = np.concatenate(examples.host['tags'])
    if self.scheme == 'plain':
      found = entities.word_counts(gold, flat, rows, rows=len(lengths), classes=len(self.labels))
      return found.reshape(len(lengths), -1)
    said = [tags.entities(self._labels(row)) for row in predictions['tags']]
    found = entities.counts(examples.host['entities'], said, self.types).reshape(len(lengths), -1)
    right = np.bincount(rows[flat == gold], minlength=len(lengths))
    return np.concatenate([found, np.stack([predictions['illegal'], right, lengths], 1)], 1)

  def _scores(self, sums_S: np.ndarray) -> dict[str, Any]:
    if self.scheme == 'plain':
      return entities.tokens(sums_S.reshape(-1, 3), [str(l) for l in self.labels])
    *_, illegal, right, count = sums_S.tolist()
    own = {'token_accuracy': right / max(count, 1), 'illegal_tags': illegal / max(count, 1)}
    return {**entities.scores(sums_S[:-3].reshape(-1, 3), self.types), **own}

  def records(self, rows: Sequence[Mapping[str, Any]], predictions: Mapping[str, np.ndarray]) -> Iterator[dict]:
    """Also `tokens`, and of entities `type`, `start` and `stop` (words), `text` and `confidence`, the mean over its
    words of how probable their tags are."""
    c = self.config
    for i, (row, own, sure) in enumerate(zip(rows, predictions['tags'], predictions['confidence'], strict=True)):
      said, given = self._labels(own), row.get(c.label)
      record = {'id': row.get('id', i), 'label': None if given is None else self.written(given), 'prediction': said}
      if self.scheme != 'plain':
        record['entities'] = [_shown(e, row[c.text], sure) for e in tags.entities(said)]
      yield {**record, 'tokens': row[c.text], 'text': words.joined(row[c.text])}


def _type(tag: Any) -> Any:
  """The type of entity that a tag means, '' for O; the tag itself where it is of no scheme."""
  return '' if tag == tags.OUTSIDE else tags.split(str(tag))[1] or tag


def _shown(entity: Entity, row: Sequence[str], sure: np.ndarray) -> dict[str, Any]:
  part = slice(entity.start, entity.stop)
  own = {'type': entity.kind, 'start': entity.start, 'stop': entity.stop, 'text': words.joined(row[part])}
  return {**own, 'confidence': round(float(sure[part].mean()), 6)}
