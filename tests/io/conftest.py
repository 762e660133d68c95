"""Folders of checkpoints to break."""

import os
import shutil
from pathlib import Path

os.environ.setdefault('XLA_FLAGS', '--xla_force_host_platform_device_count=8')  # for this folder run alone

import pytest
from checkpoint_states import make_state

from ftlib.io.checkpoint import Checkpoints


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A folder with the steps 10 and 20, not to be written to."""
  folder = tmp_path_factory.mktemp('saved') / 'checkpoints'
  with Checkpoints(folder, keep_last=2) as c:
    c.save(10, make_state(10), {'seed': 10})
    c.save(20, make_state(20), {'seed': 20})
  return folder


@pytest.fixture
def folder(saved, tmp_path):
  """A copy of it to break."""
  return Path(shutil.copytree(saved, tmp_path / 'checkpoints'))
