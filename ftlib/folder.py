"""The run folder as train.py and eval.py use it: whose it is, what was stored, what an evaluation writes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from ftlib import recipe, scratch, thresholds
from ftlib.base import layout
from ftlib.base.errors import InputError, did_you_mean, listing
from ftlib.io import workdir as files

if TYPE_CHECKING:
  from ftlib.run import Run  # which imports this file

_MAY_CHANGE = re.compile(  # paths are compared by content
  r'^(train\.(steps|epochs|eval_every|eval_batch_size|eval_start|log_every|patience|min_delta|'
  r'diagnostics|max_nonfinite)|mesh\.shape|'
  r'checkpoint\.(every|keep_last|keep_best)|task\.samples|model\.(remat|pretrained)|data\.path)$'
)
_NAMES = {'data': 'data.path (its content)', 'weights': 'model.pretrained (its content)', 'labels': 'the label list'}
_START = 'adapter'  # in run.json, the content that frozen parameters start from
_LEARNT = 'learnt'  # in run.json, what the task took from the training rows besides labels
_OURS = (
  *('config.json', 'run.json', 'env.json', 'summary.json', 'metrics.jsonl', 'report.html', 'reference.npz'),
  *('thresholds.json', scratch.BASE, 'checkpoints', 'eval', 'tensorboard', 'nonfinite'),
)


def check_free(workdir: pathlib.Path) -> None:
  """Raises `InputError` where the folder is a file, cannot be written, or is in use by another process. Changes
  nothing."""
  if os.path.exists(workdir) and not workdir.is_dir():
    raise InputError(f'--workdir={workdir} is a file; give a folder')
  place = next(p for p in (workdir.absolute(), *workdir.absolute().parents) if os.path.exists(p))
  if not os.path.isdir(place) or not os.access(place, os.W_OK | os.X_OK):
    raise InputError(f'cannot write to run folder {workdir}: {place} is no folder that may be written; give another')
  files.Lock.check(workdir)


def check(workdir: pathlib.Path, config: Mapping[str, Any], run: Run) -> None:
  """Raises `InputError`, with the differences, where the folder holds another run or somebody's files of the same
  names. Changes nothing."""
  there = [n for n in _OURS if (workdir / n).exists()]
  if not there or (there == ['run.json'] and _identity(workdir)):  # the latter: killed while it was claimed
    return
  if not _is_run(workdir):
    raise InputError(
      f'--workdir={workdir} holds {", ".join(there)}, and is no run folder of train.py; nothing of it is overwritten\n'
      '  give another --workdir'
    )
  before, now = files.read_json(workdir / 'run.json'), json.loads(json.dumps(run.identity))
  stored = files.read_json(workdir / 'config.json')
  with contextlib.suppress(InputError):  # what stands there is then compared as it stands
    stored = recipe.expanded(stored).to_dict()  # with the defaults of settings that have come since
  moved = {'model.adapter'} if now.get(_START) and now[_START] == before.get(_START) else set()
  names = {**_NAMES, _START: 'model.adapter (its content)'}
  changes = _changes(_settled(stored, run), _settled(config, run), but=moved) + [
    f'{names[k]}: {_brief(before.get(k, ""))} -> {_brief(now.get(k, ""))}' for k in names if before.get(k) != now.get(k)
  ]
  if changes:
    raise InputError(
      f'--workdir={workdir} belongs to another run; it differs in\n{listing(changes)}\n'
      f'  give another --workdir, or what it was made with: --config={workdir / "config.json"}'
    )


def claim(workdir: pathlib.Path, config: Mapping[str, Any], run: Run) -> None:
  """Makes the folder this run's, once it is `check`ed and locked."""
  check(workdir, config, run)
  files.write_json(workdir / 'run.json', {**run.identity, _LEARNT: getattr(run.task, 'learnt', {})})
  files.write_json(workdir / 'config.json', _settled(config, run))


def stored(workdir: pathlib.Path, *, field: str = '') -> tuple[dict[str, Any], list]:
  """(config, label list) to build a run anew that has checkpoints, on the devices that there are.

  Raises `InputError` where the folder is none of a run; `field` names it.
  """
  config, identity = read(workdir, field=field or f'--workdir={workdir}')
  shape = config['mesh']['shape']
  return {**started(config, workdir), 'mesh': {'shape': shape if layout.fits(shape) else ''}}, identity['labels']


def read(workdir: pathlib.Path, *, field: str) -> tuple[dict[str, Any], dict[str, Any]]:
  """(config, identity) as they are stored. Raises `InputError` naming `field` where the folder is none of a run."""
  if not workdir.is_dir():
    parent = workdir.absolute().parent
    near = did_you_mean(workdir.name, [p.name for p in parent.iterdir() if p.is_dir()]) if parent.is_dir() else ''
    raise InputError(f'{field}: there is no such folder{near}')
  if not _is_run(workdir):
    raise InputError(f'{field} is no run folder: it lacks a config.json and run.json of train.py')
  return files.read_json(workdir / 'config.json'), files.read_json(workdir / 'run.json')


def started(config: Mapping[str, Any], workdir: pathlib.Path) -> dict[str, Any]:
  """The config of a run that has checkpoints: what it started from is in them, and need not be there.

  But frozen parameters are not: where these start from another run, that one has to be there. Raises `InputError`. A
  model that was made for the run is in its folder.
  """
  config = scratch.stored(config, workdir)
  if not _identity(workdir) or not files.read_json(workdir / 'run.json').get('adapter'):
    return {**config, 'model': {**config['model'], 'adapter': '', 'adapter_parts': 'all'}}
  path = config['model']['adapter']
  if path and not pathlib.Path(path).expanduser().is_dir():
    raise InputError(
      f'model.adapter={path}: there is no such folder, and the frozen parameters of {workdir} start from it\n'
      '  put it back, or go on with train.py and its new place: --config.model.adapter=FOLDER'
    )
  return dict(config)


