"""Charts of a language model's rows: how hard each is, and how far chosen answers are ahead.

Shapes: N rows.
"""

from __future__ import annotations

import numpy as np

from ftlib.evals import plots
from ftlib.evals import report_format as fmt
from ftlib.evals.plots import FAINT, RUST, SKY, Chart
from ftlib.evals.report_data import Valued

DASHED = (0, (3, 3))


def losses(valued: Valued, *, slug: str) -> Chart:
  """How many rows have which loss, each row's being a mean over its supervised tokens."""
  loss_N = valued.values_N
  mean, median, most = float(loss_N.mean()), float(np.median(loss_N)), float(loss_N.max())
  said = f'Each row counts the same: mean {mean:.4g}, median {median:.4g}, highest {most:.4g}.'
  drawn = _histogram(loss_N, slug=f'{slug}-losses', xlabel='loss of the row (nats a token)', mean=mean, zero=False)
  return Chart('Loss of each row', drawn, f'Histogram. {said}', said)


def margins(valued: Valued, *, slug: str) -> Chart:
  """How many pairs have which margin between the chosen and the rejected answer."""
  margin_N = valued.values_N
  wrong, N = int((margin_N <= 0).sum()), len(margin_N)
  said = f'In {fmt.integer(wrong)} of {fmt.integer(N)} pairs the rejected answer is ahead or level.'
  mean = float(margin_N.mean())
  drawn = _histogram(margin_N, slug=f'{slug}-margins', xlabel='margin of the chosen answer', mean=mean, zero=True)
  note = f'{said} Margins are of log-probabilities, not yet times beta.'
  return Chart('Margins', drawn, f'Histogram. {said} Mean margin {mean:.4g}.', note)


def _histogram(values_N: np.ndarray, *, slug: str, xlabel: str, mean: float, zero: bool) -> str:
  def paint(figure):
    axes = figure.subplots()
    axes.hist(values_N, bins=min(40, max(5, len(values_N) // 10)), color=SKY, edgecolor='white', linewidth=1)
    if zero:
      axes.axvline(0, color=FAINT, linewidth=1, linestyle=DASHED)
    axes.axvline(mean, color=RUST, linewidth=1.6, label=f'mean {mean:.3g}')
    axes.set(xlabel=xlabel, ylabel='rows')
    axes.legend(loc='upper right')

  return plots.render(slug, paint)
