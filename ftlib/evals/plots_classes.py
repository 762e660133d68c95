"""Charts of a classifier's predictions: confusion matrix, ROC, precision-recall, calibration.

Shapes: N examples, C classes, G points of a shared grid, B bins.
"""

from __future__ import annotations

import numpy as np

from ftlib.evals import calibration as calibrations
from ftlib.evals import plots
from ftlib.evals import report_format as fmt
from ftlib.evals.plots import BLUE, CYCLE, FAINT, INK, RUST, SKY, TEAL, Chart
from ftlib.evals.report_data import Judged

FEW = 6  # classes that get a line or a roomy cell each; beyond, the eye needs a summary
NUMBERED = 25  # classes whose confusion matrix still has room for counts
NAMED = 60  # classes whose names still fit side by side along an axis
LARGE = (5.4, 4.2)  # inches
DASHED = (0, (3, 3))
CONFIDENCE = 'confidence (probability of the predicted class)'
LARGEST = 'confidence (largest probability)'  # which a threshold may predict against
GRID_G = np.linspace(0, 1, 81)


def confusion(confusion_CC: np.ndarray, classes: list[str], *, slug: str) -> Chart:
  """Counts in cells that are coloured by their share of the row (the true class), for 2 to 50 classes."""
  C = len(classes)
  share_CC = row_share(confusion_CC)
  # Square root: errors of a few percent are what one looks for, and on a linear scale they are invisible.
  strength_CC1 = np.sqrt(share_CC)[..., None]
  right, wrong, blank = (np.array([int(h[i : i + 2], 16) / 255 for i in (1, 3, 5)]) for h in (BLUE, RUST, '#f5f6f8'))
  color_CC3 = blank + strength_CC1 * (np.where(np.eye(C)[..., None] == 1, right, wrong) - blank)
  # White ink where it has more contrast than dark ink: at a relative luminance (WCAG) below about 0.21.
  dark_CC = color_CC3**2.2 @ np.array([0.2126, 0.7152, 0.0722]) < 0.21
  few = C <= FEW
  names = [plots.short(name, 16 if few else 30) for name in classes] if C <= NAMED else []

  def paint(figure):
    axes = figure.subplots()
    axes.imshow(color_CC3, interpolation='none', aspect='auto' if few else 'equal')
    for edge in np.arange(C - 1) + 0.5:
      axes.axhline(edge, color='white', linewidth=2 if few else 0.8)
      axes.axvline(edge, color='white', linewidth=2 if few else 0.8)
    for (i, j), count in np.ndenumerate(confusion_CC):
      style = {
        'ha': 'center',
        'va': 'center',
        'color': 'white' if dark_CC[i, j] else INK,
        'textcoords': 'offset points',
      }
      if few:
        axes.annotate(fmt.integer(count), (j, i), (0, 7), fontsize=12, fontweight='bold', **style)
        axes.annotate(f'{100 * share_CC[i, j]:.1f} %', (j, i), (0, -8), fontsize=9.5, **style)
      elif C <= NUMBERED and count:
        axes.annotate(f'{count}', (j, i), (0, 0), fontsize=8.5 if C < 16 else 7.5, **style)
    size = {} if few else {'fontsize': 9 if C <= NUMBERED else 6.5}
    flat = few and max(map(len, names)) <= 40 / C
    axes.set_xticks(range(len(names)), names, rotation=0 if flat else 90, **size)
    axes.set_yticks(range(len(names)), names, **size)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xlabel('predicted', labelpad=8)
    axes.set_ylabel('true')

  hits, total = fmt.integer(np.trace(confusion_CC)), fmt.integer(confusion_CC.sum())
  alt = f'Confusion matrix of {C} classes, rows true, columns predicted: {hits} of {total} on the diagonal.'
  what = 'Count and share of the true class.' if few else 'Counts.' if C <= NUMBERED else ''
  note = f'{what} Colour: share of the true class (square-root scale), blue right, orange wrong.'.strip()
  size = LARGE if few else (9.6, 8.6)
  return Chart('Confusion matrix', plots.render(f'{slug}-confusion', paint, size=size), alt, note)


def row_share(confusion_CC: np.ndarray) -> np.ndarray:
  """Each count over its row's sum; 0 in a row without examples."""
  return confusion_CC / np.maximum(confusion_CC.sum(axis=1, keepdims=True), 1)


