"""eval.py's work: a stored run, one of its checkpoints, one split; or several adapters on its base and data."""

from __future__ import annotations

import pathlib
from typing import Any

from ftlib import analysis, folder, recipe, reference, show, show_evaluation, temperatures, thresholds
from ftlib import run as runs
from ftlib.adapters import Adapters
from ftlib.analysis import Answers, Options
from ftlib.base.errors import InputError, did_you_mean
from ftlib.base.types import Params
from ftlib.evals import report
from ftlib.io import workdir as files
from ftlib.io.checkpoint import Checkpoints
from ftlib.run import Run
from ftlib.train import state


def run(workdir: str | None, *, split: str, checkpoint: str, options: Options | None = None) -> dict[str, Any]:
  """Evaluates and writes; gives the metrics."""
  options = options or Options()
  there = _against(options.against, split)
  built, own, frozen, step = opened(workdir, split, checkpoint, also=options.calibrate)
  where = pathlib.Path(workdir).expanduser()
  metrics, predictions = built.evaluate(own, frozen, split)
  examples, rows = built.examples[split].unpacked, built.dataset.splits[split]
  more = analysis.analysed(built, examples, predictions, rows, options)
  if options.calibrate:
    fitted = _temperature(built, own, frozen, options.calibrate, where, step)
    more['calibrated'] = analysis.recalibrated(examples, predictions, fitted, split=split)
  if there is not None:
    more['against'] = analysis.compared(analysis.answers(built, examples, predictions, rows), there, options)
  folder.write_evaluation(where, built, split, metrics, predictions, step, more)
  title = f'{split}, checkpoint {step}, {len(rows):,} rows'
  print(show.table(title, metrics, more.get('intervals')))
  print('\n'.join(show_evaluation.lines(more, built.task.metric)))
  print(f'report: {report.write(where)}')
  return metrics


def opened(
  workdir: str | None, split: str, checkpoint: str, *, also: str = '', field: str = '--workdir'
) -> tuple[Run, Params, Params, int]:
  """(run with a split, and `also` another; own, frozen, step of a checkpoint). Raises `InputError`."""
  if not workdir:
    raise InputError('give the run folder: --workdir=runs/NAME')
  where = pathlib.Path(workdir).expanduser()
  config, labels = folder.stored(where, field=f'{field}={workdir}')
  with Checkpoints(where / 'checkpoints', readonly=True) as checkpoints:
    _step(checkpoints, checkpoint, where, field)
  built = _built(config, labels, [split, *filter(None, [also])], where)
  own, frozen, step = restored(built, where, checkpoint)
  return thresholds.read(built, where, step, split=split), own, frozen, step


def _against(path: str, split: str) -> Answers | None:
  """Those of the best checkpoint of another run folder, where one is given."""
  if not path:
    return None
  built, own, frozen, _ = opened(path, split, 'best', field='--against')
  found = built.evaluate(own, frozen, split)[1]
  return analysis.answers(built, built.examples[split].unpacked, found, built.dataset.splits[split])


def _temperature(built: Run, own: Params, frozen: Params, split: str, where: pathlib.Path, step: int) -> dict[str, Any]:
  """Fits a temperature on a split, writes `eval/temperature.json` and gives what it says."""
  predictions = built.evaluate(own, frozen, split)[1]
  found = analysis.fitted(built.examples[split].unpacked, predictions, task=built.settings.names['task'])
  found = {'split': split, 'checkpoint': step, **found}
  temperatures.save(where, found)
  return found


def untrained(config: Any, *, split: str, output: str | None) -> dict[str, Any]:
  """Evaluates what a config starts from: its pretrained model without its method, or its `model.adapter`; gives the
  metrics. Writes `eval/` into the folder `output`, if that is given. Raises `InputError`."""
  values = recipe.expanded(config).to_dict()
  if not values['model']['adapter']:
    values['method'] = recipe.component_section('method', 'full').to_dict()
  where = pathlib.Path(output).expanduser() if output else None
  if where is not None and where.exists() and any(where.iterdir()):
    raise InputError(f'--output={output} is not empty; nothing is overwritten')
  built = reference.without(runs.build(values, split=split))
  thresholds.check_there(built, split=split)
  for note in built.notes:
    print(f'      note  {note}')
  own, frozen = built.load()
  metrics, predictions = built.evaluate(own, frozen, split)
  name = built.settings.model.adapter or built.settings.model.pretrained
  print(show.table(f'{split}, {name} as it is, {len(built.examples[split]):,} rows', metrics))
  if where is not None:
    where.mkdir(parents=True, exist_ok=True)
    folder.write_evaluation(where, built, split, metrics, predictions, 0)
  return metrics


