"""Lists in the docs hold what the folders hold."""

import pathlib
import re

from ftlib.base import lookup

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_every_method_has_a_row_in_the_docs():
  rows = [line for line in (ROOT / 'docs' / 'methods.md').read_text().splitlines() if line.startswith('| `')]
  named = [name for row in rows for name in re.findall(r'`(\w+)`', row.split('|')[1])]
  assert sorted(named) == sorted(lookup.names('peft'))
