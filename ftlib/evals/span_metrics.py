"""Measures of answers that are spans of a text: exact match and F1, as the scripts of the data sets count them.

* English: the official scripts of SQuAD 1.1 (Rajpurkar et al. 2016) and 2.0 (Rajpurkar et al. 2018): in lower case,
  without punctuation and articles; F1 of the words that both share.
* Chinese: the script of CMRC 2018 (Cui et al. 2019): in lower case, without its punctuation marks; characters, and the
  words of what is written in other scripts; F1 of the longest run of them that both share. (It calls that run "LCS":
  the longest common string, not sub-sequence.) Words by NLTK's tokenizer without its splitting into sentences, which
  needs a download: a stretch of several English sentences can count one full stop differently.

The best of several gold answers counts. Scores are shares from 0 to 1, where the scripts have percent.

Shapes: N questions.
"""

from __future__ import annotations

import collections
import functools
import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

LANGUAGES = ('en', 'zh')
NAMES = {'exact_match': True, 'f1': True}
_SPLITS = ('has_answer', 'no_answer')
_ARTICLES = re.compile(r'\b(a|an|the)\b')
_PUNCTUATION = str.maketrans('', '', string.punctuation)
_HAN = re.compile('[\u4e00-\u9fa5]')  # as CMRC's script has it, so without the rarer blocks
_MARKS = frozenset('-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』')  # CMRC's; its '……' never equals a character


def names(no_answer: bool) -> dict[str, bool]:
  """{scalar: whether higher is better} of `spans`; with `no_answer` those of SQuAD 2.0 besides."""
  if not no_answer:
    return NAMES
  parts = [f'{split}_{name}' for split in _SPLITS for name in NAMES]
  return dict.fromkeys([*NAMES, *parts, *(f'best_{name}' for name in NAMES)], True)


def spans(texts: Sequence[str], golds: Sequence[Sequence[str]], *, language: str = 'en') -> dict[str, float]:
  """`exact_match` and `f1` of N answers, as SQuAD 1.1 or CMRC 2018 has them. Every question has gold answers.

  Raises:
    ValueError: there are no questions, or one has no gold answer.
  """
  if not len(texts) or not all(map(len, golds)):
    raise ValueError('wanted one question or more, each with a gold answer')
  exact_N, f1_N = scores(texts, golds, language=language)
  return {'exact_match': float(exact_N.mean()), 'f1': float(f1_N.mean())}


def spans_or_none(
  texts: Sequence[str],
  nulls_N: Sequence[float],
  golds: Sequence[Sequence[str]],
  *,
  threshold: float,
  language: str = 'en',
) -> dict:
  """The measures of SQuAD 2.0, in which a question without gold answers has none in the text.

  `texts` are the best spans, none empty; `nulls_N` how much likelier "no answer" is than the span; above `threshold`,
  that is the answer. Scalars: `exact_match`, `f1`; each as `has_answer_` and `no_answer_` over the questions of that
  sort (None where there are none), and as `best_`, at the threshold that is best for it on these questions. Nested:
  `thresholds` {measure: that threshold}, the script's `best_exact_thresh` and `best_f1_thresh`.

  Raises:
    ValueError: there are no questions.
  """
  if not len(texts):
    raise ValueError('wanted one question or more')
  return with_threshold(raw(texts, nulls_N, golds, language=language), threshold)


class Raw(NamedTuple):
  """Answers before a threshold takes some back: the scores of spans `exact_N` and `f1_N`; `nulls_N`, which is compared
  with the threshold; whether there is an answer, `has_N`, and whether a span was given at all, `said_N`."""

  exact_N: np.ndarray
  f1_N: np.ndarray
  nulls_N: np.ndarray
  has_N: np.ndarray
  said_N: np.ndarray

  def taken(self, rows: np.ndarray) -> Raw:
    """Those of some questions, which may stand there several times."""
    return Raw(*(x[rows] for x in self))


def raw(texts: Sequence[str], nulls_N: Sequence[float], golds: Sequence[Sequence[str]], *, language: str) -> Raw:
  """What `spans_or_none` goes by."""
  has_N = np.array([len(gold) > 0 for gold in golds])
  golds = [[g for g in gold if _said(g, language)] or [''] for gold in golds]
  found = scores(texts, golds, language=language, empty=True)
  return Raw(*found, np.asarray(nulls_N, np.float64), has_N, np.array([bool(t) for t in texts]))


def with_threshold(found: Raw, threshold: float | np.ndarray) -> dict:
  """The measures of `spans_or_none`; `threshold` is one, or [N]."""
  out, thresholds = {}, {}
  for name, raw_N in zip(NAMES, found):
    final_N = np.where(found.nulls_N > threshold, ~found.has_N, raw_N)
    out[name] = float(final_N.mean())
    for split, of_split in zip(_SPLITS, (found.has_N, ~found.has_N)):
      out[f'{split}_{name}'] = float(final_N[of_split].mean()) if of_split.any() else None
    out[f'best_{name}'], thresholds[name] = best_threshold(found, name)
  return {**{n: out[n] for n in names(True)}, 'thresholds': thresholds}


