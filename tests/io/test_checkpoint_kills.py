"""Checkpoints of a run that is killed or whose disk is full: at most the save in progress is lost."""

import errno
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from checkpoint_states import TARGET, Instant, assert_same, make_state

from ftlib.base.errors import FtlibError
from ftlib.io import checkpoint, manifest
from ftlib.io.checkpoint import Checkpoints

pytestmark = pytest.mark.filterwarnings('error')
ROOT = Path(__file__).parents[2]


def test_leftovers_are_swept_and_an_interrupted_replacement_is_put_back(folder):
  os.rename(folder / '20', folder / '20.replaced')
  shutil.copytree(folder / '10', folder / '20.saving')
  shutil.copytree(folder / '10', folder / '10.replaced')
  (folder / '5.deleting').mkdir()
  (folder / 'notes.saving').mkdir()  # not ours
  with Checkpoints(folder) as c:
    assert sorted(os.listdir(folder)) == ['10', '20', 'notes.saving']
    assert_same(c.restore(TARGET).state, make_state(20))


class Killed(BaseException):
  """Passes every `except Exception`, as a kill does."""


@pytest.mark.parametrize('step', [20, 30], ids=['saved again', 'new'])
def test_a_kill_between_any_two_operations_leaves_the_old_state_or_the_new(tmp_path, monkeypatch, step):
  def dying(operation):
    def operate(*args, **kwargs):
      done.append(operation)
      if len(done) == number:
        raise Killed
      return operation(*args, **kwargs)

    return operate

  for number in range(1, 100):
    folder, done = tmp_path / str(number), []
    with Checkpoints(folder, keep_last=2) as c:
      c._orbax = Instant('old')
      c.save(10, {'a': np.ones(2)}, {})
      c.save(20, {'a': np.ones(2)}, {})
      c.wait()
      c._orbax = Instant('new')
      with monkeypatch.context() as m:
        for name in ('fsync', 'mkdir', 'rename', 'replace', 'rmdir', 'unlink'):
          m.setattr(os, name, dying(getattr(os, name)))
        try:
          c._write(step, {}, {'step': step, 'metric': None}, 2)
          finished = True
        except Killed:
          finished = False
    with Checkpoints(folder) as c:
      assert all(name.isdigit() for name in os.listdir(folder)), number
      assert [c._fault(int(name)) for name in os.listdir(folder)] == [None] * len(os.listdir(folder)), number
      newest = (folder / str(c.steps()[-1]) / 'state/data').read_text()
      assert newest == 'new' if finished else c.steps()[-1] in (20, step), number
    if finished:
      break
  assert 20 < number < 99


def full_disk(times, real=None):
  left = [times]

  def fail(*args, **kwargs):
    if left[0] > 0:
      left[0] -= 1
      raise OSError(errno.ENOSPC, 'No space left on device')
    return real(*args, **kwargs)

  return fail


@pytest.mark.parametrize('where', ['orbax', 'seal'])
def test_one_failure_is_tried_again(folder, monkeypatch, caplog, where):
  with Checkpoints(folder) as c:
    if where == 'orbax':
      monkeypatch.setattr(c._orbax, 'save', full_disk(1, c._orbax.save))
    else:
      monkeypatch.setattr(manifest, 'seal', full_disk(1, manifest.seal))
    c.save(30, make_state(30), {})
    c.wait()
    assert_same(c.restore(TARGET).state, make_state(30))
  assert 'No space left on device; trying once more' in caplog.text


@pytest.mark.parametrize('where', ['orbax', 'seal', 'rename'])
def test_a_full_disk_is_reported_and_leaves_the_steps_before(folder, monkeypatch, where):
  c = Checkpoints(folder)
  patches = {'orbax': (c._orbax, 'save'), 'seal': (manifest, 'seal'), 'rename': (checkpoint.os, 'rename')}
  with monkeypatch.context() as m:
    m.setattr(*patches[where], full_disk(1000))
    c.save(30, make_state(30), {})  # returns: the training goes on
    with pytest.raises(FtlibError, match=r'step 30 could not be saved .*No space left on device') as e:
      c.wait()
    assert isinstance(e.value.__cause__, OSError)
    assert sorted(os.listdir(folder)) == ['10', '20']
    c.save(31, make_state(31), {})
    c._join()
    with pytest.raises(FtlibError, match='step 32 could not be saved'):  # the second failure in a row ends the run
      c.save(32, make_state(32), {})
    c.save(33, make_state(33), {})
    assert c.restore(TARGET).step == 20  # a roll-back is not in the way of a failed save
  c.save(34, make_state(34), {})  # the disk has space again: the failure of 33 is forgiven
  c.close()
  assert Checkpoints(folder, readonly=True).restore(TARGET).step == 34


