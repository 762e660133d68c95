"""`report.html`: one self-contained page that shows what a run did, how good it is and where it fails.

No JavaScript, no request to anywhere: charts are inline SVG. The page is a pure function of the run folder's files, so
the same folder gives the same bytes.

`report_data` reads the folder, `plots*` draw, `report_split` is the section on one evaluated split, `report_text` those
on what a language model says and learns, `report_page` and `report_format` hold the HTML pieces and number formats.
"""

from __future__ import annotations

import datetime
import json
import os
import pathlib
import shlex
from collections.abc import Mapping

from ftlib.evals import plots, plots_diagnostics, report_page, report_split, report_text
from ftlib.evals import report_format as fmt
from ftlib.evals.report_data import Run, first, label, named, number, read
from ftlib.evals.report_page import block, code, details, figure, grid, section, table, text


def write(workdir: pathlib.Path) -> pathlib.Path:
  """Writes `workdir/report.html` from what is in `workdir` and returns its path.

  Reads config.json, env.json, summary.json, metrics.jsonl, eval/<split>.json with eval/<split>_predictions.jsonl,
  eval/preview.jsonl and eval/samples.jsonl, each of which may be missing. The page replaces an older one in one step:
  whoever reads sees the old or the new one.
  """
  workdir = pathlib.Path(workdir)
  target = workdir / 'report.html'
  temporary = workdir / f'.report.html.{os.getpid()}'
  page = render(read(workdir))
  try:
    temporary.write_text(page, encoding='utf-8', newline='\n')
    os.replace(temporary, target)
  finally:
    temporary.unlink(missing_ok=True)
  return target


def render(run: Run) -> str:
  """The page as HTML text."""
  best = run.summary.get('best_metric')
  best = best if isinstance(best, Mapping) else {}
  empty = not (run.config or run.history or run.splits or run.summary or run.preview or run.samples)
  parts = [
    _header(run, best),
    report_page.tiles(_key_numbers(run)),
    _training(run, best),
    report_text.samples(run.samples),
    *(report_split.render(split, slug=f's{i}') for i, split in enumerate(run.splits)),
    report_text.preview(run.preview),
    _setup(run),
    '<section><p>This run folder holds no config, metrics or predictions yet.</p></section>' if empty else '',
    '<footer>Written by ftlib from the files of the run folder.</footer>',
  ]
  return report_page.page(run.name, '\n'.join(part for part in parts if part))


def _header(run: Run, best: Mapping) -> str:
  facts = {
    'Model': first(run.config, 'model.pretrained', 'model.name', 'model.path', 'model.source', 'model'),
    'Method': first(run.config, 'method.name', 'method'),
    'Optimizer': first(run.config, 'optim.name', 'optimizer.name', 'optim'),
    'Task': first(run.config, 'task.name', 'task'),
    'Data': first(run.config, 'data.name', 'data.path', 'data.source', 'data'),
    'Date': _date(run),
  }
  shown = [f'<div><dt>{key}</dt><dd>{text(value)}</dd></div>' for key, value in facts.items() if value is not None]
  return (
    f'<header class="head"><div><p class="eyebrow">Fine-tuning report</p><h1>{text(run.name)}</h1>'
    f'<dl class="facts">{"".join(shown)}</dl></div>{_headline(run, best)}</header>'
  )


def _date(run: Run) -> str | None:
  """When the run was, as it recorded it, else when its files were written: never the time of this report."""
  said = first({'env': run.env, 'summary': run.summary}, *(f'{a}.{b}' for a in ('env', 'summary') for b in _TIMES))
  stamp = number(said) if said is not None else run.modified
  if stamp is not None:
    try:
      said = datetime.datetime.fromtimestamp(stamp, datetime.UTC).isoformat(sep=' ')
    except (OverflowError, OSError, ValueError):
      return None
  return str(said)[:16].replace('T', ' ') if said is not None else None


_TIMES = ('date', 'started', 'start_time', 'time', 'timestamp', 'finished')


def _headline(run: Run, best: Mapping) -> str:
  """The one number: on the first evaluated split, else the best that validation saw while training."""
  name = str(best.get('name') or '').rpartition('/')[2]
  split = run.splits[0] if run.splits else None
  scalars = report_split.scalars(split) if split else {}
  usual = ('perplexity',) if split and split.losses else ('accuracy', 'f1_macro')
  key = next((key for key in (name, *usual, *scalars) if key in scalars), None)
  if key:
    value = scalars[key]
    size = f'n = {fmt.integer(split.n)}' if split.n else ''
    spread = report_split.interval(split, key, value)
    # A number that also chose the checkpoint is a little too good; say so where it is shown.
    selected = split.name in run.history and split.checkpoint is not None and split.checkpoint == best.get('step')
    chosen = 'the split that also picked the checkpoint' if selected else ''
    lines = [
      f'{named(split, key)} on {split.name}',
      ', '.join(part for part in (size, spread) if part),
      chosen,
    ]
  elif number(best.get('value')) is not None:
    value = number(best['value'])
    step = f'best while training, step {best["step"]}' if best.get('step') is not None else ''
    lines = [f'{label(name) if name else "Best metric"} on validation', step]
  else:
    return ''
  rest = ''.join(f'<p>{text(line)}</p>' for line in lines if line)
  short = f'{value:.3f}' if abs(value) <= 1 else fmt.decimal(value)
  return f'<div class="headline"><p class="value">{text(short)}</p>{rest}</div>'