def compare(workdir: str | None, *, split: str, adapters: str) -> dict[str, dict[str, Any]]:
  """Evaluates several adapters on the base and the data of a run; gives the metrics of each by its name.

  `adapters` is 'name=folder,...', of run folders (their best checkpoints) or folders of PEFT. Writes
  `eval/<split>_<name>.json` for each. Raises `InputError`.
  """
  if not workdir:
    raise InputError('give the run folder whose base and data are meant: --workdir=runs/NAME')
  where = pathlib.Path(workdir).expanduser()
  places = _places(adapters)
  built = _built(*folder.stored(where), split, where)
  thresholds.check_there(built, split=split)
  if taken := [n for n in places if f'{split}_{n}' in built.dataset.splits]:
    raise InputError(f'--adapters={adapters}: {split}_{taken[0]} is a split of the data; give {taken[0]} another name')
  members = Adapters(built)
  for name, path in places.items():
    for note in members.add(name, path):
      print(f'      note  {name}: {note}')
  found = {name: members.use(name).evaluate(split)[0] for name in members.names}
  (where / 'eval').mkdir(exist_ok=True)
  for name, metrics in found.items():
    record = {'metrics': metrics, 'n': len(built.examples[split]), 'labels': list(built.task.labels)}
    files.write_json(where / 'eval' / f'{split}_{name}.json', {**record, 'adapter': places[name]})
  print(_side_by_side(f'{split}, {len(built.examples[split]):,} rows', found))
  return found


def _built(config: dict[str, Any], labels: list, split: str | list[str], where: pathlib.Path) -> Run:
  try:
    built = runs.build(config, labels=labels, split=split)
  except InputError as e:
    stored = where / 'config.json'
    raise InputError(f'{e}\nThe settings are those of {stored}; train.py takes new places of data and model.') from e
  for note in [*built.notes, *folder.changed(where, built)]:
    print(f'      note  {note}')
  reference.read(built, where)
  return built


def _places(text: str) -> dict[str, str]:
  """{name: folder} of 'name=folder,name=folder'."""
  out: dict[str, str] = {}
  for item in filter(None, (p.strip() for p in text.split(','))):
    name, equals, path = item.partition('=')
    if not (name and equals and path):
      raise InputError(f'--adapters={text}: {item!r} is not NAME=FOLDER; several are separated by commas')
    if name in out:
      raise InputError(f'--adapters={text}: there are two adapters of the name {name}; give each its own')
    out[name] = path
  if not out:
    raise InputError('--adapters names none; write --adapters=NAME=FOLDER,NAME=FOLDER')
  return out


def _side_by_side(title: str, found: dict[str, dict[str, Any]]) -> str:
  """The scalar metrics, a column an adapter."""
  metrics = [k for k, v in next(iter(found.values())).items() if isinstance(v, int | float)]
  first, wide = max(map(len, metrics)), max(8, *map(len, found))
  lines = [title, f'  {"":<{first}}  ' + '  '.join(f'{n:>{wide}}' for n in found)]
  lines += [f'  {k:<{first}}  ' + '  '.join(f'{m[k]:>{wide}.4f}' for m in found.values()) for k in metrics]
  return '\n'.join(lines)


def restored(built: Run, where: pathlib.Path, checkpoint: str) -> tuple[Params, Params, int]:
  """(own, frozen, step) of a checkpoint: 'best', 'last' or the number of a step; of `checkpoint.weights`."""
  with Checkpoints(where / 'checkpoints', readonly=True) as checkpoints:
    step = _step(checkpoints, checkpoint, where)
    found = checkpoints.restore(state.storable(built.abstract_state), step=step)
  return built.evaluated(state.restored(found.state)), built.load()[1], found.step


def _step(checkpoints: Checkpoints, wanted: str, where: pathlib.Path, field: str = '--workdir') -> int | None:
  """The number of a checkpoint; None for the newest that can be read."""
  steps = checkpoints.steps()
  if not steps:
    raise InputError(f'{field}={where} holds no checkpoint yet; train.py saves them')
  if wanted == 'last':
    return None
  if wanted == 'best':
    return checkpoints.best()
  if not wanted.isdecimal() or int(wanted) not in steps:
    there = ', '.join(map(str, steps))
    near = did_you_mean(wanted, ('best', 'last'))
    raise InputError(f'--checkpoint={wanted} is none of best, last and the steps {there} of {where}{near}')
  return int(wanted)
