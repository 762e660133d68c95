"""Scores as labels: what is read, what is refused with file and line, and that rows are dealt out at random."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ftlib.base.errors import InputError
from ftlib.data.labels import CHECKS, Columns
from ftlib.data.preparation import Config, load
from ftlib.data.sources import Rows


def written(path: Path, scores: list) -> str:
  lines = [json.dumps({'text': f't{i}', **({} if s is ... else {'score': s})}) for i, s in enumerate(scores)]
  path.write_text('\n'.join(lines) + '\n')
  return str(path)


def prepared(path: str, **settings):
  return load(Config(path=path, **settings), **Columns(['text'], 'score', 'score')._asdict())


def by_text(data) -> dict[str, float]:
  return {row['text']: row['score'] for rows in data.splits.values() for row in rows}


def test_numbers_are_floats_whatever_they_were(tmp_path):
  data = prepared(written(tmp_path / 'a.jsonl', [1, 2.5, '3', ' -4e-1 ', 0, '.5', 10**6] * 3))
  got = by_text(data)
  assert [got[f't{i}'] for i in range(7)] == [1.0, 2.5, 3.0, -0.4, 0.0, 0.5, 1e6]
  assert all(type(v) is float for v in got.values())


def test_a_csv_has_scores(tmp_path):
  (tmp_path / 'a.csv').write_text('text,score\n' + ''.join(f't{i},{i / 4}\n' for i in range(20)))
  assert by_text(prepared(str(tmp_path / 'a.csv'))) == {f't{i}': i / 4 for i in range(20)}


@pytest.mark.parametrize(
  ('score', 'words'),
  [
    ('high', "the str 'high', but a score is a finite number"),
    ('nan', "the str 'nan', but a score"),
    ('inf', "the str 'inf'"),
    ('1_000', "the str '1_000'"),
    ('3,5', "the str '3,5'"),
    ('٣', "the str '٣'"),
    (True, 'the bool True'),
    ([1.0], r'the list [1.0]'),
    (float('inf'), 'a.jsonl:3'),
    (1e39, 'the float 1e+39'),
    (float('nan'), 'a.jsonl:3'),
    (None, '"score" is null'),
    (..., '"score" is missing'),
    ('', '"score" is empty'),
  ],
)
def test_what_is_no_score_is_refused_with_its_line(tmp_path, score, words):
  path = written(tmp_path / 'a.jsonl', [1.0, 2.0, score, *[3.0] * 9])
  with pytest.raises(InputError) as e:
    prepared(path)
  assert 'a.jsonl:3' in str(e.value)
  assert words in str(e.value)


def test_missing_scores_are_skipped_where_the_user_says_so(tmp_path):
  path = written(tmp_path / 'a.jsonl', [*[i / 10 for i in range(40)], None])
  data = prepared(path, on_bad_row='skip')
  assert len(by_text(data)) == 40
  assert any('1 of 41 rows skipped' in note for note in data.notes)


def test_every_split_has_its_share_though_each_score_is_of_its_own(tmp_path):
  data = prepared(written(tmp_path / 'a.jsonl', [i / 7 for i in range(200)]), split='0.7,0.2,0.1')
  assert {n: len(rows) for n, rows in data.splits.items()} == {'train': 140, 'validation': 40, 'test': 20}
  assert len(prepared(written(tmp_path / 'b.jsonl', [i / 7 for i in range(200)]), limit=50).splits['train']) == 50


@pytest.mark.parametrize(('kind', 'one', 'other'), [('labels', 'Joy', 'joy '), ('tags', 'B-PER', 'B-Per')])
def test_labels_of_lists_that_differ_in_case_or_spaces_are_noted(kind, one, other):
  def noted(*lists):
    rows, notes = Rows([{'own': v} for v in lists], 'train', 'a.jsonl', range(1, len(lists) + 1)), []
    CHECKS[kind]({'train': rows}, 'own', notes)
    return notes

  assert noted([one], [one, other]) == [
    f'labels: {one!r}, {other!r} differ in case or spaces alone, and are classes of their own'
  ]
  assert noted([one, 'x'], ['x']) == noted([1, 2], [2]) == []
