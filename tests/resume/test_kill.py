"""A run that is killed again and again ends with the same bytes as one that never was.

One run is interrupted by kill -9 (5 times, at seeded random moments), by SIGTERM, by Ctrl-C, by a flipped bit in its
newest checkpoint and by a half-written one; train.py is a process of its own each time. A plateau lowers its rate, it
keeps two averages, and patience ends it.
"""

import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS = 400  # the most
RECIPE = """
from tests import tiny

def get_config(arg=''):
  c = tiny.config({model!r}, {data!r}, method='lora', train__steps={steps}, train__eval_every=20, train__log_every=1)
  c.checkpoint.every = 4
  c.optim.schedule, c.train.plateau_factor, c.train.plateau_patience = 'plateau', 0.5, 1
  c.train.ema, c.train.swa_start, c.train.patience = 0.9, 0.1, 6
  return c
"""


class Runner:
  """Starts train.py on a recipe in a folder of its own."""

  def __init__(self, folder, model, data):
    self.recipe = folder / 'recipe.py'
    self.recipe.write_text(RECIPE.format(model=str(model), data=str(data), steps=STEPS))
    one = re.sub('device_count=\\d+', 'device_count=1', os.environ['XLA_FLAGS'])
    self.env = {**os.environ, 'PYTHONPATH': str(ROOT), 'XLA_FLAGS': one}

  def start(self, workdir, *flags):
    command = [sys.executable, str(ROOT / 'train.py'), f'--config={self.recipe}', f'--workdir={workdir}', *flags]
    return subprocess.Popen(
      command, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )

  def finish(self, workdir, *flags):
    """(exit status, output) of a run left alone."""
    process = self.start(workdir, *flags)
    out, _ = process.communicate(timeout=300)
    return process.returncode, out

  def interrupt(self, workdir, number, *, at_step, delay):
    """(exit status, output) of a run that gets a signal `delay` seconds after step `at_step` is logged."""
    process = self.start(workdir)
    deadline = time.monotonic() + 120
    while last_step(workdir) < at_step and process.poll() is None and time.monotonic() < deadline:
      time.sleep(0.005)
    time.sleep(delay)
    assert process.poll() is None, f'ended before it was interrupted:\n{process.communicate()[0]}'
    os.killpg(process.pid, number)
    out, _ = process.communicate(timeout=120)
    return process.returncode, out


def last_step(workdir):
  path = workdir / 'metrics.jsonl'
  if not path.exists():
    return 0
  lines = path.read_bytes().splitlines()
  for line in reversed(lines[-3:]):
    try:
      return json.loads(line)['step']
    except ValueError:
      continue
  return 0


def summary(workdir):
  return json.loads((workdir / 'summary.json').read_text())


def logged(workdir, split):
  """The rows of a split, without times."""
  rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  return [{k: v for k, v in r.items() if 'second' not in k} for r in rows if r['split'] == split]


def digest(workdir):
  return summary(workdir)['params_sha256']


def newest(workdir):
  return max((p for p in (workdir / 'checkpoints').iterdir() if p.name.isdigit()), key=lambda p: int(p.name))


def flip_bit(step):
  """Flips one bit in the middle of the largest file of a checkpoint."""
  path = max((p for p in step.rglob('*') if p.is_file()), key=lambda p: p.stat().st_size)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 4
  path.write_bytes(data)


@pytest.fixture(scope='module')
def runner(tmp_path_factory, tiny_bert, toy_data):
  return Runner(tmp_path_factory.mktemp('kill'), tiny_bert, toy_data)


