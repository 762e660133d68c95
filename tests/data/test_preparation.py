"""Who stands in which split, what is refused before training, and what the user is told."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from ftlib.base.errors import InputError
from ftlib.data.preparation import Config, Dataset, label_values, load
from ftlib.data.sources import read


def rows_of(count: int, **columns) -> list[dict]:
  """Rows `{'text': 't0', 'label': 'a' or 'b', ...}`; a column is a function of the row's number."""
  columns = {'text': lambda i: f't{i}', 'label': lambda i: 'ab'[i % 3 == 0]} | columns
  return [{name: make(i) for name, make in columns.items()} for i in range(count)]


def write(path: Path, rows: list[dict]) -> str:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(json.dumps(r, ensure_ascii=False) + '\n' for r in rows), 'utf-8')
  return str(path)


def folder(path: Path, **splits: list[dict]) -> str:
  for name, rows in splits.items():
    write(path / f'{name}.jsonl', rows)
  return str(path)


def prepared(path: str, *, texts=('text',), label='label', **settings) -> Dataset:
  return load(Config(path=path, **settings), texts=texts, label=label)


def failure(path: str, **settings) -> str:
  with pytest.raises(InputError) as caught:
    prepared(path, **settings)
  message = str(caught.value)
  assert len(message.splitlines()) <= 20
  return message


def texts(data: Dataset, split: str) -> list[str]:
  return [row['text'] for row in data.splits[split]]


def sizes(data: Dataset) -> dict[str, int]:
  return {name: len(rows) for name, rows in data.splits.items()}


# --- splits by ratio


@pytest.mark.parametrize('label', ['label', None])
@pytest.mark.parametrize(('count', 'split'), [(1000, '0.8,0.1,0.1'), (997, '0.7,0.2,0.1'), (53, '0.6,0.2,0.2')])
def test_ratios_disjoint_and_whole(tmp_path, count, split, label):
  data = prepared(write(tmp_path / 'a.jsonl', rows_of(count)), split=split, label=label)
  assert list(data.splits) == ['train', 'validation', 'test']
  everyone = [t for name in data.splits for t in texts(data, name)]
  assert sorted(everyone) == sorted(f't{i}' for i in range(count))
  for share, (name, rows) in zip(map(float, split.split(',')), data.splits.items()):
    assert abs(len(rows) - share * count) <= 1
    assert rows.name == name
    numbers = [int(t[1:]) for t in texts(data, name)]
    assert numbers == sorted(numbers)  # in the order of the source
    assert [rows.where(i) for i in range(len(rows))] == [f'{tmp_path}/a.jsonl:{n + 1}' for n in numbers]
  assert any('split into' in note for note in data.notes)


@pytest.mark.parametrize('classes', [2, 7, 40])
def test_stratified_within_one_row(tmp_path, classes):
  rows = rows_of(1003, label=lambda i: f'c{(i * i + i // 7) % classes}')
  data = prepared(write(tmp_path / 'a.jsonl', rows), split='0.75,0.15,0.1')
  totals = Counter(r['label'] for r in rows)
  for share, part in zip((0.75, 0.15, 0.1), data.splits.values()):
    counts = Counter(r['label'] for r in part)
    assert all(abs(counts[value] - share * n) < 1 for value, n in totals.items())
    assert abs(len(part) - share * len(rows)) <= 1


def test_rare_labels_are_trained_on(tmp_path):
  rows = rows_of(60, label=lambda i: f'c{i // 2}' if i < 40 else f'once{i}')
  data = prepared(write(tmp_path / 'a.jsonl', rows), split='0.4,0.3,0.3')
  assert label_values(data.splits['train'], 'label') == sorted({r['label'] for r in rows})


def test_seed_decides_and_repeats(tmp_path):
  path = write(tmp_path / 'a.jsonl', rows_of(200))
  first, again, other = (prepared(path, split_seed=seed) for seed in (3, 3, 4))
  assert texts(first, 'test') == texts(again, 'test')
  assert first.fingerprint == again.fingerprint
  assert texts(first, 'test') != texts(other, 'test')
  assert first.fingerprint != other.fingerprint
  # pinned: an update of numpy or of this code must not change who is in test
  pinned = ['t14', 't42', 't60', 't71', 't81', 't101', 't125', 't150', 't155', 't176']
  assert texts(prepared(path, split='0.9,0.05,0.05'), 'test') == pinned


