"""What each step of cleaning does with a text, in several languages; rows that stand there twice."""

from __future__ import annotations

import json

import pytest

from ftlib.base.errors import InputError
from ftlib.data import cleaning
from ftlib.data.preparation import Config, load


@pytest.mark.parametrize(
  ('step', 'text', 'wanted'),
  [
    ('html', 'a<br/>b <b class="x">c</b> &amp; &lt;d&gt; 1 < 2 > 1', 'a b  c  & <d> 1 < 2 > 1'),
    ('html', '好<p>吃</p><script>if (a<b) {}</script>!', '好 吃  !'),
    ('html', '<!-- a > b -->x <3 y', ' x <3 y'),
    ('nfkc', 'ＡＢＣ１２３！ﬁ②', 'ABC123!fi2'),
    ('control', 'a\u200bb\x07c\ufeffd\u00ade\n\tf', 'abcde\n\tf'),
    ('control', '👩\u200d💻 नमस्\u200dते', '👩\u200d💻 नमस्\u200dते'),
    ('urls', 'see https://t.co/a?b=1&c#d, or www.x.org.', 'see [URL], or [URL].'),
    ('urls', '看https://t.cn/a1网站，好', '看[URL]网站，好'),
    ('urls', 'http is a word, e.g. wwwhat', 'http is a word, e.g. wwwhat'),
    ('users', '@joe_1: hi @李雷, a@b.com x@y', '[USER]: hi [USER], a@b.com x@y'),
    ('users', f'@{"x" * 31} ＠ @ (@me) .@you', f'@{"x" * 31} ＠ @ ([USER]) .@you'),
    ('repeats', 'sooooo gooood!!!!!! 哈哈哈哈哈哈 2000000 ---- ...', 'sooo goood!!! 哈哈哈 2000000 ---- ...'),
    ('whitespace', ' a\u3000b \n\n c\t', 'a b c'),
  ],
)
def test_a_step(step, text, wanted):
  clean = cleaning.cleaner(step)
  assert clean(text) == wanted
  assert step == 'html' or clean(clean(text)) == clean(text)  # an entity may stand for what looks like a tag


def test_steps_go_in_their_own_order():
  text = ' &lt;b&gt;Soooooo &nbsp; good @me&#33;&#33;&#33;&#33;'
  assert cleaning.cleaner('all')(text) == '<b>Sooo good [USER]!!!'
  assert cleaning.cleaner('whitespace,html')(' a&nbsp;&nbsp;b') == cleaning.cleaner('html, whitespace')(
    ' a&nbsp;&nbsp;b'
  )
  assert cleaning.cleaner('') is None
  with pytest.raises(InputError, match=r"data\.clean='url': 'url' is no step; did you mean \"urls\""):
    cleaning.cleaner('url')


@pytest.mark.parametrize(
  ('a', 'b', 'same'),
  [
    ('Hello,  World!', 'hello world', True),
    ('ＨＥＬＬＯ world', 'hello world', True),
    ('今天，好！', '今天好', False),  # a mark separates; only its kind is passed over
    ('今天，好！', '今天。好', True),
    ('hello worlds', 'hello world', False),
    ('!!!', '???', False),  # nothing else is there
    ('naïve', 'naive', False),
  ],
)
def test_normal_form(a, b, same):
  assert (cleaning.normal(a) == cleaning.normal(b)) == same


def folder(tmp_path, **splits):
  for name, rows in splits.items():
    lines = [json.dumps({'text': t, 'label': l}, ensure_ascii=False) + '\n' for t, l in rows]
    (tmp_path / f'{name}.jsonl').write_text(''.join(lines), 'utf-8')
  return str(tmp_path)


def prepared(path, **settings):
  return load(Config(path=path, **settings), texts=['text'], label='label')


TRAIN = [('a b', 'x'), ('A  b!', 'x'), ('a b', 'x'), ('c', 'x'), ('c', 'y'), ('d', 'y'), ('e', 'y')]
VALIDATION = [('D', 'y'), ('f', 'x'), ('f', 'x')]


