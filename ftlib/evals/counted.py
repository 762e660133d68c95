"""Metrics of resampled rows, each of O(N): what is sorted is sorted once (`ftlib/evals/bootstrap.py: Counted`).

With counts of 1 they are those of `ftlib/evals/metrics.py`, with others those of rows that stand there so many times.

Shapes: N rows, C classes, K sums.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ftlib.evals import metrics, text_metrics
from ftlib.evals.bootstrap import Counted


def sums(stats_NK: np.ndarray, finish: Callable[[np.ndarray], Mapping[str, float | None]]) -> Counted:
  """Metrics that follow from sums over the rows: `finish` gives them of such sums [K]. Most do: a mean, an F1 of hits,
  predictions and gold items, a perplexity, a BLEU."""
  stats_NK = np.asarray(stats_NK, np.float64)
  return lambda counts_N: finish(counts_N @ stats_NK)


def classification(
  labels_N: np.ndarray,
  probabilities_NC: np.ndarray,
  *,
  names: Sequence[str],
  predictions_N: np.ndarray | None = None,
) -> Counted:
  """The scalars of `metrics.classification` over the same arguments, and `per_class`."""
  labels_N, p_NC = np.asarray(labels_N, np.int64), np.asarray(probabilities_NC, np.float64)
  C = len(names)
  cells_N = labels_N * C + (p_NC.argmax(1) if predictions_N is None else np.asarray(predictions_N))
  own_N = (p_NC / p_NC.sum(1, keepdims=True))[np.arange(len(p_NC)), labels_N]
  loss_N = -np.log(np.clip(own_N, np.finfo(np.float64).eps, None))
  ranked = [Ranked(p_NC[:, c], labels_N == c) for c in ([1] if C == 2 else range(C))]

  def counted(counts_N: np.ndarray) -> dict[str, Any]:
    total = counts_N.sum()
    confusion_CC = np.bincount(cells_N, counts_N, minlength=C * C).reshape(C, C)
    right_C, true_C, said_C = np.diagonal(confusion_CC), confusion_CC.sum(1), confusion_CC.sum(0)
    accuracy = float(right_C.sum() / total)
    of_class = shares(right_C, said_C, true_C)
    found = {'accuracy': accuracy}
    found |= {f'{n}_macro': float(x_C.mean()) for n, x_C in zip(metrics.SHARES, of_class)}
    found |= {f'{n}_micro': accuracy for n in metrics.SHARES}
    found['f1_weighted'] = float(of_class[2] @ true_C / total)
    found['mcc'] = _mcc(right_C.sum(), true_C, said_C, total)
    areas = [r(counts_N) for r in ranked]
    for i, name in enumerate(('roc_auc', 'average_precision')):
      found[name] = None if None in areas else float(np.mean([a[i] for a in areas]))
    found['log_loss'] = float(counts_N @ loss_N / total)
    if C == 2:
      found |= {n: float(x_C[1]) for n, x_C in zip(metrics.SHARES, of_class)}
    return {**found, 'per_class': per_class(names, of_class)}

  return counted


def per_class(names: Sequence, of_class: Sequence[np.ndarray]) -> dict[str, dict[str, float]]:
  """{class: {precision, recall, f1}} of these three, each [C]."""
  return {str(n): dict(zip(metrics.SHARES, of_one)) for n, of_one in zip(names, np.stack(of_class, 1).tolist())}


def regression(scores_N: np.ndarray, predictions_N: np.ndarray) -> Counted:
  """The scalars of `metrics.regression` over the same arguments."""
  x_N, y_N = np.asarray(scores_N, np.float64), np.asarray(predictions_N, np.float64)
  ranks = [_ranks(v_N) for v_N in (x_N, y_N)]
  stats = {'mse': (y_N - x_N) ** 2, 'mae': np.abs(y_N - x_N)}

  def counted(counts_N: np.ndarray) -> dict[str, float]:
    return {
      'pearson': _correlation(x_N, y_N, counts_N),
      'spearman': _correlation(*(rank(counts_N) for rank in ranks), counts_N),
      **{name: float(counts_N @ of_N / counts_N.sum()) for name, of_N in stats.items()},
    }

  return counted


def ranking(positive_N: np.ndarray, scores_N: np.ndarray) -> Counted:
  """The scalars of `metrics.ranking` over the same arguments."""
  ranked = Ranked(np.asarray(scores_N, np.float64), np.asarray(positive_N, bool))
  return lambda counts_N: dict(zip(metrics.RANKING, ranked(counts_N) or (None, None)))


def texts(groups: Sequence[str], found: Sequence[str], references: Sequence[Sequence[str]]) -> Counted:
  """The scalars of those groups of `text_metrics` that are means over texts, or follow from sums (BLEU)."""
  parts = []
  for group in groups:
    if group in ('rouge', 'rouge_zh', 'exact', 'f1', 'f1_zh'):
      rows = [text_metrics.GROUPS[group][0]([t], [r]) for t, r in zip(found, references, strict=True)]
      names = list(rows[0])
      parts.append(sums([[1.0, *r.values()] for r in rows], lambda s, names=names: dict(zip(names, s[1:] / s[0]))))
    elif group == 'number':
      number = text_metrics.extracted
      wanted = [{number(r) for r in rs} - {None} for rs in references]
      hits = [[1.0, number(t) in w] for t, w in zip(found, wanted, strict=True)]
      parts.append(sums(hits, lambda s: {'number_match': s[1] / s[0]}))
    elif group in ('bleu', 'bleu_zh'):
      parts.append(_bleu(group, found, references))
    elif group in ('ter', 'ter_zh'):
      parts.append(_ter(group, found, references))
  return lambda counts_N: {n: float(v) for part in parts for n, v in part(counts_N).items()}


def _ter(group: str, found: Sequence[str], references: Sequence[Sequence[str]]) -> Counted:
  from sacrebleu.metrics import TER

  metric = TER(normalized=group == 'ter_zh', asian_support=group == 'ter_zh')
  scores = [metric.sentence_score(t, list(r)) for t, r in zip(found, references, strict=True)]
  return sums([[s.num_edits, s.ref_length] for s in scores], lambda s: {group: 100 * s[0] / s[1] if s[1] else 0.0})


def _bleu(group: str, found: Sequence[str], references: Sequence[Sequence[str]]) -> Counted:
  from sacrebleu.metrics import BLEU

  tokenize = 'zh' if group == 'bleu_zh' else None
  metric = BLEU(effective_order=True, tokenize=tokenize)  # of a sentence; sums are of the corpus, as it is by default
  scores = [metric.sentence_score(t, list(r)) for t, r in zip(found, references, strict=True)]
  n = metric.max_ngram_order

  def corpus(s: np.ndarray) -> dict[str, float]:
    s = s.astype(int).tolist()
    score = BLEU.compute_bleu(s[2 : 2 + n], s[2 + n :], s[0], s[1], smooth_method='exp', effective_order=False)
    return {group: score.score}

  return sums([[s.sys_len, s.ref_len, *s.counts, *s.totals] for s in scores], corpus)


class Ranked:
  """(ROC AUC, average precision) of a class by its scores, ties counted by halves and together; None without a row of
  either side."""

  def __init__(self, scores_N: np.ndarray, positive_N: np.ndarray):
    self.order = np.argsort(-scores_N, kind='stable')
    sorted_N = scores_N[self.order]
    self.positive = positive_N[self.order].astype(np.float64)
    first = np.concatenate([[True], sorted_N[1:] != sorted_N[:-1]])
    group, starts = np.cumsum(first) - 1, np.flatnonzero(first)
    self.starts, self.stops = starts[group], np.append(starts[1:], len(scores_N))[group]

  def __call__(self, counts_N: np.ndarray) -> tuple[float, float] | None:
    weights_N = counts_N[self.order]
    own_N = weights_N * self.positive
    hits = np.concatenate([[0.0], np.cumsum(own_N)])
    seen = np.concatenate([[0.0], np.cumsum(weights_N)])
    positives, negatives = hits[-1], seen[-1] - hits[-1]
    if not positives or not negatives:
      return None
    to_N, upto_N = hits[self.starts], hits[self.stops]  # positives above a row's score, and down to it
    area = (weights_N - own_N) @ (to_N + upto_N) / 2 / (positives * negatives)
    precision = own_N @ (upto_N / np.maximum(seen[self.stops], 1)) / positives
    return float(area), float(precision)


def _ranks(values_N: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
  """Average ranks [N] of rows that stand there so many times, from 1."""
  _, group_N = np.unique(values_N, return_inverse=True)

  def ranks(counts_N: np.ndarray) -> np.ndarray:
    sizes = np.bincount(group_N, counts_N)
    return (np.cumsum(sizes) - sizes + (sizes + 1) / 2)[group_N]

  return ranks


def _correlation(x_N: np.ndarray, y_N: np.ndarray, counts_N: np.ndarray) -> float:
  """Of Pearson; 0 where either side is constant."""
  there = counts_N > 0
  if any(v_N[there].min() == v_N[there].max() for v_N in (x_N, y_N)):
    return 0.0
  x_N, y_N = (v_N - counts_N @ v_N / counts_N.sum() for v_N in (x_N, y_N))
  wide = np.sqrt((counts_N @ x_N**2) * (counts_N @ y_N**2))
  return float(np.clip(counts_N @ (x_N * y_N) / wide, -1, 1))


def shares(hits: np.ndarray, said: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(precision, recall, F1) of counts in one shape, 0 where one is not defined."""
  return ratio(hits, said), ratio(hits, true), ratio(2 * hits, said + true)


def ratio(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """x / y, 0 where y is."""
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  return np.divide(x, y, out=np.zeros_like(x), where=y > 0)


def _mcc(right: float, true_C: np.ndarray, said_C: np.ndarray, total: float) -> float:
  """The correlation of Matthews (1975) over several classes (Gorodkin 2004); 0 where a side is constant."""
  if min(np.count_nonzero(true_C), np.count_nonzero(said_C)) < 2:
    return 0.0
  spread = np.sqrt((total**2 - said_C @ said_C) * (total**2 - true_C @ true_C))
  return float((right * total - true_C @ said_C) / spread)