def test_without_test_split(tmp_path):
  data = prepared(write(tmp_path / 'a.jsonl', rows_of(100)), split='0.9,0.1,0')
  assert sizes(data) == {'train': 90, 'validation': 10}


@pytest.mark.parametrize(
  'split', ['0.8,0.2', '0.8,0.1,0.2', '80,10,10', 'a,b,c', '', '1,0,0', '0.5,0,0.5', '1.2,-0.1,-0.1', 'nan,nan,nan']
)
def test_bad_ratios(tmp_path, split):
  message = failure(write(tmp_path / 'a.jsonl', rows_of(10)), split=split)
  assert f'data.split={split!r}' in message
  assert '--config.data.split=0.8,0.1,0.1' in message


def test_too_few_rows(tmp_path):
  message = failure(write(tmp_path / 'a.jsonl', rows_of(2)))
  assert 'a.jsonl has only 2' in message
  assert '--config.data.split=' in message


# --- splits of the source


def test_given_splits_are_taken_as_they_are(tmp_path):
  path = folder(tmp_path, train=rows_of(30), dev=rows_of(5), test=rows_of(7))
  data = prepared(path, split='0.1,0.1,0.8', split_seed=9)
  assert sizes(data) == {'train': 30, 'validation': 5, 'test': 7}
  assert texts(data, 'train') == [f't{i}' for i in range(30)]
  assert data.fingerprint == prepared(path).fingerprint  # the ratios move nobody here
  assert sizes(prepared(folder(tmp_path / 'b', train=rows_of(9), val=rows_of(2)))) == {'train': 9, 'validation': 2}


def test_validation_is_carved_out_of_train(tmp_path):
  data = prepared(folder(tmp_path, train=rows_of(90), test=rows_of(7)), split='0.6,0.3,0.1')
  assert sizes(data) == {'train': 60, 'validation': 30, 'test': 7}
  assert not set(texts(data, 'train')) & set(texts(data, 'validation'))
  assert data.splits['validation'].name == 'validation'
  assert data.splits['validation'].where(0).startswith(f'{tmp_path}/train.jsonl:')
  assert any('30 rows of train were set apart' in note for note in data.notes)


def test_train_alone_is_split_by_ratio(tmp_path):
  assert sizes(prepared(folder(tmp_path, train=rows_of(50)))) == {'train': 40, 'validation': 5, 'test': 5}


@pytest.mark.parametrize('hidden', [None, ''])
def test_hidden_test_labels(tmp_path, hidden):
  unlabelled = rows_of(6, label=lambda i: hidden)
  data = prepared(folder(tmp_path, train=rows_of(40), dev=rows_of(4), test=unlabelled))
  assert sizes(data) == {'train': 40, 'validation': 4}
  assert any('test: left out' in note for note in data.notes)
  data = prepared(folder(tmp_path / 'b', train=rows_of(40), test=unlabelled))
  assert sizes(data) == {'train': 32, 'validation': 4, 'test': 4}
  data = prepared(folder(tmp_path / 'c', train=rows_of(40), dev=rows_of(4), test=unlabelled), label=None)
  assert sizes(data)['test'] == 6


# --- groups


@pytest.mark.parametrize('seed', [0, 1])
def test_groups_never_straddle(tmp_path, seed):
  rows = rows_of(2000, user=lambda i: f'u{int((i * 7919 % 2000) ** 0.5)}')  # of 1 to 88 rows
  data = prepared(write(tmp_path / 'a.jsonl', rows), group='user', split_seed=seed)
  users = [{r['user'] for r in part} for part in data.splits.values()]
  assert not (users[0] & users[1] | users[0] & users[2] | users[1] & users[2])
  for share, part in zip((0.8, 0.1, 0.1), data.splits.values()):
    assert abs(len(part) - share * 2000) < 10
    assert abs(Counter(r['label'] for r in part)['b'] - share * 667) < 15
  again = prepared(write(tmp_path / 'a.jsonl', rows), group='user', split_seed=seed)
  assert [texts(data, s) for s in data.splits] == [texts(again, s) for s in data.splits]
  assert data.fingerprint != prepared(write(tmp_path / 'a.jsonl', rows), group='user', split_seed=7).fingerprint


