"""The run folder: files whole or absent, one process at a time, and a record of the environment without secrets."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from ftlib.base.errors import InputError
from ftlib.io import workdir

pytestmark = pytest.mark.filterwarnings('error')
ROOT = Path(__file__).parents[2]


def test_json_round_trip(tmp_path):
  path = tmp_path / 'results.json'
  workdir.write_json(path, {'b': np.float32(0.5), 'a': (1, jnp.int32(2)), 'p': tmp_path, 'x': np.arange(3), 3: None})
  assert path.read_text().endswith('\n')
  got = workdir.read_json(path)
  assert got == {'b': 0.5, 'a': [1, 2], 'p': str(tmp_path), 'x': [0, 1, 2], '3': None}
  assert list(got) == ['b', 'a', 'p', 'x', '3']
  assert os.listdir(tmp_path) == ['results.json']


def test_numbers_that_are_not_finite_are_null_for_every_reader(tmp_path):
  workdir.write_json(tmp_path / 'a', {'x': [float('nan'), np.float32('inf'), 1.0], 'b': jnp.bfloat16(jnp.nan)})
  assert json.loads((tmp_path / 'a').read_text(), parse_constant=pytest.fail) == {'x': [None, None, 1.0], 'b': None}


def test_what_is_no_data_is_refused_and_the_old_file_stays(tmp_path):
  workdir.write_json(tmp_path / 'a', {'x': 1})
  with pytest.raises(TypeError, match='object cannot be written as JSON'):
    workdir.write_json(tmp_path / 'a', {'x': object()})
  assert workdir.read_json(tmp_path / 'a') == {'x': 1}


@pytest.mark.parametrize('step', ['fsync', 'replace'])
def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, step):
  workdir.write_json(tmp_path / 'a', {'x': 1})

  def full(*args):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(workdir.os, step, full)
  with pytest.raises(OSError, match='No space'):
    workdir.write_json(tmp_path / 'a', {'x': 2})
  assert workdir.read_json(tmp_path / 'a') == {'x': 1}
  assert os.listdir(tmp_path) == ['a']


@pytest.mark.parametrize('text', [b'', b'{"a": 1', b'\xff\xfe', bytes(20)])
def test_malformed_json_is_named(tmp_path, text):
  (tmp_path / 'env.json').write_bytes(text)
  with pytest.raises(InputError, match=r'env\.json is not valid JSON'):
    workdir.read_json(tmp_path / 'env.json')


def test_jsonl_survives_truncation_at_every_byte_of_its_last_line(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  assert workdir.read_jsonl(path) == []
  rows = [{'step': i, 'text': 'ä' * i} for i in range(3)]
  for row in rows:
    workdir.append_jsonl(path, row)
  assert workdir.read_jsonl(path) == rows
  whole = path.read_bytes()
  start = whole.rstrip(b'\n').rfind(b'\n') + 1
  for end in range(start, len(whole)):
    path.write_bytes(whole[:end])
    assert workdir.read_jsonl(path) in (rows[:2], rows), end
    workdir.append_jsonl(path, {'step': 9})
    assert workdir.read_jsonl(path) == [*rows[:2], {'step': 9}], end
  path.write_bytes(whole[:start] + bytes(7))  # a power cut leaves zeros
  assert workdir.read_jsonl(path) == rows[:2]
  path.write_bytes(b'{"a": "' + b'x' * 10_000)  # longer than what is looked at in one go
  workdir.append_jsonl(path, {'step': 1})
  assert workdir.read_jsonl(path) == [{'step': 1}]


def test_jsonl_broken_elsewhere_is_an_error_with_its_line(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  for bad in ('{"a": ', '[1]'):
    path.write_text('{"a": 1}\n' + bad + '\n{"a": 3}\n')
    with pytest.raises(InputError, match=r'metrics\.jsonl:2 is not valid JSON'):
      workdir.read_jsonl(path)


def test_jsonl_truncation_keeps_rows_in_one_rename(tmp_path, monkeypatch):
  path = tmp_path / 'metrics.jsonl'
  workdir.truncate_jsonl(path, lambda row: True)
  assert not path.exists()
  for step in range(5):
    workdir.append_jsonl(path, {'step': step})
  with open(path, 'a') as f:
    f.write('{"step": 5')
  with monkeypatch.context() as m:
    m.setattr(workdir.os, 'replace', lambda a, b: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      workdir.truncate_jsonl(path, lambda row: row['step'] <= 2)
  assert [r['step'] for r in workdir.read_jsonl(path)] == [0, 1, 2, 3, 4]
  workdir.truncate_jsonl(path, lambda row: row['step'] <= 2)
  assert path.read_text() == '{"step": 0}\n{"step": 1}\n{"step": 2}\n'
  assert os.listdir(tmp_path) == ['metrics.jsonl']


def test_lock_refuses_a_second_owner_and_names_the_first(tmp_path):
  folder = tmp_path / 'runs/a'
  with workdir.Lock(folder):
    with pytest.raises(InputError, match=rf'{folder} is in use by process {os.getpid()} on .* since 20\d\d-'):
      workdir.Lock(folder)
    with pytest.raises(InputError, match='in use'):  # the refused one has not let go of the owner's lock
      workdir.Lock(folder)
    workdir.Lock(tmp_path / 'runs/b').close()
  with workdir.Lock(folder):
    who = json.loads((folder / '.lock').read_text())
    assert who['pid'] == os.getpid()
    (folder / '.lock').write_text('')
    with pytest.raises(InputError, match='in use by another process'):
      workdir.Lock(folder)


def test_lock_is_released_when_its_process_is_killed(tmp_path):
  script = f"""
    import time
    from ftlib.io.workdir import Lock
    lock = Lock({str(tmp_path)!r})
    print('locked', flush=True)
    time.sleep(60)
  """
  env = os.environ | {'PYTHONPATH': str(ROOT)}
  with subprocess.Popen(
    [sys.executable, '-c', textwrap.dedent(script)], stdout=subprocess.PIPE, env=env, text=True
  ) as p:
    assert p.stdout.readline() == 'locked\n'
    with pytest.raises(InputError, match=f'in use by process {p.pid} on'):
      workdir.Lock(tmp_path)
    os.kill(p.pid, signal.SIGKILL)
    p.wait()
  workdir.Lock(tmp_path).close()


def test_a_folder_that_cannot_be_written_to_is_an_input_error(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(InputError, match='cannot write to run folder'):
    workdir.Lock(tmp_path / 'file')


def test_a_file_system_without_locks_costs_a_warning(tmp_path, monkeypatch, caplog):
  def unsupported(file, how):
    raise OSError(errno.ENOLCK, 'No locks available')

  monkeypatch.setattr(workdir.fcntl, 'flock', unsupported)
  workdir.Lock(tmp_path).close()
  assert 'cannot be locked' in caplog.text


def test_environment_names_versions_machine_and_source_but_no_secrets(tmp_path, monkeypatch):
  monkeypatch.setenv('HF_TOKEN', 'hf_verysecret')
  monkeypatch.setattr(sys, 'argv', ['train.py', '--config=x.py'])
  env = workdir.environment()
  workdir.write_json(tmp_path / 'env.json', env)
  assert 'verysecret' not in (tmp_path / 'env.json').read_text()
  assert {'ftlib', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'transformers', 'numpy', 'python'} <= set(
    env['versions']
  )
  assert all(isinstance(env['versions'][p], str) for p in ('ftlib', 'jax', 'orbax-checkpoint', 'python'))
  assert env['argv'] == ['train.py', '--config=x.py']
  assert set(env) - set(workdir.measured_on()) == {'host', 'argv'}
  assert env['devices']['backend'] == 'cpu'
  assert env['devices']['count'] >= 1


def test_git_state_is_that_of_the_sources_own_checkout(tmp_path):
  def git(*args):
    names = ['-c', 'user.name=a', '-c', 'user.email=a@b']
    subprocess.run(['git', '-C', str(tmp_path), *names, *args], check=True, capture_output=True)

  assert workdir.git_state(tmp_path) is None
  git('init')
  assert workdir.git_state(tmp_path) is None  # no commit yet
  (tmp_path / 'a').write_text('1')
  (tmp_path / 'site-packages').mkdir()
  git('add', 'a')
  git('commit', '-m', 'x')
  state = workdir.git_state(tmp_path)
  assert len(state['commit']) == 40
  assert state['dirty'] is False
  (tmp_path / 'a').write_text('2')
  assert workdir.git_state(tmp_path) == state | {'dirty': True}
  assert workdir.git_state(tmp_path / 'site-packages') is None  # installed inside somebody's repository
