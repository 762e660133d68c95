"""Every command that a recipe's docstring or a page of the docs shows is read as it stands."""

import pathlib
import re
import shlex

import pytest

from ftlib import cli, config_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = [*sorted(ROOT.glob('configs/*.py')), ROOT / 'README.md', *sorted(ROOT.glob('docs/*.md'))]


def commands(path):
  """The arguments of each `train.py` and `eval.py` with a recipe on a page, those with placeholders left out."""
  text = re.sub(r'\\+\n\s*', ' ', path.read_text(encoding='utf-8'))
  for line in re.findall(r'^ *python (?:train|eval)\.py (--config=configs/.*)$', text, re.M):
    words = shlex.split(re.split(r'\s{2,}[#(]|\s#', line)[0])
    if not any(place in w for w in words for place in ('...', 'configs/x.py', 'configs/NAME', 'my_lab')):
      yield words


@pytest.mark.parametrize('path', PAGES, ids=lambda p: p.name)
def test_the_commands_of_a_page(path, monkeypatch):
  monkeypatch.chdir(ROOT)
  for words in commands(path):
    rest, changes = cli._separated(words)
    (config,) = [w.removeprefix('--config=') for w in rest if w.startswith('--config=')]
    config_file.load(config, changes)


def test_commands_are_found():
  assert sum(len(list(commands(p))) for p in PAGES) > 40