def test_groups_of_one_size_fill_every_split(tmp_path):
  data = prepared(write(tmp_path / 'a.jsonl', rows_of(30, user=lambda i: i % 3)), group='user')
  assert sizes(data) == {'train': 10, 'validation': 10, 'test': 10}
  carved = folder(tmp_path / 'b', train=rows_of(30, user=lambda i: i % 10), test=rows_of(3, user=lambda i: i + 10))
  data = prepared(carved, group='user')
  assert len({r['user'] for r in data.splits['train']} & {r['user'] for r in data.splits['validation']}) == 0


def test_bad_groups(tmp_path):
  path = write(tmp_path / 'a.jsonl', rows_of(30, user=lambda i: i % 2, tags=lambda i: [i]))
  message = failure(path, group='user')
  assert '2 values, too few for 3 splits' in message
  assert '--config.data.group=' in message
  message = failure(path, group='usr')
  assert 'data.group' in message
  assert 'did you mean "user"' in message
  assert 'a.jsonl:1: "tags" is the list [0]' in failure(path, group='tags')
  rows = rows_of(30, user=lambda i: None if i == 4 else i)
  assert 'a.jsonl:5: "user" is null' in failure(write(tmp_path / 'a.jsonl', rows), group='user')
  both = folder(tmp_path / 'b', train=rows_of(30, user=lambda i: f'u{i}'), test=rows_of(3, user=lambda i: f'u{i}'))
  message = failure(both, group='user')
  assert '3 values of "user" stand in both train and test' in message
  assert sizes(prepared(both))['test'] == 3


# --- filters and limits


def test_keep(tmp_path):
  rows = rows_of(60, label=lambda i: i % 3, lang=lambda i: 'en' if i % 2 else 'de', ok=lambda i: i > 5)
  path = write(tmp_path / 'a.jsonl', rows)
  data = prepared(path, keep='label=0|2; lang=en ;ok=true')
  left = [r for part in data.splits.values() for r in part]
  assert sorted(int(r['text'][1:]) for r in left) == [i for i in range(6, 60) if i % 3 != 1 and i % 2]
  assert f'{path}: 18 of 60 rows kept by data.keep' in data.notes
  assert data.fingerprint != prepared(path).fingerprint


def test_bad_keep(tmp_path):
  path = write(tmp_path / 'a.jsonl', rows_of(60, lang=lambda i: ('english', 'german')[i % 2]))
  for keep in ('lang', '=english', 'lang=english;lang=german'):
    assert "--config.data.keep='column=value|value" in failure(path, keep=keep)
  message = failure(path, keep='lang=english|germn')
  assert 'no row has lang=germn; did you mean "german"?' in message
  assert 'did you mean "lang"' in failure(path, keep='lag=english')
  nobody = rows_of(6, x=lambda i: i % 2, y=lambda i: i % 2)
  assert 'leaves no row' in failure(write(tmp_path / 'b.jsonl', nobody), keep='x=0;y=1')


def test_limit(tmp_path):
  path = folder(tmp_path, train=rows_of(900), dev=rows_of(50), test=rows_of(60))
  data = prepared(path, limit=100)
  assert sizes(data) == {'train': 100, 'validation': 50, 'test': 60}
  assert abs(Counter(r['label'] for r in data.splits['train'])['b'] - 100 / 3) < 1
  assert 'train: 100 of 900 rows taken (data.limit)' in data.notes
  assert texts(data, 'train') == texts(prepared(path, limit=100), 'train')
  assert texts(data, 'train') != texts(prepared(path, limit=100, split_seed=1), 'train')
  assert data.fingerprint != prepared(path).fingerprint == prepared(path, limit=900).fingerprint
  assert len(prepared(path, limit=37, label=None).splits['train']) == 37
  assert 'data.limit' in failure(path, limit=0)


def test_limit_of_what_is_judged_by(tmp_path):
  path = folder(tmp_path, train=rows_of(90), dev=rows_of(60), test=rows_of(600))
  data = prepared(path, eval_limit=100)
  assert sizes(data) == {'train': 90, 'validation': 60, 'test': 100}
  assert abs(Counter(r['label'] for r in data.splits['test'])['b'] - 100 / 3) < 1
  assert [n for n in data.notes if 'taken' in n] == ['test: 100 of 600 rows taken (data.eval_limit)']
  assert texts(data, 'test') == texts(prepared(path, eval_limit=100, limit=30), 'test')
  assert data.fingerprint != prepared(path).fingerprint
  assert 'data.eval_limit' in failure(path, eval_limit=0)


