"""The report's section on one evaluated split: metrics, charts, and the examples that explain them.

Shapes: N examples, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from ftlib.evals import (
  metrics,
  plots_classes,
  plots_scores,
  plots_text,
  report_more,
  report_multilabel,
  report_spans,
  report_tags,
  report_text,
)
from ftlib.evals import report_format as fmt
from ftlib.evals.report_data import Judged, Scored, Split, label, named, number
from ftlib.evals.report_page import (
  bar,
  block,
  details,
  example_table,
  figure,
  grid,
  section,
  shown,
  table,
  text,
  word,
)

WORST, BEST = 12, 6  # examples shown of the mistakes, and of each other kind


def render(split: Split, *, slug: str) -> str:
  """The section as HTML; `slug` sets its ids apart from other splits'."""
  facts = [f'{fmt.integer(split.n)} examples' if split.n else '']
  facts.append(f'checkpoint of step {split.checkpoint}' if split.checkpoint is not None else '')
  if long := number(split.more.get('truncated')):
    facts.append(f'{fmt.integer(long)} longer than the model reads at once')
  confusion_CC = confusion(split)
  C = len(split.classes)
  many = C > plots_classes.FEW
  # A long table scrolls in its box, so that the charts stay near.
  kind, note = (
    ('wide classes long', f'Scroll for all {C} classes.') if C > plots_classes.NUMBERED else ('wide classes', '')
  )
  by_class = block('By class', _class_table(split), kind=kind, note=note)
  matrix, mixed, counts = '', '', ''
  if confusion_CC is not None:
    chart = plots_classes.confusion(confusion_CC, split.classes, slug=slug)
    matrix = figure(chart, kind='wide large' if many else '')
    if many:
      mixed = block('Most frequent confusions', _mixed_up(confusion_CC, split.classes))
    if plots_classes.FEW < C <= 50:  # the table grows with the square, and the page with it
      counts = details('All counts, with percent of the true class', _all_counts(confusion_CC, split.classes))
  return section(
    f'Results on {split.name}',
    # Of a few classes the matrix stands beside the metrics; of many, it takes the page's width.
    grid(
      block('Metrics', _metric_table(split), note=_micro_note(split)),
      *((mixed, by_class, matrix) if many else (matrix, by_class)),
      *_charts(split, slug),
    ),
    counts,
    report_more.blocks(split),
    report_spans.examples(split) or report_tags.examples(split) or report_multilabel.examples(split) or _rows(split),
    anchor=f'{slug}-results',
    lead=', '.join(fact for fact in facts if fact),
  )


def _rows(split: Split) -> str:
  """Examples of whatever there is."""
  return _examples(split) if split.judged else _worst(split.scored) if split.scored else report_text.rows(split)


def scalars(split: Split) -> dict[str, float]:
  """The split's metrics that are one finite number."""
  return {key: value for key, value in metrics.flat(split.metrics).items() if number(value) is not None}


def interval(split: Split, key: str, value: float) -> str:
  """In words, the stored interval, or that of a share of the examples; '' for any other metric, as one of tokens."""
  if (stored := report_more.bounds(split, key)) is not None:
    return fmt.bounds(*stored, level=report_more.level(split))
  return fmt.interval(value, split.n) if key == 'accuracy' and not split.losses else ''


def confusion(split: Split) -> np.ndarray | None:
  """The counts [C, C] of eval/<split>.json, else of its predictions; None for what is no classifier's result."""
  C, judged = len(split.classes), split.judged
  rows = split.metrics.get('confusion')
  square = isinstance(rows, list) and len(rows) == C and all(isinstance(r, list) and len(r) == C for r in rows)
  if C >= 2 and square and all(number(count) is not None and count >= 0 for row in rows for count in row):
    return np.array(rows, int)
  if judged is None:
    return None
  return np.bincount(judged.labels_N * C + judged.predictions_N, minlength=C * C).reshape(C, C)


