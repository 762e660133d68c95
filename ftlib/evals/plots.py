"""Charts as inline SVG: the canvas that all share, and the curves of training.

matplotlib draws into a bare `Figure`, so no backend, display or pyplot state is involved, and loads on first use. The
text stays text (`svg.fonttype: none`), ids depend on nothing but the content, and the page's own font takes over.
"""

from __future__ import annotations

import dataclasses
import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ftlib.evals import metrics, report_data

POINTS = 500  # of a line; more cannot be told apart at the width of a page
DOTS = 250  # each is an SVG element of its own

INK, SOFT, LINE, FAINT = '#1b2430', '#55606e', '#dfe3e8', '#b9c1cb'
BLUE, RUST, TEAL, PLUM, SAND, SKY = '#2b5c8a', '#b5532a', '#2f7d74', '#84406b', '#a8812b', '#6fa0c8'
CYCLE = (BLUE, RUST, TEAL, PLUM, SAND, SKY)  # told apart by colour-blind readers, by lightness where hue fails

STYLE = {
  'svg.fonttype': 'none',
  'text.parse_math': False,  # a class may be called '$x$'
  'font.size': 10.5,
  'axes.formatter.useoffset': False,
  'axes.labelsize': 10.5,
  'axes.labelcolor': SOFT,
  'axes.edgecolor': FAINT,
  'axes.linewidth': 0.8,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.grid': True,
  'axes.axisbelow': True,
  'grid.color': LINE,
  'grid.linewidth': 0.7,
  'xtick.color': FAINT,
  'ytick.color': FAINT,
  'xtick.labelcolor': SOFT,
  'ytick.labelcolor': SOFT,
  'xtick.labelsize': 10,
  'ytick.labelsize': 10,
  'xtick.major.size': 3,
  'ytick.major.size': 0,
  'text.color': INK,
  'legend.facecolor': 'white',
  'legend.edgecolor': 'white',
  'legend.framealpha': 0.85,
  'legend.fontsize': 10,
  'legend.handlelength': 1.6,
  'lines.linewidth': 1.8,
  'lines.solid_capstyle': 'round',
}


@dataclasses.dataclass(frozen=True)
class Chart:
  """`svg` is an element for inline use; `alt` tells its content to those who cannot see it; `note` how to read it."""

  title: str
  svg: str
  alt: str
  note: str = ''


def render(slug: str, paint: Callable, *, size: tuple[float, float] = (5.4, 3.4)) -> str:
  """What `paint(figure)` draws, as an `<svg>` that fills its container; `slug` keeps its ids apart from others'."""
  import matplotlib.style
  from matplotlib.figure import Figure

  out = io.StringIO()
  with matplotlib.style.context(['default', STYLE | {'svg.hashsalt': slug}]), warnings.catch_warnings():
    warnings.simplefilter('ignore', UserWarning)  # the browser has the glyphs and scripts that matplotlib lacks
    figure = Figure(figsize=size, layout='constrained')
    paint(figure)
    metadata = dict.fromkeys(('Creator', 'Date', 'Format', 'Type'))
    figure.savefig(out, format='svg', transparent=True, metadata=metadata)
  return _inline(out.getvalue(), slug)


def thin(n: int, limit: int) -> np.ndarray:
  """At most `limit` of the indices 0 ... n-1, evenly spaced, first and last among them."""
  return np.arange(n) if n <= limit else np.unique(np.linspace(0, n - 1, limit).round().astype(int))


def smooth(values: np.ndarray) -> np.ndarray:
  """Exponential moving average over about a tenth of the curve, unbiased at its start."""
  alpha = 2 / (max(len(values) / 10, 3) + 1)
  total = weight = 0.0
  out = np.empty(len(values))
  for i, value in enumerate(values):
    total, weight = (1 - alpha) * total + alpha * value, (1 - alpha) * weight + alpha
    out[i] = total / weight
  return out


