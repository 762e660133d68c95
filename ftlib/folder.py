"""The run folder as train.py and eval.py use it: whose it is, what was stored, what an evaluation writes."""

from __future__ import annotations

import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ftlib.base.errors import InputError, listing
from ftlib.io import workdir as files
from ftlib.run import Run

_MAY_CHANGE = re.compile(
  r'^(train\.(steps|epochs|eval_every|eval_batch_size|log_every|patience|min_delta)|checkpoint\.\w+|mesh\.shape|'
  r'model\.(remat|pretrained)|data\.path)$'  # the last two are compared by content
)
_OURS = ('config.json', 'run.json', 'metrics.jsonl', 'checkpoints')


def claim(workdir: pathlib.Path, config: Mapping[str, Any], run: Run) -> None:
  """Makes the folder this run's, or finds that it is. Raises `InputError` with the difference where it is another's."""
  stored = workdir / 'config.json'
  identity = json.loads(json.dumps(run.identity))
  if stored.exists() and (workdir / 'run.json').exists():
    changes = _changes(files.read_json(stored), config)
    before = files.read_json(workdir / 'run.json')
    names = {'data': 'data.path (its content)', 'weights': 'model.pretrained (its content)', 'labels': 'the label list'}
    changes += [
      f'{names[k]}: {_short(before.get(k))} -> {_short(identity[k])}' for k in identity if before.get(k) != identity[k]
    ]
    if changes:
      raise InputError(
        f'{workdir} belongs to another run; it differs in\n{listing(changes)}\n'
        '  give another --workdir, or the config it was made with'
      )
  else:
    there = [n for n in _OURS if (workdir / n).exists()]
    if there:
      raise InputError(f'{workdir} holds {", ".join(there)} but not a whole run; give another --workdir')
  files.write_json(workdir / 'run.json', identity)
  files.write_json(stored, config)


def stored(workdir: pathlib.Path) -> tuple[dict[str, Any], list]:
  """(config, label list) of a run folder. Raises `InputError` where it is none."""
  if not workdir.is_dir():
    raise InputError(f'--workdir={workdir}: there is no such folder')
  if not (workdir / 'config.json').exists() or not (workdir / 'run.json').exists():
    raise InputError(f'--workdir={workdir} is no run folder: it holds no config.json and run.json of train.py')
  return files.read_json(workdir / 'config.json'), files.read_json(workdir / 'run.json')['labels']


def write_evaluation(
  workdir: pathlib.Path,
  run: Run,
  split: str,
  metrics: Mapping[str, Any],
  predictions: Mapping[str, np.ndarray],
  step: int,
) -> None:
  """`eval/<split>.json` and `eval/<split>_predictions.jsonl`."""
  folder = workdir / 'eval'
  folder.mkdir(exist_ok=True)
  rows = run.dataset.splits[split]
  target = folder / f'{split}_predictions.jsonl'
  draft = target.with_suffix('.tmp')
  with draft.open('w', encoding='utf-8') as f:
    for record in run.task.records(rows, predictions):
      f.write(json.dumps(record, ensure_ascii=False, default=str) + '\n')
  os.replace(draft, target)
  files.write_json(
    folder / f'{split}.json',
    {'metrics': metrics, 'n': len(rows), 'checkpoint': step, 'labels': list(run.task.labels)},
  )


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
  a, b = _flat(json.loads(json.dumps(before))), _flat(json.loads(json.dumps(now)))
  return [
    f'{k}: {_short(a.get(k))} -> {_short(b.get(k))}'
    for k in sorted({*a, *b})
    if a.get(k) != b.get(k) and not _MAY_CHANGE.match(k)
  ]


def _flat(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  out: dict[str, Any] = {}
  for key, value in tree.items():
    out.update(_flat(value, f'{prefix}{key}.') if isinstance(value, Mapping) else {f'{prefix}{key}': value})
  return out


def _short(value: Any) -> str:
  text = json.dumps(value) if not isinstance(value, str) else value
  return text if len(text) <= 60 else f'{text[:57]}...'
