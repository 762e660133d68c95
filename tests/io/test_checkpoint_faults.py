"""Checkpoints under fault: whatever is done to the folder, a wrong byte is never restored."""

import os
import random
import shutil
from pathlib import Path

import pytest
from checkpoint_states import TARGET, assert_same, make_state

from ftlib.base.errors import InputError
from ftlib.io import manifest
from ftlib.io.checkpoint import Checkpoints

pytestmark = pytest.mark.filterwarnings('error')


def snapshot(folder):
  """Everything in a folder: names, bytes and modification times."""
  return {
    str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else None)
    for p in folder.rglob('*')
  }


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
  yield 'link to nowhere', lambda: (step.parent / '99').symlink_to('nowhere')
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
    bad, good = (99, 20) if os.path.lexists(folder / '99') else (20, 10)
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
  for name in ('30.saving', '5.deleting', '7.replaced', '8.corrupt'):
    (folder / name).mkdir()
  before = snapshot(folder)
  with Checkpoints(folder, readonly=True) as c:
    assert c.restore(TARGET).step == 10
    assert 'checkpoint of step 20 in' in caplog.text
    assert 'left as it is, using step 10' in caplog.text
    assert (c.steps(), c.best()) == ([10, 20], None)
    with pytest.raises(ValueError, match='readonly'):
      c.save(30, make_state(1), {})
  assert snapshot(folder) == before
  os.truncate(folder / '10/meta.json', 3)
  before = snapshot(folder)
  with Checkpoints(folder, readonly=True) as c, pytest.raises(InputError, match='no checkpoint in'):
    c.restore(TARGET)
  assert snapshot(folder) == before


def test_readonly_does_not_make_the_folder(tmp_path):
  with Checkpoints(tmp_path / 'absent', readonly=True) as c:
    assert (c.restore(TARGET), c.steps(), c.best()) == (None, [], None)
  assert os.listdir(tmp_path) == []


def test_a_reader_overtaken_by_retention_takes_the_next_step(folder, monkeypatch, caplog):
  fault = manifest.fault

  def overtaken(path):
    if path.name == '20':
      os.rename(path, path.with_name('20.deleting'))
    return fault(path)

  monkeypatch.setattr(manifest, 'fault', overtaken)
  assert Checkpoints(folder, readonly=True).restore(TARGET).step == 10
  assert not caplog.records
