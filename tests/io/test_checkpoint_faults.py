"""Checkpoints under fault: whatever is done to the folder, the disk or the process, a wrong byte is never restored."""

import errno
import os
import random
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from checkpoint_states import TARGET, Instant, assert_same, make_state

from ftlib.base.errors import FtlibError, InputError
from ftlib.io import checkpoint, manifest
from ftlib.io.checkpoint import Checkpoints

pytestmark = pytest.mark.filterwarnings('error')
ROOT = Path(__file__).parents[2]


def snapshot(folder):
  """Everything in a folder: names, bytes and modification times."""
  return {
    str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else None)
    for p in folder.rglob('*')
  }


# Corruption.


def test_every_flipped_bit_is_found(saved, tmp_path, caplog):
  rng = random.Random(0)
  files = sorted(p.relative_to(saved) for p in (saved / '20').rglob('*') if p.is_file() and p.stat().st_size)
  rng.shuffle(files)
  assert len(files) >= 7
  for i, file in enumerate(files):
    folder = Path(shutil.copytree(saved, tmp_path / str(i)))
    data = bytearray((folder / file).read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    (folder / file).write_bytes(data)
    caplog.clear()
    with Checkpoints(folder) as c:
      got = c.restore(TARGET)
    assert got.step == 10, file
    assert_same(got.state, make_state(10))
    assert 'checkpoint of step 20' in caplog.text
    assert 'using step 10' in caplog.text
    assert sorted(os.listdir(folder)) == ['10', '20.corrupt']


def _each_file(step):
  yield from (p for p in sorted(step.rglob('*')) if p.is_file() and p.stat().st_size)


def _truncate(step):
  for file in _each_file(step):
    size = file.stat().st_size
    yield f'truncate {file.name}', lambda file=file, size=size: os.truncate(file, size // 2)


def _zero(step):
  for file in _each_file(step):
    yield f'zero {file.name}', lambda file=file: file.write_bytes(bytes(file.stat().st_size))


def _delete(step):
  for file in _each_file(step):
    yield f'delete {file.name}', file.unlink


def _other(step):
  yield 'empty newer step', lambda: (step.parent / '99').mkdir()
  yield 'file named as a newer step', lambda: (step.parent / '99').write_text('x')
  yield 'emptied', lambda: (shutil.rmtree(step), step.mkdir())
  yield 'stray file', lambda: (step / 'state/stray').write_text('x')
  yield 'garbage meta', lambda: (step / 'meta.json').write_text('{]')
  yield 'sealed garbage meta', lambda: ((step / 'meta.json').write_text('{]'), manifest.seal(step))
  yield 'manifest of another form', lambda: (step / 'manifest.json').write_text('[1]')
  yield 'a copy under another number', lambda: shutil.copytree(step.parent / '10', step.parent / '99')


@pytest.mark.parametrize('kind', [_truncate, _zero, _delete, _other])
def test_mutations_fall_back_to_the_newest_good_step(saved, tmp_path, caplog, kind):
  names = [name for name, _ in kind(saved / '20')]
  assert len(names) >= 8
  for i, name in enumerate(names):
    folder = Path(shutil.copytree(saved, tmp_path / str(i)))
    dict(kind(folder / '20'))[name]()
    bad, good = (99, 20) if (folder / '99').exists() else (20, 10)
    caplog.clear()
    with Checkpoints(folder) as c:
      got = c.restore(TARGET)
      assert got.step == good, name
      assert_same(got.state, make_state(good))
      assert f'checkpoint of step {bad} in' in caplog.text, name
      assert f'set aside as {bad}.corrupt, using step {good}' in caplog.text, name
      assert max(c.steps()) == good
      caplog.clear()
      assert c.restore(TARGET).step == good
      assert not caplog.records  # said once


def test_a_second_corrupt_save_of_a_step_gets_a_name_of_its_own(folder):
  for _ in range(2):
    (folder / '20').mkdir(exist_ok=True)
    (folder / '20/manifest.json').write_text('')
    with Checkpoints(folder) as c:
      c.restore(TARGET)
  assert sorted(os.listdir(folder)) == ['10', '20.corrupt', '20.corrupt.1']


def test_all_corrupt_is_an_error_at_every_start(folder):
  (folder / '20/meta.json').unlink()
  os.truncate(folder / '10/meta.json', 3)
  for _ in range(2):
    with Checkpoints(folder) as c, pytest.raises(InputError) as e:
      c.restore(TARGET)
    assert 'step 20: meta.json is missing' in str(e.value)
    assert 'step 10: meta.json has 3 bytes' in str(e.value)
    assert 'delete that folder to begin anew' in str(e.value)


def test_steps_set_aside_earlier_still_forbid_a_silent_start_from_nothing(folder):
  (folder / '20/meta.json').unlink()
  with Checkpoints(folder) as c:
    c.restore(TARGET)
  shutil.rmtree(folder / '10')
  for _ in range(2):
    with Checkpoints(folder) as c, pytest.raises(InputError, match=r'20\.corrupt: meta\.json is missing'):
      c.restore(TARGET)


def test_good_bytes_that_cannot_be_loaded_keep_their_name(folder, monkeypatch, caplog):
  """Short memory must not turn good checkpoints into 'corrupt' ones that a user then deletes."""
  with Checkpoints(folder) as c:
    orbax_restore = c._orbax.restore
    monkeypatch.setattr(
      c._orbax, 'restore', lambda path, **k: orbax_restore(path, **k) if '10' in path.parts else 1 / 0
    )
    assert c.restore(TARGET).step == 10
    assert 'ZeroDivisionError' in caplog.text
    monkeypatch.setattr(c._orbax, 'restore', lambda *a, **k: 1 / 0)
    with pytest.raises(InputError, match='its bytes are good, but loading them failed: ZeroDivisionError'):
      c.restore(TARGET)
  assert sorted(os.listdir(folder)) == ['10', '20']


def test_an_exact_step_is_restored_or_the_others_are_listed(folder):
  with Checkpoints(folder) as c:
    assert_same(c.restore(TARGET, step=10).state, make_state(10))
    with pytest.raises(InputError, match=r'step 15 .* there is none; other steps there: 10, 20'):
      c.restore(TARGET, step=15)
    (folder / '20/meta.json').unlink()
    with pytest.raises(InputError, match=r'step 20 .* meta.json is missing; other steps there: 10'):
      c.restore(TARGET, step=20)
  assert sorted(os.listdir(folder)) == ['10', '20']


def test_readonly_changes_nothing(folder, caplog):
  os.truncate(folder / '20/meta.json', 3)
  for name in ('30.saving', '5.deleting', '7.replaced'):
    (folder / name).mkdir()
  before = snapshot(folder)
  with Checkpoints(folder, readonly=True) as c:
    assert c.restore(TARGET).step == 10
    assert 'step 20' in caplog.text
    assert 'left as it is, using step 10' in caplog.text
    assert (c.steps(), c.best()) == ([10, 20], None)
    with pytest.raises(ValueError, match='readonly'):
      c.save(30, make_state(1), {})
    os.truncate(folder / '10/meta.json', 3)
    with pytest.raises(InputError, match='no checkpoint'):
      c.restore(TARGET)
  os.truncate(folder / '10/meta.json', 0)
  assert before.keys() == snapshot(folder).keys()
  assert {k: v for k, v in before.items() if '10' not in k} == {
    k: v for k, v in snapshot(folder).items() if '10' not in k
  }
  absent = folder / 'absent'
  with Checkpoints(absent, readonly=True) as c:
    assert (c.restore(TARGET), c.steps(), c.best()) == (None, [], None)
  assert not absent.exists()


def test_a_reader_overtaken_by_retention_takes_the_next_step(folder, monkeypatch, caplog):
  fault = manifest.fault

  def overtaken(path):
    if path.name == '20':
      os.rename(path, path.with_name('20.deleting'))
    return fault(path)

  monkeypatch.setattr(manifest, 'fault', overtaken)
  assert Checkpoints(folder, readonly=True).restore(TARGET).step == 10
  assert not caplog.records


# Interruption and failing disks.


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
  def dies_at(number):
    for name in ('fsync', 'mkdir', 'rename', 'replace', 'rmdir', 'unlink'):
      yield name, lambda *a, real=getattr(os, name), **k: operate(number, real, *a, **k)

  def operate(number, real, *args, **kwargs):
    done.append(real)
    if len(done) == number:
      raise Killed
    return real(*args, **kwargs)

  for number in range(1, 100):
    folder, done = tmp_path / str(number), []
    with Checkpoints(folder, keep_last=2) as c:
      c._orbax = Instant('old')
      c.save(10, {'a': np.ones(2)}, {})
      c.save(20, {'a': np.ones(2)}, {})
      c.wait()
      c._orbax = Instant('new')
      with monkeypatch.context() as m:
        for name, operation in dies_at(number):
          m.setattr(os, name, operation)
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