def best_threshold(found: Raw, name: str) -> tuple[float, float]:
  """(the best mean score of a measure, the threshold that gives it), as SQuAD 2.0's script finds them.

  From no answer to any question on, one question after the other is answered by its span, in order of `nulls_N`, which
  ties leave as it is.
  """
  order, sums_N, none = _answered(found, name)
  best = int(sums_N.argmax())
  if sums_N[best] <= none:
    return none / len(sums_N), 0.0
  return float(sums_N[best]) / len(sums_N), float(found.nulls_N[order[best]])


def tuned_threshold(found: Raw, name: str) -> float:
  """The threshold at which the mean score of a measure is best: where nothing is worth an answer, one below all
  `nulls_N`. (The script's 0 is below the probabilities that it is given, but not below differences of scores; and it
  parts questions that no threshold does.)"""
  order, sums_N, none = _answered(found, name)
  nulls_N = found.nulls_N[order]
  last_K = np.flatnonzero(np.append(nulls_N[1:] > nulls_N[:-1], True))  # of those that are alike
  best = last_K[sums_N[last_K].argmax()]
  return float(nulls_N[best]) if sums_N[best] > none else float(nulls_N[0]) - 1


def _answered(found: Raw, name: str) -> tuple[np.ndarray, np.ndarray, float]:
  """(questions in order of `nulls_N`; the sum of scores where those up to each one are answered; where none is)."""
  order = np.argsort(found.nulls_N, kind='stable')
  gain_N = np.where(found.has_N, found[[*NAMES].index(name)], -1.0 * found.said_N)[order]
  none = float((~found.has_N).sum())
  return order, none + np.cumsum(gain_N), none


def scores(
  texts: Sequence[str], golds: Sequence[Sequence[str]], *, language: str = 'en', empty: bool = False
) -> tuple[np.ndarray, np.ndarray]:
  """(exact match, F1) of each answer, float64 [N] from 0 to 1, the best over its gold answers.

  `empty`: an answer of which normalising leaves nothing is right where the gold one is so too (SQuAD 2.0); by SQuAD 1.1
  and CMRC 2018 its F1 is 0.
  """
  exact, f1 = _MEASURES[language]
  pairs = [*zip(texts, golds, strict=True)]
  return tuple(
    np.array([max(of_pair(text, gold) for gold in of_text) for text, of_text in pairs], np.float64)
    for of_pair in (exact, functools.partial(f1, empty=empty))
  )


def language_of(texts: Sequence[str]) -> str:
  """'zh' where a fifth or more of the letters of some texts are Chinese, else 'en'."""
  letters = [c for text in texts for c in text if c.isalpha()]
  return 'zh' if len([c for c in letters if _HAN.match(c)]) >= max(1, len(letters)) / 5 else 'en'


def normalised(text: str) -> str:
  """An English answer as it is compared: lower case, no punctuation, no articles, single spaces."""
  return ' '.join(_ARTICLES.sub(' ', text.lower().translate(_PUNCTUATION)).split())


def segments(text: str) -> list[str]:
  """A Chinese answer as its F1 counts it: characters, and words of other scripts, without punctuation marks."""
  out, other = [], ''
  for char in text.lower().strip():
    if char in _MARKS:
      continue  # two stretches of another script that a mark parts stand together, as in CMRC's script
    if _HAN.match(char):
      out += [*_words(other), char]
      other = ''
    else:
      other += char
  return out + _words(other)


def _words(text: str) -> list[str]:
  if not text:
    return []
  from nltk.tokenize import NLTKWordTokenizer

  return NLTKWordTokenizer().tokenize(text)


def _said(gold: str, language: str) -> bool:
  """Whether a gold answer is one: by SQuAD 2.0's script, one of which normalising leaves nothing is none."""
  return bool(normalised(gold) if language == 'en' else gold.strip())


def _exact_en(text: str, gold: str) -> bool:
  return normalised(text) == normalised(gold)


def _f1_en(text: str, gold: str, *, empty: bool) -> float:
  a, b = normalised(text).split(), normalised(gold).split()
  if empty and not (a and b):
    return float(a == b)
  return _f1(sum((collections.Counter(a) & collections.Counter(b)).values()), len(a), len(b))


def _exact_zh(text: str, gold: str) -> bool:
  a, b = (''.join(c for c in t.lower().strip() if c not in _MARKS) for t in (text, gold))
  return a == b


def _f1_zh(text: str, gold: str, *, empty: bool) -> float:
  a, b = segments(text), segments(gold)
  if empty and not (a and b):
    return float(a == b)
  return _f1(_longest_run(a, b), len(a), len(b))


def _f1(shared: int, ours: int, theirs: int) -> float:
  if not shared:
    return 0.0
  precision, recall = shared / ours, shared / theirs
  return 2 * precision * recall / (precision + recall)


def _longest_run(a: Sequence[str], b: Sequence[str]) -> int:
  """The length of the longest run of items that stands in both."""
  best, above = 0, [0] * (len(b) + 1)
  for x in a:
    here = [0] * (len(b) + 1)
    for j, y in enumerate(b):
      if x == y:
        here[j + 1] = above[j] + 1
    best, above = max(best, *here), here
  return best


_MEASURES: Mapping[str, tuple[Callable[..., bool], Callable[..., float]]] = {
  'en': (_exact_en, _f1_en),
  'zh': (_exact_zh, _f1_zh),
}