def _key_numbers(run: Run) -> list[tuple[str, str, str]]:
  get = {key: number(value) for key, value in run.summary.items()}
  total, trained = get.get('params_total'), get.get('params_trainable')
  share = f'{fmt.percent(trained / total)} of {fmt.scaled(total)}' if trained is not None and total else ''
  skipped = get.get('skipped_steps')
  elapsed = next((get[key] for key in ('train_seconds', 'total_seconds', 'seconds') if get.get(key) is not None), None)
  rows = [
    ('Trained parameters', trained, fmt.scaled, share),
    ('All parameters', total if trained is None else None, fmt.scaled, ''),
    ('Optimizer state', get.get('opt_state_bytes'), fmt.size, ''),
    ('Steps', get.get('steps'), fmt.integer, f'{skipped:.0f} without an update' if skipped else ''),
    ('Privacy: epsilon', number(first(run.summary, 'privacy.epsilon')), fmt.decimal, _delta(run.summary)),
    ('Tokens per second', get.get('tokens_per_second'), fmt.integer, _device(run.env)),
    ('Training time', elapsed, fmt.duration, ''),
    ('Compilation', get.get('compile_seconds'), fmt.duration, ''),
  ]
  return [(name, form(value), remark) for name, value, form, remark in rows if value is not None]


def _delta(summary: Mapping) -> str:
  delta = number(first(summary, 'privacy.delta'))
  return '' if delta is None else f'at delta {delta:g}; what it assumes is in the summary below'


def _training(run: Run, best: Mapping) -> str:
  perplexity = plots.perplexity(run.history, best)
  told = perplexity is not None and str(best.get('name') or '').rpartition('/')[2] == 'perplexity'
  charts = [
    plots.loss(run.history),
    perplexity,
    None if told else plots.metric(run.history, best),
    plots.trace(run.history, 'margin', title='Reward margin', smoothed=True),
    plots.trace(run.history, 'learning_rate', title='Learning rate', smoothed=False),
    plots_diagnostics.planned(run.summary),
    plots.trace(run.history, 'grad_norm', title='Gradient norm', smoothed=True),
    *plots_diagnostics.curves(run.history),
    plots_diagnostics.landscape(run.summary),
  ]
  return section('Training', grid(*map(figure, charts)), anchor='training')


def _setup(run: Run) -> str:
  command = _command(run)
  notes = ''.join(f'<p class="note">{text(note)}</p>' for note in run.notes)
  return section(
    'Setup',
    block('Reproduce', code(command), note=_source(run.env)) if command else '',
    details('Configuration', code(json.dumps(run.config, indent=2, ensure_ascii=False)) if run.config else ''),
    details('Environment', _pairs(run.env, leave={'command', 'argv'})),
    details('Summary', _pairs(run.summary, leave={'planned_learning_rates'})),
    notes,
    anchor='setup',
  )


def _command(run: Run) -> str:
  """The command line that made the run, as one can paste it; '' where it is not recorded."""
  command = first(run.env, 'command') or first(run.config, 'command')
  argv = run.env.get('argv')
  if not command and isinstance(argv, list) and argv:
    command = ['python', *argv]
  return shlex.join(map(str, command)) if isinstance(command, list) else str(command or '')


def _source(env: Mapping) -> str:
  """Which commit of the code ran, and whether it is all there is to it."""
  commit = first(env, 'commit', 'source.commit')
  changed = ', with uncommitted changes' if first(env, 'dirty', 'source.dirty') else ''
  return f'At commit {commit}{changed}.' if commit else ''


def _device(env: Mapping) -> str:
  """'NVIDIA H200', or '8 x TPU v4' of several."""
  kinds, count = first(env, 'devices.kinds'), number(first(env, 'devices.count'))
  said = first(env, 'device') or (', '.join(map(str, kinds)) if isinstance(kinds, list) else '')
  return f'{count:.0f} x {said}' if said and count and count > 1 else str(said)


def _pairs(tree: Mapping, *, leave: set[str]) -> str:
  rows = fmt.leaves({key: value for key, value in tree.items() if key not in leave})
  return table(
    ('Name', 'Value'), [(text(key), text(fmt.plain(value))) for key, value in rows.items()], kind='pairs wrap'
  )
