"""A program of ftlib asks malloc for huge pages, by starting itself anew, and only where that can help."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

PAGES = pathlib.Path('/sys/kernel/mm/transparent_hugepage/enabled')
PROGRAM = """
import os, sys
from ftlib import cli
print('start', os.environ.get('GLIBC_TUNABLES', ''), *sys.argv[1:], flush=True)
cli.huge_pages()
print('end', os.getpid())
"""


def started(tmp_path, **env: str) -> list[str]:
  program = tmp_path / 'program.py'
  program.write_text(PROGRAM)
  rest = {k: v for k, v in os.environ.items() if k != 'GLIBC_TUNABLES'}
  done = subprocess.run(
    [sys.executable, '-W', 'error', program, 'a b', '--c'], env={**rest, **env}, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  return done.stdout.splitlines()


@pytest.mark.skipif(not PAGES.is_file() or '[madvise]' not in PAGES.read_text(), reason='needs THP given on request')
def test_it_starts_itself_anew_once_with_its_arguments(tmp_path):
  first, second, end = started(tmp_path)
  assert first == 'start  a b --c'
  assert second == 'start glibc.malloc.hugetlb=1 a b --c'
  assert end.startswith('end ')


def test_a_setting_of_the_users_stays(tmp_path):
  first, end = started(tmp_path, GLIBC_TUNABLES='glibc.malloc.arena_max=2')
  assert first == 'start glibc.malloc.arena_max=2 a b --c'
  assert end.startswith('end ')