def _charts(split: Split, slug: str) -> list[str]:
  if split.scored is not None:
    return [figure(chart(split.scored, slug=slug)) for chart in (plots_scores.scatter, plots_scores.errors)]
  if split.margins is not None:
    return [figure(plots_text.margins(split.margins, slug=slug))]
  if split.places is not None:
    return [report_text.places(split.places)]
  if split.losses is not None:
    return [figure(plots_text.losses(split.losses, slug=slug))]
  if split.judged is None:
    return report_multilabel.charts(split, slug=slug)
  of_classes = () if report_spans.has_options(split) else (plots_classes.roc, plots_classes.precision_recall)
  return [
    *(figure(chart(split.judged, split.classes, slug=slug)) for chart in of_classes),
    figure(plots_classes.calibration(split.judged, slug=slug, temperature=_temperature(split))),
    figure(plots_classes.confidence(split.judged, slug=slug)),
  ]


def _temperature(split: Split) -> float | None:
  found = split.more.get('calibrated')
  return number(found.get('temperature')) if isinstance(found, Mapping) else None


def _metric_table(split: Split) -> str:
  values = scalars(split)
  redundant = _MICRO if _micro_note(split) else set()
  rows = []
  for key, value in split.metrics.items():
    if key in values and key not in redundant:
      spread = interval(split, key, values[key])
      aside = f'<span class="aside">{text(spread)}</span>' if spread else ''
      rows.append((text(named(split, key)) + aside, fmt.decimal(values[key])))
    elif value is None:
      rows.append((text(label(key)), '<span class="aside">not defined</span>'))
  return table(('Metric', 'Value'), rows)


_MICRO = {'precision_micro', 'recall_micro', 'f1_micro'}


def _micro_note(split: Split) -> str:
  """Says in one line what three rows would repeat: with one label an example, micro averages are the accuracy."""
  values = scalars(split)
  same = 'accuracy' in values and all(values.get(key) == values['accuracy'] for key in _MICRO)
  return 'Precision, recall and F1 averaged over examples (micro) equal the accuracy.' if same else ''


def _class_table(split: Split) -> str:
  per_class = split.metrics.get('per_class')
  rows = []
  for name, one in per_class.items() if isinstance(per_class, Mapping) else ():
    if isinstance(one, Mapping):
      support = number(one.get('support'))
      f1, *cells = (_share(split, name, key, number(one.get(key))) for key in ('f1', 'precision', 'recall', 'roc_auc'))
      cells.append('–' if support is None else fmt.integer(support))
      if (threshold := number(one.get('threshold'))) is not None:  # of several labels a row, each has its own
        cells.append(f'{threshold:.3f}')
      rows.append((word(name), f1, *cells))
  head = ('Class', 'F1', 'Precision', 'Recall', 'ROC AUC', 'Support', 'Threshold')
  head = head[: max(map(len, rows), default=6)]
  there = [k for k, _ in enumerate(head) if k == 0 or any(row[k] != '–' for row in rows if k < len(row))]
  return table([head[k] for k in there], [[row[k] for k in there if k < len(row)] for row in rows])


def _share(split: Split, name: str, key: str, value: float | None) -> str:
  """A measure of a class with its interval."""
  if value is None:
    return '–'
  spread = report_more.bounds(split, key, name)
  aside = '' if spread is None else '<span class="aside">{:.3f} to {:.3f}</span>'.format(*spread)
  return (bar(value) if key == 'f1' else f'{value:.3f}') + aside


