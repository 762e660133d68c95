"""Raw text as training data: a line of a .txt is a row, as it is where rows are to be predicted."""

from __future__ import annotations

import gzip

import pytest

from ftlib import recipe, run
from ftlib.base.errors import InputError
from ftlib.data import preparation, sources
from ftlib.data.incoming import Incoming
from tests import tiny

TEXT = 'one\n\n  \ntwo \u2028 and\rmore\r\n three\n\n'
LINES = ['one', 'two \u2028 and\rmore', ' three']


def test_a_line_is_a_row(tmp_path):
  path = tmp_path / 'corpus.txt'
  path.write_bytes(TEXT.encode())
  rows = sources.read(str(path))
  assert [*rows] == [{'text': line} for line in LINES]
  assert [rows.where(i) for i in range(3)] == [f'{path}:{n}' for n in (1, 4, 5)]
  assert rows.passed == 3
  [asked] = Incoming(str(path), ['text']).pieces()
  assert [r['text'] for r in asked] == LINES
  (tmp_path / 'corpus.txt.gz').write_bytes(gzip.compress(TEXT.encode()))
  assert [*sources.read(f'{path}.gz')] == [*rows]


def test_blank_lines_are_counted(tmp_path):
  for split, text in (('train', TEXT), ('validation', 'four\n\n')):
    (tmp_path / f'{split}.txt').write_bytes(text.encode())
  (tmp_path / 'README.txt').write_text('of no split')
  found = preparation.load(preparation.Config(path=str(tmp_path)), texts=['text'])
  assert {n: len(rows) for n, rows in found.splits.items()} == {'train': 3, 'validation': 1}
  assert found.notes[:2] == [
    f'{tmp_path}/train.txt: 3 blank lines left out',
    f'{tmp_path}/validation.txt: 1 blank line left out',
  ]


def test_a_file_of_blank_lines_holds_nothing(tmp_path):
  (tmp_path / 'train.txt').write_text('\n \n')
  with pytest.raises(InputError, match='is empty'):
    sources.open_source(str(tmp_path))


def test_dialogues_may_have_a_text_beside_them(tmp_path):
  (tmp_path / 'a.yml').write_text('conversations:\n- - hello\n  - hi\n')
  (tmp_path / 'LICENSE.txt').write_text('free')
  assert len(sources.open_source(str(tmp_path)).splits['all']) == 1


@pytest.mark.parametrize('task', ['mask', 'lm'])
def test_language_tasks_read_raw_text(task, tiny_bert, tmp_path):
  path = tmp_path / 'corpus.txt'
  path.write_text(''.join(f'{row["text"]}\n\n' for row in tiny.rows(20, 0)))
  model = tiny_bert if task == 'mask' else tiny.llama_folder(tmp_path)
  c = recipe.recipe(task=task, method='full', optim='adamw')
  small = tiny.config(model, path)
  for section in ('model', 'data', 'train', 'mesh'):
    c[section] = small[section]
  built = run.build(c)
  assert {n: len(rows) for n, rows in built.dataset.splits.items()} == {'train': 16, 'validation': 2, 'test': 2}
  assert f'{path}: 20 blank lines left out' in built.notes
