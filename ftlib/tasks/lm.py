"""Plain text, each token predicted from those before it: going on with pretraining on texts of one's own.

A document is a row's text with the token in front that the tokenizer puts there, and the one behind that ends texts.
Documents that are longer than `train.max_length` are cut into windows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ftlib.base.errors import InputError
from ftlib.base.settings import setting
from ftlib.base.types import Batch, Head, Outputs
from ftlib.data import tokens
from ftlib.data.batches import Examples, language
from ftlib.data.labels import Columns
from ftlib.data.literal import literal
from ftlib.evals import counted
from ftlib.objectives.vocabulary import token_scores

OBJECTIVE = 'language'
HEADLESS = True
METRICS = {'perplexity': False, 'bits_per_token': False, 'accuracy': True}
_SUMS = ('nll', 'correct', 'counted')


@dataclasses.dataclass(frozen=True)
class Config:
  """`text`: the column. `stride`: how many tokens after a window the next one of a document begins, 0 for none shared;
  what two windows share is predicted once, in the first, and is only read in the second."""

  text: str = 'text'
  stride: int = setting(0, low=0)


def columns(config: Config) -> Columns:
  """What is read of the data."""
  return Columns([config.text])


def build(config: Config, *, train: Sequence[Mapping[str, Any]] | None, known: list | None) -> Lm:
  """The task; there are no labels, and nothing of the rows is looked at."""
  return Lm(config)


@dataclasses.dataclass(frozen=True)
class Language:
  """What the tasks of language models have in common: the head, the measures, and what is kept of a forward pass."""

  config: Any
  labels: list = dataclasses.field(default_factory=list)
  counts: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
  metric: str = 'perplexity'
  head: Head = dataclasses.field(default_factory=lambda: Head('lm'))

  @property
  def metric_names(self) -> dict[str, bool]:
    return METRICS

  def predict(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
    """`nll`, `correct`, `counted` [B]: sums over the supervised tokens of a row, and their number."""
    nll_BL, right_BL = token_scores(outputs.unembed, outputs.hidden, batch['targets'])
    weights_BL = batch['weights']
    sums = {'nll': nll_BL * weights_BL, 'correct': right_BL * weights_BL, 'counted': weights_BL}
    return {name: x_BL.sum(1) for name, x_BL in sums.items()}

  def metrics(self, examples: Examples, predictions: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Over the supervised tokens of a split, each counted once: perplexity, bits (base 2) a token, the share that is
    the likeliest one."""
    return _measures(np.array([predictions[n].sum(dtype=np.float64) for n in _SUMS]))

  def resampled(self, examples: Examples, predictions: Mapping[str, np.ndarray]) -> counted.Counted:
    """The scalars of `metrics` over rows that stand there so many times."""
    return counted.sums(np.stack([predictions[n] for n in _SUMS], 1), _measures)

  def _scores(self, predictions: Mapping[str, np.ndarray], i: int) -> dict[str, Any]:
    """What the record of row i says of its tokens."""
    counted = float(predictions['counted'][i])
    return {'loss': round(float(predictions['nll'][i]) / max(counted, 1.0), 6), 'tokens': int(counted)}


def _measures(sums_3: np.ndarray) -> dict[str, float]:
  """The metrics of sums of `_SUMS`."""
  nll, correct, count = map(float, sums_3)
  mean = nll / max(count, 1.0)
  return {
    'perplexity': math.exp(min(mean, 700.0)),  # e^710 is beyond the range of floats
    'bits_per_token': mean / math.log(2),
    'accuracy': correct / max(count, 1.0),
  }


@dataclasses.dataclass(frozen=True)
class Lm(Language):
  """The task; see `ftlib/tasks/task.py`."""

  @property
  def about(self) -> str:
    return 'the next token of every text'

  def examples(self, rows: Sequence[Mapping[str, Any]], tokenizer: Any, *, limit: int) -> Examples:
    stride = self.config.stride or limit
    if stride > limit:
      raise InputError(
        f'task.stride={stride} is more than the {limit} tokens of a window (train.max_length): text would be left out'
      )
    front, end = tokens.frame(tokenizer)
    found = literal(tokenizer).text([row[self.config.text] for row in rows])
    ids, counts, of_row = [], [], []
    for i, text in enumerate(found):
      document = [*front, *text.ids, end]
      seen = 0  # tokens that were predicted by windows so far, the first of the document included
      for start in range(0, len(document) - 1, stride):
        window = document[start : start + limit + 1]  # the last one is a target only
        ids.append(window)
        counts.append([start + k > seen for k in range(len(window))])
        of_row.append(i)
        seen = start + len(window) - 1
        if seen == len(document) - 1:
          break
    return _shortened(language(ids, counts, rows=np.array(of_row, np.int64)), limit)

  def records(self, rows: Sequence[Mapping[str, Any]], predictions: Mapping[str, np.ndarray]) -> Iterator[dict]:
    for i, row in enumerate(rows):
      yield {'id': row.get('id', i), **self._scores(predictions, i), 'text': row[self.config.text][:400]}


def _shortened(examples: Examples, limit: int) -> Examples:
  """Documents of up to `limit + 1` tokens without the last one of those that have so many: it stays as a target."""
  lengths = examples.tokens.lengths
  kept = np.ones(len(examples.tokens.ids), bool)
  kept[examples.tokens.offsets[1:][lengths > limit] - 1] = False
  offsets = np.concatenate([[0], np.cumsum(np.minimum(lengths, limit))]).astype(np.int64)
  cut = dataclasses.replace(
    examples.tokens, ids=examples.tokens.ids[kept], types=examples.tokens.types[kept], offsets=offsets
  )
  return dataclasses.replace(examples, tokens=cut, per_token={n: x[kept] for n, x in examples.per_token.items()})
