"""Runs without the report, which is not what is tested here."""

from __future__ import annotations

import pytest

from ftlib.evals import report


@pytest.fixture(scope='module', autouse=True)
def no_report():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(report, 'write', lambda where: where / 'report.html')
    yield
