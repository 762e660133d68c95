"""The rows that docs/generation.md shows are read by configs/generate.py."""

from __future__ import annotations

import json
import pathlib
import re

import pytest

import ftlib
from ftlib import config_file, run
from tests import tiny

ROOT = pathlib.Path(ftlib.__file__).parent.parent
SHOWN = (ROOT / 'docs' / 'generation.md').read_text().partition('## The task `generate`')[2]
BLOCKS = [[json.loads(line) for line in b.splitlines()] for b in re.findall(r'```json\n(.*?)```', SHOWN, re.DOTALL)]


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  return tiny.llama_folder(tmp_path_factory.mktemp('llama'))


@pytest.mark.parametrize(
  ('train', 'validation', 'flags', 'answers'),
  [
    (0, 2, {}, [['Au revoir.', 'Adieu.'], ['Red.', 'Blue.', 'Yellow.'], ['Madrid.']]),
    (0, 0, {}, [['Red.'], ['Paris.'], ['Bonjour.', 'Salut.']]),
    (1, 1, {'task.form': 'instruction'}, [['guten Morgen'], ['Red.'], ['1, 2, 3']]),
  ],
)
def test_they_are_read(model, tmp_path, train, validation, flags, answers):
  for split, block in (('train', train), ('validation', validation)):
    (tmp_path / f'{split}.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in BLOCKS[block]))
  named = ',references=references' if not train else ''
  c = config_file.load(f'{ROOT}/configs/generate.py:data={tmp_path},model={model}{named}', [*flags.items()])
  c.train.max_length, c.mesh.shape, c.train.eval_batch_size, c.task.max_new_tokens = 120, 'data=1', 3, 8
  built = run.build(c)
  rows = built.dataset.splits['validation']
  assert [built.task.references(row) for row in rows] == answers
  assert built.task.question(rows[0]).startswith(BLOCKS[validation][0].get('prompt', 'Translate'))