@pytest.mark.parametrize('limit', [3, 10, 11, 30])
def test_limit_holds_with_many_rare_labels(tmp_path, limit):
  rows = rows_of(300, label=lambda i: f'rare{i}' if i < 10 else 'common')
  train = prepared(folder(tmp_path, train=rows, dev=rows[:2]), limit=limit).splits['train']
  assert len(train) == limit
  assert len(label_values(train, 'label')) == min(limit, 11)


# --- rows


BAD_ROWS = {  # {what: (changed columns, what the message says, whether it may be skipped)}
  'null text': ({'text': None}, '"text" is null', True),
  'missing text': ({'text': ...}, '"text" is missing', True),
  'empty text': ({'text': ''}, '"text" is empty', True),
  'blank text': ({'text': ' \t\u3000\n'}, '"text" is empty', True),
  'numeric text': ({'text': 5}, '"text" is the int 5, but a text is a string', False),
  'list text': ({'text': ['a']}, '"text" is the list', False),
  'null label': ({'label': None}, '"label" is null', True),
  'missing label': ({'label': ...}, '"label" is missing', True),
  'empty label': ({'label': ''}, '"label" is empty', True),
  'NaN label': ({'label': float('nan')}, '"label" is NaN', True),
  'half label': ({'label': 0.5}, '"label" is the float 0.5, but a class label is', False),
  'infinite label': ({'label': float('inf')}, '"label" is the float inf', False),
  'list label': ({'label': ['a']}, '"label" is the list', False),
  'dict label': ({'label': {'a': 1}}, '"label" is the dict', False),
}


@pytest.mark.parametrize('case', BAD_ROWS)
def test_bad_rows(tmp_path, case):
  changes, says, skippable = BAD_ROWS[case]
  rows = rows_of(100)
  rows[16] = {k: v for k, v in (rows[16] | changes).items() if v is not ...}
  path = folder(tmp_path, train=rows, dev=rows_of(9))
  message = failure(path)
  assert f'train.jsonl:17: {says}' in message
  if not skippable:
    assert f'train.jsonl:17: {says}' in failure(path, on_bad_row='skip')
    return
  assert '--config.data.on_bad_row=skip' in message
  data = prepared(path, on_bad_row='skip')
  assert texts(data, 'train') == [f't{i}' for i in range(100) if i != 16]
  assert data.splits['train'].where(16) == f'{path}/train.jsonl:18'
  assert f'{path}/train.jsonl: 1 of 100 rows skipped, the first {path}/train.jsonl:17: {says}' in data.notes


def test_no_more_than_a_twentieth_is_skipped(tmp_path):
  rows = rows_of(100, text=lambda i: '' if i % 20 == 3 else f't{i}')
  assert len(prepared(folder(tmp_path, train=rows, dev=rows_of(9)), on_bad_row='skip').splits['train']) == 95
  rows[50]['text'] = None
  message = failure(folder(tmp_path, train=rows, dev=rows_of(9)), on_bad_row='skip')
  assert '6 of 100 rows' in message
  assert '5%' in message
  assert 'train.jsonl:4:' in message
  assert 'data.on_bad_row' in failure(folder(tmp_path, train=rows), on_bad_row='ignore')


def test_second_text_is_checked(tmp_path):
  path = folder(tmp_path, train=rows_of(9, b=lambda i: f'b{i}'), dev=rows_of(9, b=lambda i: f'b{i}' if i else ' '))
  assert 'dev.jsonl:1: "b" is empty' in failure(path, texts=('text', 'b'))


