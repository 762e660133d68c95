"""What tests of bad input share."""

import pytest

from ftlib.base.errors import InputError


def refused(call, *texts):
  """`call` raises an InputError that holds all of the texts."""
  with pytest.raises(InputError) as e:
    call()
  for text in texts:
    assert text in str(e.value)
  return str(e.value)