def short(name: object, limit: int = 22) -> str:
  """A name that fits beside an axis or in a legend, which skips labels that begin with '_'."""
  name = ' '.join(report_data.clean(name).split()) or '(empty)'
  name = name if len(name) <= limit else name[: limit - 1] + '…'
  return f'\N{ZERO WIDTH SPACE}{name}' if name.startswith('_') else name


def loss(history: Mapping[str, Sequence[Mapping]]) -> Chart | None:
  """Training loss, raw and smoothed, and the loss on every evaluated split, over steps."""
  curves = {split: report_data.series(rows, 'loss') for split, rows in history.items()}
  return _curves(curves, 'loss')


def perplexity(history: Mapping[str, Sequence[Mapping]], best: Mapping) -> Chart | None:
  """Perplexity over steps: on evaluated splits as logged, in training exp(loss). None where no split has one.

  The best step of `best` is marked if perplexity is what chose it.
  """
  curves = {split: report_data.series(rows, 'perplexity') for split, rows in _evaluated(history).items()}
  if not any(len(steps) for steps, _ in curves.values()):
    return None
  steps, losses = report_data.series(history.get('train', ()), 'loss')
  curves = {'train': (steps, np.exp(np.minimum(losses, 30))), **curves}
  chose = str(best.get('name') or '').rpartition('/')[2] == 'perplexity'
  return _curves(curves, 'perplexity', best=report_data.number(best.get('step')) if chose else None)


def _curves(
  curves: Mapping[str, tuple[np.ndarray, np.ndarray]], name: str, *, best: float | None = None
) -> Chart | None:
  """{split: (steps, values)} as one chart, the training's smoothed; None where all are empty."""
  curves = {split: curve for split, curve in curves.items() if len(curve[0])}
  if not curves:
    return None

  def paint(figure):
    axes = figure.subplots()
    heights = [_trend(axes, *curves['train'], color=BLUE, label='train')] if 'train' in curves else []
    for (split, (steps, values)), color in zip(_evaluated(curves).items(), CYCLE[1:]):
      keep = thin(len(steps), DOTS)
      style = {'marker': 'o', 'markersize': 4.5} if len(keep) <= 40 else {}
      axes.plot(steps[keep], values[keep], color=color, label=short(split), **style)
      heights.append(values)
    heights = np.concatenate(heights)
    fit_log(axes, heights) if name == 'perplexity' and heights.max() > 20 * heights.min() else _fit_loss(axes, heights)
    if best is not None:
      axes.axvline(best, color=SOFT, linewidth=0.9, linestyle=(0, (3, 3)), zorder=1.5)
    axes.set(xlabel='step', ylabel=name)
    _legend(axes, *axes.get_legend_handles_labels())

  ends = [
    f'{split} from {v[0]:.4g} at step {s[0]:g} to {v[-1]:.4g} at step {s[-1]:g}' for split, (s, v) in curves.items()
  ]
  notes = ['Line: moving average; dots: logged steps.'] if len(curves.get('train', ([], []))[0]) >= 10 else []
  notes += [f'Dashed line: the best checkpoint, step {best:g}.'] if best is not None else []
  title = name.capitalize()
  return Chart(title, render(name, paint), f'{title} over steps: ' + '; '.join(ends) + '.', ' '.join(notes))


