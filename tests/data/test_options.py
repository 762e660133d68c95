"""The forms in which data have options and name the right one."""

from __future__ import annotations

import pytest

from ftlib.data import options

TEXTS = ['a cat', 'two dogs', '3', 'none']


@pytest.mark.parametrize(
  ('value', 'own'),
  [
    (TEXTS, []),
    ({'text': TEXTS, 'label': ['A', 'B', 'C', 'D']}, ['A', 'B', 'C', 'D']),
    ({'text': TEXTS}, []),
    ([{'text': t, 'label': i} for i, t in enumerate(TEXTS, 1)], ['1', '2', '3', '4']),
    ([{'text': t} for t in TEXTS], []),
  ],
)
def test_forms_of_a_column(value, own):
  assert options.read({'options': value}, ['options']) == (TEXTS, own)


def test_columns_of_which_the_last_may_be_empty():
  names = options.columns_of(' a, b,c ')
  assert names == ['a', 'b', 'c']
  assert options.read({'a': 'x', 'b': 'y', 'c': ' '}, names) == (['x', 'y'], [])
  with pytest.raises(ValueError, match='option 2 of 3 is empty'):
    options.read({'a': 'x', 'b': '', 'c': 'z'}, names)


@pytest.mark.parametrize(
  ('value', 'fault'),
  [
    (['one'], 'there is one option, where 2 or more'),
    ([], 'there are no options'),
    (['a', ' '], 'option 2 of 2 is empty'),
    (['a', 3], 'option 2 of 2 is 3'),
    ({'text': ['a', 'b'], 'label': ['A']}, 'not as many names as texts'),
    ({'label': ['A']}, 'not as many names as texts'),
  ],
)
def test_faults(value, fault):
  with pytest.raises(ValueError, match=fault):
    options.read({'options': value}, ['options'])


@pytest.mark.parametrize(
  ('label', 'form', 'want'),
  [
    (0, '', 0),
    ('2', '', 2),
    (2.0, '', 2),
    ('B', '', 1),
    ('d', '', 3),
    ('two dogs', '', 1),
    (' none ', '', 3),
    ('3', 'number', 2),
    (1, 'number', 0),
    ('3', 'text', 2),
    ('A', 'letter', 0),
    (3, 'index', 3),
  ],
)
def test_ways_to_name_the_right_one(label, form, want):
  assert options.place(label, TEXTS, form=form) == want


def test_a_name_of_its_own_comes_first():
  assert options.place('1', TEXTS, ['1', '2', '3', '4']) == 0
  assert options.place(4, TEXTS, ['1', '2', '3', '4']) == 3
  assert options.place('A', TEXTS, ['B', 'A', 'D', 'C']) == 1
  assert options.place('A', TEXTS, ['B', 'A', 'D', 'C'], form='letter') == 0


@pytest.mark.parametrize(
  ('label', 'form', 'fault'),
  [
    ('3', '', r'means several options, .*index option 4.* text option 3.*task.label_as='),
    (4, '', r'names none of the 4 options .*task.label_as=number'),
    ('E', '', 'names none of the 4 options'),
    ('a dog', '', 'names none'),
    (True, '', 'is the bool True'),
    (['A'], '', 'is the list'),
    ('a cat', 'index', 'names none'),
    (0, 'number', 'names none'),
  ],
)
def test_labels_that_name_none_or_several(label, form, fault):
  with pytest.raises(ValueError, match=fault):
    options.place(label, TEXTS, form=form)


def test_a_text_that_two_options_have():
  with pytest.raises(ValueError, match='the text of several options'):
    options.place('x', ['x', 'x', 'y'])
  assert options.place(1, ['x', 'x', 'y']) == 1


def test_names_of_places():
  assert options.names(3) == ['A', 'B', 'C']
  assert options.names(27)[25:] == ['26', '27']
