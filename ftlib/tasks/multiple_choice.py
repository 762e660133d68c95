"""Multiple choice: a question, maybe about a context, and options of which one is right; not every row has as many.

Each option is read by itself, behind the context or the question, and gets a score by a head of one output; the scores
of a row's options are compared by a softmax. All of them stand in one row of a batch, as documents that do not see each
other.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftlib.base.errors import InputError
from ftlib.base.settings import setting
from ftlib.base.types import Batch, Head, Outputs
from ftlib.data import options, passages, tokens
from ftlib.data.batches import Examples
from ftlib.data.labels import Columns

OBJECTIVE = 'choice'
METRICS = {'accuracy': True, 'log_loss': False}
_CHUNK = 1024
_FORMS = ('', *options.FORMS)
_NEVER = -1e9  # the score of an option that a row has not
_UNASKED = {'unasked': True}  # the label of a row that has none to be judged by


@dataclasses.dataclass(frozen=True)
class Config:
  """`question`, `context` (or ''): columns. `options`: that of the options, or several with commas between. `label`:
  that of the right one, and `label_as`: how it is named, 'index' (from 0), 'number' (from 1), 'letter', 'text', or the
  'name' that an option has of its own; '' for whichever fits. `most`: options of a row at most, 0 for as many as
  training rows have. `pooling`: what the head sees of an option, as in classify.

  An option is read as the second text of a pair: the question and the option, or the context and both, with a space
  between. `train.max_length` is that of one option with its question and context; the first text loses its end,
  and only then the second its beginning.
  """

  question: str = 'question'
  context: str = ''
  options: str = 'options'
  label: str = 'label'
  label_as: str = setting('', choices=_FORMS)
  most: int = setting(0, low=0)
  pooling: str = setting('', choices=('', 'cls', 'mean', 'max', 'last'))

  def __post_init__(self):
    if not options.columns_of(self.options):
      raise ValueError("options='' names no column")


def columns(config: Config) -> Columns:
  """What is read of the data."""
  names = options.columns_of(config.options)
  texts = [config.question, *([config.context] if config.context else [])]
  fields = ('question', *(['context'] if config.context else []), *['options'] * len(names), 'label')
  row = functools.partial(checked, names, config)
  return Columns([*texts, *names], config.label, 'choice', fields, kinds=options.kinds(names), row=row)


def checked(names: Sequence[str], config: Any, row: dict) -> dict:
  """The row with its label as the number of an option from 0, or None where there is none to be judged by, and with
  options of one column as a list of texts. Raises `ValueError`."""
  texts, own = options.read(row, names)
  made = {names[0]: texts} if len(names) == 1 else {}
  label = row[config.label]
  label = None if label == _UNASKED else options.place(label, texts, own, form=config.label_as)
  return {**row, **made, config.label: label}


def build(config: Config, *, train: Sequence[Mapping[str, Any]] | None, known: list | None) -> MultipleChoice:
  """The task; its labels name the places of as many options as a row of the stored run or of training has."""
  labels, counts = places(config, train, known)
  return MultipleChoice(config, labels, counts)


def places(config: Any, train: Sequence[Mapping[str, Any]] | None, known: list | None) -> tuple[list, np.ndarray]:
  """(names of the places that options have, the training rows whose right option stands there). Raises `InputError`."""
  named = options.columns_of(config.options)
  most = max((len(options.read(row, named)[0]) for row in train or ()), default=2)
  if 0 < config.most < most:
    raise InputError(f'task.most={config.most}: a training row has {most} options; raise it, or give 0')
  count = max(len(known or ()), config.most, most)
  found = np.asarray([row[config.label] for row in train or ()], np.int64)
  return options.names(count), np.bincount(found, minlength=count)


def listed(config: Any, labels: Sequence, rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
  """The options of each row. Raises `InputError` where one has more than the model tells apart."""
  named = options.columns_of(config.options)
  found = [options.read(row, named)[0] for row in rows]
  for i, texts in enumerate(found):
    if len(texts) > len(labels):
      where = getattr(rows, 'where', lambda i: f'row {i + 1}')(i)
      raise InputError(
        f'{where}: {len(texts)} options, but the run has {len(labels)} at most, as many as its training rows have; '
        f'train with --config.task.most={len(texts)}'
      )
  return found


def score(labels_N: np.ndarray, probabilities_NK: np.ndarray, count: int) -> dict[str, Any]:
  """`accuracy`, `log_loss` (nats), and nested `confusion`, by the places of right and chosen options, int [K, K]."""
  chosen_N = probabilities_NK.argmax(1)
  own_N = probabilities_NK[np.arange(len(labels_N)), labels_N].astype(np.float64)
  confusion = np.bincount(labels_N * count + chosen_N, minlength=count * count).reshape(count, count)
  return {
    'accuracy': float((chosen_N == labels_N).mean()),
    'log_loss': float(-np.log(np.maximum(own_N, 1e-15)).mean()),
    'confusion': confusion.tolist(),
  }


def placeholder(row: Mapping[str, Any]) -> dict:
  """The label of a row that has none to be judged by."""
  return _UNASKED


@dataclasses.dataclass(frozen=True)
class MultipleChoice:
  """The task; see `ftlib/tasks/task.py`."""

  config: Config
  labels: list
  counts: np.ndarray
  metric: str = 'accuracy'
  placeholder = staticmethod(placeholder)

  @property
  def head(self) -> Head:
    return Head('classify', 1, self.config.pooling, documents=len(self.labels))

  @property
  def about(self) -> str:
    return f'one of up to {len(self.labels)} options'

  @property
  def metric_names(self) -> dict[str, bool]:
    return METRICS

  def examples(self, rows: Sequence[Mapping[str, Any]], tokenizer: Any, *, limit: int) -> Examples:
    special = tokenizer.num_special_tokens_to_add(pair=True)
    if limit <= special:
      raise InputError(f'train.max_length={limit} leaves no room for text beside {special} special tokens; raise it')
    found = listed(self.config, self.labels, rows)
    pairs = [self._pair(row, text) for row, texts in zip(rows, found) for text in texts]
    packs = packed(found)
    made = _encoded(tokenizer, pairs, packs, limit)
    there = np.zeros((len(rows), len(self.labels)), np.float32)
    for i, texts in enumerate(found):
      there[i, : len(texts)] = 1
    extra = {'labels': labels_of(rows, self.config.label), 'options': there, 'asked': np.ones(len(rows), np.float32)}
    return Examples(made, extra, packs=packs)

  def predict(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
    scores_BK = jnp.where(batch['options'] > 0, outputs.logits[..., 0].astype(jnp.float32), _NEVER)
    return {'probabilities': jax.nn.softmax(scores_BK)}

  def metrics(self, examples: Examples, predictions: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return score(examples.extra['labels'], predictions['probabilities'], len(self.labels))

  def records(self, rows: Sequence[Mapping[str, Any]], predictions: Mapping[str, np.ndarray]) -> Iterator[dict]:
    c = self.config
    shown = lambda row: {'text': row[c.question], **({'pair': row[c.context]} if c.context else {})}  # noqa: E731
    return chosen(self, rows, predictions['probabilities'], shown)

  def _pair(self, row: Mapping[str, Any], option: str) -> tuple[str, str]:
    c = self.config
    return (row[c.context], f'{row[c.question]} {option}') if c.context else (row[c.question], option)


def _encoded(
  tokenizer: Any, pairs: Sequence[tuple[str, str]], packs: Sequence[np.ndarray], limit: int
) -> tokens.Tokens:
  """Pairs of texts, of which the first loses its end until both fit, and the second, which ends with the option, its
  beginning where it is longer by itself; `truncated` counts rows."""
  ids, types, long = [], [], []
  between = passages.apart(tokenizer)
  for start in range(0, len(pairs), _CHUNK):
    first, second = zip(*pairs[start : start + _CHUNK])
    given = [a + between for a in first], list(second)
    found = tokenizer(*given, return_attention_mask=False, split_special_tokens=True)
    for j, row in enumerate(found['input_ids']):
      kinds = found['token_type_ids'][j] if 'token_type_ids' in found else [0] * len(row)
      kept = range(len(row))
      if len(row) > limit:
        own = np.array([-1 if text is None else text for text in found.sequence_ids(j)])
        order = [*np.flatnonzero(own == -1), *np.flatnonzero(own == 1)[::-1], *np.flatnonzero(own == 0)]
        kept = sorted(order[:limit])
      long.append(len(row) > limit)
      ids.append([row[t] for t in kept])
      types.append([kinds[t] for t in kept])
  offsets = np.concatenate([[0], np.cumsum([len(row) for row in ids])]).astype(np.int64)
  flat = lambda parts: np.fromiter((t for p in parts for t in p), np.int32, int(offsets[-1]))  # noqa: E731
  return tokens.Tokens(flat(ids), flat(types), offsets, sum(any(long[k] for k in pack) for pack in packs))


def packed(found: Sequence[Sequence[str]]) -> list[np.ndarray]:
  """The document numbers of each row's options, which stand one behind another."""
  ends = np.cumsum([len(texts) for texts in found])
  return [np.arange(end - len(texts), end) for texts, end in zip(found, ends)]


def labels_of(rows: Sequence[Mapping[str, Any]], column: str) -> np.ndarray:
  """The number of each row's right option, int32 [N], 0 where there is none to be judged by."""
  return np.asarray([row[column] or 0 for row in rows], np.int32)


def chosen(
  task: Any, rows: Sequence[Mapping[str, Any]], probabilities_NK: np.ndarray, shown: Callable[[Mapping], dict]
) -> Iterator[dict]:
  """The records of a task whose rows have options of their own; `shown(row)` are the texts of a record.

  `label` and `prediction` are names of places, `answer` the text of the chosen option, and `probabilities` has a share
  for each place, 0 for those that the row has not.
  """
  named = options.columns_of(task.config.options)
  for i, (row, p_K) in enumerate(zip(rows, probabilities_NK, strict=True)):
    texts = options.read(row, named)[0]
    label, best = row[task.config.label], int(p_K.argmax())
    yield {
      'id': row.get('id', i),
      'label': None if label is None else task.labels[label],
      'prediction': task.labels[best],
      'answer': texts[best],
      'probabilities': [round(float(p), 6) for p in p_K],
      'options': texts,
      **shown(row),
    }
