"""train.py's work: build the run, claim the folder, restore or start, train, evaluate the best, report."""

from __future__ import annotations

import dataclasses
import pathlib
import sys
import time
from typing import Any

import jax

from ftlib import folder, generators, recipe, reference, regularised, scratch, show, watched
from ftlib import run as runs
from ftlib.base import trees
from ftlib.base.errors import InputError, did_you_mean
from ftlib.base.types import Params
from ftlib.data import batches
from ftlib.evals import report
from ftlib.io import workdir as files
from ftlib.io.checkpoint import Checkpoints
from ftlib.io.logs import Log
from ftlib.run import Run
from ftlib.samples import Samples
from ftlib.train import averages, loop, state


def run(config: Any, workdir: str | None) -> dict[str, Any]:
  """Trains by a config in a folder and gives the metrics of the best checkpoint on validation."""
  if config is None:
    raise InputError('give a config: --config=configs/quickstart.py')
  if not (workdir and str(workdir).strip()):
    raise InputError('give the folder to write to: --workdir=runs/NAME')
  where = pathlib.Path(workdir).expanduser()
  folder.check_free(where)
  values = recipe.expanded(config).to_dict()
  began = time.perf_counter()
  with Checkpoints(where / 'checkpoints', readonly=True) as checkpoints:
    resumes = bool(checkpoints.steps())
  built = runs.build(folder.started(values, where) if resumes else values)
  plan, planned = _plan(built), regularised.spent(built, built.steps)
  generators.check(built)
  folder.check(where, values, built)
  own, frozen = built.load()
  reference.read(built, where) if resumes else reference.compute(built, own, frozen)
  start = None if resumes else built.start(own, frozen)
  del own  # a second copy of what the state holds
  with files.Lock(where):
    folder.claim(where, values, built)
    reference.save(built, where)
    scratch.save(built, where)
    print(show.summary(built, where), flush=True)
    files.write_json(where / 'env.json', files.environment())
    with (
      Checkpoints(
        where / 'checkpoints',
        keep_last=built.settings.checkpoint.keep_last,
        keep_best=built.settings.checkpoint.keep_best,
        higher_is_better=plan.higher_is_better,
      ) as checkpoints,
      Log(where, total=built.steps, every=plan.log_every) as log,
    ):
      log.say(f'loaded in {time.perf_counter() - began:.1f} s; the first step of each length compiles')
      for line in regularised.told(planned):
        log.say(f'planned {line}')
      return _train(built, plan, where, checkpoints, log, start, frozen)


def preview(config: Any, count: int) -> None:
  """Prints the first training rows with their supervised tokens marked, and nothing else is done."""
  if config is None:
    raise InputError('give a config: --config=configs/sft.py')
  built = runs.build(recipe.expanded(config).to_dict())
  print(show.preview(built, count, colour=sys.stdout.isatty()))


def _train(
  built: Run,
  plan: loop.Plan,
  where: pathlib.Path,
  checkpoints: Checkpoints,
  log: Log,
  start: state.TrainState | None,
  frozen: Params,
) -> dict[str, Any]:
  now, progress = _resumed(built, start, checkpoints, log)
  done = int(now.step)
  samples = Samples(built, where, log.say)
  if not done:
    samples.begin(now.own, frozen)
  stream = batches.feed(built.batch, done, built.steps)
  evaluations = watched.Evaluations(built, progress)
  hooks, probe = watched.hooks(built, where, evaluations), watched.probe(built)
  if probe is not None:
    hooks = dataclasses.replace(hooks, before=probe.before, measure=probe.measure)
  last = loop.fit(
    plan, now, frozen, progress, step=built.train_step, batches=stream, hooks=hooks, log=log, checkpoints=checkpoints
  )
  log.close()
  step = checkpoints.best() or int(last.step)
  best = built.evaluated(state.restored(checkpoints.restore(state.storable(built.abstract_state), step=step).state))
  metrics, predictions = evaluations.of(best, frozen, step)
  folder.write_evaluation(where, built, 'validation', metrics, predictions, step)
  speed = progress.tokens / progress.seconds if progress.seconds else None
  spent = regularised.spent(built, int(last.step))
  files.write_json(
    where / 'summary.json',
    {
      **show.counts(built),
      'steps': int(last.step),
      'skipped_steps': int(last.skipped),
      'tokens_per_second': speed,
      'compile_seconds': built.train_step.seconds + built.eval_step.seconds,
      'compiled_shapes': [list(s) for s in built.train_step.shapes],
      'checkpoint_bytes': checkpoints.size(step),
      'params_sha256': trees.digest(jax.device_get(last.trainable)),
      'best_metric': {
        'name': plan.metric,
        'value': progress.best,
        'step': progress.best_step,
        'split': plan.split,
      },
      'planned_learning_rates': built.optimizer.planned(built.steps),
      **watched.ended(built, where, probe, last, frozen),
      **spent,
    },
  )
  samples.end(best, frozen)
  print('\n'.join([show.table(f'validation, checkpoint {step}', metrics), *regularised.told(spent)]))
  print(f'report: {report.write(where)}')
  return metrics


def _resumed(
  built: Run, start: state.TrainState | None, checkpoints: Checkpoints, log: Log
) -> tuple[state.TrainState, loop.Progress]:
  found = checkpoints.restore(state.storable(built.abstract_state))
  share = built.settings.train.swa_start
  begins = None if share is None else averages.first(share, built.steps)
  if found is None:
    log.resume(-1)
    return start or built.start(*built.load()), loop.Progress(mean_from=begins)
  progress = loop.Progress(**found.meta)
  if begins is not None and begins <= found.step and begins != progress.mean_from:
    raise InputError(
      f'train.swa_start={share}: of {built.steps} steps the equal mean would hold those from {begins} on, and at step '
      f'{found.step} it holds others; go on with more steps, or in another --workdir'
    )
  log.resume(found.step)
  log.say(f'resumed at step {found.step} of {built.steps}')
  return state.restored(found.state), dataclasses.replace(progress, mean_from=begins)


def _plan(built: Run) -> loop.Plan:
  s = built.settings
  every = s.train.eval_every or min(built.steps, built.order.steps_per_epoch)
  known = {'loss': False, **built.task.metric_names}  # whether higher is better
  metric = s.checkpoint.metric or built.task.metric
  if metric not in known:
    raise InputError(
      f'checkpoint.metric={metric!r} is no metric of this task{did_you_mean(metric, known)}\n'
      f'  known: {", ".join(known)}'
    )
  return loop.Plan(
    steps=built.steps,
    eval_every=every,
    save_every=s.checkpoint.every or every,
    log_every=s.train.log_every,
    patience=s.train.patience,
    min_delta=s.train.min_delta,
    metric=metric,
    higher_is_better=known[metric],
    split=watched.split(s.checkpoint.weights),
    max_nonfinite=s.train.max_nonfinite,
    plateau_factor=s.train.plateau_factor if 'rate_scale' in built.optimizer.needs else 1.0,
    plateau_patience=s.train.plateau_patience,
    plateau_min=s.train.plateau_min,
    eval_start=s.train.eval_start,
  )
