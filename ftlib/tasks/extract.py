"""Extractive question answering: the answer is a span of a context, or (`no_answer`, as in SQuAD 2.0) there is none.

A context that is too long is cut into windows that share text; the answer to a row is the best span of all of its
windows, in characters of the context.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftlib.base.errors import InputError
from ftlib.base.settings import setting
from ftlib.base.types import Batch, Head, Outputs
from ftlib.data import passages
from ftlib.data.batches import Examples
from ftlib.data.labels import Columns
from ftlib.evals import counted, span_metrics, thresholds

OBJECTIVE = 'span'
_NEVER = -1e9  # the score of a span that is none
_LOOKED_AT = 200  # contexts from which the language is found
_UNASKED = {'unasked': True}  # answers of a row that has none to be judged by


@dataclasses.dataclass(frozen=True)
class Config:
  """`question`, `context`, `answers`: columns. Answers are {'text': [...], 'answer_start': [...]} as in SQuAD, a list
  of {'text', 'start'}, or texts; those without a start are looked for, and `repeated` says what is done where the
  context holds one several times.

  `no_answer`: questions may have none; it is given where it scores more than `null_threshold` above the best span, a
  number, or 'tuned': the one whose F1 is best on the validation split.
  `max_answer`: tokens of an answer at most. `n_best`: how many spans of a row are kept. `stride`: tokens of the context
  that a window shares with the one before, at most half of those that fit. `max_question`: tokens of a question.
  `language`: whose measures are taken, 'en' (SQuAD) or 'zh' (CMRC 2018), '' for that of the contexts.
  `pooling`: which token stands for no answer, 'cls' (the first) or 'last'; '' is the last of decoders alone.
  """

  question: str = 'question'
  context: str = 'context'
  answers: str = 'answers'
  repeated: str = setting('error', choices=('error', 'first'))
  no_answer: bool = False
  null_threshold: str = '0'
  max_answer: int = setting(30, low=1)
  n_best: int = setting(20, low=1)
  stride: int = setting(128, low=1)
  max_question: int = setting(64, low=1)
  language: str = setting('', choices=('', *span_metrics.LANGUAGES))
  pooling: str = setting('', choices=('', 'cls', 'last'))

  def __post_init__(self):
    if self.null_threshold == thresholds.TUNED:
      if not self.no_answer:
        raise ValueError(f'null_threshold={thresholds.TUNED} is for no_answer=true')
    else:
      try:
        finite = math.isfinite(float(self.null_threshold))
      except ValueError:
        finite = False
      if not finite:
        raise ValueError(f'null_threshold={self.null_threshold!r} is neither a number nor {thresholds.TUNED}')


def columns(config: Config) -> Columns:
  """What is read of the data."""
  return Columns(
    [config.question, config.context],
    config.answers,
    'answers',
    fields=('question', 'context', 'answers'),
    row=functools.partial(checked, config),
  )


def checked(config: Config, row: dict) -> dict:
  """The row with its answers as a list of {'text', 'start'}, all found in the context; None for `_UNASKED`. Raises
  `ValueError`."""
  if row[config.answers] == _UNASKED:
    return {**row, config.answers: None}
  found = [_placed(*answer, row[config.context], config) for answer in _listed(row[config.answers])]
  if not (found or config.no_answer):
    raise ValueError('there is no answer; --config.task.no_answer=true is for questions without one')
  return {**row, config.answers: found}


def _listed(value: Any) -> list[tuple[str, int | None]]:
  """(text, start or None) of each answer, whatever they are written as."""
  if isinstance(value, str):
    value = [value]
  if isinstance(value, Mapping):
    texts, starts = value.get('text'), value.get('answer_start', value.get('start'))
    texts = [texts] if isinstance(texts, str) else texts
    starts = [starts] if isinstance(starts, int) else starts
    starts = [None] * len(texts) if starts is None and isinstance(texts, list) else starts
    if not (isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts)):
      raise ValueError(f'the answers {repr(value)[:80]} are not as many starts as texts')
    value = [{'text': text, 'start': start} for text, start in zip(texts, starts)]
  if not isinstance(value, list):
    raise ValueError(f'the answers are the {type(value).__name__} {repr(value)[:60]}, but wanted are texts with starts')
  out = []
  for answer in value:
    answer = {'text': answer} if isinstance(answer, str) else answer
    text = answer.get('text') if isinstance(answer, Mapping) else None
    if not isinstance(text, str) or not text.strip():
      raise ValueError(f'the answer {repr(answer)[:60]} has no text (a question without an answer has an empty list)')
    start = answer.get('start', answer.get('answer_start'))
    if start is not None and (not isinstance(start, int) or isinstance(start, bool) or start < 0):
      raise ValueError(f'the answer {text[:60]!r} starts at {start!r}, which is no place in the context')
    out.append((text, start))
  return out


def _placed(text: str, start: int | None, context: str, config: Config) -> dict[str, Any]:
  """The answer with its start, without white space around it."""
  first = context.find(text)
  if start is None:
    if first < 0:
      raise ValueError(f'the context does not hold the answer {text[:60]!r}')
    if config.repeated == 'error' and (again := context.find(text, first + 1)) >= 0:
      raise ValueError(
        f'the context holds the answer {text[:60]!r} several times, at {first} and {again}, and its start is not given '
        '(--config.task.repeated=first takes the first)'
      )
    start = first
  elif context[start : start + len(text)] != text:
    there = f', which it holds at {first}' if first >= 0 else ''
    raise ValueError(
      f'the context does not hold the answer {text[:60]!r} at {start}, but {context[start : start + len(text)][:60]!r}'
      f'{there}'
    )
  return {'text': text.strip(), 'start': start + len(text) - len(text.lstrip())}


def build(config: Config, *, train: Sequence[Mapping[str, Any]] | None, known: list | None) -> Extract:
  """The task; there is no label list. Raises `InputError` where no training row has an answer."""
  train = train or ()
  if len(train) and not any(row[config.answers] for row in train):
    raise InputError(f'task.answers={config.answers!r}: no training row has an answer; there is nothing to learn')
  return Extract(config)


@dataclasses.dataclass(frozen=True)
class Extract:
  """The task; see `ftlib/tasks/task.py`.

  Predictions of windows: `starts`, `ends` int32 [N, K] (places in the window), `scores` float32 [N, K] of their best
  spans, best first, and `null` float32 [N], the score of no answer. Of rows (`combined`): the same, with characters of
  the context, from the first to the one behind the last. Where there are fewer spans, the score is -1e9.
  """

  config: Config
  labels: list = dataclasses.field(default_factory=list)
  counts: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
  metric: str = 'f1'
  thresholds: np.ndarray | None = None

  @property
  def head(self) -> Head:
    return Head('span', 2, 'last' if self.config.pooling == 'last' else 'cls')

  @property
  def about(self) -> str:
    return 'the span of a context that answers a question' + ', or that none does' * self.config.no_answer

  @property
  def metric_names(self) -> dict[str, bool]:
    return span_metrics.names(self.config.no_answer)

  def examples(self, rows: Sequence[Mapping[str, Any]], tokenizer: Any, *, limit: int) -> Examples:
    c = self.config
    contexts, answers = ([row[name] for row in rows] for name in (c.context, c.answers))
    found = passages.windows(
      tokenizer,
      [row[c.question] for row in rows],
      contexts,
      [(a[0]['start'], a[0]['start'] + len(a[0]['text'])) if a else None for a in answers],
      limit=limit,
      stride=c.stride,
      max_question=c.max_question,
      where=getattr(rows, 'where', lambda i: f'row {i + 1}'),
      null=self.head.pooling,
    )
    extra = {'starts': found.starts, 'ends': found.ends, 'weights': np.ones(len(found.rows), np.float32)}
    return Examples(
      found.tokens,
      extra,
      {'candidates': found.candidates},
      windows=found.rows,
      host={'contexts': contexts, 'golds': [[answer['text'] for answer in of_row or ()] for of_row in answers]},
      spans={'characters': found.characters},
      notes=_notes(found, getattr(rows, 'name', 'rows'), len(rows)),
    )

  def predict(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
    c, kinds_BL = self.config, batch['candidates']
    logits_BL2 = outputs.logits.astype(jnp.float32)
    start_BL, end_BL = jnp.moveaxis(jnp.where((kinds_BL == passages.INSIDE)[..., None], logits_BL2, _NEVER), 2, 0)
    length = kinds_BL.shape[1]
    width = min(c.max_answer, length)
    at_LA = np.arange(length)[:, None] + np.arange(width)  # the ends that a start can have
    end_BLA = jnp.pad(end_BL, ((0, 0), (0, width)), constant_values=_NEVER)[:, at_LA]
    of_all = (start_BL[..., None] + end_BLA).reshape(len(kinds_BL), -1)
    scores_BK, picked_BK = jax.lax.top_k(of_all, min(c.n_best, length * width))
    real_BK = scores_BK > _NEVER / 2
    starts_BK, more_BK = picked_BK // width, picked_BK % width
    found = {
      'starts': jnp.where(real_BK, starts_BK, 0),
      'ends': jnp.where(real_BK, starts_BK + more_BK, 0),
      'scores': jnp.where(real_BK, scores_BK, _NEVER),
    }
    short = ((0, 0), (0, c.n_best - scores_BK.shape[1]))
    found = {n: jnp.pad(x, short, constant_values=_NEVER if n == 'scores' else 0) for n, x in found.items()}
    null_BL = jnp.where(kinds_BL == passages.NULL, logits_BL2.sum(2), 0)
    return {**found, 'null': null_BL.sum(1)}

  def combined(self, examples: Examples, predictions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The best spans of rows, no two the same; no answer is as likely as in the window where it is the least so."""
    window_M, k_M = np.nonzero(predictions['scores'] > _NEVER / 2)
    first_M, of_row = examples.tokens.offsets[window_M], examples.windows
    starts_M, ends_M, scores_M = (predictions[n][window_M, k_M] for n in ('starts', 'ends', 'scores'))
    characters = examples.spans['characters']
    begin_M, stop_M = characters[first_M + starts_M, 0], characters[first_M + ends_M, 1]
    count, most = len(examples.host['contexts']), self.config.n_best
    out = {
      'starts': np.zeros((count, most), np.int64),
      'ends': np.zeros((count, most), np.int64),
      'scores': np.full((count, most), _NEVER, np.float64),
    }
    spans = np.stack([of_row[window_M], begin_M, stop_M], 1)
    order = np.lexsort((begin_M, -scores_M, spans[:, 0]))
    order = order[(spans[order, 1] < spans[order, 2])]  # not of white space alone
    _, firsts = np.unique(spans[order], axis=0, return_index=True)
    order = order[np.sort(firsts)]
    row_M = spans[order, 0]
    rank_M = np.arange(len(order)) - np.searchsorted(row_M, row_M, 'left')
    kept = rank_M < most
    at = row_M[kept], rank_M[kept]
    for name, values in (('starts', begin_M), ('ends', stop_M), ('scores', scores_M)):
      out[name][at] = values[order][kept]
    out['null'] = np.full(count, np.inf)
    np.minimum.at(out['null'], of_row, predictions['null'].astype(np.float64))
    return out

  def tuned(self, examples: Examples, predictions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The predictions of the validation split with the threshold that is best on it, where the config asks for it."""
    if not self.config.no_answer or self.config.null_threshold != thresholds.TUNED:
      return dict(predictions)
    best = span_metrics.tuned_threshold(self._raw(examples, predictions), 'f1')
    return thresholds.attached(dict(predictions), np.array([best]))

  def ruled(self, examples: Examples, predictions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The predictions with this run's threshold, by which any other's task then judges them."""
    return {**predictions, 'thresholds': self._threshold(predictions)[:, None]}

  def placeholder(self, row: Mapping[str, Any]) -> dict:
    """The answers of a row that has none to be judged by."""
    return _UNASKED

  def metrics(self, examples: Examples, predictions: Mapping[str, np.ndarray]) -> dict[str, Any]:
    host = examples.host
    if self.config.no_answer:
      return span_metrics.with_threshold(self._raw(examples, predictions), self._threshold(predictions))
    return span_metrics.spans(_best(examples, predictions), host['golds'], language=self._language(host['contexts']))

  def resampled(self, examples: Examples, predictions: Mapping[str, np.ndarray]) -> counted.Counted:
    """The metrics over counts [N] of the rows."""
    if self.config.no_answer:
      found, threshold_N = self._raw(examples, predictions), self._threshold(predictions)
      rows = np.arange(len(found.has_N))
      names = self.metric_names

      def of_counts(counts_N: np.ndarray) -> dict[str, float | None]:
        taken_N = np.repeat(rows, counts_N)
        measures = span_metrics.with_threshold(found.taken(taken_N), threshold_N[taken_N])
        return {n: measures[n] for n in names}

      return of_counts
    host = examples.host
    scores = span_metrics.scores(_best(examples, predictions), host['golds'], language=self._language(host['contexts']))
    stats_N3 = np.stack([np.ones(len(scores[0])), *scores], 1)
    return counted.sums(stats_N3, lambda s_3: {n: float(x / s_3[0]) for n, x in zip(span_metrics.NAMES, s_3[1:])})

  def _raw(self, examples: Examples, predictions: Mapping[str, np.ndarray]) -> span_metrics.Raw:
    host, nulls = examples.host, predictions['null'] - predictions['scores'][:, 0]
    language = self._language(host['contexts'])
    return span_metrics.raw(_best(examples, predictions), nulls, host['golds'], language=language)

  def _language(self, contexts: Sequence[str]) -> str:
    return self.config.language or span_metrics.language_of(contexts[:_LOOKED_AT])

  def _threshold(self, predictions: Mapping[str, np.ndarray]) -> np.ndarray:
    """Above which a row has no answer, float64 [N]."""
    if not self.config.no_answer:
      return np.full(len(predictions['null']), np.inf)
    if 'thresholds' in predictions:
      return predictions['thresholds'][:, 0]
    if self.config.null_threshold != thresholds.TUNED:
      return np.full(len(predictions['null']), float(self.config.null_threshold))
    if self.thresholds is None:
      raise InputError(
        'task.null_threshold=tuned: it is tuned on the validation split of a training run, and there is none here; '
        'evaluate that split, or give a number, such as --config.task.null_threshold=0'
      )
    return np.full(len(predictions['null']), float(self.thresholds[0]))

  def records(self, rows: Sequence[Mapping[str, Any]], predictions: Mapping[str, np.ndarray]) -> Iterator[dict]:
    c = self.config
    threshold_N = self._threshold(predictions)
    language = self._language([row[c.context] for row, _ in zip(rows, range(_LOOKED_AT))])
    for i, row in enumerate(rows):
      context, answers = row[c.context], row[c.answers]
      starts, ends, scores = (predictions[n][i] for n in ('starts', 'ends', 'scores'))
      above = float(predictions['null'][i] - scores[0])
      none = bool(above > threshold_N[i])
      listed = [(int(s), int(e), float(x)) for s, e, x in zip(starts, ends, scores) if x > _NEVER / 2]
      all_scores = np.array([x for *_, x in listed] + [float(predictions['null'][i])] * c.no_answer)
      shares = np.exp(all_scores - all_scores.max(initial=_NEVER))
      shares = [round(float(x), 6) for x in shares / shares.sum()] if len(shares) else []
      best = [
        {'text': context[s:e], 'start': s, 'end': e, 'probability': p, 'score': round(x, 6)}
        for (s, e, x), p in zip(listed, shares)
      ]
      answer = '' if none or not best else best[0]['text']
      golds, judged = [a['text'] for a in answers or ()], {}
      if answers is not None:
        exact, f1 = span_metrics.scores([answer], [golds or ['']], language=language, empty=c.no_answer)
        judged = {'exact_match': float(exact[0]), 'f1': round(float(f1[0]), 6), 'answers': answers}
      yield {
        'id': row.get('id', i),
        'label': golds[0] if golds else '',
        'prediction': answer,
        **({'start': best[0]['start'], 'end': best[0]['end']} if answer else {'start': None, 'end': None}),
        'probability': shares[-1] if none else best[0]['probability'] if best else None,
        **({'null_above_best': round(above, 6), 'null_probability': shares[-1]} if c.no_answer else {}),
        **judged,
        'n_best': best,
        'text': row[c.question],
        'context': context,
      }


def _best(examples: Examples, predictions: Mapping[str, np.ndarray]) -> list[str]:
  """The best span of each row."""
  spans = zip(examples.host['contexts'], predictions['starts'][:, 0], predictions['ends'][:, 0], strict=True)
  return [context[start:end] for context, start, end in spans]


def _notes(found: passages.Passages, name: str, count: int) -> list[str]:
  """What became of `count` rows."""
  said = [
    (found.shortened, 'questions were cut to fit into a window (task.max_question, train.max_length)'),
    (found.unseen, 'answers stand whole in no window, and are not learnt; a greater task.stride has more windows'),
    (found.inexact, 'answers begin or end inside a token, so that they cannot be given exactly'),
  ]
  return [f'{name}: {n} of {count} {what}' for n, what in said if n]
