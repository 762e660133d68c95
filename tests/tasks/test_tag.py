"""The task 'tag': what becomes of tags, what is refused and counted, windows, repairs, CRF, and records."""

from __future__ import annotations

import json
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftlib import recipe, run
from ftlib.base import tags as schemes
from ftlib.base.types import Outputs
from ftlib.data import tokens
from ftlib.data.batches import collate
from ftlib.data.sources import Rows
from ftlib.tasks import tag
from tests import tiny
from tests.contract import gold_tag
from tests.refusal import refused

NER = [
  (['the', 'good', 'film', 'bad'], ['O', 'B-UP', 'O', 'B-DOWN']),
  (['great', 'fine', 'dull'], ['B-UP', 'I-UP', 'B-DOWN']),
]


@pytest.fixture(scope='module')
def bert(tiny_bert):
  return tokens.load(tiny_bert)


def rows_of(pairs, name='train'):
  found = [{'tokens': w, 'tags': t} for w, t in pairs]
  return Rows(found, name, f'{name}.jsonl', range(1, len(found) + 1))


def built(pairs=NER, **values):
  return tag.build(tag.Config(**values), train=rows_of(pairs), known=None)


def tag_config(model, data, **task):
  config = tiny.config(model, data, train__steps=3)
  config.task = recipe.component_section('task', 'tag', **task)
  config.objective = recipe.component_section('objective', 'tagging')
  return config


# What the data become.


@pytest.mark.parametrize(
  ('values', 'given', 'tags', 'wanted'),
  [
    ({}, ['a', 'b'], ['O', 'O'], ['a', 'b']),
    ({}, 'a b', 'O B-X', ['a', 'b']),
    ({}, '电影 好', ['O', 'O', 'O'], ['电', '影', '好']),
    ({}, '电影 好', ['O', 'O'], ['电影', '好']),
    ({}, '电影 好', ['O', 'O', 'O', 'O'], ['电', '影', ' ', '好']),
    ({'units': 'characters'}, 'a b', ['O', 'O'], ['a', 'b']),
    ({}, 'a film', None, ['a', 'film']),
    ({}, '电影', None, ['电', '影']),
    ({}, 'EU rejects 北京 call', None, ['EU', 'rejects', '北京', 'call']),
    ({}, 'EU\u3000rejects\u3000a\u3000call', None, ['EU', 'rejects', 'a', 'call']),
    ({}, '我用 EU 卡', None, ['我', '用', 'E', 'U', '卡']),
  ],
)
def test_texts_are_cut_up_as_there_are_tags(values, given, tags, wanted):
  row = {'tokens': given} | ({} if tags is None else {'tags': tags})
  found = tag.checked(tag.Config(**values), row)
  assert found['tokens'] == wanted
  assert tags is None or found['tags'] == (tags.split() if isinstance(tags, str) else tags)


@pytest.mark.parametrize(('given', 'unit'), [(['a', 'b', 'c'], '3 words'), ('a bcd e', r'3 words \(or characters\)')])
def test_as_many_tags_as_words(given, unit):
  with pytest.raises(ValueError, match=f'"tags" has 2 tags for the {unit} of "tokens"'):
    tag.checked(tag.Config(), {'tokens': given, 'tags': ['O', 'O']})


def test_a_row_with_other_numbers_is_told_with_its_line(tiny_bert, tmp_path):
  lines = [json.dumps(r) for r in gold_tag.rows(40, 0)]
  lines.append(json.dumps({'tokens': ['a', 'b'], 'tags': ['O']}))
  (tmp_path / 'a.jsonl').write_text('\n'.join(lines) + '\n')
  config = tag_config(tiny_bert, tmp_path / 'a.jsonl')
  says = 'a.jsonl:41: "tags" has 1 tags for the 2 words', 'data.on_bad_row=skip'
  refused(lambda: run.build(config, split='validation'), *says)