def _mixed_up(confusion_CC: np.ndarray, classes: list[str]) -> str:
  """The class pairs with most errors, at most ten."""
  wrong_CC = confusion_CC * (1 - np.eye(len(classes), dtype=int))
  share_CC = plots_classes.row_share(confusion_CC)
  order = np.argsort(-wrong_CC, axis=None, kind='stable')[:10]
  pairs = [divmod(int(k), len(classes)) for k in order]
  rows = [
    (word(classes[i]), word(classes[j]), fmt.integer(wrong_CC[i, j]), fmt.percent(share_CC[i, j]))
    for i, j in pairs
    if wrong_CC[i, j]
  ]
  return table(('True', 'Predicted', 'Count', 'Of true'), rows, kind='pairs')


def _all_counts(confusion_CC: np.ndarray, classes: list[str]) -> str:
  share_CC = plots_classes.row_share(confusion_CC)

  def cell(i: int, j: int) -> str:
    count = int(confusion_CC[i, j])
    if not count:
      return '<span class="zero">·</span>'
    said = f'{count} ({100 * share_CC[i, j]:.0f}%)'
    return f'<span class="hit">{said}</span>' if i == j else said

  every = range(len(classes))
  return table(
    ('true \\ predicted', *classes), [(text(classes[i]), *(cell(i, j) for j in every)) for i in every], kind='counts'
  )


def _examples(split: Split) -> str:
  """Worst mistakes, least certain, most certain: tables of judged examples."""
  judged = split.judged
  confidence_N, correct_N = judged.confidence_N, judged.correct_N
  ordered_NC = np.sort(judged.probabilities_NC, axis=1)
  margin_N = ordered_NC[:, -1] - ordered_NC[:, -2]
  wrong, right = np.flatnonzero(~correct_N), np.flatnonzero(correct_N)
  worst = wrong[np.argsort(-confidence_N[wrong], kind='stable')][:WORST]
  surest = right[np.argsort(-confidence_N[right], kind='stable')][:BEST]
  doubtful = np.argsort(margin_N, kind='stable')[:BEST]
  said = (
    f'{fmt.integer(len(wrong))} of {fmt.integer(len(judged.rows))} predictions are wrong; these are the surest of them.'
  )
  return grid(
    block('Worst mistakes', _judged_table(judged, split.classes, worst), note=said, kind='wide'),
    block('Least certain', _judged_table(judged, split.classes, doubtful), kind='wide'),
    block('Most confident and right', _judged_table(judged, split.classes, surest), kind='wide'),
  )


def _judged_table(judged: Judged, classes: list[str], indices: Iterable[int]) -> str:
  head = ('Text', 'True', 'Predicted', 'p(predicted)', 'p(true)')
  rows = []
  for i in indices:
    true, predicted = judged.labels_N[i], judged.predictions_N[i]
    verdict = 'right' if true == predicted else 'wrong'
    p_predicted, p_true = judged.probabilities_NC[i, predicted], judged.probabilities_NC[i, true]
    name = f'<span class="{verdict}">{word(classes[predicted])}</span>'
    rows.append((shown(judged.rows[i]), word(classes[true]), name, f'{p_predicted:.3f}', f'{p_true:.3f}'))
  return example_table(head, rows)


def _worst(scored: Scored) -> str:
  """The examples whose score is furthest off, and those where it is nearest."""
  order = np.argsort(-np.abs(scored.errors_N), kind='stable')
  places = max(0, 4 - len(str(int(np.abs(scored.scores_N).max(initial=0)))))  # four digits of the largest score

  def examples(indices: Iterable[int]) -> str:
    of = lambda i: (scored.scores_N[i], scored.predictions_N[i], scored.errors_N[i])  # noqa: E731
    said = lambda true, predicted, error: (f'{true:.6g}', f'{predicted:.{places}f}', f'{error:+.{places}f}')  # noqa: E731
    rows = [(shown(scored.rows[i]), *said(*of(i))) for i in indices]
    return example_table(('Text', 'True', 'Predicted', 'Error'), rows)

  return grid(
    block('Worst errors', examples(order[:WORST]), kind='wide'),
    block('Nearest', examples(order[WORST:][::-1][:BEST]), kind='wide') if len(order) > WORST else '',
  )
