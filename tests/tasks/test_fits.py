"""Task, model family and objective that go together, and those that do not."""

from __future__ import annotations

import json
import shutil

import pytest

from ftlib import export, fine_tune, folder, recipe, run
from ftlib.base.errors import InputError
from tests import tiny
from tests.refusal import refused


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  make = lambda name: getattr(tiny, f'{name}_folder')(tmp_path_factory.mktemp(name))  # noqa: E731
  return {'bert': make('bert'), 'llama': make('llama'), 'data': tiny.data_folder(tmp_path_factory.mktemp('data'))}


@pytest.mark.parametrize(
  ('family', 'asked', 'pooling'),
  [('bert', '', 'cls'), ('llama', '', 'last'), ('bert', 'mean', 'mean'), ('llama', 'mean', 'mean')],
)
def test_the_family_says_it(folders, family, asked, pooling):
  r = run.build(tiny.config(folders[family], folders['data'], task__pooling=asked))
  assert r.task.head.pooling == r.method.model.trunk.wanted.pooling == pooling


@pytest.mark.parametrize(
  ('said', 'asked', 'pooling'),
  [
    ({'pooling_mode_mean_tokens': True, 'pooling_mode_cls_token': False}, '', 'mean'),
    ({'pooling_mode_max_tokens': True}, '', 'max'),
    ({'pooling_mode_mean_tokens': True}, 'cls', 'cls'),
    ({'pooling_mode_mean_tokens': True, 'pooling_mode_max_tokens': True}, '', 'cls'),
    ({'pooling_mode_weightedmean_tokens': True}, '', 'cls'),
    ([], '', 'cls'),
  ],
)
def test_a_folder_of_sentence_transformers_says_it(folders, tmp_path, said, asked, pooling):
  path = shutil.copytree(folders['bert'], tmp_path / 'model')
  (path / '1_Pooling').mkdir()
  (path / '1_Pooling' / 'config.json').write_text(json.dumps(said))
  r = run.build(tiny.config(path, folders['data'], task__pooling=asked))
  assert r.task.head.pooling == pooling
  assert any(n.startswith('pooler/') for n in r.info)  # which an export has whatever the head reads


def test_what_a_folder_says_has_to_be_json(folders, tmp_path):
  path = shutil.copytree(folders['bert'], tmp_path / 'model')
  (path / '1_Pooling').mkdir()
  (path / '1_Pooling' / 'config.json').write_text('{')
  refused(lambda: run.build(tiny.config(path, folders['data'])), '1_Pooling/config.json is not JSON')


def test_what_a_task_does_not_take_is_the_familys(folders):
  section = recipe.component_section('task', 'extract')
  config = tiny.config(folders['bert'], folders['data'])
  config.task, config.objective = section, recipe.component_section('objective', 'span')
  for usual in ('cls', 'mean'):
    assert recipe.pooled(recipe.read(config), usual, 'mean').task.pooling == 'cls'


def test_a_run_is_read_as_it_was_trained(folders, tmp_path):
  said = shutil.copytree(folders['bert'], tmp_path / 'model') / '1_Pooling'
  said.mkdir()
  (said / 'config.json').write_text(json.dumps({'pooling_mode_mean_tokens': True}))
  config, workdir = tiny.config(said.parent, folders['data'], train__steps=1), tmp_path / 'w'
  fine_tune.run(config, str(workdir))
  export.export(workdir, tmp_path / 'out')
  assert run.build(tiny.config(tmp_path / 'out', folders['data'])).task.head.pooling == 'mean'
  fine_tune.run(config, str(workdir))  # nothing has changed, and nothing is left to do
  shutil.rmtree(said)  # the usual one is another now
  assert run.build(config).task.head.pooling == 'cls'
  assert run.build(folder.stored(workdir)[0]).task.head.pooling == 'mean'
  refused(lambda: fine_tune.run(config, str(workdir)), 'belongs to another run', 'task.pooling: mean -> cls')


@pytest.mark.parametrize(('family', 'asked'), [('bert', 'last'), ('llama', 'cls')])
def test_what_makes_no_sense_is_refused(folders, family, asked):
  with pytest.raises(InputError, match=r'set task\.pooling to'):
    run.build(tiny.config(folders[family], folders['data'], task__pooling=asked))


def test_an_objective_of_another_task_is_refused(folders):
  config = tiny.config(folders['bert'], folders['data'])
  config.objective = recipe.component_section('objective', 'regression')
  with pytest.raises(InputError, match=r'objective\.name=regression does not fit task.name=classify'):
    run.build(config)