def changed(workdir: pathlib.Path, run: Run) -> list[str]:
  """A note where the data are not those of the training. Raises `InputError` where the base model is another."""
  before = files.read_json(workdir / 'run.json')
  if before['weights'] != run.identity['weights']:
    raise InputError(
      f'model.pretrained={run.settings.model.pretrained} has changed since {workdir} was trained on it: '
      f'{_brief(before["weights"])} -> {_brief(run.identity["weights"])}\n'
      '  its checkpoints fit the former weights, config.json and tokenizer only; put them back'
    )
  if before.get(_START) != run.identity.get(_START):
    raise InputError(
      f'model.adapter={run.settings.model.adapter} has changed since {workdir} was trained on it: its frozen '
      'parameters start from that folder; put it back as it was'
    )
  same = run.identity['data'] in ('', before['data'])  # '': built without data
  return [] if same else [f'{run.settings.data.path} is not what the run was trained on: its content has changed']


def as_trained(workdir: pathlib.Path, run: Run) -> Run:
  """A run that was built without data, with what its task took from the training rows. Raises `InputError` where the
  folder is of a former version and does not have it."""
  stored = files.read_json(workdir / 'run.json').get(_LEARNT, {})
  if missing := getattr(run.task, 'learnt', {}).keys() - stored.keys():
    raise InputError(
      f'{workdir}/run.json lacks what the task took from the training rows ({", ".join(sorted(missing))})\n'
      f'  it is added by train.py --config={workdir}/config.json --workdir={workdir}'
    )
  return dataclasses.replace(run, task=dataclasses.replace(run.task, **stored)) if stored else run


def write_evaluation(
  workdir: pathlib.Path,
  run: Run,
  split: str,
  metrics: Mapping[str, Any],
  predictions: Mapping[str, np.ndarray],
  step: int,
  more: Mapping[str, Any] | None = None,
) -> None:
  """`eval/<split>.json`, with what `more` there is to say of the metrics, and `eval/<split>_predictions.jsonl`."""
  rows = run.dataset.splits[split]
  with evaluating(workdir, split) as write:
    write(run.task.records(rows, predictions))
  record = {'metrics': metrics, 'n': len(rows), 'checkpoint': step, 'labels': list(run.task.labels)}
  record |= {'truncated': truncated} if (truncated := run.examples[split].tokens.truncated) else {}
  if split == 'validation':
    thresholds.save(run, workdir, predictions, step)
  files.write_json(workdir / 'eval' / f'{split}.json', {**record, **(more or {})})


@contextlib.contextmanager
def evaluating(workdir: pathlib.Path, split: str) -> Iterator[Callable[[Iterable[Mapping]], None]]:
  """A function that adds records to `eval/<split>_predictions.jsonl`, which is there once all of them are."""
  folder = workdir / 'eval'
  try:
    folder.mkdir(exist_ok=True)
  except OSError as e:
    raise InputError(f'cannot write to {folder}: {e}') from e
  with written(folder / f'{split}_predictions.jsonl') as f:
    yield lambda records: f.writelines(line(r) for r in records)


@contextlib.contextmanager
def written(target: pathlib.Path) -> Iterator[TextIO]:
  """A file to write that takes its name when it is whole; where an error comes in between, nothing is left of it."""
  draft = target.with_name(target.name + '.tmp')
  try:
    with draft.open('w', encoding='utf-8') as f:
      yield f
    os.replace(draft, target)
  finally:
    draft.unlink(missing_ok=True)


def line(record: Mapping[str, Any]) -> str:
  """A record as a line of JSON."""
  return json.dumps(record, ensure_ascii=False, default=str) + '\n'


def _settled(config: Mapping[str, Any], run: Run) -> Mapping[str, Any]:
  """The config with what the run's head reads, where that is left open: usual is something else for another folder."""
  task = config.get('task', {})
  if not isinstance(task, Mapping) or task.get('pooling') != '':
    return config
  return {**config, 'task': {**task, 'pooling': run.settings.task.pooling}}


def _is_run(workdir: pathlib.Path) -> bool:
  """Whether config.json and run.json are ours, and not just called so."""
  try:
    return isinstance(files.read_json(workdir / 'config.json')['model'], dict) and _identity(workdir)
  except (OSError, InputError, TypeError, KeyError):
    return False


def _identity(workdir: pathlib.Path) -> bool:
  """Whether run.json is ours."""
  try:
    return set(_NAMES) <= set(files.read_json(workdir / 'run.json'))
  except (OSError, InputError, TypeError):
    return False


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], *, but: set[str]) -> list[str]:
  a, b = _flat(json.loads(json.dumps(before))), _flat(json.loads(json.dumps(now)))
  return [
    f'{k}: {_short(a.get(k))} -> {_short(b.get(k))}'
    for k in sorted({*a, *b})
    if a.get(k) != b.get(k) and k not in but and not _MAY_CHANGE.match(k)
  ]


def _flat(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  out: dict[str, Any] = {}
  for key, value in tree.items():
    out.update(_flat(value, f'{prefix}{key}.') if isinstance(value, Mapping) else {f'{prefix}{key}': value})
  return out


def _brief(value: Any) -> str:
  """A fingerprint's first digits, or a list."""
  return value[:12] if isinstance(value, str) else _short(value)


def _short(value: Any) -> str:
  text = json.dumps(value) if not isinstance(value, str) else value
  return text if len(text) <= 60 else f'{text[:57]}...'