def roc(judged: Judged, classes: list[str], *, slug: str) -> Chart | None:
  """ROC curve of class 1 of two, or one-vs-rest curves, with the area under each in the legend."""
  from sklearn.metrics import roc_auc_score, roc_curve

  def curve(positive_N, score_N):
    fpr, tpr, _ = roc_curve(positive_N, score_N)
    return fpr, tpr, roc_auc_score(positive_N, score_N), np.interp(GRID_G, fpr, tpr)

  axes_of = {'xlabel': 'false positive rate', 'ylabel': 'true positive rate', 'legend': 'lower right', 'area': 'AUC'}
  return _curves(judged, classes, curve, slug=f'{slug}-roc', title='ROC curve', steps='default', **axes_of)


def precision_recall(judged: Judged, classes: list[str], *, slug: str) -> Chart | None:
  """Precision over recall of class 1 of two, or one-vs-rest curves, with average precision in the legend."""
  from sklearn.metrics import average_precision_score, precision_recall_curve

  def curve(positive_N, score_N):
    precision, recall, _ = precision_recall_curve(positive_N, score_N)
    precision, recall = precision[::-1], recall[::-1]  # rising recall
    at_G = precision[np.searchsorted(recall, GRID_G)]
    return recall, precision, average_precision_score(positive_N, score_N), at_G

  axes_of = {'xlabel': 'recall', 'ylabel': 'precision', 'legend': 'best', 'area': 'AP'}
  title = 'Precision-recall curve'
  return _curves(judged, classes, curve, slug=f'{slug}-pr', title=title, steps='steps-pre', **axes_of)


def _curves(judged, classes, curve, *, slug, title, steps, xlabel, ylabel, legend, area) -> Chart | None:
  """One line for two classes, one each for a few; for many a mean over faint lines, the weakest three in colour."""
  positives_NC = judged.positives_NC
  one_of_two = len(classes) == 2 and isinstance(judged, Judged)
  wanted = [1] if one_of_two else range(len(classes))
  wanted = [c for c in wanted if 0 < positives_NC[:, c].sum() < len(positives_NC)]
  if not wanted:
    return None
  found = {c: curve(positives_NC[:, c], judged.probabilities_NC[:, c]) for c in wanted}
  areas = {c: float(found[c][2]) for c in wanted}
  mean = float(np.mean(list(areas.values())))
  many = len(classes) > FEW
  weakest = sorted(wanted, key=lambda c: areas[c])[:3] if many else []

  def line(axes, c, **style):
    x, y = found[c][:2]
    keep = plots.thin(len(x), plots.POINTS)
    axes.plot(x[keep], y[keep], drawstyle=steps, label=f'{plots.short(classes[c])}, {area} {areas[c]:.3f}', **style)

  def paint(figure):
    axes = figure.subplots()
    if area == 'AUC':
      axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=DASHED)
    elif len(wanted) == 1:
      axes.axhline(positives_NC[:, wanted[0]].mean(), color=FAINT, linewidth=1, linestyle=DASHED)
    if many:
      for c in wanted:
        axes.plot(GRID_G, found[c][3], color=FAINT, linewidth=0.6, alpha=0.8)
      mean_G = np.mean([found[c][3] for c in wanted], axis=0)
      axes.plot(GRID_G, mean_G, color=BLUE, linewidth=2.4, label=f'mean, {area} {mean:.3f}')
      for c, color in zip(weakest, CYCLE[1:]):
        line(axes, c, color=color, linewidth=1.2)
    else:
      for c, color in zip(wanted, CYCLE):
        line(axes, c, color=color)
      if len(wanted) == 1:
        x, y = found[wanted[0]][:2]
        keep = plots.thin(len(x), plots.POINTS)
        axes.fill_between(x[keep], y[keep], step='pre' if area == 'AP' else None, color=BLUE, alpha=0.07, linewidth=0)
    axes.set(xlabel=xlabel, ylabel=ylabel, xlim=(-0.02, 1.02), ylim=(-0.02, 1.03))
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles, labels, loc=legend)

  said = [f'{classes[c]} {areas[c]:.3f}' for c in (weakest or wanted)]
  alt = (
    f'{title}, {ylabel} over {xlabel}. {area}: ' + (f'mean {mean:.3f}; lowest ' if many else '') + ', '.join(said) + '.'
  )
  if many:
    note = 'One class against the rest: the mean over the classes, the three weakest, the others in grey.'
  elif len(wanted) > 1:
    note = 'One class against the rest.'
  else:
    note = 'Dashed: chance.' if area == 'AUC' else 'Dashed: share of the positive class, which is what chance gives.'
  return Chart(title, plots.render(slug, paint, size=LARGE), alt, note)


