"""Quick compiles, and short runs that tests share."""

from __future__ import annotations

import functools

import jax
import pytest

from ftlib import run
from ftlib.train.compiled import Compiled
from tests.contract import runs


@pytest.fixture(scope='module', autouse=True)  # not the session: other folders compile as users do
def quick_compiles():
  """XLA's own loops, unoptimised: what is compared here is two programs of the same arithmetic, and a compile takes a
  quarter of the time."""
  try:
    jax.jit(lambda: 0, compiler_options=runs.QUICK)()
  except jax.errors.JaxRuntimeError:  # another version of XLA, without one of the options
    runs.QUICK.clear()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(run, 'Compiled', functools.partial(Compiled, compiler_options=runs.QUICK))
    yield


@pytest.fixture(scope='session')
def short(tiny_bert, toy_data):
  """`short(method='lora', model__layers='scan')`: three steps of that config, taken once a session."""
  return functools.cache(functools.partial(runs.take, tiny_bert, toy_data))


@pytest.fixture(scope='session')
def uneven_data(tmp_path_factory):
  """Rows of 3 to 22 tokens, most of them short."""
  return runs.uneven_folder(tmp_path_factory.mktemp('uneven'))
