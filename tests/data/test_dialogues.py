"""A folder of YAML files with conversations is a source like any other."""

from __future__ import annotations

import json

import pytest

from ftlib.base.errors import InputError
from ftlib.data import preparation
from ftlib.data.sources import open_source

ONE = """categories:
- x
conversations:
- - Are you good?
  - 'Yes: very.'
- - Hello
  - Hi
  - How are you?
- - Hello
  - "Hello\\nagain"
- nothing answers this
"""


@pytest.fixture
def corpus(tmp_path):
  (tmp_path / 'one.yml').write_text(ONE)
  (tmp_path / 'two.yaml').write_text('conversations:\n- [1984, yes]\n')
  return tmp_path


def test_rows(corpus):
  source = open_source(str(corpus))
  rows = source.splits['all']
  assert [r['turns'] for r in rows] == [
    ['Are you good?', 'Yes: very.'],
    ['Hello', 'Hi', 'How are you?'],
    ['Hello', 'Hello\nagain'],
    ['nothing answers this'],
    ['1984', 'yes'],  # texts, whatever YAML would make of them
  ]
  assert [r['category'] for r in rows] == ['one'] * 4 + ['two']
  assert [r['first'] for r in rows][1:3] == ['Hello', 'Hello']
  assert rows.where(4) == f'{corpus} conversation 5'
  (corpus / 'two.yaml').write_text('conversations:\n- [1985, yes]\n')
  assert open_source(str(corpus)).fingerprint != source.fingerprint


@pytest.mark.parametrize(
  ('text', 'fault'),
  [
    ('conversations:\n- [a, b]\n- {a: b}\n', r'two.yaml:3: a conversation is a list of texts'),
    ('conversations:\n- []\n', r'two.yaml:2: a conversation is a list of texts'),
    ('- a\n', r'two.yaml: holds no list "conversations"'),
    ('a: [b\n', r'two.yaml: not valid YAML'),
  ],
)
def test_faults(corpus, text, fault):
  (corpus / 'two.yaml').write_text(text)
  with pytest.raises(InputError, match=fault):
    open_source(str(corpus))


def test_other_data_come_first(corpus):
  (corpus / 'train.jsonl').write_text('{"text": "x"}\n')
  assert open_source(str(corpus)).splits['train'][0] == {'text': 'x'}


def load(corpus, **values):
  cfg = preparation.Config(path=str(corpus), split='0.5,0.5,0', **values)
  return preparation.load(cfg, texts=[], label='turns', kind='messages', fields=('messages',))


def test_conversations_are_prepared(corpus):
  (corpus / 'three.yml').write_text('conversations:\n' + ''.join(f'- [q{i}, a{i}]\n' for i in range(30)))
  with pytest.raises(InputError, match=r'conversation \d+: "?turns"?.*one turn and no answer|one turn and no answer'):
    load(corpus)
  found = load(corpus, on_bad_row='skip', group='first')
  rows = [r for split in found.splits.values() for r in split]
  assert len(rows) == 34
  assert all([m['role'] for m in r['turns']] == ['user', 'assistant'] for r in rows)
  assert any('1 conversations end with a turn that nothing answers' in n for n in found.notes)
  firsts = [{r['first'] for r in split} for split in found.splits.values()]
  assert not firsts[0] & firsts[1]
  assert not any('exactly the text' in n for n in found.notes)


def test_a_fault_has_its_line(tmp_path):
  talk = lambda role: [{'role': r, 'content': 'x'} for r in ('user', role)]  # noqa: E731
  rows = [json.dumps({'messages': talk(role)}) + '\n' for role in ('assistant', 'asistant')]
  (tmp_path / 'train.jsonl').write_text(''.join(rows))
  with pytest.raises(InputError, match=r'train.jsonl:2: "?messages"?: turn 2 has the role'):
    preparation.load(
      preparation.Config(path=str(tmp_path)), texts=[], label='messages', kind='messages', fields=('messages',)
    )
  with pytest.raises(InputError, match=r'(?s)task.messages: .*train.jsonl has no column "turns"'):
    preparation.load(
      preparation.Config(path=str(tmp_path)), texts=[], label='turns', kind='messages', fields=('messages',)
    )


def test_a_column_stands_in(tmp_path):
  (tmp_path / 'train.jsonl').write_text('{"q": "x", "a": "y"}\n' * 5)
  (tmp_path / 'test.jsonl').write_text('{"q": "x", "as": ["z", "w"]}\n')
  cfg = preparation.Config(path=str(tmp_path))
  found = preparation.load(
    cfg, texts=['q', 'a'], label=None, fields=('prompt', 'completion', 'label'), spare={'a': 'as'}
  )
  assert found.splits['test'][0] == {'q': 'x', 'as': ['z', 'w'], 'a': 'z'}
  assert any('"a" is the first of each row\'s "as"' in n for n in found.notes)
  with pytest.raises(InputError, match=r'task.completion: .*test.jsonl has no column "a"'):
    preparation.load(cfg, texts=['q', 'a'], label=None, fields=('prompt', 'completion', 'label'))
