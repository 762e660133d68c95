"""Every recipe is read and says how it is run; one resolves with every method and optimizer; nothing is trained."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import pathlib
import re

import pytest

import ftlib
from ftlib import recipe, run
from ftlib.base import lookup
from ftlib.base.errors import InputError

CONFIGS = pathlib.Path(ftlib.__file__).parent.parent / 'configs'
FILES = sorted(p.name for p in CONFIGS.glob('*.py'))
ARGUMENTS = ('data', 'model', 'method', 'optim')
OUTSIDE = {'method': 'tests.outside.odd_lora', 'optim': 'tests.outside.odd_optim'}


def load(name: str):
  spec = importlib.util.spec_from_file_location(f'config_{name[:-3]}', CONFIGS / name)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_there_are_recipes():
  assert {'classify.py', 'quickstart.py'} <= set(FILES)


@pytest.mark.parametrize('name', FILES)
def test_its_docstring_holds_its_command(name):
  doc = inspect.getdoc(load(name))
  assert f'python train.py --config=configs/{name}' in doc
  assert set(re.findall(r'--config=configs/(\w+\.py)', doc)) == {name}
  assert '--workdir=runs/' in doc


@pytest.mark.parametrize('name', FILES)
@pytest.mark.parametrize('method', ['full', 'lora', 'prefix', 'sparse', OUTSIDE['method']])  # all: see below
def test_it_is_read_with_a_method(name, method):
  s = recipe.read(load(name).get_config(f'method={method},data=DATA,model=MODEL'))
  assert (s.names['method'], s.data.path, s.model.pretrained) == (method, 'DATA', 'MODEL')
  assert type(s.method) is lookup.component('peft', method, field='method.name').Config


@pytest.mark.parametrize('name', FILES)
@pytest.mark.parametrize('optim', ['sgd', 'muon', OUTSIDE['optim']])
def test_it_is_read_with_an_optimizer(name, optim):
  s = recipe.read(load(name).get_config(f'optim={optim}'))
  assert s.names['optim'] == optim


@pytest.mark.parametrize('name', FILES)
def test_its_defaults_are_whole(name):
  config = load(name).get_config('')
  s = recipe.read(config)
  assert s.seed == 0
  assert set(config) == {'seed', *recipe.PLAIN, *recipe.COMPONENTS}
  for section in recipe.PLAIN:  # every default is visible to a flag
    assert set(config[section]) == {f.name for f in dataclasses.fields(recipe.PLAIN[section])}


@pytest.mark.parametrize('name', FILES)
def test_it_takes_the_four_arguments_and_no_other(name):
  load(name).get_config(','.join(f'{a}={v}' for a, v in zip(ARGUMENTS, ('d', 'm', 'head', 'sgd'), strict=True)))
  with pytest.raises(InputError, match='did you mean "method"'):
    load(name).get_config('metod=lora')
  with pytest.raises(InputError, match='did you mean "lora"'):
    load(name).get_config('method=lroa')


def test_a_switch_is_yes_or_no():
  get = load('tag.py').get_config
  assert [get(f'crf={v}').task.crf for v in ('yes', 'no')] == [True, False]
  for value in ('true', 'Yes', '1', ''):
    with pytest.raises(InputError, match=f"crf is yes or no, not '{value}'"):
      get(f'crf={value}')


@pytest.fixture(scope='module')
def resolved(tiny_bert, toy_data):
  """configs/classify.py on the tiny model and the toy data."""

  def make(**arguments: str) -> run.Run:
    text = ','.join(f'{k}={v}' for k, v in {'data': toy_data, 'model': tiny_bert, **arguments}.items())
    return run.build(load('classify.py').get_config(text))

  return make


EVERY = {kind: (*lookup.names(folder), OUTSIDE[kind]) for kind, folder in (('method', 'peft'), ('optim', 'optim'))}
SHAPES = ('full', 'bitfit', 'lora')  # what an optimizer meets: all parameters, vectors alone, matrices of adapters


@pytest.mark.parametrize(
  ('method', 'optim'),
  [(m, o) for m in EVERY['method'] for o in EVERY['optim'] if o == 'adamw' or m in SHAPES],
)
def test_classify_resolves(resolved, method, optim):
  built = resolved(method=method, optim=optim)
  assert built.train_info
  assert {n for names in built.optimizer.members.values() for n in names} == set(built.train_info)
  assert built.steps == 6  # 2 epochs of 96 rows in batches of 32
  assert set(built.task.labels) == {'good', 'bad'}
  assert all(built.trains(n) for n in built.match.fresh)
