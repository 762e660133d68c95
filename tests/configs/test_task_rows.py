"""Every task has a section in docs/tasks.md, and its recipe reads the rows that stand there, by the settings that the
paragraph in front of them names."""

from __future__ import annotations

import pathlib
import re
import shlex

import pytest

import ftlib
from ftlib import config_file, recipe
from ftlib.base import lookup
from ftlib.data import preparation, tokens
from ftlib.data.labels import Columns
from tests import tiny

ROOT = pathlib.Path(ftlib.__file__).parent.parent
TEXT = (ROOT / 'docs' / 'tasks.md').read_text()
SECTIONS = dict(re.findall(r'^## (\w+)\n(.*?)(?=^## |\Z)', TEXT, re.DOTALL | re.MULTILINE))
SHOWN = re.compile(r'((?:[^\n]+\n)+)\n```json\n(.*?)```', re.DOTALL)


def named(paragraph):
  """[(field, value)] of the task's settings in a paragraph, as flags are written."""
  words = [word for code in re.findall('`([^`]+)`', paragraph) for word in shlex.split(code)]
  found = (word.removeprefix('--config.').partition('=') for word in words)
  return [(field, value) for field, equals, value in found if equals and field.startswith('task.')]


BLOCKS = [(name, named(before), rows) for name, text in SECTIONS.items() for before, rows in SHOWN.findall(text)]


@pytest.fixture(scope='module')
def tokenizers(tiny_bert, tmp_path_factory):
  """{whether it is of a language model: tokenizer}."""
  chat = tiny.chat_tokenizer(tmp_path_factory.mktemp('chat'), size=320)
  return {False: tokens.load(tiny_bert), True: tokens.load(chat)}


def test_every_task_has_a_section_with_rows():
  assert {*lookup.names('tasks')} <= SECTIONS.keys()
  assert {name for name, _, _ in BLOCKS} == {*lookup.names('tasks')} - {'several'}  # whose parts have rows of theirs
  assert len(BLOCKS) == TEXT.count('```json')


@pytest.mark.parametrize(('name', 'flags', 'rows'), BLOCKS, ids=[f'{name}-{i}' for i, (name, *_) in enumerate(BLOCKS)])
def test_rows_are_read(tokenizers, tmp_path, name, flags, rows):
  for split in ('train', 'validation'):
    (tmp_path / f'{split}.jsonl').write_text(rows)
  s = recipe.read(config_file.load(f'{ROOT}/configs/{name}.py:data={tmp_path}', flags))
  module = s.modules['task']
  train = preparation.load(s.data, **Columns(*module.columns(s.task))._asdict()).splits['train']
  assert len(train) == len(rows.splitlines())
  task = module.build(s.task, train=train, known=None)
  found = task.examples(train, tokenizers[task.head.kind == 'lm'], limit=128)
  assert len(found) == len(train)
