"""The relation between two entities that are marked in a text: classification by the hidden states at the markers.

The head reads the tokens in front of both entities, one behind the other (Baldini Soares et al. 2019, "entity start").
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from ftlib.base.errors import InputError, did_you_mean, listing
from ftlib.base.settings import setting
from ftlib.base.types import Head
from ftlib.data import markers, sampling
from ftlib.data.batches import Examples
from ftlib.data.labels import Columns
from ftlib.evals import counted, relations
from ftlib.tasks import classify

OBJECTIVE = 'classification'


@dataclasses.dataclass(frozen=True)
class Config:
  """`text`, `label`, `weight` (or ''): columns, the last of how much a row counts in the loss. The text has the
  entities between <e1> </e1> and <e2> </e2>; or `head` and `tail` name columns of where they stand, [first character,
  the one behind the last].

  `markers`: what stands around an entity, tokens that the vocabulary keeps 'unused' or the 'text' $ and #; '' is the
  first where there are any. `pooling`: what the head sees, the 'marks' or, of the row, 'cls', 'mean', 'max' or 'last'.
  `other`: the label that is no relation, which the official score leaves out, '' for none.
  """

  text: str = 'text'
  head: str = ''
  tail: str = ''
  label: str = 'label'
  weight: str = ''
  markers: str = setting('', choices=markers.KINDS)
  pooling: str = setting('marks', choices=('marks', 'cls', 'mean', 'max', 'last'))
  other: str = 'Other'
  pair: ClassVar[str] = ''
  threshold: ClassVar[str] = 'argmax'

  def __post_init__(self):
    if bool(self.head) != bool(self.tail):
      raise ValueError(f'head={self.head!r} and tail={self.tail!r}: name both columns, or none')


def columns(config: Config) -> Columns:
  """What is read of the data."""
  spans = [c for c in (config.head, config.tail) if c]
  fields = ('text', 'head', 'tail', 'label') if spans else ('text', 'label')
  return Columns(
    [config.text, *spans],
    config.label,
    'class',
    fields,
    kinds=dict.fromkeys(spans, 'given'),
    row=functools.partial(checked, config),
    cleaned=functools.partial(cleaned, config),
  )


def checked(config: Config, row: dict) -> dict:
  """The row, its weight a number. Raises `ValueError` where entities are not marked as they should be."""
  try:
    parts(config, row)
  except ValueError as e:
    raise ValueError(f'"{config.text}" {e}') from None
  return sampling.weighed(config.weight)(row) if config.weight else row


def cleaned(config: Config, row: dict, clean: Callable[[str], str]) -> dict:
  """The row with what stands before, in, between and behind the entities cleaned, each by itself: markers stay, and
  spans go with their words. Raises `ValueError` where entities are not marked as they should be."""
  if not isinstance(row.get(config.text), str) or (config.head and not {config.head, config.tail} <= row.keys()):
    raise ValueError('lacks a column')
  old = parts(config, row)
  if (new := markers.changed(old, clean)) == old:
    return row
  if not config.head:
    return {**row, config.text: markers.written(new)}
  return {**row, **dict(zip((config.text, config.head, config.tail), markers.spanned(new)))}


def parts(config: Config, row: Mapping[str, Any]) -> list[markers.Part]:
  """The text in parts, with its markers. Raises `ValueError`."""
  text = row[config.text]
  return markers.of_spans(text, row[config.head], row[config.tail]) if config.head else markers.of_text(text)


def build(config: Config, *, train: Sequence[Mapping[str, Any]] | None, known: list | None) -> Relation:
  """The task over a label list; see `classify.build`. Raises `InputError` where `other` is given and no relation."""
  found = classify.build(config, train=train, known=known)
  names = sorted({relations.relation(str(label)) for label in found.labels})
  if train and config.other not in ('', Config.other, *names):
    raise InputError(
      f'task.other={config.other} is no label of training{did_you_mean(config.other, names)}\n'
      f'  labels, without direction:\n{listing(names)}\nName the one that is no relation, or none by '
      '--config.task.other='
    )
  return Relation(config, found.labels, found.counts, 'f1_macro')


@dataclasses.dataclass(frozen=True)
class Relation(classify.Classify):
  """The task; see `ftlib/tasks/task.py`."""

  @property
  def head(self) -> Head:
    marked = self.config.pooling == 'marks'
    return Head('classify', len(self.labels), 'mean' if marked else self.config.pooling, marks=2 if marked else 0)

  @property
  def metric_names(self) -> dict[str, bool]:
    return relations.METRICS

  def examples(self, rows: Sequence[Mapping[str, Any]], tokenizer: Any, *, limit: int) -> Examples:
    """Besides labels and weights, where the head reads them, `marks` int32 [N, 2]: the tokens in front of entities."""
    where = getattr(rows, 'where', lambda i: f'row {i + 1}')
    found = markers.encode(
      tokenizer, [parts(self.config, r) for r in rows], limit=limit, kind=self.config.markers, where=where
    )
    extra = {**self.labelled(rows), **({'marks': found.marks} if self.head.marks else {})}
    what = {'unused': 'unused tokens of the vocabulary', 'text': 'the characters $ and #'}[found.kind]
    notes = [f'entities are marked by {what}']
    if self.config.other not in ('', *(relations.relation(str(label)) for label in self.labels)):
      notes.append(f'no label is {self.config.other!r} (task.other), so the scores are over all relations')
    return Examples(found.tokens, extra, notes=notes)

  def _confusion(self, examples: Examples, predictions: Mapping[str, np.ndarray], counts_N: Any = None) -> np.ndarray:
    said_N = predictions['probabilities'].argmax(1)
    return relations.confusion(examples.extra['labels'], said_N, len(self.labels), counts_N)

  def _scores(self, confusion_CC: np.ndarray) -> dict[str, Any]:
    return relations.scores(confusion_CC, [str(l) for l in self.labels], other=self.config.other)

  def metrics(self, examples: Examples, predictions: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Those of `ftlib/evals/relations.py`; `per_class` is by relation, `confusion` by label."""
    confusion_CC = self._confusion(examples, predictions)
    return {**self._scores(confusion_CC), 'confusion': confusion_CC.tolist()}

  def resampled(self, examples: Examples, predictions: Mapping[str, np.ndarray]) -> counted.Counted:
    """The scalars of `metrics` and `per_class` over rows that stand there so many times."""
    return lambda counts_N: self._scores(self._confusion(examples, predictions, counts_N))

  def records(self, rows: Sequence[Mapping[str, Any]], predictions: Mapping[str, np.ndarray]) -> Iterator[dict]:
    """Also the texts of both entities, `e1` and `e2`."""
    for row, record in zip(rows, super().records(rows, predictions), strict=True):
      yield record | dict(zip(('e1', 'e2'), markers.entities(parts(self.config, row))))
