"""Paths that cannot be used, full disks, devices without memory: one screen and status 2, not a traceback."""

import errno
import os
import pathlib
import subprocess
import sys

import pytest

from ftlib import cli, fine_tune, folder
from ftlib.base.errors import InputError
from tests.cli.conftest import ROOT, one_screen

CONFIG = f'--config={ROOT / "configs/classify.py"}:data=DIR,model=./base'
FAULTS = [
  (PermissionError(errno.EACCES, 'Permission denied', '/there/x'), ['/there/x: Permission denied', 'give a path']),
  (IsADirectoryError(errno.EISDIR, 'Is a directory', pathlib.Path('/there')), ['/there: Is a directory']),
  (OSError(errno.ENAMETOOLONG, 'File name too long', '/there/' + 'x' * 5000), ['/there/xxx', 'File name too long']),
  (OSError(errno.ENOSPC, 'No space left on device'), ['error: No space left on device', 'make room', 'same command']),
  (RuntimeError('RESOURCE_EXHAUSTED: Out of memory\n' + 'x ' * 4000), ['Out of memory', 'lower train.batch_size']),
]


@pytest.mark.parametrize(('error', 'words'), FAULTS, ids=lambda v: type(v).__name__)
def test_faults_of_the_machine(program, monkeypatch, error, words):
  def run(config, workdir):
    raise error

  monkeypatch.setattr(fine_tune, 'run', run)
  done = program('train.py', CONFIG, '--workdir=w')
  assert (done.status, done.out) == (2, '')
  assert done.err.startswith('error: ')
  assert not [w for w in words if w not in done.err], done.err
  one_screen(done.err)
  done = program('train.py', CONFIG, '--workdir=w', '--traceback')
  assert done.status == 2
  assert 'Traceback (most recent call last)' in done.err


@pytest.mark.parametrize(
  'error', [FileNotFoundError(errno.ENOENT, 'No such file', 'a'), OSError('odd'), ValueError('x')]
)
def test_what_may_be_a_bug_keeps_its_traceback(program, monkeypatch, error):
  def run(config, workdir):
    raise error

  monkeypatch.setattr(fine_tune, 'run', run)
  with pytest.raises(type(error)):
    program('train.py', CONFIG, '--workdir=w')


def test_a_reader_that_ends():
  code = (
    "from ftlib import cli\nraise SystemExit(cli.run(lambda: [print('x' * 999) for _ in range(9999)] and None, ['x']))"
  )
  running = subprocess.Popen(
    [sys.executable, '-c', code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  )
  running.stdout.readline()
  running.stdout.close()
  told = running.stderr.read()
  running.stderr.close()
  assert running.wait() == 2
  assert told.startswith('error: Broken pipe\n  what reads the output has ended')
  assert len(told.splitlines()) == 2


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
  """Told before the model is loaded; nothing is made."""
  file = tmp_path / 'file'
  file.write_text('mine')
  folder.check_free(tmp_path / 'a' / 'b')
  with pytest.raises(InputError, match=r'file/run: .*file is no folder that may be written'):
    folder.check_free(file / 'run')
  monkeypatch.setattr(os, 'access', lambda path, mode: pathlib.Path(path) != tmp_path)
  with pytest.raises(InputError, match='cannot write to run folder'):
    folder.check_free(tmp_path / 'a' / 'b')
  assert [p.name for p in tmp_path.iterdir()] == ['file']


@pytest.mark.parametrize('workdir', ['', '  '])
def test_a_folder_without_a_name(workdir):
  with pytest.raises(InputError, match='give the folder to write to'):
    fine_tune.run({}, workdir)


def test_a_home_that_cannot_be_written(monkeypatch, tmp_path):
  """JAX would warn of each program that it cannot keep there."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  for may in (False, True):
    monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR', raising=False)
    monkeypatch.setattr(os, 'access', lambda path, mode, may=may: may)
    cli._prepare()
    assert ('JAX_COMPILATION_CACHE_DIR' in os.environ) is may


@pytest.mark.parametrize(
  'given', ['', '--xla_force_host_platform_device_count=3 --xla_cpu_collective_call_terminate_timeout_seconds=7']
)
def test_devices_wait_for_each_other(monkeypatch, given):
  """XLA ends a program one of whose devices got no processor for 40 s; what the user has set stays."""
  monkeypatch.setenv('XLA_FLAGS', given)
  cli._prepare()
  flags = dict(f.split('=') for f in os.environ['XLA_FLAGS'].split())
  assert len(flags) == 3 == len(os.environ['XLA_FLAGS'].split())
  assert (flags['--xla_force_host_platform_device_count'] == '3') or not given
  wait = int(flags['--xla_cpu_collective_call_terminate_timeout_seconds'])
  assert wait == 7 if given else wait > 3600