def calibration(judged: Judged, *, slug: str, temperature: float | None = None) -> Chart:
  """Accuracy over confidence in bins of equal width, with the expected calibration error (Guo et al. 2017, eq. 3); and
  the same of probabilities at a temperature."""
  found = [_calibrated(judged.labels_N, judged.probabilities_NC)]
  if temperature is not None:
    found.append(_calibrated(judged.labels_N, calibrations.scaled(judged.probabilities_NC, temperature)))
  names, low = ('model', f'T = {temperature or 1:.3g}'), 0.5 if judged.probabilities_NC.shape[1] == 2 else 0.0

  def paint(figure):
    axes = figure.subplots()
    axes.plot([low, 1], [low, 1], color=FAINT, linewidth=1, linestyle=DASHED)
    for (mean_B, accuracy_B, _), color, name in zip(found, (BLUE, TEAL), names):
      if len(found) == 1:
        axes.vlines(mean_B, np.minimum(mean_B, accuracy_B), np.maximum(mean_B, accuracy_B), color=RUST, linewidth=2)
      axes.plot(mean_B, accuracy_B, color=color, marker='o', markersize=5, linewidth=1.4, label=name)
    axes.set(xlabel=LARGEST, ylabel='accuracy of the likeliest class', xlim=(low - 0.01, 1.01), ylim=(-0.03, 1.03))
    if len(found) > 1:
      axes.legend(loc='upper left')

  errors = [error for _, _, error in found]
  likeliest_N = judged.probabilities_NC.argmax(1)
  alt = (
    f'Accuracy over confidence: mean confidence {judged.probabilities_NC.max(1).mean():.3f},'
    f' accuracy {(likeliest_N == judged.labels_N).mean():.3f}, expected calibration error {errors[0]:.3f} over'
    f' {calibrations.BINS} bins.'
  )
  after = f', at T = {temperature:.3g} {errors[1]:.3f}' if len(errors) > 1 else ''
  note = (
    f'Expected calibration error {errors[0]:.3f}{after}. Below the dashed line the model is too sure, above not sure '
    'enough.'
  )
  return Chart('Calibration', plots.render(f'{slug}-calibration', paint, size=LARGE), alt, note)


def _calibrated(labels_N: np.ndarray, probabilities_NC: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
  """(mean confidence, accuracy) of the bins that hold examples, and the calibration error."""
  bins = calibrations.bins(probabilities_NC.max(1), probabilities_NC.argmax(1) == labels_N)
  some = bins.count > 0
  return bins.confidence[some] / bins.count[some], bins.right[some] / bins.count[some], bins.error


def confidence(judged: Judged, *, slug: str) -> Chart:
  """How many predictions are made with which confidence, right ones and wrong ones stacked."""
  edges, count_B, right_B = _bins(judged)

  def paint(figure):
    axes = figure.subplots()
    bars = {'width': edges[1] - edges[0], 'align': 'edge', 'edgecolor': 'white', 'linewidth': 1}
    axes.bar(edges[:-1], right_B, color=SKY, label='right', **bars)
    axes.bar(edges[:-1], count_B - right_B, bottom=right_B, color=RUST, label='wrong', **bars)
    axes.set(xlabel=CONFIDENCE, ylabel='examples', xlim=(edges[0] - 0.01, 1.01), ylim=(0, 1.07 * count_B.max()))
    axes.legend(loc='upper left')

  sure_N = judged.confidence_N >= 0.9
  sure, N, wrong = map(fmt.integer, (sure_N.sum(), len(sure_N), (sure_N & ~judged.correct_N).sum()))
  said = f'{sure} of {N} predictions have a confidence of at least 0.9; {wrong} of these are wrong.'
  return Chart('Confidence', plots.render(f'{slug}-confidence', paint, size=LARGE), f'Histogram. {said}', said)


def _bins(judged: Judged) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Edges [11] of ten bins of confidence, and in each bin: examples, right ones."""
  # The likelier of two classes has at least one half: bins below are empty, unless a threshold decides otherwise.
  high = judged.probabilities_NC.shape[1] == 2 and judged.confidence_N.min() >= 0.5
  edges = np.linspace(0.5 if high else 0.0, 1, 11)
  bin_N = np.clip(np.digitize(judged.confidence_N, edges) - 1, 0, 9)
  count, right = (np.bincount(bin_N, w, minlength=10) for w in (None, judged.correct_N))
  return edges, count, right
