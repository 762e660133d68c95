"""Conversations of a chatterbot corpus: YAML files with a list `conversations`, each a list of texts said by turns."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from ftlib.base.errors import InputError

SUFFIXES = ('.yml', '.yaml')


def files(folder: Path) -> list[Path]:
  """The YAML files of a folder."""
  return sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES)


def read(found: list[Path], shown: str) -> tuple[list[dict], str]:
  """Rows `{'turns': [text], 'first': what is said first, 'category': file}` and a hash of the content."""
  rows, content = [], hashlib.sha256()
  for file in found:
    content.update(file.name.encode() + file.read_bytes())
    for turns in _conversations(file, f'{shown}/{file.name}'):
      rows.append({'turns': turns, 'first': turns[0], 'category': file.stem})
  return rows, content.hexdigest()


def _conversations(file: Path, shown: str) -> Iterator[list[str]]:
  import yaml

  try:
    root = yaml.compose(file.read_text(encoding='utf-8'), Loader=yaml.SafeLoader)
  except (yaml.YAMLError, UnicodeDecodeError) as e:
    raise InputError(f'{shown}: not valid YAML: {" ".join(str(e).split())[:200]}') from e
  fields = {k.value: v for k, v in root.value} if isinstance(root, yaml.MappingNode) else {}
  if not isinstance(fields.get('conversations'), yaml.SequenceNode):
    raise InputError(f'{shown}: holds no list "conversations"; a corpus of dialogues has one in every file')
  for node in fields['conversations'].value:
    turns = node.value if isinstance(node, yaml.SequenceNode) else [node]  # a text alone: nothing answers it
    if not turns or not all(isinstance(turn, yaml.ScalarNode) for turn in turns):
      raise InputError(f'{shown}:{node.start_mark.line + 1}: a conversation is a list of texts, at least one')
    yield [turn.value.strip() for turn in turns]