@pytest.mark.parametrize(
  ('how', 'texts', 'lines', 'words'),
  [
    ('', [t for t, _ in TRAIN], [1, 2, 3, 4, 5, 6, 7], None),
    ('exact', ['a b', 'A  b!', 'c', 'c', 'd', 'e'], [1, 2, 4, 5, 6, 7], '1 of 7 rows left out'),
    ('normalised', ['a b', 'c', 'c', 'e'], [1, 4, 5, 7], '3 of 7 rows left out by data.deduplicate=normalised: 1 have'),
  ],
)
def test_duplicates(tmp_path, how, texts, lines, words):
  data = prepared(folder(tmp_path, train=TRAIN, validation=VALIDATION), deduplicate=how)
  train = data.splits['train']
  assert [row['text'] for row in train] == texts
  assert [train.where(i) for i in range(len(train))] == [f'{tmp_path}/train.jsonl:{n}' for n in lines]
  assert len(data.splits['validation']) == 3  # what is judged by stays as it is
  assert any(words in n for n in data.notes) if words else not any('left out' in n for n in data.notes)
  said = f"{tmp_path}/train.jsonl:4 has 'x' and {tmp_path}/train.jsonl:5 has 'y'"
  wanted = f'train: 1 texts (2 rows) stand there with different labels, and were left there: {said}'
  assert [n for n in data.notes if 'different labels' in n] == [wanted]


def test_nothing_but_duplicates(tmp_path):
  path = folder(tmp_path, train=[('a', 'x'), ('b', 'y')], validation=[('a', 'x'), ('b', 'y')])
  with pytest.raises(InputError, match=r'data\.deduplicate=exact: no training row is left'):
    prepared(path, deduplicate='exact')


def test_all_splits_are_cleaned(tmp_path):
  rows = [('<b>good</b> @me', 'x'), ('plain', 'y'), ('wide Ａ', 'y')]
  data = prepared(folder(tmp_path, train=rows, validation=rows[:2]), clean='all')
  assert [r['text'] for r in data.splits['train']] == ['good [USER]', 'plain', 'wide A']
  assert [r['text'] for r in data.splits['validation']] == ['good [USER]', 'plain']
  assert any('train.jsonl: 2 of 3 rows changed by data.clean=all' in n for n in data.notes)
  assert data.splits['train'].where(2) == f'{tmp_path}/train.jsonl:3'


def test_what_is_empty_then_is_a_bad_row(tmp_path):
  rows = [('good', 'x')] * 40 + [('<br>', 'y'), ('bad', 'y')]
  path = folder(tmp_path, train=rows, validation=rows[:2])
  with pytest.raises(InputError, match=r'train\.jsonl:41: "text" is empty'):
    prepared(path, clean='html,whitespace')
  data = prepared(path, clean='html,whitespace', on_bad_row='skip')
  assert any('1 of 42 rows changed' in n and '1 of which had nothing else in a text' in n for n in data.notes)


@pytest.mark.parametrize('field', ['clean', 'augment'])
def test_texts_that_labels_point_into_are_left_alone(tmp_path, field):
  path = folder(tmp_path, train=TRAIN, validation=VALIDATION)
  with pytest.raises(InputError, match=rf'data\.{field}=.*labels point into'):
    load(
      Config(path=path, **{field: 'all' if field == 'clean' else 'swap=0.1'}),
      texts=['text'],
      label='label',
      kind='messages',
    )


def test_the_first_texts_of_several_labels_are_named(tmp_path):
  """Sets of labels are the same in any order; texts that differ in case alone are, where duplicates are so too."""
  rows = [('a', ['x', 'y']), ('a', ['y', 'x']), *((t, [l]) for t in 'bcdef' for l in ('x', 'x', 'y')), ('B', ['x'])]
  path = folder(tmp_path, train=rows, validation=[('z', ['x'])])
  notes = load(Config(path=path), texts=['text'], label='label', kind='labels').notes
  [said] = [n for n in notes if 'different labels' in n]
  assert said.startswith('train: 5 texts (15 rows) stand there')
  at = lambda i, v: f"{tmp_path}/train.jsonl:{i} has ['{v}']"  # noqa: E731
  pairs = [f'{at(a, "x")} and {at(a + 2, "y")}' for a in (3, 6, 9)]
  assert said.endswith(f'left there: {"; ".join(pairs)}; ...')
  notes = load(Config(path=path, deduplicate='normalised'), texts=['text'], label='label', kind='labels').notes
  assert any('train: 5 texts (10 rows) stand there' in n for n in notes)