def metric(history: Mapping[str, Sequence[Mapping]], best: Mapping) -> Chart | None:
  """The main validation metric over steps with its best step marked, and one other of the same kind beside it.

  `best` is {name, value, step, split}, any of them possibly missing; then the best is the highest value, of a loss the
  lowest. `split` is the one that was judged: 'validation', or that of an average.
  """
  evaluated = _evaluated(history)
  split = next((s for s in (str(best.get('split')), 'validation', *evaluated) if s in evaluated), None)
  if split is None:
    return None
  rows = evaluated[split]
  name = str(best.get('name') or '').rpartition('/')[2]
  keys = [key for key in dict.fromkeys([name, *_PREFERRED, *rows[-1]]) if key not in _NOT_METRICS]
  curves = {key: report_data.series(rows, key) for key in keys}
  curves = {key: curve for key, curve in curves.items() if len(curve[0])}
  if not curves:
    return None
  main = next(iter(curves))
  steps, values = curves[main]
  others = [
    key for key in ('accuracy', 'f1_macro') if key in curves and main in ('accuracy', 'f1_macro', 'f1') and key != main
  ]
  best_step = report_data.number(best.get('step'))
  if best_step is None:
    lower = 'loss' in main or main in _LOWER
    best_step = steps[values.argmin() if lower else values.argmax()]
  at_best = np.interp(best_step, steps, values)

  def paint(figure):
    axes = figure.subplots()
    for key in others[:1]:
      x, y = curves[key]
      keep = thin(len(x), POINTS)
      axes.plot(x[keep], y[keep], color=TEAL, linewidth=1.2, label=short(report_data.label(key)), zorder=1.8)
    keep = thin(len(steps), DOTS)
    style = {'marker': 'o', 'markersize': 4.5} if len(keep) <= 40 else {}
    axes.plot(steps[keep], values[keep], color=RUST, label=short(report_data.label(main)), **style)
    axes.axvline(best_step, color=SOFT, linewidth=0.9, linestyle=(0, (3, 3)), zorder=1.5)
    ring = {'marker': 'o', 'markersize': 10, 'markerfacecolor': 'none', 'markeredgecolor': INK}
    axes.plot([best_step], [at_best], linestyle='none', **ring)
    axes.margins(y=0.12)
    _fit_score(axes)
    axes.set(xlabel='step', ylabel=short(f'{"score" if others else report_data.label(main)} on {split}', 48))
    handles, labels = axes.get_legend_handles_labels()
    _legend(axes, handles[::-1], labels[::-1])  # drawn last, on top, named first

  name = report_data.label(main)
  alt = f'{name} on {split} over steps: {at_best:.4g} at the best step, {best_step:g}; last {values[-1]:.4g}.'
  note = f'Ring and dashed line: the best checkpoint, {name} {at_best:.4g} at step {best_step:g}.'
  return Chart(f'{split.capitalize()} metric', render('metric', paint), alt, note)


def trace(history: Mapping[str, Sequence[Mapping]], key: str, *, title: str, smoothed: bool) -> Chart | None:
  """One column of the training rows over steps: as logged, or as faint dots under a moving average."""
  steps, values = report_data.series(history.get('train', ()), key)
  if not len(steps):
    return None

  def paint(figure):
    axes = figure.subplots()
    if smoothed:
      _fit_loss(axes, _trend(axes, steps, values, color=BLUE, label=None))
    else:
      keep = thin(len(steps), POINTS)
      axes.plot(steps[keep], values[keep], color=BLUE, marker='o' if len(steps) == 1 else '')
      axes.set_ylim(bottom=min(0, values.min()))
    form = '{:.6g}' if np.abs(values).max() >= 0.01 else '{:.4e}'
    axes.yaxis.set_major_formatter(lambda value, _: _tidy(form.format(value)))
    axes.set(xlabel='step', ylabel=title.lower())

  alt = f'{title} over steps: between {values.min():.4g} and {values.max():.4g}, last {values[-1]:.4g}.'
  return Chart(title, render(key, paint), alt)


_PREFERRED = ('accuracy', 'f1_macro', 'mcc', 'f1', 'roc_auc', 'exact_match', 'pearson')
_LOWER = {'perplexity', *(name for name, higher in metrics.REGRESSION.items() if not higher)}
_NOT_METRICS = {'', 'step', 'split', 'loss', 'seconds', 'tokens', 'examples', 'tokens_per_second', 'n', 'epoch'}
_NOT_METRICS |= {'hessian_trace', 'mean_curvature'}


def _evaluated(by_split: Mapping) -> dict:
  return {split: value for split, value in by_split.items() if split != 'train'}


