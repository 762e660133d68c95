"""Plain text, of which words are hidden and guessed: going on with pretraining an encoder on texts of one's own, before
it is fine-tuned for a task (Gururangan et al. 2020).

A document is a row's text between the tokens that the tokenizer puts around one; what is longer than `train.max_length`
is cut into windows, each a document. Batches come with masks that are fixed by a document's own tokens: evaluation
counts the same words of it wherever it stands. Training draws others (`ftlib/objectives/masked.py`).
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ftlib.base import masking
from ftlib.base.errors import InputError
from ftlib.base.rng import mix
from ftlib.base.types import Batch, Head, Outputs
from ftlib.data.batches import Examples
from ftlib.data.labels import Columns
from ftlib.data.tokens import Tokens
from ftlib.objectives.vocabulary import picked, token_scores
from ftlib.tasks.lm import METRICS, Language

OBJECTIVE = 'masked'
HEADLESS = True
FIXED = {'keep': 0.1, 'random': 0.1}  # of the masks that models are judged by, and
RATE = 0.15  # their share of the words, whatever training masks: so runs can be compared
_CHUNK = 1024
# Letters of scripts that are written without spaces: there every token is a word (in BERT, a Chinese character).
_UNSPACED = re.compile(
  '[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff'
  '\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]'
)


@dataclasses.dataclass(frozen=True)
class Config:
  """`text`: the column. `whole_words`: all tokens of a word are masked or none; else each by itself."""

  text: str = 'text'
  whole_words: bool = True


def columns(config: Config) -> Columns:
  """What is read of the data."""
  return Columns([config.text])


def build(config: Config, *, train: Sequence[Mapping[str, Any]] | None, known: list | None) -> Mask:
  """The task; there are no labels, and nothing of the rows is looked at."""
  return Mask(config, head=Head('mlm'))


@dataclasses.dataclass(frozen=True)
class Mask(Language):
  """The task; see `ftlib/tasks/task.py`. Perplexity is e to the mean loss of a masked token."""

  @property
  def about(self) -> str:
    return f'masked {"words" if self.config.whole_words else "tokens"} of texts'

  @property
  def metric_names(self) -> dict[str, bool]:
    return METRICS

  def examples(self, rows: Sequence[Mapping[str, Any]], tokenizer: Any, *, limit: int) -> Examples:
    """Besides the tokens, some of which are masked: `targets`, as they were; `weights`, 1 where one is masked; `words`
    (`ftlib/base/masking.py`); of each document `mask_token`, that token's id, and `vocabulary`, how many ids there are.

    Raises `InputError` for a tokenizer without a mask token.
    """
    if tokenizer.mask_token_id is None:
      raise InputError(
        'the tokenizer has no mask token, so its model was not pretrained by masking; take an encoder such as BERT, or '
        'task.name=lm for a decoder'
      )
    texts = [row[self.config.text] for row in rows]
    found = [w for i in range(0, len(texts), _CHUNK) for w in self._windows(texts[i : i + _CHUNK], i, tokenizer, limit)]
    offsets = np.concatenate([[0], np.cumsum([len(ids) for _, ids, _, _ in found])]).astype(np.int64)
    flat = lambda k: np.fromiter((x for w in found for x in w[k]), np.int32, int(offsets[-1]))  # noqa: E731
    ids, types, words = flat(1), flat(2), flat(3)
    shown, hidden = fixed(ids, words, offsets, mask=tokenizer.mask_token_id, vocabulary=len(tokenizer))
    per_token = {'targets': ids, 'weights': hidden.astype(np.float32), 'words': words}
    full = lambda value: np.full(len(found), value, np.int32)  # noqa: E731
    extra = {'mask_token': full(tokenizer.mask_token_id), 'vocabulary': full(len(tokenizer))}
    of_row = np.array([i for i, *_ in found], np.int64)
    cut = len(found) - len(texts)
    notes = [f'{getattr(rows, "name", "rows")}: {len(texts)} texts make {len(found)} windows of {limit} tokens'] * (
      cut > 0
    )
    return Examples(Tokens(shown, types, offsets), extra, per_token, rows=of_row, notes=notes)

  def _windows(self, texts: list[str], first: int, tokenizer: Any, limit: int) -> Iterator[tuple[int, Any, Any, Any]]:
    """(number of the row, ids, token types, words) of each window."""
    out = tokenizer(
      texts,
      truncation=True,
      max_length=limit,
      return_overflowing_tokens=True,
      return_attention_mask=False,
      split_special_tokens=True,
    )
    for row, e in zip(out['overflow_to_sample_mapping'], out.encodings, strict=True):
      yield first + row, e.ids, e.type_ids, self._words(e, texts[row], tokenizer.unk_token_id)

  def _words(self, e: Any, text: str, unknown: int | None) -> list[int]:
    """What each token of an encoding is to a word; `text` is what its offsets count in. Nobody guesses the unknown."""
    found, before, end = [], None, 0
    for i, word, special, (start, stop) in zip(e.ids, e.word_ids, e.special_tokens_mask, e.offsets, strict=True):
      if special or i == unknown:
        found.append(masking.SPECIAL)
        before = None
        continue
      begins = before is None or word != before or not self.config.whole_words
      if not begins and start >= end:  # not the bytes of one character
        begins = bool(_UNSPACED.match(text[start:stop].lstrip()[:1]) or _UNSPACED.match(text[end - 1 : end]))
      found.append(masking.FIRST if begins else masking.LATER)
      before, end = word, stop
    return found

  def predict(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
    """`nll`, `correct`, `counted` [B]: sums over the masked tokens of a row, and their number."""
    weights_BK, hidden_BKD, targets_BK = picked(batch['weights'], outputs.hidden, batch['targets'])
    nll_BK, right_BK = token_scores(outputs.unembed, hidden_BKD, targets_BK)
    sums = {'nll': nll_BK * weights_BK, 'correct': right_BK * weights_BK, 'counted': weights_BK}
    return {name: x_BK.sum(1) for name, x_BK in sums.items()}

  def records(self, rows: Sequence[Mapping[str, Any]], predictions: Mapping[str, np.ndarray]) -> Iterator[dict]:
    for i, row in enumerate(rows):
      yield {'id': row.get('id', i), **self._scores(predictions, i), 'text': row[self.config.text][:400]}


def fixed(
  ids: np.ndarray, words: np.ndarray, offsets: np.ndarray, *, mask: int, vocabulary: int
) -> tuple[np.ndarray, np.ndarray]:
  """(tokens as they are shown int32 [T], which are masked bool [T]) of documents, as each document's own ids say; of a
  document at most a third is masked."""
  lengths = np.diff(offsets)
  seeds = [zlib.crc32(ids[a:b].tobytes()) for a, b in itertools.pairwise(offsets)]
  at = np.arange(len(ids)) - np.repeat(offsets[:-1], lengths)
  bits = mix(np.repeat(np.array(seeds, np.uint32), lengths) ^ mix(at.astype(np.uint32) + np.uint32(1)))
  drawn = np.where(words == masking.FIRST, masking.share(bits), 1)
  least = np.minimum.reduceat(drawn, offsets[:-1]) if len(lengths) else drawn  # one word at least, of few as well
  hidden = np.asarray(masking.chosen(words, bits, np.repeat(np.maximum(least, np.float32(RATE)), lengths)))
  total = np.concatenate([[0], np.cumsum(hidden)])
  hidden = hidden & (total[1:] - np.repeat(total[offsets[:-1]], lengths) <= np.repeat(lengths // 3, lengths))
  shown = masking.replaced(ids, hidden, mix(bits), mask=np.int32(mask), vocabulary=np.uint32(vocabulary), **FIXED)
  return np.asarray(shown, np.int32), hidden
