"""Changed copies of training rows: what each operation does, that it repeats, and that Chinese works."""

from __future__ import annotations

import json
import random

import pytest

from ftlib.base.errors import InputError
from ftlib.data import augmentation
from ftlib.data.augmentation import changed, read, units
from ftlib.data.preparation import Config, load

ENGLISH = 'the  quick brown fox, jumps over\nthe lazy dog today'
CHINESE = '今天天气很好，我们去 park 玩。'


def test_units_keep_what_stands_between():
  assert units(ENGLISH)[0] == ENGLISH.split()
  words, gaps = units(CHINESE)
  assert words == [*'今天天气很好', '，', *'我们去', 'park', '玩', '。']
  assert ''.join(g + w for g, w in zip(gaps, [*words, ''])) == CHINESE
  assert units('  ') == ([], ['  '])


def after(text, spec, seed=0):
  return changed(text, read(spec), random.Random(seed))


@pytest.mark.parametrize('text', [ENGLISH, CHINESE])
def test_operations(text):
  words = units(text)[0]
  got = {name: [units(after(text, f'{name}=0.3', seed))[0] for seed in range(40)] for name in augmentation.OPERATIONS}
  assert all(sorted(x) == sorted(words) for x in got['swap'])
  assert all(x != words for x in got['swap'] if len(set(words)) == len(words))
  for x in got['delete']:
    rest = iter(words)
    assert all(w in rest for w in x)  # in their order
    assert 1 <= len(x) <= len(words)
  assert sum(map(len, got['delete'])) / 40 == pytest.approx(0.7 * len(words), abs=1)
  for x in got['insert']:
    assert set(x) == set(words)
  assert sum(map(len, got['insert'])) / 40 == pytest.approx(1.3 * len(words), abs=0.5)
  marks = augmentation._MARKS + augmentation._WIDE
  for x in got['punctuate']:
    assert len(''.join(x)) == len(''.join(words)) + sum(map(''.join(x).count, marks)) - sum(
      map(''.join(words).count, marks)
    )
  assert {x for found in got['typo'] for w in found for x in w} <= set(text)
  assert all(len({json.dumps(x) for x in found}) > 10 for found in got.values())


def test_spaces_stay_where_they_were():
  assert sorted(after(ENGLISH, 'swap=0.3').split()) == sorted(ENGLISH.split())
  assert after(ENGLISH, 'swap=0.3').count('\n') == 1
  assert ' ' not in after('今天天气很好', 'insert=0.5')
  assert set(after('今天天气很好', 'punctuate=0.5')) - set('今天天气很好') <= set('。；？：！，')
  assert not after('a b', 'delete=0.9').startswith(' ')


@pytest.mark.parametrize('text', ['', ' ', 'x', '好', '?'])
@pytest.mark.parametrize('spec', ['swap=0.9', 'delete=0.9', 'insert=0.9', 'punctuate=0.9', 'typo=0.9'])
def test_texts_of_nearly_nothing(text, spec):
  for seed in range(20):
    got = after(text, spec, seed)
    assert bool(got.strip()) == bool(text.strip())


@pytest.mark.parametrize(
  ('spec', 'words'),
  [
    ('swop=0.1', 'no operation; did you mean "swap"'),
    ('swap', 'lacks a share'),
    ('swap=1', 'lacks a share'),
    ('swap=-0.1', 'lacks a share'),
    ('swap=0.1,swap=0.2', 'there twice'),
    ('synonym=0.1', 'no operation'),
  ],
)
def test_operations_that_are_none(spec, words):
  with pytest.raises(InputError, match=rf'data\.augment=.*{words}'):
    read(spec)


def prepared(tmp_path, **settings):
  texts = [' '.join(random.Random(i).sample(ENGLISH.split(), 6)) for i in range(20)]
  for name, some in (('train', texts), ('validation', texts[:5])):
    rows = [{'text': t, 'label': 'ab'[i % 2], 'id': i} for i, t in enumerate(some)]
    (tmp_path / f'{name}.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
  return load(Config(path=str(tmp_path), **settings), texts=['text'], label='label')


def test_copies_of_the_training_rows(tmp_path):
  data = prepared(tmp_path, augment='swap=0.2,delete=0.2', copies=3)
  train = data.splits['train']
  plain = [r['text'] for r in train][:20]
  copies = [(r['text'], r['label'], train.where(20 + i)) for i, r in enumerate(train[20:])]
  assert 55 <= len(copies) <= 60
  assert len({t for t, _, _ in copies} | set(plain)) == 20 + len(copies)  # none is there twice
  for text, label, where in copies:
    line = int(where.rpartition(':')[2])
    assert label == 'ab'[(line - 1) % 2]  # that of the row it is made of
    assert set(text.split()) <= set(plain[line - 1].split())
  assert len(data.splits['validation']) == 5
  assert any(f'{len(copies)} rows added by data.augment=' in n for n in data.notes)
  again, other = (prepared(tmp_path, augment='swap=0.2,delete=0.2', copies=3, split_seed=s) for s in (0, 1))
  assert [r['text'] for r in again.splits['train']] == [r['text'] for r in train]
  assert [r['text'] for r in other.splits['train']][20:] != [r['text'] for r in train][20:]
  assert data.fingerprint != prepared(tmp_path).fingerprint


def test_copies_that_are_there_already(tmp_path):
  rows = [{'text': t, 'label': 'a'} for t in ('one', '好', 'two words', 'words two')] * 3
  for name in ('train', 'validation'):
    (tmp_path / f'{name}.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
  data = load(Config(path=str(tmp_path), augment='swap=0.1', copies=2), texts=['text'], label='label')
  assert len(data.splits['train']) == 12
  assert any('0 rows added by data.augment=swap=0.1; 24 more came out as' in n for n in data.notes)


def test_a_copy_follows_from_its_row_alone(tmp_path):
  whole = prepared(tmp_path, augment='swap=0.2').splits['train']
  half = prepared(tmp_path, augment='swap=0.2', limit=10).splits['train']
  by_line = {whole.where(i): r['text'] for i, r in enumerate(whole) if i >= 20}
  assert [by_line[half.where(i)] for i in range(10, len(half))] == [r['text'] for r in half][10:]
