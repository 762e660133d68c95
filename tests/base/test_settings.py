"""Sections read back: every key, type and range is checked, and what is wrong is named."""

from __future__ import annotations

import dataclasses
import math

import pytest
from ml_collections import config_dict

from ftlib.base import settings
from ftlib.base.errors import InputError
from ftlib.base.settings import setting


@dataclasses.dataclass(frozen=True)
class Config:
  """One field of each kind."""

  rank: int = setting(8, low=1, high=64)
  rate: float = setting(0.1, low=0, below=1)
  scale: float = setting(1.0, above=0)
  free: float = 0.5
  kind: str = setting('linear', choices=('linear', 'cosine'))
  target: str = 'q|v'
  nesterov: bool = False
  steps: int | None = setting(None, low=1)
  decay: float | None = setting(None, low=0)
  sizes: tuple = (1, 2)
  groups: dict = dataclasses.field(default_factory=dict)


def read(**values):
  return settings.read(Config, values, where='method')


def refused(**values) -> str:
  with pytest.raises(InputError) as e:
    read(**values)
  assert f'method.{next(iter(values))}' in str(e.value)
  return str(e.value)


def test_defaults_survive_the_round_trip():
  section = settings.section(Config)
  assert set(section) == {f.name for f in dataclasses.fields(Config)}
  assert settings.read(Config, section, where='method') == Config()
  assert read() == Config()


def test_values_override_defaults():
  section = settings.section(Config, rank=16, scale=2, groups={'head': {'pattern': '^head/'}})
  assert isinstance(section.scale, float)  # so that a flag may set 2.5
  section.rate = 0
  got = settings.read(Config, section, where='method')
  assert (got.rank, got.scale, got.rate) == (16, 2.0, 0.0)
  assert isinstance(got.rate, float)
  assert type(got.groups) is dict
  assert got.groups == {'head': {'pattern': '^head/'}}
  assert type(got.groups['head']) is dict


def test_placeholders_can_be_filled_and_keep_their_type():
  section = settings.section(Config)
  assert section.steps is None
  section.steps = 5
  section.decay = 0.5
  got = settings.read(Config, section, where='method')
  assert (got.steps, got.decay) == (5, 0.5)
  with pytest.raises(TypeError):
    settings.section(Config).steps = 'five'


@pytest.mark.parametrize(
  'values',
  [
    {'rank': 1.5},
    {'rank': 8.0},
    {'rank': '8'},
    {'rank': True},
    {'rank': None},
    {'rate': '0.1'},
    {'rate': True},
    {'target': 3},
    {'target': None},
    {'nesterov': 1},
    {'nesterov': 'true'},
    {'steps': 2.0},
    {'steps': False},
    {'groups': 'head'},
  ],
  ids=str,
)
def test_types(values):
  text = refused(**values)
  assert 'wanted' in text


@pytest.mark.parametrize(
  ('values', 'words'),
  [
    ({'rank': 0}, 'at least 1'),
    ({'rank': 65}, 'at most 64'),
    ({'rate': -0.1}, 'at least 0'),
    ({'rate': 1.0}, 'below 1'),
    ({'scale': 0.0}, 'above 0'),
    ({'steps': 0}, 'at least 1'),
    ({'decay': -1.0}, 'at least 0'),
    ({'kind': 'cosin'}, 'did you mean "cosine"'),
    ({'kind': 'x'}, 'linear, cosine'),
  ],
)
def test_ranges(values, words):
  assert words in refused(**values)


@pytest.mark.parametrize('field', ['rate', 'scale', 'free', 'decay'])
@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_no_number_is_left_that_is_not_finite(field, value):
  refused(**{field: value})


@pytest.mark.parametrize('values', [{'rank': 1}, {'rank': 64}, {'rate': 0.0}, {'steps': None}, {'decay': 0.0}], ids=str)
def test_bounds_themselves_are_in_range(values):
  assert dataclasses.replace(Config(), **values) == read(**values)


def test_unknown_keys():
  text = refused(rnak=4)
  assert 'did you mean "rank"' in text
  assert 'target' in text  # the known ones are listed
  with pytest.raises(InputError, match='did you mean "rank"'):
    settings.section(Config, rnak=4)


def test_patterns_are_strings_and_a_tuple_is_refused():
  """ConfigDict takes `--config.method.target=q,k` on a tuple of strings as `('q,k',)` without a word."""
  section = config_dict.ConfigDict({'target': ('q',)})
  with pytest.raises(InputError, match=r'method\.target.*tuple; wanted str'):
    settings.read(Config, section, where='method')
  refused(target=['q', 'k'])


def test_lists_become_tuples():
  assert read(sizes=[3, 4]).sizes == (3, 4)


def test_fields_checked_together_are_named_too():
  @dataclasses.dataclass(frozen=True)
  class Pair:
    low: int = 1
    high: int = 2

    def __post_init__(self):
      if self.low > self.high:
        raise ValueError('low is above high')

  with pytest.raises(InputError, match='task: low is above high'):
    settings.read(Pair, {'low': 3}, where='task')


@pytest.mark.parametrize(
  ('key', 'text', 'value'),
  [
    ('rank', '16', 16),
    ('rate', '0', 0.0),
    ('rate', '1e-3', 1e-3),
    ('kind', 'cosine', 'cosine'),
    ('target', 'q,k', 'q,k'),
    ('target', '8', '8'),
    ('nesterov', 'true', True),
    ('nesterov', None, True),
    ('nesterov', 'no', False),
    ('steps', 'none', None),
    ('steps', '7', 7),
    ('decay', '0.5', 0.5),
    ('groups', "{'head': {'learning_rate': 0.1}}", {'head': {'learning_rate': 0.1}}),
  ],
)
def test_command_line_texts(key, text, value):
  got = settings.from_text(Config, key, text, where='method')
  assert (got, type(got)) == (value, type(value))


@pytest.mark.parametrize(
  ('key', 'text'),
  [('rank', '8.5'), ('rank', 'x'), ('rank', None), ('rank', 'none'), ('nesterov', '2'), ('rate', ''), ('groups', '3')],
)
def test_command_line_texts_of_another_type(key, text):
  with pytest.raises(InputError, match=rf'method\.{key}'):
    settings.from_text(Config, key, text, where='method')