def _trend(axes, steps: np.ndarray, values: np.ndarray, *, color: str, label: str | None) -> np.ndarray:
  """Draws raw dots under a moving average; returns the values that the axis should show."""
  if len(steps) < 10:
    axes.plot(steps, values, color=color, label=label, marker='o', markersize=4)
    return values
  line, dots = thin(len(steps), POINTS), thin(len(steps), DOTS)
  axes.plot(steps[dots], values[dots], 'o', color=color, markersize=3.2, markeredgewidth=0, alpha=0.35)
  mean = smooth(values)
  axes.plot(steps[line], mean[line], color=color, label=label)
  # One spike must not press the rest of the curve flat: the axis shows the average and nearly all dots.
  return np.concatenate([mean, values[values <= np.percentile(values, 99)]])


def _legend(axes, handles: Sequence, labels: Sequence[str]):
  """Above the axes: within them it would hide points, of a split judged once the only one."""
  place = {'loc': 'lower right', 'bbox_to_anchor': (1, 1), 'borderaxespad': 0.2}
  axes.legend(handles, labels, ncols=min(3, len(labels)), **place)


def _fit_loss(axes, values: np.ndarray):
  low, high = values.min(), values.max()
  pad = 0.06 * (high - low) or 0.05 * abs(high) or 0.05
  axes.set_ylim(0 if 0 <= low < high / 2 else low - pad, high + pad)


def _fit_score(axes):
  """At least 2 % from end to end: one evaluation, or equal ones, are no steep curve."""
  low, high = axes.get_ylim()
  middle, least = (low + high) / 2, 0.02 * max(abs(low), abs(high))
  if high - low < least:
    axes.set_ylim(middle - least / 2, middle + least / 2)


def fit_log(axes, values: np.ndarray):
  """Powers of ten with 2 and 5 times them, in plain numbers: what falls from hundreds to a few stays readable."""
  from matplotlib.ticker import LogLocator, NullFormatter

  axes.set_yscale('log')
  axes.set_ylim(values.min() / 1.1, values.max() * 1.1)
  axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if values.max() < 1e4 * values.min() else (1,)))
  axes.yaxis.set_major_formatter(lambda value, _: _tidy(f'{value:g}'))
  axes.yaxis.set_minor_formatter(NullFormatter())


def _tidy(number: str) -> str:
  """'5.0000e-05' as '5e-5', and zero as '0'."""
  return re.sub(r'(?:\.0+|(\.\d*?)0+)?e([+-])0?', r'\1e\2', number) if float(number) else '0'


def _inline(svg: str, slug: str) -> str:
  """A matplotlib SVG document as an element: no prologue, size, style sheet, fonts or ids that would reach the page."""
  svg = svg[svg.index('<svg') :]
  svg = re.sub(r'<metadata>.*?</metadata>|<style.*?</style>', '', svg, flags=re.S)
  # 2 decimals of 1/72 inch are finer than any screen, and a third of the bytes.
  svg = re.sub(r' (?:d|x|y)="[^"]*"', lambda m: re.sub(r'(\.\d\d)\d+', r'\1', m[0]), svg)
  svg = re.sub(r'font-family: [^;"]*;? ?', '', svg)
  svg = re.sub(r'font: ((?:\d+|bold) )?([\d.]+px) [^;"]*', _font, svg)  # how matplotlib before 3.11 says it
  used = set(re.findall(r'(?:href="|url\()#([^")]+)', svg))
  svg = re.sub(r' id="([^"]*)"', lambda m: f' id="{slug}-{m[1]}"' if m[1] in used else '', svg)
  svg = re.sub(r'(href="|url\()#', rf'\1#{slug}-', svg)
  root, rest = svg.split('>', 1)
  root = re.sub(r' (?:xmlns(?::\w+)?|width|height|version)="[^"]*"', '', root)
  return re.sub(r'\n\s*', '\n', f'{root}>{rest}').strip()


def _font(match: re.Match) -> str:
  return f'font-size: {match[2]}' + (f'; font-weight: {match[1].strip()}' if match[1] else '')
