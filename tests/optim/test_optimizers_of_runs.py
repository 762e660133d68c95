"""Optimizers that a run refuses, and what it says of one that is not for it; nothing is compiled."""

from __future__ import annotations

import pathlib

import pytest

import ftlib
from ftlib import config_file, run
from ftlib.base.errors import InputError

RECIPE = pathlib.Path(ftlib.__file__).parent.parent / 'configs' / 'optimizers.py'


@pytest.mark.parametrize(
  ('field', 'value', 'words'),
  [
    ('optim.name', 'adamv', ["'adamv' is no component", 'did you mean "adam']),
    ('optim.name', 'no_lab.opt', ['cannot be imported', 'no_lab']),
    ('optim.name', 'tests.tiny', ['lacks Config and build']),
    ('optim.learning_rate', '-1e-3', ['optim.learning_rate=-0.001 is out of range', 'above 0']),
    ('optim.learning_rate', 'nan', ['optim.learning_rate']),
    ('optim.groups.head.patern', '^head/', ['did you mean "pattern"?']),
    ('optim.schedule', 'cosin', ['did you mean "cosine"?']),
    ('optim.warmup', '1.5', ['optim.warmup=1.5 is out of range']),
  ],
)
def test_what_a_recipe_is_refused_with(field, value, words):
  with pytest.raises(InputError) as e:
    config_file.load(str(RECIPE), [(field, value)])
  assert all(w in str(e.value) for w in words), str(e.value)


@pytest.mark.parametrize('optim', ['lookahead', 'schedule_free_adamw'])
def test_averages_of_an_optimizer_and_methods_that_adjust(config, optim):
  """The frame of LoReFT is made orthonormal after each update; what the optimizer evaluates would not be."""
  with pytest.raises(InputError, match=rf'optim\.name={optim} with method\.name=loreft, which moves its parameters'):
    run.build(config(method='loreft', optim=optim))


def test_a_group_without_them_may_have_an_average(config):
  groups = {'head': {'pattern': '^head/', 'optimizer': 'schedule_free_sgd'}}
  assert run.build(config(method='loreft', optim__groups=groups)).adjust


def test_lbfgs_wants_the_same_rows_in_every_step(config):
  note = 'optim.name=lbfgs learns the curvature from how gradients change between steps'
  notes = lambda **values: run.build(config(method='head', optim='lbfgs', **values)).notes  # noqa: E731
  assert [n for n in notes() if n.startswith(note) and '(train.batch_size=16 of 96)' in n]
  assert not [n for n in notes(train__batch_size=96) if n.startswith(note)]
