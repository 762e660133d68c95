"""What users' files hold: each is read right, or refused with the file and the line, by the path the user gave."""

from __future__ import annotations

import gzip
import json
import os
import pathlib

import numpy as np
import pytest

from ftlib.base.errors import InputError
from ftlib.data import preparation, tokens
from ftlib.data.sources import open_source, read
from ftlib.tasks import classify
from tests import tiny

FOUR = [{'text': f'{w} film', 'label': l} for w, l in (('good', 'a'), ('bad', 'b'), ('fine', 'a'), ('dull', 'b'))]


def lines(rows: list[dict], end: str = '\n') -> str:
  return ''.join(json.dumps(r, ensure_ascii=False) + end for r in rows)


def folder(where: pathlib.Path, train: bytes | str, name: str = 'train.jsonl') -> str:
  """A folder with a training file, and a validation file that is in order."""
  where.mkdir(exist_ok=True)
  (where / name).write_bytes(train.encode() if isinstance(train, str) else train)
  (where / 'validation.jsonl').write_text(lines(FOUR))
  return str(where)


def prepared(path: str, **settings) -> preparation.Dataset:
  return preparation.load(preparation.Config(path=path, **settings), texts=('text',), label='label')


def failure(path: str) -> str:
  with pytest.raises(InputError) as caught:
    prepared(path)
  return str(caught.value)


# --- files that are read right

CSV = 'text,label\n' + ''.join(f'{r["text"]},{r["label"]}\n' for r in FOUR)
FILES = {
  'BOM': ('train.jsonl', '\ufeff' + lines(FOUR)),
  'BOM in csv': ('train.csv', '\ufeff' + CSV),
  'BOM before a quoted header': ('train.csv', '\ufeff' + CSV.replace('text,', '"text",')),
  'BOM, packed': ('train.jsonl.gz', gzip.compress(('\ufeff' + lines(FOUR)).encode())),
  'CRLF': ('train.jsonl', lines(FOUR, '\r\n')),
  'CRLF in csv': ('train.csv', CSV.replace('\n', '\r\n')),
  'BOM and CRLF in tsv': ('train.tsv', '\ufeff' + CSV.replace('\n', '\r\n').replace(',', '\t')),
  'lone CR in csv': ('train.csv', CSV.replace('\n', '\r')),
  'blank last lines': ('train.jsonl', lines(FOUR) + '\n \n'),
  'blank last lines in csv': ('train.csv', CSV + '\r\n\n'),
  'no last line end': ('train.jsonl', lines(FOUR).rstrip('\n')),
  'no last line end in csv': ('train.csv', CSV.rstrip('\n')),
  'packed twice over': (
    'train.jsonl.gz',
    gzip.compress(lines(FOUR[:2]).encode()) + gzip.compress(lines(FOUR[2:]).encode()),
  ),
}


@pytest.mark.parametrize('case', FILES)
def test_files_that_are_read_right(tmp_path, case):
  name, data = FILES[case]
  path = folder(tmp_path / 'd', data, name)
  assert [dict(r) for r in prepared(path).splits['train']] == FOUR


def test_quoted_line_breaks_are_kept_and_lines_go_on_counting(tmp_path):
  path = folder(tmp_path / 'd', 'text,label\r\n"one\r\ntwo\n\nthree",a\r\nfour,b\r\n,a\r\n', 'train.csv')
  rows = open_source(path).splits['train']
  assert [r['text'] for r in rows] == ['one\r\ntwo\n\nthree', 'four', '']
  assert [rows.where(i) for i in range(3)] == [f'{path}/train.csv:{n}' for n in (2, 6, 7)]
  assert f'{path}/train.csv:7: "text" is empty' in failure(path)


# --- files that are refused: (file, content, what is said after the path)

BAD = {
  'a column twice': ('train.csv', 'text,label,text\nx,a,y\nz,b,y\n', ':1: column names stand twice'),
  'no text': ('train.jsonl', lines(FOUR) + lines([{'text': '', 'label': 'a'}]), ':5: "text" is empty'),
  'spaces': ('train.jsonl', lines(FOUR) + lines([{'text': ' \t\u3000\xa0\n', 'label': 'a'}]), ':5: "text" is empty'),
  'spaces in csv': ('train.csv', CSV + '   ,a\n', ':6: "text" is empty'),
  'spaces as label': ('train.csv', CSV + 'x,  \n', ':6: "label" is empty'),
  'NUL': ('train.jsonl', lines(FOUR) + '{"text": "a\0b", "label": "a"}\n', ':5: a NUL character'),
  'NUL, escaped': ('train.jsonl', lines(FOUR) + '{"text": "a\\u0000b", "label": "a"}\n', ':5: a NUL character'),
  'NUL in csv': ('train.csv', CSV + 'a\0b,a\n', ':6: a NUL character'),
  'a number among texts': ('train.jsonl', lines(FOUR) + lines([{'text': 3, 'label': 'a'}]), ':5: "text" is the int 3'),
  'a list among texts': ('train.jsonl', lines(FOUR) + lines([{'text': ['x'], 'label': 'a'}]), ':5: "text" is the list'),
  'a text among numbers': (
    'train.jsonl',
    lines([{'text': 'x', 'label': i % 2} for i in range(4)]) + lines([{'text': 'x', 'label': 'one'}]),
    ":5: the string 'one'",
  ),
  'labels 0 and "0"': (
    'train.jsonl',
    lines([{'text': 'x', 'label': i % 2} for i in range(4)]) + lines([{'text': 'x', 'label': '0'}]),
    ":5: the string '0'",
  ),
  'cut off': ('train.jsonl', lines(FOUR)[:-20], ':4: not valid JSON'),
  'half a surrogate': (
    'train.jsonl',
    lines(FOUR) + '{"text": "x\\ud83d", "label": "a"}\n',
    ':5: half a surrogate pair',
  ),
}


