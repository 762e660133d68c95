"""Optimizers that a run refuses, and what it says of one that is not for it, what it evaluates; nothing is trained."""

from __future__ import annotations

import dataclasses
import pathlib

import jax
import numpy as np
import pytest

import ftlib
from ftlib import config_file, run
from ftlib.base import trees
from ftlib.base.errors import InputError
from tests import tiny

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


def test_what_is_evaluated_is_what_the_optimizer_averages(config):
  """The trained y moved by 1 from the sequence z of the state: x = (y - 0.1 z) / 0.9 = y + 1/9."""
  r = run.build(config(method='head', optim='schedule_free_sgd'))
  state = r.start(*r.load())
  state = dataclasses.replace(state, trainable=jax.tree.map(lambda x: x + 1, state.trainable))
  trained, evaluated = trees.flatten(state.trainable), trees.flatten(r.evaluated(state))
  assert set(evaluated) == set(trained)
  for name, y in trained.items():
    np.testing.assert_allclose(evaluated[name], y + 1 / 9, rtol=1e-5, err_msg=name)


def test_lbfgs_wants_the_same_loss_in_every_step(config):
  start = 'optim.name=lbfgs learns the curvature from how gradients change between steps, and '
  still = {'model__dropout': 0.0, 'model__attention_dropout': 0.0}

  def reasons(**values):
    notes = run.build(config(method='head', optim='lbfgs', optim__clip_norm=0.0, **values)).notes
    return [n.removeprefix(start) for n in notes if n.startswith(start)]

  assert reasons(train__batch_size=96, **still) == []
  assert [r[:63] for r in reasons(**still)] == ['these have other rows each time (train.batch_size=16 of 96): it']
  assert [r[:40] for r in reasons(train__batch_size=96)] == ['the model drops up to 0.1 of its numbers']


def test_dropout_can_be_set(config):
  arch = lambda **values: run.build(config(**values)).method.model.config  # noqa: E731
  plain, changed = arch(), arch(model__dropout=0.3, model__attention_dropout=0.0)
  assert (plain.dropout, plain.head_dropout, plain.attention_dropout) == (0.1, 0.1, 0.1)
  assert (changed.dropout, changed.head_dropout, changed.attention_dropout) == (0.3, 0.3, 0.0)
  with pytest.raises(InputError, match=r'model\.dropout=1\.0 is out of range'):
    arch(model__dropout=1.0)


def test_dropout_of_attention_needs_attention(toy_data):
  with pytest.raises(InputError, match=r'model\.attention_dropout=0\.2: the model has no such dropout'):
    run.build(tiny.config('', toy_data, method='full', model__family='bilstm', model__attention_dropout=0.2))


@pytest.mark.parametrize(
  ('arguments', 'rate'),
  [
    ('method=full', 5e-5),
    ('method=full,optim=lion', 5e-5),
    ('method=lora', 1e-3),
    ('method=full,optim=sgd', 5e-4),
    ('method=lora,optim=sgd', 1e-2),
    ('method=full,optim=prodigy', 1.0),
    ('method=head,optim=lbfgs', 1.0),
  ],
)
def test_rates_of_recipes_suit_the_optimizer(arguments, rate):
  assert config_file.load(f'{RECIPE.parent / "classify.py"}:data=x,{arguments}').optim.learning_rate == rate


def test_a_schedule_that_an_optimizer_brings_stays():
  found = {n: config_file.load(f'{RECIPE}:data=x,optim={n}') for n in ('adamw', 'lbfgs', 'schedule_free_adamw')}
  assert {n: c.optim.warmup for n, c in found.items()} == {'adamw': 0.1, 'lbfgs': 0.0, 'schedule_free_adamw': 0.06}
  assert [n for n, c in found.items() if 'schedule' in c.optim.groups['head']] == ['adamw']


def test_moments_that_nothing_is_kept_in_are_told(config):
  notes = lambda **values: run.build(config(method='head', optim__moments='bfloat16', **values)).notes  # noqa: E731
  assert 'optim.moments=bfloat16 changes nothing of optim.name=adagrad: it keeps no first moment' in notes(
    optim='adagrad'
  )
  assert not [n for n in notes() if 'moments' in n]
