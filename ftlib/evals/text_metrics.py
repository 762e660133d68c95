"""Measures of generated texts: against references, and of the texts by themselves.

A task names groups of them (`GROUPS`), each of which gives one or several scalars. BLEU, chrF and TER are from 0 to 100
(TER and more), as sacrebleu and the literature have them; all other scores are shares from 0 to 1. Chinese has no
spaces between words: for it there are groups that go by characters (`_zh`), chrF does so anyway, and where `distinct`,
`repetition` and `length` count words, a Chinese character is one.

Shapes: N texts; each has one reference or several.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from ftlib.base.errors import InputError, did_you_mean
from ftlib.evals import span_metrics

Scores = dict[str, float]
_NUMBER = re.compile(r'-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|-?\.\d+')
_HAN = '\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff'
_WORDS = re.compile(f'[{_HAN}]|[^\\s{_HAN}]+')
_LETTERS = re.compile(f'[{_HAN}]|[^\\W_{_HAN}]+')
_REPEATED = 4  # words of the n-grams that `repetition` counts


def bleu(texts: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
  """BLEU of the corpus (Papineni et al. 2002) by sacrebleu's defaults (Post 2018), 0 to 100."""
  import sacrebleu

  return {'bleu': sacrebleu.corpus_bleu(list(texts), _streams(references)).score}


