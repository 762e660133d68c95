"""Lists in the docs hold what the folders hold."""

import pathlib
import re

from ftlib.base import lookup
from ftlib.optim import schedules

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_every_method_has_a_row_in_the_docs():
  rows = [line for line in (ROOT / 'docs' / 'methods.md').read_text().splitlines() if line.startswith('| `')]
  named = [name for row in rows for name in re.findall(r'`(\w+)`', row.split('|')[1])]
  assert sorted(named) == sorted(lookup.names('peft'))


def named(title: str) -> list[str]:
  """The names in the first column of the table under a title of docs/optimizers.md."""
  text = (ROOT / 'docs' / 'optimizers.md').read_text().partition(f'\n## {title}\n')[2].partition('\n## ')[0]
  rows = [line for line in text.splitlines() if line.startswith('| `')]
  return sorted(name for row in rows for name in re.findall(r'`(\w+)`', row.split('|')[1]))


def test_every_optimizer_and_schedule_has_a_row_in_the_docs():
  assert named('All of them') == sorted(lookup.names('optim'))
  assert named('Schedules') == sorted(schedules.NAMES)


def test_the_readme_counts_what_there_is():
  [row] = re.findall(r'^\| BERT .*$', (ROOT / 'README.md').read_text(), re.M)
  counts = [int(re.match(r' (\d+)', cell)[1]) for cell in row.split('|')[2:5]]
  assert counts == [len(lookup.names(folder)) for folder in ('peft', 'optim', 'tasks')]
