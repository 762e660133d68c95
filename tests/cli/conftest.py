"""Programs in process, one trained run, and what a refusal must be: one screen, and nothing written."""

import hashlib
import importlib.util
import json
import pathlib
import shutil
import sys
import types

import pytest
from absl import flags

from ftlib import cli, fine_tune
from ftlib.base.errors import InputError
from ftlib.evals import report
from tests import tiny

ROOT = pathlib.Path(__file__).resolve().parents[2]


def contents(folder):
  """{path: digest and time of change} of everything in a folder; None where there is none."""
  if not folder.exists():
    return None
  found = {}
  for path in sorted(folder.rglob('*')):
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ''
    found[str(path.relative_to(folder))] = (digest, path.stat().st_mtime_ns)
  return found


def one_screen(text):
  lines = text.splitlines()
  assert len(lines) <= 40, text
  assert max(len(line) for line in lines) <= 400, text
  assert 'Traceback' not in text


@pytest.fixture(scope='package', autouse=True)
def no_report():
  """Its plots take longer than the runs here, and have tests of their own."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(report, 'write', lambda where: where / 'report.html')
    yield


@pytest.fixture
def workdir(tmp_path):
  return tmp_path / 'run'


@pytest.fixture
def refused(workdir):
  """`refused(config, *words)`: train.py's work ends in an `InputError` with these words, and the folder stays so."""

  def check(config, *words, call=None):
    before = contents(workdir)
    with pytest.raises(InputError) as e:
      call() if call else fine_tune.run(config, str(workdir))
    text = str(e.value)
    missing = [w for w in words if w not in text]
    assert not missing, f'{missing} not in:\n{text}'
    one_screen(text)
    assert contents(workdir) == before
    return text

  return check


@pytest.fixture(scope='package')
def trained(no_report, tmp_path_factory, tiny_bert, toy_data):
  """A run of four steps with checkpoints 2 and 4: `folder`, `config(**changes)`. Copy it before you change it."""
  folder = tmp_path_factory.mktemp('trained') / 'run'
  values = {'train__steps': 4, 'train__eval_every': 2, 'checkpoint__keep_last': 2}
  make = lambda **more: tiny.config(tiny_bert, toy_data, **{**values, **more})  # noqa: E731
  fine_tune.run(make(), folder)
  return types.SimpleNamespace(folder=folder, config=make)


@pytest.fixture(scope='package')
def full(trained):
  """A run of method=full on the same base, with checkpoints 1 and 2. Copy it before you change it."""
  folder = trained.folder.with_name('full')
  fine_tune.run(trained.config(method='full', train__steps=2, train__eval_every=1, optim__learning_rate=1e-3), folder)
  return folder


@pytest.fixture
def copied(trained, workdir):
  """`workdir`, holding a copy of the trained run."""
  shutil.copytree(trained.folder, workdir)
  return workdir


@pytest.fixture
def data(tmp_path):
  """`data(train=[rows], test='text')`: a folder of JSON lines; the splits not given are the toy data's."""

  def make(**splits):
    folder = tmp_path / 'data'
    folder.mkdir()
    tiny.data_folder(folder)
    for name, rows in splits.items():
      text = rows if isinstance(rows, str | bytes) else ''.join(json.dumps(r) + '\n' for r in rows)
      (folder / f'{name}.jsonl').write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder

  return make


@pytest.fixture
def model(tmp_path, tiny_bert):
  """A copy of the tiny model, to be damaged."""
  return pathlib.Path(shutil.copytree(tiny_bert, tmp_path / 'model'))


@pytest.fixture
def program(capfd, monkeypatch):
  """`program('train.py', '--flag')`: (exit status, stdout, stderr) of an entry point, in this process."""

  def run(name, *argv):
    of_programs = [own for definer, own in flags.FLAGS.flags_by_module_dict().items() if 'program_' in definer]
    for flag in {'config', 'traceback', *(flag.name for own in of_programs for flag in own)} & {*flags.FLAGS}:
      delattr(flags.FLAGS, flag)
    flags.FLAGS.unparse_flags()
    spec = importlib.util.spec_from_file_location(f'program_{pathlib.Path(name).stem}', ROOT / name)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where absl looks for the definer of a flag
    spec.loader.exec_module(module)
    capfd.readouterr()
    status = cli.run(module.main, [name, *argv])
    return types.SimpleNamespace(status=status, **dict(zip(('out', 'err'), capfd.readouterr())))

  return run
