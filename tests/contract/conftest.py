"""Short runs that tests share."""

from __future__ import annotations

import functools

import pytest

from tests.contract import runs


@pytest.fixture(scope='session')
def short(tiny_bert, toy_data):
  """`short(method='lora', model__layers='scan')`: three steps of that config, taken once a session."""
  return functools.cache(functools.partial(runs.take, tiny_bert, toy_data))


@pytest.fixture(scope='session')
def uneven_data(tmp_path_factory):
  """Rows of 3 to 22 tokens, most of them short."""
  return runs.uneven_folder(tmp_path_factory.mktemp('uneven'))