@pytest.mark.parametrize('case', BAD)
def test_files_that_are_refused(tmp_path, case):
  name, data, says = BAD[case]
  path = folder(tmp_path / 'd', data, name)
  assert f'{path}/{name}{says}' in failure(path)


@pytest.mark.parametrize('cut', [1, 5, 12, 0.5, -9, -1])
def test_a_stream_that_is_cut_is_refused_and_never_read_in_part(tmp_path, cut):
  data = gzip.compress(lines(tiny.rows(500, 0)).encode())
  kept = data[: int(cut * len(data)) if isinstance(cut, float) else cut]
  path = folder(tmp_path / 'd', kept, 'train.jsonl.gz')
  message = failure(path)
  assert message.startswith(f'{path}/train.jsonl.gz: cannot be read as .gz')
  assert 'fetched again' in message


# --- the path is the one the user gave


def test_paths_are_given_as_the_user_gave_them(tmp_path, monkeypatch):
  path = pathlib.Path(folder(tmp_path / 'reviews', lines([*FOUR, {'text': 'x', 'label': None}])))
  monkeypatch.chdir(tmp_path)
  for given, wanted in (
    ('reviews', 'reviews/train.jsonl'),
    ('./reviews/', './reviews/train.jsonl'),
    ('reviews/train.jsonl', 'reviews/train.jsonl'),
    (str(path), f'{path}/train.jsonl'),
  ):
    assert f'{wanted}:5: "label" is null' in failure(given)
    assert next(iter(open_source(given).splits.values())).where(4) == f'{wanted}:5'
  assert read('reviews/train.jsonl').where(0) == 'reviews/train.jsonl:1'
  monkeypatch.setenv('HOME', str(tmp_path))
  assert open_source(os.path.join('~', 'reviews')).splits['train'].where(0) == '~/reviews/train.jsonl:1'


# --- rows that are right as they are


@pytest.fixture(scope='module')
def tokenizer(tiny_bert):
  return tokens.load(tiny_bert)


def test_a_column_of_two_kinds_that_nothing_reads_is_left_alone(tmp_path):
  rows = [{**r, 'stars': s} for r, s in zip(FOUR, (5, '5', None, [5]))]
  assert [r['stars'] for r in prepared(folder(tmp_path / 'd', lines(rows))).splits['train']] == [5, '5', None, [5]]


def test_repeated_ids_take_no_row_away_and_none_apart(tmp_path, tokenizer):
  path = folder(tmp_path / 'd', lines([{'id': 7, **r} for r in FOUR]))
  train = prepared(path).splits['train']
  task = classify.build(classify.Config(), train=train, known=None)
  assert len(task.examples(train, tokenizer, limit=32)) == 4
  answers = np.eye(2, dtype=np.float32)[[0, 1, 1, 0]]
  records = list(task.records(train, {'probabilities': answers}))
  assert [(r['id'], r['text'], r['label'], r['prediction']) for r in records] == [
    (7, row['text'], row['label'], p) for row, p in zip(FOUR, ('a', 'b', 'b', 'a'))
  ]


def test_words_that_no_vocabulary_has(tmp_path, tokenizer):
  """One very long word, emoji joined by U+200D, a combining mark, a letter of no width: texts like any other."""
  odd = ['g' * 200_000, '👩‍👩‍👧 good', 'goo\u0301d film', '\u200b', 'good \u2028 film']
  path = folder(tmp_path / 'd', lines(FOUR + [{'text': t, 'label': 'a'} for t in odd]))
  train = prepared(path).splits['train']
  assert [r['text'] for r in train][4:] == odd
  got = tokens.encode(tokenizer, odd, None, limit=32)
  words = [tokenizer.convert_ids_to_tokens(got.ids[a:b]) for a, b in zip(got.offsets, got.offsets[1:])]
  assert words == [
    ['[CLS]', '[UNK]', '[SEP]'],
    ['[CLS]', '[UNK]', 'good', '[SEP]'],
    ['[CLS]', 'good', 'film', '[SEP]'],
    ['[CLS]', '[SEP]'],
    ['[CLS]', 'good', 'film', '[SEP]'],
  ]
  assert got.truncated == 0
