"""Charts of the planned learning rates, and of what `train.diagnostics` logs: norms, curvature, the loss around."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ftlib.evals import report_data
from ftlib.evals.plots import BLUE, CYCLE, FAINT, POINTS, RUST, SOFT, Chart, fit_log, render, short, thin

_TITLES = {  # quantity -> (title, how to read it)
  'learning_rate': ('Learning rate by group', ''),
  'grad_norm': ('Gradient norm by group', 'Before clipping.'),
  'update_norm': ('Update norm by group', ''),
  'param_norm': ('Parameter norm by group', ''),
  'update_ratio': ('Update over parameters', 'Norm of the update over that of the parameters.'),
  'effective_rate': ('Effective learning rate', 'Norm of the update over that of the gradient.'),
  'sign_agreement': ('Sign agreement', 'Share of the entries of the gradient against which the update goes.'),
  'zeros': ('Exact zeros', 'Share of the parameters that are 0.'),
}


def curves(history: Mapping[str, Sequence[Mapping]]) -> Iterator[Chart]:
  """A chart of each quantity, a line a group, and one of the curvature; none of what was not logged, or is always 0."""
  train = history.get('train', ())
  keys = list(dict.fromkeys(key for row in train for key in row if '/' in str(key)))
  for quantity, (title, note) in _TITLES.items():
    found = {key.split('/', 1)[1]: report_data.series(train, key) for key in keys if key.split('/', 1)[0] == quantity}
    found = {group: curve for group, curve in found.items() if len(curve[0])}
    if any(values.any() for _, values in found.values()):
      yield _lines(found, quantity, title, note)
  steps, values = report_data.series(history.get('validation', ()), 'hessian_trace')
  if len(steps):
    note = "Hutchinson's estimate of the trace of the loss's Hessian, by one random probe an evaluation."
    yield _lines({'': (steps, values)}, 'hessian_trace', 'Curvature', note)


def planned(summary: Mapping) -> Chart | None:
  """The learning rate of each group over the whole run, `summary['planned_learning_rates']`; None without it, and of
  one group, whose rate is logged."""
  plan = summary.get('planned_learning_rates')
  plan = plan if isinstance(plan, Mapping) else {}
  found = {}
  for group, points in plan.items():
    pairs = [p for p in points if isinstance(p, list) and len(p) == 2] if isinstance(points, list) else []
    pairs = [p for p in ([report_data.number(x) for x in pair] for pair in pairs) if None not in p]
    if pairs:
      found[group] = tuple(np.array(pairs, np.float64).T)
  note = 'As set before the run; what a plateau of the metric lowers is not in it.'
  return _lines(found, 'planned_rates', 'Learning rate as planned', note) if len(found) > 1 else None


def _lines(found: Mapping[str, tuple[np.ndarray, np.ndarray]], slug: str, title: str, note: str) -> Chart:
  shown = dict(zip(found, CYCLE, strict=False))
  every = np.concatenate([values for _, values in found.values()])

  def paint(figure):
    axes = figure.subplots()
    for group, color in shown.items():
      steps, values = found[group]
      keep = thin(len(steps), POINTS)
      axes.plot(steps[keep], values[keep], color=color, label=short(group), marker='o' if len(keep) < 3 else '')
    if every.min() > 0 and every.max() > 20 * every.min():
      fit_log(axes, every)
    axes.set(xlabel='step', ylabel=title.lower())
    if len(found) > 1:
      axes.legend(loc='best')

  left = len(found) - len(shown)
  note += f' {left} more groups are in metrics.jsonl.' if left else ''
  ends = '; '.join(f'{group or title} from {v[0]:.3g} to {v[-1]:.3g}' for group, (_, v) in found.items())
  return Chart(title, render(slug, paint), f'{title} over steps: {ends}.', note.strip())


def landscape(summary: Mapping) -> Chart | None:
  """The loss along the direction of the last update, `summary['landscape']`; None without it or where it is damaged."""
  found = summary.get('landscape')
  found = found if isinstance(found, Mapping) else {}
  pairs = zip(*(found.get(key) if isinstance(found.get(key), list) else [] for key in ('distance', 'loss')))
  pairs = [(x, y) for x, y in ((report_data.number(x), report_data.number(y)) for x, y in pairs) if None not in (x, y)]
  if len(pairs) < 2:
    return None
  x, y = np.array(pairs).T
  length = report_data.number(found.get('update'))

  def paint(figure):
    axes = figure.subplots()
    axes.axvline(0, color=FAINT, linewidth=0.9, zorder=1.5)
    if length is not None:
      axes.axvline(-length, color=SOFT, linewidth=0.9, linestyle=(0, (3, 3)), zorder=1.5)
    axes.plot(x, y, color=BLUE, marker='o', markersize=4)
    axes.plot(
      x[[y.argmin()]], y[[y.argmin()]], linestyle='none', marker='o', markersize=9, color=RUST, fillstyle='none'
    )
    axes.set(xlabel='distance, in norms of the trained parameters', ylabel='loss')

  went = '' if length is None else f' The last update came from the dashed line, {length:.2g} back.'
  note = f'On one validation batch, at the last parameters (0).{went} Ring: the lowest point.'
  alt = f'Loss along the last update: {y[np.abs(x).argmin()]:.4g} at the last parameters, lowest {y.min():.4g}.'
  return Chart('Loss along the last update', render('landscape', paint), alt, note)