def bleu_zh(texts: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
  """BLEU of a corpus in Chinese, by characters and the words between them (sacrebleu's tokenizer `zh`), 0 to 100."""
  import sacrebleu

  return {'bleu_zh': sacrebleu.corpus_bleu(list(texts), _streams(references), tokenize='zh').score}


def ter(texts: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
  """Translation edit rate of the corpus (Snover et al. 2006) by sacrebleu's defaults: insertions, deletions, words put
  in others' place and shifts of stretches, over the words of the references, in percent; 0 is best."""
  import sacrebleu

  return {'ter': sacrebleu.corpus_ter(list(texts), _streams(references)).score}


def ter_zh(texts: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
  """`ter` by Chinese characters (sacrebleu's `normalized` and `asian_support`)."""
  import sacrebleu

  found = sacrebleu.corpus_ter(list(texts), _streams(references), normalized=True, asian_support=True)
  return {'ter_zh': found.score}


def chrf(texts: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
  """chrF of the corpus (Popović 2015) by sacrebleu's defaults, 0 to 100."""
  import sacrebleu

  return {'chrf': sacrebleu.corpus_chrf(list(texts), _streams(references)).score}


def rouge(texts: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
  """Mean F1 of ROUGE-1, -2 and -L (Lin 2004) of English words, with stemming, the best of several references."""
  return _rouge(texts, references, use_stemmer=True)


def rouge_zh(texts: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
  """Mean F1 of ROUGE-1, -2 and -L by Chinese characters and words of other scripts in lower case, without
  punctuation."""
  return {f'{n}_zh': x for n, x in _rouge(texts, references, tokenizer=_Characters()).items()}


class _Characters:
  """What rouge_score asks for tokens."""

  def tokenize(self, text: str) -> list[str]:
    return _LETTERS.findall(text.lower())


def _rouge(texts: Sequence[str], references: Sequence[Sequence[str]], **options: Any) -> Scores:
  from rouge_score import rouge_scorer

  names = ('rouge1', 'rouge2', 'rougeL')
  scorer = rouge_scorer.RougeScorer(names, **options)
  found = [scorer.score_multi(list(r), t) for t, r in zip(texts, references, strict=True)]
  return {n: _mean([f[n].fmeasure for f in found]) for n in names}


def exact(texts: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
  """The share of texts that are a reference, but for white space around them."""
  return {'exact_match': _mean([t.strip() in {r.strip() for r in rs} for t, rs in zip(texts, references, strict=True)])}


def number(texts: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
  """The share of texts whose answer (`extracted`) is the number of a reference. A text without one is wrong.

  Raises `InputError` where no reference holds a number.
  """
  wanted = [{extracted(r) for r in rs} - {None} for rs in references]
  if not any(wanted):
    raise InputError('task.metrics: number_match compares numbers, and no reference holds one')
  return {'number_match': _mean([extracted(t) in w for t, w in zip(texts, wanted, strict=True)])}


def extracted(text: str) -> Decimal | None:
  """The number that a text answers: the one behind '####' (Cobbe et al. 2021), or else the last one in it."""
  _, mark, answer = text.rpartition('####')
  found = _NUMBER.findall(answer) if mark else _NUMBER.findall(text)
  if not found:
    return None
  try:
    return Decimal((found[0] if mark else found[-1]).replace(',', '')).normalize()
  except InvalidOperation:
    return None


def f1(texts: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
  """Short answers as SQuAD judges them (Rajpurkar et al. 2016: lower case, without punctuation and articles), the best
  of several references: the share that is one, and the mean F1 of the words that both share."""
  exact_N, f1_N = span_metrics.scores(texts, references, empty=True)
  return {'answer_match': float(exact_N.mean()), 'token_f1': float(f1_N.mean())}


def f1_zh(texts: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
  """`f1` of answers in Chinese, by characters, as CMRC 2018 judges them (Cui et al. 2019)."""
  exact_N, f1_N = span_metrics.scores(texts, references, language='zh', empty=True)
  return {'answer_match_zh': float(exact_N.mean()), 'token_f1_zh': float(f1_N.mean())}


def distinct(texts: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
  """Different words, and pairs of words, of all texts over their number (Li et al. 2016)."""
  return {f'distinct_{n}': _different([g for t in texts for g in _grams(t, n)]) for n in (1, 2)}


def repetition(texts: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
  """The mean share of a text's 4-grams of words that have stood in it before (Welleck et al. 2020, seq-rep-4)."""
  grams = [_grams(t, _REPEATED) for t in texts]
  return {'repetition': _mean([1 - _different(g) for g in grams if g])}


def length(texts: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
  """Words of a text: mean, shortest, longest, the ratio to those of the first reference; the share of empty texts."""
  own = [len(_WORDS.findall(t)) for t in texts]
  theirs = sum(len(_WORDS.findall(r[0])) for r in references if r)
  return {
    'length_mean': _mean(own),
    'length_min': min(own, default=0),
    'length_max': max(own, default=0),
    'length_ratio': sum(own) / theirs if theirs else 0.0,
    'empty': _mean([not t.strip() for t in texts]),
  }


GROUPS: dict[str, tuple[Callable[..., Scores], dict[str, bool | None]]] = {  # scalars: whether higher is better
  'bleu': (bleu, {'bleu': True}),
  'bleu_zh': (bleu_zh, {'bleu_zh': True}),
  'chrf': (chrf, {'chrf': True}),
  'ter': (ter, {'ter': False}),
  'ter_zh': (ter_zh, {'ter_zh': False}),
  'rouge': (rouge, {'rouge1': True, 'rouge2': True, 'rougeL': True}),
  'rouge_zh': (rouge_zh, {'rouge1_zh': True, 'rouge2_zh': True, 'rougeL_zh': True}),
  'exact': (exact, {'exact_match': True}),
  'number': (number, {'number_match': True}),
  'f1': (f1, {'answer_match': True, 'token_f1': True}),
  'f1_zh': (f1_zh, {'answer_match_zh': True, 'token_f1_zh': True}),
  'distinct': (distinct, {'distinct_1': True, 'distinct_2': True}),
  'repetition': (repetition, {'repetition': False}),
  'length': (length, dict.fromkeys(('length_mean', 'length_min', 'length_max', 'length_ratio', 'empty'))),
}


def groups(text: str, *, field: str = 'task.metrics') -> list[str]:
  """The groups that 'bleu,rouge' names. Raises `InputError` for none and for unknown ones."""
  names = [n.strip() for n in text.split(',') if n.strip()]
  for odd in [n for n in names if n not in GROUPS]:
    raise InputError(f'{field}={text}: {odd!r} is none of {", ".join(GROUPS)}{did_you_mean(odd, GROUPS)}')
  if not names:
    raise InputError(f'{field} names none; choose from {", ".join(GROUPS)}')
  return list(dict.fromkeys(names))


def scores(names: Sequence[str], texts: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
  """The scalars of some groups over N texts. Raises `ValueError` where one has no reference."""
  if len(texts) != len(references) or not len(texts) or not all(len(r) for r in references):
    raise ValueError(f'{len(texts)} texts and {len(references)} lists of references, none of which may be empty')
  found: Scores = {}
  for name in names:
    found |= GROUPS[name][0](texts, references)
  return {n: float(v) for n, v in found.items()}


def perplexity(nll: float, tokens: float) -> float:
  """e to the mean negative log-likelihood (nats) of a token; 0 tokens give NaN, more than a float holds infinity."""
  if not tokens:
    return math.nan
  return math.exp(nll / tokens) if nll / tokens < 700 else math.inf


def _streams(references: Sequence[Sequence[str]]) -> list[list[str | None]]:
  """References as sacrebleu takes them: the first of every text, the second, ...; None where there is none."""
  most = max(len(r) for r in references)
  return [[r[k] if k < len(r) else None for r in references] for k in range(most)]


def _grams(text: str, n: int) -> list[tuple[str, ...]]:
  words = _WORDS.findall(text)
  return list(zip(*(words[i:] for i in range(n)), strict=False))


def _different(grams: Sequence[tuple[str, ...]]) -> float:
  return len({*grams}) / len(grams) if grams else 0.0


def _mean(values: Sequence[float]) -> float:
  return sum(values) / len(values) if len(values) else 0.0