@pytest.mark.parametrize(
  ('settings', 'field', 'near'),
  [
    ({'texts': ('txt',)}, 'task.text', 'text'),
    ({'texts': ('text', 'text_bb')}, 'task.pair', 'text_b'),
    ({'label': 'lable'}, 'task.label', 'label'),
    ({'group': 'usr'}, 'data.group', 'user'),
    ({'keep': 'usrs=1'}, 'data.keep', 'user'),
  ],
)
def test_unknown_columns(tmp_path, settings, field, near):
  rows = rows_of(30, text_b=lambda i: 'x', user=lambda i: i)
  message = failure(folder(tmp_path, train=rows), **settings)
  assert message.startswith(f'{field}: {tmp_path}/train.jsonl has no column')
  assert f'did you mean "{near}"?' in message
  assert f'--config.{field}=' in message
  assert '  text_b' in message


# --- labels


def test_labels_become_strings_or_integers(tmp_path):
  def labels(make) -> tuple[list, list[str]]:
    data = prepared(write(tmp_path / 'a.jsonl', rows_of(40, label=make)))
    return sorted({label for part in data.splits.values() for label in label_values(part, 'label')}), data.notes

  assert labels(lambda i: i % 2)[0] == [0, 1]
  found, _ = labels(lambda i: float(i % 2) if i % 4 else i % 2)
  assert (found, set(map(type, found))) == ([0, 1], {int})
  found, notes = labels(lambda i: i % 2 == 0)
  assert found == ['false', 'true']
  assert any('booleans' in note for note in notes)
  path = tmp_path / 'a.csv'
  path.write_text('text,label\n' + ''.join(f't{i},{i % 2}\n' for i in range(40)))
  assert label_values(prepared(str(path)).splits['train'], 'label') == ['0', '1']


def test_label_values_are_sorted(tmp_path):
  rows = read(write(tmp_path / 'a.jsonl', [{'s': s, 'n': n} for s, n in [('10', 10), ('9', 9), ('Z', -1), ('a', 10)]]))
  assert label_values(rows, 's') == ['10', '9', 'Z', 'a']
  assert label_values(rows, 'n') == [-1, 9, 10]


@pytest.mark.parametrize('other', ['1', True])
def test_mixed_labels(tmp_path, other):
  path = folder(tmp_path, train=rows_of(30, label=lambda i: i % 2), dev=rows_of(3, label=lambda i: other))
  message = failure(path)
  assert 'train.jsonl:1: the integer 0' in message
  assert f'dev.jsonl:1: the {type(other).__name__[:3]}' in message.replace('boolean', 'bool').replace('string', 'str')
  assert 'Write all labels one way' in message


# --- notes and fingerprint


def test_duplicates_are_counted(tmp_path):
  train, test = rows_of(30, b=lambda i: f'b{i}'), rows_of(4, b=lambda i: 'b0')
  data = prepared(folder(tmp_path, train=train, dev=rows_of(2, text=lambda i: f'v{i}', b=lambda i: 'b0'), test=test))
  assert [n for n in data.notes if 'exactly' in n] == ['test: 4 of 4 rows have exactly the text of a training row']
  data = prepared(str(tmp_path), texts=('text', 'b'))
  assert [n for n in data.notes if 'exactly' in n] == ['test: 1 of 4 rows have exactly the text of a training row']


def test_fingerprint_of_content(tmp_path):
  first = prepared(write(tmp_path / 'a' / 'x.jsonl', rows_of(50)))
  assert first.fingerprint == prepared(write(tmp_path / 'b' / 'y.jsonl', rows_of(50))).fingerprint
  assert first.fingerprint != prepared(write(tmp_path / 'c.jsonl', rows_of(50, x=lambda i: 1))).fingerprint
  assert first.fingerprint != prepared(str(tmp_path / 'c.jsonl'), split='0.7,0.2,0.1').fingerprint


def test_labels_come_from_the_source(monkeypatch, tmp_path):
  from ftlib.data import preparation
  from ftlib.data.sources import Source, open_source

  rows = open_source(write(tmp_path / 'a.jsonl', rows_of(20))).splits['all']
  splits = {'train': rows, 'unsupervised': rows, 'validation': rows}
  monkeypatch.setattr(preparation, 'open_source', lambda path, encoding: Source(splits, {'label': ['b', 'a']}, 'f'))
  data = prepared('tfds:x')
  assert data.labels == {'label': ['b', 'a']}
  assert sizes(data) == {'train': 20, 'validation': 20}
  assert 'splits of the source that are not used: unsupervised' in data.notes
  del splits['train']
  assert 'has no train split' in failure('tfds:x')
