"""The worked examples of CONTRIBUTING.md, run as they stand there."""

import json
import pathlib
import re
import sys

import jax
import numpy as np
import pytest

from ftlib import fine_tune, recipe
from ftlib.base import trees
from ftlib.base.types import Head
from ftlib.io import hf
from ftlib.models import bert
from tests import tiny

ROOT = pathlib.Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r'```python\n# (my_lab/(\w+)\.py)\n(.*?)```', (ROOT / 'CONTRIBUTING.md').read_text(), re.S)


@pytest.fixture(scope='module', autouse=True)
def my_lab(tmp_path_factory):
  """The blocks of the page as files of a package outside ftlib."""
  folder = tmp_path_factory.mktemp('outside')
  for path, _, text in BLOCKS:
    (folder / path).parent.mkdir(exist_ok=True)
    (folder / path).write_text(text)
  sys.path.insert(0, str(folder))
  yield folder
  sys.path.remove(str(folder))
  for name in [n for n in sys.modules if n.split('.')[0] == 'my_lab']:
    del sys.modules[name]


def test_the_page_shows_all_four():
  assert [name for _, name, _ in BLOCKS] == ['scale', 'sign', 'sandwich', 'first_sentence']


def test_a_method(config, tmp_path):
  metrics = fine_tune.run(config(method='my_lab.scale', train__steps=4), str(tmp_path / 'w'))
  summary = json.loads((tmp_path / 'w' / 'summary.json').read_text())
  assert summary['params_trainable'] == 2 * 2 * 32 + 2 * 32 + 2  # layers * sites * outputs, and the head
  assert 0 <= metrics['accuracy'] <= 1


def test_an_optimizer(config, tmp_path):
  fine_tune.run(config(optim='my_lab.sign', train__steps=4), str(tmp_path / 'w'))
  summary = json.loads((tmp_path / 'w' / 'summary.json').read_text())
  assert summary['opt_state_bytes'] == pytest.approx(4 * summary['params_trainable'], abs=64)


def test_a_model(my_lab, toy_data, tmp_path):
  from my_lab import sandwich

  folder = tiny.bert_folder(tmp_path / 'm')
  model = sandwich.build(bert.from_hf(tiny.CONFIG), head=Head('none'))
  flat = trees.flatten(model.initial(jax.random.key(0)))
  tensors = {name: np.asarray(model.to_hf(ours, flat[ours])) for ours, name in model.hf_names().items()}
  hf.save(folder, tensors, {**tiny.CONFIG, 'model_type': 'sandwich'})
  settings = {'model__family': 'my_lab.sandwich', 'train__steps': 4}
  fine_tune.run(tiny.config(folder, toy_data, method='norm', **settings), str(tmp_path / 'w'))
  summary = json.loads((tmp_path / 'w' / 'summary.json').read_text())
  assert summary['params_trainable'] == 2 * 32 * (1 + 3 * 2) + 2 * 32 + 2  # the new norms train with the others


def test_a_task(tiny_bert, toy_data, tmp_path):
  config = tiny.config(tiny_bert, toy_data, train__steps=4)
  config.task = recipe.component_section('task', 'my_lab.first_sentence')
  fine_tune.run(config, str(tmp_path / 'w'))
  assert (tmp_path / 'w' / 'eval' / 'validation.json').exists()