def test_labels_are_all_tags_of_the_scheme():
  assert built().labels == ['O', 'B-DOWN', 'I-DOWN', 'B-UP', 'I-UP']
  assert built().counts.tolist() == [2, 2, 0, 2, 1]
  wide = built(scheme='bioes')
  assert wide.labels == ['O', *(f'{p}-{t}' for t in ('DOWN', 'UP') for p in 'BIES')]
  assert wide.written(['B-UP', 'I-UP', 'B-DOWN']) == ['B-UP', 'E-UP', 'S-DOWN']
  again = tag.build(tag.Config(), train=None, known=wide.labels)  # a stored run, in whose config the scheme is ''
  assert (again.labels, again.scheme) == (wide.labels, 'bioes')
  plain = built([(['a', 'b'], ['NN', 'VB'])])
  assert (plain.labels, plain.scheme, plain.metric) == (['NN', 'VB'], 'plain', 'token_accuracy')
  assert built([(['a', 'b'], [2, 10])]).labels == [2, 10]
  assert built(scheme='plain').labels == ['B-DOWN', 'B-UP', 'I-UP', 'O']


def test_labels_that_say_nothing_are_refused():
  refused(lambda: built([(['a'], ['NN'])]), "only one tag, 'NN'")
  refused(lambda: built([(['a'], ['O'])]), "only one tag, 'O'")
  refused(lambda: built([(['a', 'b'], ['NN', 'VB'])], scheme='bio'), 'task.scheme=bio: the tags of "tags" are NN, VB')


@pytest.mark.parametrize(
  ('tag_', 'near'),
  [('b-UP', 'did you mean "B-UP"'), ('B_UP', 'did you mean "B-UP"'), ('O ', 'did you mean "O"'), ('0', ''), ('o', '')],
)
@pytest.mark.parametrize('scheme', ['', 'bio'])
def test_one_stray_tag_does_not_turn_entities_into_parts_of_speech(tag_, near, scheme):
  pairs = [*NER * 15, (['a', 'b'], ['O', tag_])]
  says = 'train.jsonl:31: the tag', repr(tag_), near, '(1 such rows)', 'B-DOWN, B-UP, I-UP', 'task.scheme=plain'
  refused(lambda: built(pairs, scheme=scheme), *says)
  assert built(pairs, scheme='plain').scheme == 'plain'


@pytest.mark.parametrize(
  ('tags', 'strays'),
  [
    (['B-X', 'B-X', '0', 'o', 'O '], set()),
    (['B-X', 'B-X', 'B-X', '0', 'o'], {'0', 'o'}),
    (['B-X', 'I-X', *'000'], {'0'}),
    (['B-X', 'I-X', 'B'], {'B'}),
    (['B', 'I', 'O', 'b'], {'b'}),
    (['NN', 'VB', 'NN', 'S-X'], set()),
    (['NN', 'M', 'B', 'VB', 'VB', 'CD'], set()),
    ([1, 2], set()),
  ],
)
def test_tags_of_no_scheme_among_those_of_one(tags, strays):
  assert schemes.strays(Counter(tags)) == strays


def test_unknown_tags_are_refused_with_their_line(bert):
  other = rows_of([*NER, (['a', 'b'], ['B-OP', 'I-OP'])], 'test')
  says = 'test.jsonl:3', "the type of entity 'OP' is not among the run's", '(1 such rows)', 'DOWN, UP'
  refused(lambda: built().examples(other, bert, limit=20), *says)
  odd = rows_of([(['a'], ['XX'])], 'test')
  refused(lambda: built().examples(odd, bert, limit=20), "'XX' is not among")
  plain, odd = built([(['a', 'b'], ['NN', 'VB'])]), rows_of([(['a'], ['NNP'])])
  refused(lambda: plain.examples(odd, bert, limit=20), "the tag 'NNP' is not", 'did you mean', 'NN')


NOTES = {
  'sound': (['B-UP', 'I-UP', 'O'], ['O', 'B-UP', 'I-UP'], None),
  'iob1': (['I-UP', 'I-UP', 'O'], ['O', 'I-UP', 'B-UP'], 'the tags are IOB1'),
  'broken': (['B-UP', 'I-DOWN', 'O'], ['O', 'I-UP', 'I-UP'], '2 of 4 rows have tags that go on with nothing'),
  'open': (['B-UP', 'E-UP', 'O'], ['O', 'B-UP', 'I-UP'], '2 of 4 rows have tags that'),
  'other': (['S-UP', 'O', 'O'], ['O', 'B-UP', 'I-UP'], '1 tags of another scheme (S-UP) are written as bio'),
}


@pytest.mark.parametrize('case', NOTES)
def test_broken_sequences_are_read_and_counted(bert, case):
  first, second, says = NOTES[case]
  rest = [] if case == 'iob1' else [(['a', 'b'], ['B-UP', 'B-UP'])]
  rows = rows_of([(['a', 'b', 'c'], first), (['a', 'b', 'c'], second), (['a'], ['O']), *rest])
  notes = built().examples(rows, bert, limit=20).notes
  assert (says is None) == (notes == [])
  assert says is None or any(says in n for n in notes), notes