@pytest.fixture(scope='module')
def unkilled(runner, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('unkilled') / 'w'
  status, out = runner.finish(workdir)
  assert status == 0, out
  return workdir


@pytest.fixture(scope='module')
def killed(runner, unkilled, tmp_path_factory):
  """(folder of the interrupted run when it is done, outputs of the interruptions by name)."""
  workdir = tmp_path_factory.mktemp('killed') / 'w'
  rng = random.Random(7)
  outputs = {}
  for i in range(5):
    at_step = 12 + 18 * i + rng.randint(0, 10)
    status, outputs[f'kill{i}'] = runner.interrupt(workdir, signal.SIGKILL, at_step=at_step, delay=rng.random() * 0.1)
    assert status == -signal.SIGKILL
    if i == 1:
      flip_bit(newest(workdir))
    if i == 3:
      shutil.rmtree(newest(workdir) / 'state')
  for name, number in (('term', signal.SIGTERM), ('int', signal.SIGINT)):
    status, out = runner.interrupt(workdir, number, at_step=last_step(workdir) + 6, delay=0.02)
    outputs[name] = (status, out)
  status, out = runner.finish(workdir)
  assert status == 0, out
  outputs['last'] = out
  return workdir, outputs


def test_killed_five_times_ends_with_the_same_bytes(unkilled, killed):
  assert digest(killed[0]) == digest(unkilled)


def test_the_evaluation_is_the_same(unkilled, killed):
  read = lambda w: (w / 'eval' / 'validation_predictions.jsonl').read_text()  # noqa: E731
  assert read(killed[0]) == read(unkilled)


def test_every_step_is_logged_once_until_patience_ends(unkilled, killed):
  ends = summary(unkilled)['steps']
  assert 120 <= ends < STEPS
  for workdir in (unkilled, killed[0]):
    assert [r['step'] for r in logged(workdir, 'train')] == list(range(1, ends + 1))
    for split in ('validation', 'validation_ema'):
      assert [r['step'] for r in logged(workdir, split)] == list(range(20, ends + 1, 20))
  assert len({r['learning_rate'] for r in logged(unkilled, 'train')}) > 2  # warmup aside, a plateau lowered it


@pytest.mark.parametrize('split', ['train', 'validation', 'validation_ema', 'validation_swa'])
def test_rates_metrics_and_averages_are_the_same(unkilled, killed, split):
  assert logged(killed[0], split)
  assert logged(killed[0], split) == logged(unkilled, split)


def test_a_damaged_checkpoint_is_set_aside_and_named(killed):
  workdir, outputs = killed
  for name in ('kill2', 'kill4'):  # the runs after the damage
    assert '.corrupt' in outputs[name], outputs[name]
    assert 'resumed at step' in outputs[name]
  assert len(list((workdir / 'checkpoints').glob('*.corrupt*'))) == 2


@pytest.mark.parametrize(('name', 'status'), [('term', 143), ('int', 130)])
def test_signals_save_and_give_their_status(killed, name, status):
  code, out = killed[1][name]
  assert code == status, out
  assert 'saved at step' in out
  assert 'Traceback' not in out


def test_a_finished_run_does_nothing_again(runner, unkilled):
  before = digest(unkilled)
  status, out = runner.finish(unkilled)
  assert status == 0, out
  assert f'resumed at step {summary(unkilled)["steps"]} of {STEPS}' in out
  assert digest(unkilled) == before


def test_all_checkpoints_damaged_is_an_error_twice(runner, unkilled, tmp_path):
  workdir = tmp_path / 'w'
  shutil.copytree(unkilled, workdir)
  for step in [p for p in (workdir / 'checkpoints').iterdir() if p.name.isdigit()]:
    flip_bit(step)
  for _ in range(2):
    status, out = runner.finish(workdir)
    assert status == 2, out
    assert 'no checkpoint' in out
    assert 'Traceback' not in out


def test_more_steps_go_on(runner, unkilled, tmp_path):
  workdir = tmp_path / 'w'
  shutil.copytree(unkilled, workdir)
  ended = summary(unkilled)['steps']
  status, out = runner.finish(workdir, f'--config.train.steps={STEPS + 8}', '--config.train.patience=50')
  assert status == 0, out
  assert f'resumed at step {ended} of {STEPS + 8}' in out
  assert last_step(workdir) == STEPS + 8
