"""Task, model family and objective that go together, and those that do not."""

from __future__ import annotations

import pytest

from ftlib import recipe, run
from ftlib.base.errors import InputError
from tests import tiny


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


@pytest.mark.parametrize(('family', 'asked'), [('bert', 'last'), ('llama', 'cls')])
def test_what_makes_no_sense_is_refused(folders, family, asked):
  with pytest.raises(InputError, match=r'set task\.pooling to'):
    run.build(tiny.config(folders[family], folders['data'], task__pooling=asked))


def test_an_objective_of_another_task_is_refused(folders):
  config = tiny.config(folders['bert'], folders['data'])
  config.objective = recipe.component_section('objective', 'regression')
  with pytest.raises(InputError, match=r'objective\.name=regression does not fit task.name=classify'):
    run.build(config)