def test_a_broken_row_is_named(bert):
  rows = rows_of([(['a'], ['O']), (['a', 'b'], ['O', 'I-UP']), (['a', 'b'], ['B-UP', 'O'])])
  [note] = built().examples(rows, bert, limit=20).notes
  assert 'the first in train.jsonl:2; an entity was read where one is meant' in note


# Windows, and the way back to words.


def test_long_rows_are_counted(tiny_bert, tmp_path):
  rows = [*gold_tag.rows(7, 0), {'tokens': ['good'] * 60, 'tags': ['O'] * 60}]
  (tmp_path / 'train.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
  (tmp_path / 'validation.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows[-2:]))
  one = run.build(tag_config(tiny_bert, tmp_path), split='validation')
  assert one.examples['validation'].tokens.truncated == 1  # which eval/<split>.json says
  assert [n for n in one.notes if '60' in n or 'windows' in n] == [
    'validation: 1 of 2 rows (50.0%) were made into 3 windows of 40 tokens'
  ]


def say(task, examples, chosen):
  """The answers for rows, where those of documents are `chosen(document, token)`, (label, confidence)."""
  lengths = examples.tokens.lengths
  both = np.array([[chosen(d, t) for t in range(int(lengths.max()))] for d in range(len(lengths))])
  got = {'tags': both[..., 0].astype(np.int16), 'confidence': both[..., 1].astype(np.float32)}
  return task.combined(examples, got)


def test_every_word_is_answered_by_the_window_that_is_its_own(bert):
  words = 'it was bad dull the plot of this scene cold weak grim'.split()
  rows = rows_of([*NER, (words, ['O'] * 11 + ['B-UP'])])
  task = built(repair='none', stride=2)
  examples = task.examples(rows, bert, limit=8)
  assert examples.tokens.truncated == 1  # of rows
  assert len(examples) == len(examples.windows) == 5
  assert examples.per_token['weights'].sum() == 4 + 3 + 12
  assert examples.per_token['chain'].sum() > 4 + 3 + 12
  got = say(task, examples, lambda d, t: (t % 5, d))
  assert got['tags'].shape == (3, 12)
  assert got['tags'][1].tolist() == [1, 2, 3] + [-1] * 9
  assert got['confidence'][2].tolist() == sorted(got['confidence'][2])
  assert set(got['confidence'][2]) == {2.0, 3.0, 4.0}


def test_targets_and_weights_are_at_first_pieces(bert):
  examples = built().examples(rows_of([(['gooda', 'bad'], ['B-UP', 'B-DOWN'])]), bert, limit=20)
  assert bert.convert_ids_to_tokens(examples.tokens.ids) == ['[CLS]', 'good', '##a', 'bad', '[SEP]']
  assert examples.per_token['weights'].tolist() == examples.per_token['chain'].tolist() == [0, 1, 0, 1, 0]
  assert examples.per_token['targets'].tolist() == [0, 3, 0, 1, 0]


def test_rows_without_tags_are_predicted(bert):
  task = built()
  rows = Rows([{'tokens': ['good', 'film']}], 'file', 'file', [1])
  assert task.placeholder({'tokens': '电影'}) == ['O', 'O']
  got = say(task, task.examples(rows, bert, limit=20), lambda d, t: (3, 0.5))
  [record] = task.records(rows, got)
  assert record['prediction'] == ['B-UP', 'B-UP']
  assert record['label'] is None


# Repairs.


@pytest.mark.parametrize(
  ('scheme', 'repair', 'said', 'wanted'),
  [
    ('bio', 'begin', 'O I-UP I-UP I-DOWN', 'O B-UP I-UP B-DOWN'),
    ('bio', 'drop', 'O I-UP B-UP I-DOWN', 'O O B-UP O'),
    ('bio', 'none', 'O I-UP I-UP I-DOWN', 'O I-UP I-UP I-DOWN'),
    ('bioes', 'begin', 'B-UP I-UP O E-DOWN', 'B-UP E-UP O S-DOWN'),
    ('bioes', 'drop', 'B-UP I-UP S-UP E-DOWN', 'O O S-UP O'),
    ('bioes', 'begin', 'B-UP E-UP O S-DOWN', 'B-UP E-UP O S-DOWN'),
  ],
)
def test_illegal_sequences_are_repaired_and_counted(bert, scheme, repair, said, wanted):
  task = built(scheme=scheme, repair=repair)
  rows = rows_of([(['a', 'b', 'c', 'd'], ['O', 'B-UP', 'I-UP', 'O'])])
  examples = task.examples(rows, bert, limit=20)
  numbers = [0, *(task.labels.index(t) for t in said.split()), 0]
  got = say(task, examples, lambda d, t: (numbers[t], 0.5))
  [record] = task.records(rows, got)
  assert record['prediction'] == wanted.split()
  assert (task.metrics(examples, got)['illegal_tags'] == 0) == (said == wanted and repair != 'none')


def test_constrained_decoding_and_crf_say_what_is_legal():
  rng = np.random.default_rng(0)
  logits = jnp.asarray(rng.normal(size=(6, 9, 5)), jnp.float32)
  table = jnp.asarray(rng.normal(size=(6, 6)), jnp.float32).at[0, 2].set(6)  # O, then I-DOWN
  batch = {'chain': np.ones((6, 9), np.int32)}
  for repair, transitions in (('constrain', None), ('constrain', table), ('begin', table), ('begin', None)):
    task = built(repair=repair, crf=transitions is not None)
    found = jax.jit(task.predict)(Outputs(None, logits=logits, transitions=transitions), batch)
    rows = [[task.labels[t] for t in row] for row in np.asarray(found['tags'])]
    assert (sum(schemes.faults(row, closed=False) for row in rows) == 0) == (repair == 'constrain')
    assert 0 < float(found['confidence'].min()) < float(found['confidence'].max()) <= 1


# Records.


def test_records_name_their_entities(bert):
  task = built()
  english = ['the', 'good', 'fine', 'film'], ['O', 'B-UP', 'I-UP', 'O']
  rows = rows_of([english, (list('电影好'), ['B-UP', 'I-UP', 'O'])])
  said = [[0, 0, 3, 4, 0, 0], [0, 3, 4, 0, 0, 0]]
  sure = [0, 0.9, 0.5, 0.7, 0.2, 0]
  got = say(task, task.examples(rows, bert, limit=20), lambda d, t: (said[d][t], sure[t]))
  first, second = task.records(rows, got)
  assert first == json.loads(json.dumps(first))
  assert first['text'] == 'the good fine film'
  assert first['entities'] == [{'type': 'UP', 'start': 1, 'stop': 3, 'text': 'good fine', 'confidence': 0.6}]
  assert second['entities'][0]['text'] == second['text'][:2] == '电影'


def test_parts_of_speech(bert):
  task = built([(['a', 'b'], ['NN', 'VB'])])
  rows = rows_of([(['a', 'b', 'c'], ['NN', 'VB', 'NN'])])
  examples = task.examples(rows, bert, limit=20)
  got = say(task, examples, lambda d, t: (0, 0.5))
  metrics = task.metrics(examples, got)
  assert metrics['token_accuracy'] == pytest.approx(2 / 3)
  assert metrics['confusion'] == [[2, 0], [1, 0]]
  assert set(task.metric_names) == {n for n, v in metrics.items() if isinstance(v, float)}
  [record] = task.records(rows, got)
  assert 'entities' not in record


def test_a_crf_trains_its_transitions(tiny_bert, tmp_path):
  for seed, (split, count) in enumerate((('train', 48), ('validation', 8))):
    lines = ''.join(json.dumps(r) + '\n' for r in gold_tag.rows(count, seed))
    (tmp_path / f'{split}.jsonl').write_text(lines)
  one = run.build(tag_config(tiny_bert, tmp_path, crf=True))
  assert 'head/transitions' in one.train_info
  own, frozen = one.load()
  state = one.start(own, frozen)
  losses = []
  for step in range(3):
    _, batch, _ = one.batch(step)
    state, sums = one.train_step(state, frozen, batch)
    losses.append(float(sums['loss'][0] / sums['loss'][1]))
  assert losses[-1] < losses[0]
  assert np.abs(np.asarray(state.trainable['head']['transitions'])).max() > 0
  own, frozen = one.load()
  batch = collate(one.examples['validation'], range(8), size=8, edges=(40,), pad_id=one.tokenizer.pad_token_id)
  sums, _ = one.eval_step(own, frozen, batch)
  assert float(sums['loss'][1]) == batch['chain'].sum()
