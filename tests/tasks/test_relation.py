"""The task 'relation': markers in texts and spans, what is wrong with them, cutting, marks, and records."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from ftlib import recipe, run
from ftlib.base.types import Head
from ftlib.data import cleaning, markers, preparation, tokens
from ftlib.data.sources import Rows
from ftlib.tasks import relation
from tests import tiny
from tests.contract import gold_relation
from tests.refusal import refused

TEXT = 'the <e1> good </e1> film was <e2>bad</e2> .'


@pytest.fixture(scope='module')
def bert(tiny_bert):
  return tokens.load(tiny_bert)


@pytest.fixture(scope='module')
def byte_level(tmp_path_factory):
  return tokens.load(tiny.chat_tokenizer(tmp_path_factory.mktemp('bpe'), size=320))


def encode(tokenizer, texts, *, limit=40, kind=''):
  rows = [markers.of_text(t) for t in texts]
  return markers.encode(tokenizer, rows, limit=limit, kind=kind, where=lambda i: f'a.jsonl:{i + 1}')


def pieces(tokenizer, found, i=0):
  return tokenizer.convert_ids_to_tokens(found.tokens.ids[found.tokens.offsets[i] : found.tokens.offsets[i + 1]])


def test_markers_are_unused_tokens_of_the_vocabulary(bert):
  found = encode(bert, [TEXT])
  start = min(int(t[7:-1]) for t in bert.get_vocab() if t.startswith('[unused'))
  m = [f'[unused{start + i}]' for i in range(4)]
  assert pieces(bert, found) == ['[CLS]', 'the', m[0], 'good', m[1], 'film', 'was', m[2], 'bad', m[3], '[UNK]', '[SEP]']
  assert found.marks.tolist() == [[2, 7]]
  assert found.kind == 'unused'
  assert encode(bert, ['[unused0] <e1>good</e1> <e2>bad</e2>']).tokens.ids.tolist().count(bert.get_vocab()[m[0]]) == 1


def test_without_unused_tokens_they_are_characters(bert, byte_level):
  assert encode(bert, [TEXT], kind='text').kind == 'text'
  found = encode(byte_level, [TEXT])
  assert found.kind == 'text'
  assert byte_level.decode(found.tokens.ids[found.marks[0, 0] :]).strip().startswith('$ good')
  assert byte_level.decode(found.tokens.ids[found.marks[0, 1] :]).strip().startswith('# bad')
  assert byte_level.decode(found.tokens.ids, skip_special_tokens=True).strip() == 'the $ good $ film was # bad # .'
  refused(lambda: encode(byte_level, [TEXT], kind='unused'), 'task.markers=unused', 'task.markers=text')


def test_spans_say_the_same_as_markers():
  plain = 'the good film was bad .'
  by_span = markers.of_spans(plain, [4, 8], {'start': 18, 'end': 21})
  assert [p.strip() if isinstance(p, str) else p for p in by_span] == [
    *('the', 0, 'good', 1, 'film was', 2, 'bad', 3, '.'),
  ]
  assert [p.strip() if isinstance(p, str) else p for p in markers.of_text(TEXT)] == [
    *('the', 0, 'good', 1, 'film was', 2, 'bad', 3, '.'),
  ]
  assert markers.entities(by_span) == ('good', 'bad')
  other = markers.of_spans(plain, [18, 21], [4, 8])  # the second entity stands first
  assert [p for p in other if isinstance(p, int)] == [2, 3, 0, 1]
  assert markers.entities(other) == ('bad', 'good')


@pytest.mark.parametrize(
  ('text', 'says'),
  [
    ('a <e1>b</e1> c', 'has the marker <e2> nowhere'),
    ('<e1>a</e1> <e2>b</e2> <e2>', 'has the marker <e2> more than once'),
    ('<e1>a <e2>b</e1></e2>', 'has its markers in the order <e1> <e2> </e1> </e2>'),
    ('</e1>a<e1> <e2>b</e2>', 'has its markers in the order </e1> <e1>'),
    ('<e1> </e1> <e2>b</e2>', 'has an empty entity between <e1> and </e1>'),
  ],
)
def test_markers_that_are_wrong(text, says):
  with pytest.raises(ValueError, match=f'^"text" {says}'):
    relation.checked(relation.Config(), {'text': text})


@pytest.mark.parametrize(
  ('head', 'tail', 'says'),
  [
    ([0, 3], [2, 4], r'entities that overlap, at \[0, 3\] and \[2, 4\]'),
    ([0, 0], [2, 4], r'the span \[0, 0\], but the text has characters 0 to 5'),
    ([0, 1], [2, 6], r'the span \[2, 6\]'),
    ('0-1', [2, 4], "the span '0-1'; one is"),
    ([0, True], [2, 4], r'the span \[0, True\]; one is'),
    ([2, 3], [0, 1], 'an empty entity'),
  ],
)
def test_spans_that_are_wrong(head, tail, says):
  config = relation.Config(head='h', tail='t')
  with pytest.raises(ValueError, match=f'^"text" has {says}'):
    relation.checked(config, {'text': 'ab cd', 'h': head, 't': tail})


def test_both_columns_of_spans_are_named():
  with pytest.raises(ValueError, match='name both columns, or none'):
    relation.Config(head='h')


def test_a_row_that_is_wrong_is_told_with_its_line(tiny_bert, tmp_path):
  rows = [*gold_relation.rows(40, 0), {'text': 'no marker', 'label': 'Other'}]
  (tmp_path / 'a.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
  config = tiny.config(tiny_bert, tmp_path / 'a.jsonl')
  config.task = recipe.component_section('task', 'relation')
  refused(lambda: run.build(config, split='validation'), 'a.jsonl:41: "text" has the marker <e1> nowhere')


def test_both_entities_stay_in_a_text_that_is_cut(bert):
  words = ['film'] * 20
  texts = [' '.join([*words[:a], '<e1>good</e1>', 'plot', '<e2>bad</e2>', *words[a:]]) for a in (0, 9, 20)]
  found = encode(bert, [*texts, TEXT], limit=16)
  assert found.tokens.truncated == 3
  assert found.tokens.lengths.tolist() == [16, 16, 16, 12]
  for i in range(4):
    row = pieces(bert, found, i)
    assert row[0] == '[CLS]'
    assert row[-1] == '[SEP]'
    assert [row[m + 1] for m in found.marks[i]] == ['good', 'bad']
    assert row.count('good') == row.count('bad') == 1
  middle = pieces(bert, found, 1)
  assert abs(middle[: middle.index('good')].count('film') - middle[middle.index('bad') :].count('film')) <= 1
  refused(lambda: encode(bert, [TEXT, texts[0]], limit=8), '2 of 2 rows', 'a.jsonl:1: 10 tokens', 'train.max_length')


def test_the_head_reads_the_marks(bert):
  found = [{'text': TEXT, 'label': 'X(e1,e2)', 'id': 'r1'}, {'text': TEXT, 'label': 'Other'}]
  rows = Rows(found, 'a', 'a.jsonl', [1, 2])
  task = relation.build(relation.Config(), train=rows, known=None)
  assert task.head == Head('classify', 2, 'mean', marks=2)
  assert relation.build(relation.Config(pooling='cls'), train=rows, known=None).head == Head('classify', 2, 'cls')
  examples = task.examples(rows, bert, limit=40)
  assert examples.extra['marks'].tolist() == [[2, 7], [2, 7]]
  assert examples.extra['labels'].tolist() == [1, 0]
  predictions = {'probabilities': np.array([[0.2, 0.8], [0.4, 0.6]])}
  metrics = task.metrics(examples, predictions)
  assert (metrics['f1_macro'], metrics['accuracy']) == (pytest.approx(2 / 3), 0.5)
  assert task.resampled(examples, predictions)(np.array([3, 0]))['f1_macro'] == 1
  first, _ = task.records(rows, predictions)
  assert (first['id'], first['e1'], first['e2'], first['prediction']) == ('r1', 'good', 'bad', 'X(e1,e2)')
  unknown = Rows([{'text': TEXT, 'label': 'Y'}], 'b', 'b.jsonl', [4])
  refused(lambda: task.examples(unknown, bert, limit=40), "b.jsonl:4: label 'Y' is not in the run's label list")


def test_columns_of_spans_are_read(tiny_bert, tmp_path):
  rows = []
  for row in gold_relation.rows(40, 0):
    bare = markers.of_text(row['text'])
    spans, text = {}, ''
    for part in bare:
      if isinstance(part, int):
        spans.setdefault('ht'[part // 2], []).append(len(text))
      else:
        text += part
    rows.append({'text': text, 'label': row['label'], **spans})
  (tmp_path / 'a.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
  config = tiny.config(tiny_bert, tmp_path / 'a.jsonl')
  config.task = recipe.component_section('task', 'relation', head='h', tail='t')
  built = run.build(config, split='validation')
  marks, offsets = built.examples['validation'].extra['marks'], built.examples['validation'].tokens.offsets
  ids = built.examples['validation'].tokens.ids
  for i, row in enumerate(built.dataset.splits['validation']):
    for mark, span in zip(marks[i], (row['h'], row['t'])):
      assert built.tokenizer.convert_ids_to_tokens(int(ids[offsets[i] + mark + 1])) == row['text'][slice(*span)].strip()
  config.task.tail = 'x'
  refused(lambda: run.build(config), 'task.tail', 'no column "x"')


RAW = 'see  <b>x</b> the <e1>  gooood  </e1>&amp; <e2>b&auml;d</e2>film'


@pytest.mark.parametrize(
  ('steps', 'wanted'),
  [
    ('html', 'see   x  the <e1>  gooood  </e1>& <e2>bäd</e2>film'),
    ('html,whitespace', 'see x the <e1> gooood </e1>& <e2>bäd</e2>film'),
    ('repeats', 'see  <b>x</b> the <e1>  goood  </e1>&amp; <e2>b&auml;d</e2>film'),
  ],
)
def test_cleaning_leaves_markers_and_takes_spans_along(steps, wanted):
  clean = cleaning.cleaner(steps)
  c = relation.Config()
  assert relation.cleaned(c, {'text': RAW, 'label': 'x'}, clean) == {'text': wanted, 'label': 'x'}
  spans = relation.Config(head='h', tail='t')
  plain, head, tail = markers.spanned(markers.of_text(RAW))
  assert (plain[slice(*head)], plain[slice(*tail)]) == ('  gooood  ', 'b&auml;d')
  got = relation.cleaned(spans, {'text': plain, 'h': tail, 't': head}, clean)  # the other way round
  assert got['text'] == re.sub('</?e[12]>', '', wanted)
  assert [got['text'][slice(*got[n])] for n in 'th'] == [*re.findall('<e[12]>(.*?)</e', wanted)]
  same = {'text': 'a b', 'h': {'start': 0, 'end': 1}, 't': [2, 3]}
  assert relation.cleaned(spans, same, clean) is same


def test_what_is_cleaned_is_read_and_what_is_wrong_is_said_of_the_file(tmp_path):
  row = {'text': RAW, 'label': 'x'}
  for split, rows in (
    ('train', [row, {**row, 'label': 'y'}, {**row, 'text': '<e1>a</e1> <br>b'}]),
    ('validation', [row]),
  ):
    (tmp_path / f'{split}.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
  columns = relation.columns(relation.Config())._asdict()
  refused(
    lambda: preparation.load(preparation.Config(path=str(tmp_path), clean='all'), **columns),
    'train.jsonl:3: "text" has the marker <e2> nowhere',
  )
  refused(
    lambda: preparation.load(preparation.Config(path=str(tmp_path), augment='swap=0.1', keep='label=x'), **columns),
    'data.augment=swap=0.1 moves words about',
  )
  (tmp_path / 'train.jsonl').write_text(''.join(json.dumps({**row, 'label': l}) + '\n' for l in 'xy'))
  found = preparation.load(preparation.Config(path=str(tmp_path), clean='all'), **columns)
  want = 'see x the <e1> goood </e1>& <e2>bäd</e2>film'
  assert [r['text'] for split in found.splits.values() for r in split] == [want] * 3
  assert any('2 of 2 rows changed' in n for n in found.notes)


def test_the_label_that_is_no_relation_is_one_of_training():
  labels = ['Cause-Effect(e1,e2)', 'Cause-Effect(e2,e1)', 'Other']
  rows = [{'label': label} for label in labels]
  make = lambda other, n=3: relation.build(relation.Config(other=other), train=rows[:n], known=None)  # noqa: E731
  refused(lambda: make('othr'), 'task.other=othr is no label of training; did you mean "Other"?', '  Cause-Effect\n')
  refused(lambda: make('none', 2), 'task.other=none')
  assert [make(*given).labels[0] for given in (('Other',), ('Other', 2), ('',), ('Cause-Effect',))] == labels[:1] * 4
  assert relation.build(relation.Config(other='othr'), train=[], known=labels).labels == labels  # to predict


def test_training_without_the_label_that_is_no_relation_is_told(bert):
  rows = [{'text': TEXT, 'label': label} for label in ('Cause-Effect(e1,e2)', 'Cause-Effect(e2,e1)', 'Other')]
  make = lambda other, n: relation.build(relation.Config(other=other), train=rows[:n], known=None)  # noqa: E731
  notes = lambda *given: make(*given).examples(rows[: given[1]], bert, limit=16).notes[1:]  # noqa: E731
  assert notes('Other', 2) == ["no label is 'Other' (task.other), so the scores are over all relations"]
  assert notes('Other', 3) == notes('', 2) == []
