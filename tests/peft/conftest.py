"""Quick compiles, and runs without the report: what is tested here is neither."""

from __future__ import annotations

import functools

import pytest

from ftlib import run
from ftlib.evals import report
from ftlib.train.compiled import Compiled
from tests.contract import runs


@pytest.fixture(scope='module', autouse=True)
def quick_compiles():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(run, 'Compiled', functools.partial(Compiled, compiler_options=runs.QUICK))
    patch.setattr(report, 'write', lambda where: where / 'report.html')
    yield
