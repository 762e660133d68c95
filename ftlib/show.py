"""What a run prints: the summary before training, the metric table after."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ftlib.base import trees
from ftlib.base.errors import InputError
from ftlib.data import packing
from ftlib.data.preview import pieces, shown
from ftlib.evals.metrics import SHARES
from ftlib.run import Run


def counts(run: Run) -> dict[str, int]:
  """`params_total` and `params_trainable` (adapters included), `opt_state_bytes`."""
  return {
    'params_total': sum(i.size for i in run.info.values()),
    'params_trainable': sum(i.size for i in run.train_info.values()),
    'opt_state_bytes': trees.nbytes(run.abstract_state.opt),
  }


def summary(run: Run, workdir: pathlib.Path) -> str:
  """One screen: model, parameters, what trains, data, mesh, precision, length, where it writes."""
  s, n = run.settings, counts(run)
  arch, base = run.method.model.config, s.model.pretrained or 'new'
  share = n['params_trainable'] / n['params_total']
  rows = ', '.join(f'{k} {len(v):,}' for k, v in run.dataset.splits.items())
  train = run.examples['train']
  lengths = train.unpacked.lengths
  per_epoch = run.order.steps_per_epoch
  kept = f'{s.precision.compute} compute, {s.precision.frozen} frozen, {s.precision.trainable} trainable'
  tokens = int(train.lengths.mean() * s.train.batch_size)
  micro = f', in {s.train.accumulate} micro-batches' if s.train.accumulate > 1 else ''
  edges = str(train.window) if train.window else '/'.join(map(str, run.edges))
  lines = [
    ('model', f'{base} ({run.base.values["model_type"]}, {arch.layers} layers, width {arch.embed})'),
    ('task', f'{s.names["task"]}, {run.task.about}'),
    ('method', f'{s.names["method"]} on {_sites(run.method.shown)}'),
    ('parameters', f'{n["params_total"]:,} total, {n["params_trainable"]:,} trainable ({share:.2%})'),
    ('data', f'{s.data.path}: {rows} rows; {lengths.mean():.1f} tokens a row (median {int(np.median(lengths))})'),
    ('batches', f'{s.train.batch_size} rows, about {tokens:,} tokens a step, padded to {edges}{micro}'),
    ('steps', f'{run.steps:,} ({run.steps / per_epoch:.2f} epochs of {per_epoch:,})'),
    *_optimizer(run, _bytes(n['opt_state_bytes'])),
    ('mesh', run.layout.describe()),
    ('precision', kept),
    ('writes to', str(workdir)),
  ]
  if run.averaging:
    names = {'ema': f'exponential ({s.train.ema:g})', 'swa': f'equal after {s.train.swa_start or 0:.0%} of the steps'}
    size = _bytes(len(run.averaging) * trees.nbytes(run.abstract_state.trainable))
    which = f'the average {s.checkpoint.weights}' if s.checkpoint.weights != 'raw' else 'what is trained'
    means = ', '.join(names[n] for n in run.averaging)
    lines.insert(-3, ('averages', f'{means}; {size} more; {which} is judged and exported'))
  if train.window:
    share = f'{packing.waste(train):.2%} of their tokens wasted'
    lines.insert(5, ('packing', f'{len(lengths):,} documents in {len(train):,} rows of {train.window} tokens, {share}'))
  if 'weights' in train.per_token:
    lines.insert(5, ('supervised', f'{train.per_token["weights"].mean():.1%} of the training tokens'))
  notes = [('note', text) for text in run.notes]
  return '\n'.join(f'{k:>10}  {v}' for k, v in lines + notes)


def preview(run: Run, count: int, *, colour: bool) -> str:
  """The first training documents, supervised tokens on green or in [[ ]]. Raises `InputError` for other tasks."""
  train = run.examples['train']
  if 'weights' not in train.per_token:
    raise InputError(f'--preview shows which tokens are supervised; the task {run.settings.names["task"]} has none')
  if count < 1:
    raise InputError(f'--preview={count}: wanted a number of rows from 1')
  rows = run.dataset.splits['train']
  parts = []
  each = len(train.tokens) // len(rows)  # documents of a row: the answers of a pair, else one
  for i in range(min(count, len(rows)) * each):
    found = pieces(train, run.tokenizer, i)
    head = f'{rows.where(i // each)}: {len(found)} tokens, {sum(s for _, s in found)} supervised'
    parts.append(f'--- {head}\n{shown(found, colour=colour)}')
  return '\n'.join(parts)


def table(title: str, metrics: Mapping[str, Any], intervals: Mapping[str, Any] | None = None) -> str:
  """The scalar metrics of a split and, for a few classes, theirs, with their intervals."""
  rows = [(k, v) for k, v in metrics.items() if isinstance(v, int | float)]
  width = max(len(k) for k, _ in rows)
  said = lambda v, spread: f'{v:.4f}' + ('  [{:.4f}, {:.4f}]'.format(*spread) if spread else '')  # noqa: E731
  intervals = intervals or {}
  lines = [title] + [f'  {k:<{width}}  {said(v, intervals.get(k))}' for k, v in rows]
  classes, spreads = metrics.get('per_class') or {}, intervals.get('per_class', {})
  if 0 < len(classes) <= 20:
    cells = [('', *SHARES, 'rows')]
    for name, c in classes.items():
      own = spreads.get(name, {})
      cells.append((str(name), *(said(c[n], own.get(n)) for n in SHARES), str(c['support'])))
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines += ['  ' + '  '.join(f'{x:<{w}}' for x, w in zip(row, widths)).rstrip() for row in cells]
  return '\n'.join(lines)


def _optimizer(run: Run, state: str) -> list[tuple[str, str]]:
  """A line, and one for each group where there are several."""
  lines = []
  for group, part in run.optimizer.parts.items():
    own = f'{part.optimizer} at {part.config.learning_rate:g} ({part.config.schedule})'
    size = sum(run.train_info[n].size for n in part.labels)
    lines.append((f'group {group}', f'{own}, {len(part.labels)} tensors, {size:,} parameters'))
  if len(lines) == 1:
    return [('optimizer', f'{lines[0][1]}; state {state}')]
  first = f'{run.settings.names["optim"]}, {len(lines)} groups; state {state}'
  return [('optimizer', first), *(('', f'{group}: {text}') for group, text in lines)]


def _sites(names: list[str]) -> str:
  """'12 sites layers/*/attn/q, layers/*/attn/v and head/out/bias': layer numbers folded."""
  folded: dict[str, int] = {}
  for name in names:
    key = re.sub(r'^layers/\d+/', 'layers/*/', trees.canonical(name))
    folded[key] = folded.get(key, 0) + 1
  parts = [f'{k} ({n})' if n > 1 else k for k, n in folded.items()]
  return _short(parts, limit=8)


def _short(items: Any, *, limit: int = 10) -> str:
  items = list(items)
  return ', '.join(items[:limit]) + (f', ... ({len(items)})' if len(items) > limit else '')


def _bytes(n: int) -> str:
  return f'{n / 1e6:.1f} MB' if n >= 1e5 else f'{n / 1e3:.1f} kB'