def test_a_replacement_that_fails_leaves_the_former_save(folder, monkeypatch):
  rename = os.rename

  def full_for_new_steps(a, b):
    return full_disk(1)() if str(a).endswith('.saving') else rename(a, b)

  with Checkpoints(folder) as c:
    monkeypatch.setattr(checkpoint.os, 'rename', full_for_new_steps)
    c.save(20, make_state(7), {})
    with pytest.raises(FtlibError, match='step 20 could not be saved'):
      c.wait()
    assert sorted(os.listdir(folder)) == ['10', '20']
    assert_same(c.restore(TARGET).state, make_state(20))


def test_the_folder_may_vanish_during_a_run(folder):
  with Checkpoints(folder) as c:
    shutil.rmtree(folder)
    c.save(30, make_state(30), {})
    c.wait()
    assert_same(c.restore(TARGET).state, make_state(30))


def test_the_error_that_stopped_the_run_is_not_hidden_by_a_failed_save(tmp_path, monkeypatch, caplog):
  monkeypatch.setattr(manifest, 'seal', full_disk(2))
  c = Checkpoints(tmp_path)
  c.save(1, {'a': np.ones(2)}, {})
  with pytest.raises(ZeroDivisionError), c:
    raise ZeroDivisionError
  assert 'step 1 could not be saved' in caplog.text
  with pytest.raises(FtlibError, match='cannot write checkpoints'):
    Checkpoints(__file__)


def test_a_failing_deletion_costs_a_warning(folder, monkeypatch, caplog):
  rename = os.rename

  def refuse(a, b):
    if str(b).endswith('.deleting'):
      raise PermissionError(errno.EACCES, 'not allowed')
    return rename(a, b)

  monkeypatch.setattr(checkpoint.os, 'rename', refuse)
  with Checkpoints(folder) as c:
    c.save(30, make_state(30), {})
    c.wait()
    assert c.steps() == [10, 20, 30]
  assert 'not allowed' in caplog.text


KILLED = """
  import os, random, signal, sys, time
  import numpy as np
  from ftlib.io.checkpoint import Checkpoints

  folder, rng = sys.argv[1], random.Random(0)
  target = {'w': np.zeros((200, 300), np.float32), 'step': np.zeros((), np.int32)}

  def train():
    c = Checkpoints(folder)
    done = c.restore(target)
    step = done.step if done else 0
    assert done is None or (done.meta == {'at': step} and (np.asarray(done.state['w']) == step).all()), step
    assert done or not os.listdir(folder), os.listdir(folder)
    while True:
      step += 1
      c.save(step, {'w': np.full((200, 300), step, np.float32), 'step': np.asarray(step, np.int32)}, {'at': step})
      if step % 3 == 0:
        c.wait()

  for kill in range(5):
    newest = max([int(n) for n in os.listdir(folder) if n.isdigit()], default=0)
    pid = os.fork()  # the parent never starts JAX, so that five runs pay for one import
    if pid == 0:
      train()
    end = time.monotonic() + 40
    while not any(n.isdigit() and int(n) > newest for n in os.listdir(folder)):
      assert time.monotonic() < end and os.waitpid(pid, os.WNOHANG) == (0, 0), f'run {kill} ended by itself'
      time.sleep(0.005)
    time.sleep(rng.random() * 0.2)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    print('killed', sorted(os.listdir(folder)), flush=True)
"""


def run_script(script, *args):
  env = os.environ | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'}
  command = [sys.executable, '-c', textwrap.dedent(script), *map(str, args)]
  return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


def test_kill_at_any_moment_loses_at_most_the_save_in_progress(tmp_path):
  done = run_script(KILLED, tmp_path)
  assert done.returncode == 0, done.stderr
  assert done.stdout.count('killed') == 5
  assert 'checkpoint of step' not in done.stderr  # nothing committed was ever found bad
  newest = max(int(n) for n in os.listdir(tmp_path) if n.isdigit())
  with Checkpoints(tmp_path) as c:
    got = c.restore({'w': np.zeros((200, 300), np.float32), 'step': np.zeros((), np.int32)})
    assert (got.step, c.steps()[-1]) == (newest, newest)
    assert (np.asarray(got.state['w']) == newest).all()


def test_exit_without_close_loses_at_most_the_unfinished_save(tmp_path):
  done = run_script(
    """
    import sys
    import numpy as np
    from ftlib.io.checkpoint import Checkpoints
    c = Checkpoints(sys.argv[1])
    c.save(1, {'w': np.ones(3, np.float32)}, {})
    c.save(2, {'w': np.full(3, 2, np.float32)}, {})
    raise RuntimeError('the run ends here')
    """,
    tmp_path,
  )
  assert done.returncode == 1
  with Checkpoints(tmp_path) as c:
    got = c.restore({'w': np.zeros(3, np.float32)})
    np.testing.assert_array_equal(got.state['w'], [got.step] * 3)
    assert got.step == 2 or 'step 2 could not be saved' in done.stderr
