"""Charts of predicted scores: predictions over the true scores, and the errors.

Shapes: N examples.
"""

from __future__ import annotations

import numpy as np

from ftlib.evals import plots
from ftlib.evals import report_format as fmt
from ftlib.evals.plots import BLUE, FAINT, RUST, SKY, Chart
from ftlib.evals.report_data import Scored

DOTS = 600  # each is an SVG element of its own
BINS = 10  # of true scores, for the line of mean predictions
LARGE = (5.4, 4.2)  # inches
DASHED = (0, (3, 3))


def scatter(scored: Scored, *, slug: str) -> Chart:
  """A dot for each example, and the mean prediction of examples of like scores; on the diagonal all would be right."""
  x_N, y_N = scored.scores_N, scored.predictions_N
  keep = plots.thin(len(x_N), DOTS)
  at, mean = _means(x_N, y_N)
  low, high = min(x_N.min(), y_N.min()), max(x_N.max(), y_N.max())
  pad = 0.04 * (high - low) or 0.5

  def paint(figure):
    axes = figure.subplots()
    axes.plot([low, high], [low, high], color=FAINT, linewidth=1, linestyle=DASHED)
    axes.plot(x_N[keep], y_N[keep], 'o', color=BLUE, markersize=3.4, markeredgewidth=0, alpha=0.4)
    axes.plot(at, mean, color=RUST, marker='o', markersize=4.5, linewidth=1.4, label='mean of like scores')
    axes.set(xlabel='true score', ylabel='prediction', xlim=(low - pad, high + pad), ylim=(low - pad, high + pad))
    axes.legend(loc='upper left')

  some = f' {fmt.integer(len(keep))} of {fmt.integer(len(x_N))} examples are drawn.' if len(keep) < len(x_N) else ''
  alt = (
    f'Predictions over true scores. The scores lie between {x_N.min():.4g} and {x_N.max():.4g},'
    f' the predictions between {y_N.min():.4g} and {y_N.max():.4g}.'
  )
  note = f'Dashed: prediction equals score.{some}'
  return Chart('Prediction and score', plots.render(f'{slug}-scatter', paint, size=LARGE), alt, note)


def errors(scored: Scored, *, slug: str) -> Chart:
  """How many predictions are how far off, and to which side."""
  error_N = scored.errors_N
  mean, spread = float(error_N.mean()), float(error_N.std())

  def paint(figure):
    axes = figure.subplots()
    axes.hist(error_N, bins=min(30, max(5, len(error_N) // 10)), color=SKY, edgecolor='white', linewidth=1)
    axes.axvline(0, color=FAINT, linewidth=1, linestyle=DASHED)
    axes.axvline(mean, color=RUST, linewidth=1.6, label=f'mean {mean:+.3g}')
    axes.set(xlabel='error (prediction minus true score)', ylabel='examples')
    axes.legend(loc='upper left')

  said = f'Mean error {mean:+.3g}, standard deviation {spread:.3g}.'
  return Chart('Errors', plots.render(f'{slug}-errors', paint, size=LARGE), f'Histogram of errors. {said}', said)


def _means(x_N: np.ndarray, y_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(mean score, mean prediction) of the examples in each of at most ten equal ranges of the score."""
  edges = np.linspace(x_N.min(), x_N.max(), BINS + 1)
  bin_N = np.clip(np.searchsorted(edges, x_N, side='right') - 1, 0, BINS - 1)
  count, x, y = (np.bincount(bin_N, w, minlength=BINS) for w in (None, x_N, y_N))
  some = count > 0
  return x[some] / count[some], y[some] / count[some]
