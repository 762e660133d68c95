"""The folder is the registry: known names, unknown names, and code outside the package."""

from __future__ import annotations

import pathlib
import sys

import pytest

import ftlib
from ftlib.base import lookup
from ftlib.base.errors import InputError

PACKAGE = pathlib.Path(ftlib.__file__).parent
GOOD = """
import dataclasses

@dataclasses.dataclass(frozen=True)
class Config:
  rank: int = 1

def build(config):
  return config
"""


@pytest.fixture
def outside(tmp_path, monkeypatch):
  """Writes `my_lab_<n>/<name>.py` and gives its dotted name."""
  monkeypatch.syspath_prepend(tmp_path)
  package = f'my_lab_{tmp_path.name}'.replace('-', '_')
  (tmp_path / package).mkdir()

  def write(text: str, name: str = 'odd') -> str:
    (tmp_path / package / f'{name}.py').write_text(text)
    return f'{package}.{name}'

  yield write
  for name in [m for m in sys.modules if m.startswith(package)]:
    del sys.modules[name]


@pytest.mark.parametrize(
  ('folder', 'some', 'none'),
  [
    ('peft', {'lora', 'full', 'bitfit'}, 'method'),
    ('optim', {'adamw', 'sgd'}, 'chain'),
    ('models', {'bert', 'roberta', 'distilbert', 'ernie'}, 'model'),
    ('tasks', {'classify'}, 'task'),
    ('objectives', {'classification'}, '__init__'),
  ],
)
def test_names_are_the_files_with_config_and_build(folder, some, none):
  names = lookup.names(folder)
  assert some <= set(names)
  assert none not in names
  assert names == sorted(names)
  for name in names:
    module = lookup.component(folder, name, field='x.name')
    assert pathlib.Path(module.__file__) == PACKAGE / folder / f'{name}.py'
    assert callable(module.build)
    assert isinstance(module.Config, type)


def test_a_config_alone_makes_no_component():
  assert 'class Config' in (PACKAGE / 'data' / 'preparation.py').read_text()
  assert lookup.names('data') == []


def test_unknown_names_list_the_folder():
  with pytest.raises(InputError) as e:
    lookup.component('peft', 'lroa', field='method.name')
  text = str(e.value)
  assert "method.name='lroa'" in text
  assert 'did you mean "lora"' in text
  assert all(n in text for n in lookup.names('peft'))
  with pytest.raises(InputError, match=r'method\.name is empty.*lora'):
    lookup.component('peft', '', field='method.name')
  with pytest.raises(InputError):
    lookup.component('peft', 'method', field='method.name')  # a file of the folder, but no component


def test_names_cannot_leave_the_folder():
  for name in ('/etc/passwd', 'method', '__init__'):
    with pytest.raises(InputError):
      lookup.component('peft', name, field='method.name')
  for name in ('../optim/sgd', 'my_lab/x.py', '.lora', 'my_lab.', 'my lab.x'):
    with pytest.raises(InputError, match='is no name of a module'):
      lookup.component('peft', name, field='method.name')


def test_outside_modules(outside):
  module = lookup.component('peft', outside(GOOD), field='method.name')
  assert module.build(module.Config(rank=3)).rank == 3


@pytest.mark.parametrize(
  ('text', 'words'),
  [
    ('x = 1', 'lacks Config and build'),
    (GOOD.replace('def build', 'def make'), 'lacks build'),
    ('import no_such_thing_at_all', 'no_such_thing_at_all'),
    ('raise RuntimeError("oh no")', 'oh no'),
    ('def f(:', 'SyntaxError'),
    (GOOD.replace('rank: int = 1', 'rank: int'), 'rank'),
    (GOOD.replace('frozen=True', 'frozen=False'), 'frozen'),
  ],
  ids=['neither', 'no build', 'import', 'raises', 'syntax', 'no default', 'not frozen'],
)
def test_broken_outside_modules_are_the_users_to_mend(outside, text, words):
  name = outside(text)
  with pytest.raises(InputError) as e:
    lookup.component('peft', name, field='method.name')
  assert words in str(e.value)
  assert name in str(e.value)


def test_absent_outside_modules():
  with pytest.raises(InputError, match=r"(?s)optim\.name='no_such_lab\.odd'.*looked for on PYTHONPATH"):
    lookup.component('optim', 'no_such_lab.odd', field='optim.name')


def test_a_module_in_the_working_folder_is_found(tmp_path, monkeypatch):
  """As with `python train.py`, where sys.path starts with the folder of train.py."""
  (tmp_path / 'in_the_folder').mkdir()
  (tmp_path / 'in_the_folder' / 'mine.py').write_text(GOOD)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, 'path', [p for p in sys.path if p])
  module = lookup.component('peft', 'in_the_folder.mine', field='method.name')
  assert pathlib.Path(module.__file__).parent.parent == tmp_path
