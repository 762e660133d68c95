"""python -m ftlib.shapes on every kind of task, and on a model that is made from nothing: a step of them is traced."""

from __future__ import annotations

import json

import jax
import pytest

from ftlib import recipe, shapes
from ftlib.base import lookup
from ftlib.base.errors import InputError
from tests import tiny

TASKS = {  # task -> (its settings, documents of a row)
  'multilabel': ({}, 1),
  'tag': ({'scheme': 'bio', 'crf': True}, 1),
  'extract': ({}, 1),
  'relation': ({}, 1),
  'multiple_choice': ({'most': 4}, 4),
  'embed': ({}, 2),
  'retrieve': ({'negative': 'other'}, 3),
  'mask': ({}, 1),
}

HEADS = ('multilabel', 'tag', 'extract', 'relation', 'multiple_choice', 'several')  # that are parameters


def settings(c, name, **fields):
  module = lookup.component('tasks', name, field='task.name')
  c.task, c.objective = (recipe.component_section(s, n) for s, n in (('task', name), ('objective', module.OBJECTIVE)))
  c.train.max_length = 16
  c.method.also = c.method.also if name in HEADS else ''
  for field, value in fields.items():
    c.task[field] = value
  return recipe.read(c)


def step_of(found):
  """The shapes after a step are those before it."""
  after, sums = jax.eval_shape(found.step, found.state, found.frozen, found.batch)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), found.state)
  assert 'loss' in sums
  assert found.kept_bytes() > 0


@pytest.mark.parametrize('name', TASKS)
def test_a_step_of_every_task(config, tiny_bert, name):
  fields, documents = TASKS[name]
  values = json.loads((tiny_bert / 'config.json').read_text())
  found = shapes.of(settings(config(), name, **fields), values, classes=3)
  assert found.batch['tokens'].shape == (16, 16 * documents)
  assert found.task.head.documents in (1, documents)
  step_of(found)
  said = shapes.report(found)
  assert f'step  16 rows of {16 * documents} tokens' in said
  assert f'{name}, {found.task.about}' in said


def test_a_step_of_options_that_a_language_model_ranks(config, tmp_path):
  values = json.loads((tiny.llama_folder(tmp_path) / 'config.json').read_text())
  for fields, count in (({}, 5), ({'choices': 'bad=terrible|good=great', 'label': 'label', 'prompt': 'text'}, 2)):
    found = shapes.of(settings(config(), 'score', **fields), values, classes=5)
    assert found.batch['tokens'].shape == (16, 16 * count)
    assert found.batch['options'].shape == (16, count)
    step_of(found)


def test_several_tasks_are_asked_for_one_by_one(config, tiny_bert):
  values = json.loads((tiny_bert / 'config.json').read_text())
  with pytest.raises(InputError, match=r'task\.name=several: its heads follow from the data of its parts'):
    shapes.of(settings(config(), 'several', parts='a=classify'), values)


def test_a_model_that_is_made(config, toy_data):
  """All of it is new and trains, under every method, with the largest vocabulary; but for vectors of a file."""
  made = {'model__pretrained': '', 'model__family': 'bilstm', 'model__scratch__hidden': 6}
  made |= {'model__scratch__max_tokens': 50, 'train__max_length': 16, 'method': 'head'}
  s = recipe.read(config(**made))
  found = shapes.of(s, shapes.values(s))
  assert found.info['embed/token/table'].shape == (53, 128)
  assert found.train_info.keys() == found.info.keys()
  step_of(found)
  assert 'bilstm (1 layers, width 128)' in shapes.report(found)
  s = recipe.read(config(**made, model__scratch__vectors='glove.txt', model__scratch__embedding=5))
  found = shapes.of(s, shapes.values(s))
  assert found.info.keys() - found.train_info.keys() == {'embed/token/table'}
  for field, words in (
    ({'model__scratch__vectors': 'glove.txt'}, r'vectors: say how long they are'),
    ({'train__max_length': 0}, r'rows of any length; say how long'),
    ({'model__family': 'bert'}, 'none that starts from nothing'),
    ({'model__family': ''}, 'none that starts from nothing'),
  ):
    with pytest.raises(InputError, match=words):
      shapes.values(recipe.read(config(**made | field)))
