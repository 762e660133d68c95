"""Extractive question answering: answers in, answers out, no answer, and what is wrong with data."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
import re

import jax.numpy as jnp
import numpy as np
import pytest

from ftlib import recipe, run
from ftlib.base.errors import InputError
from ftlib.base.settings import read
from ftlib.base.types import Outputs
from ftlib.data import batches, passages, preparation, tokens
from ftlib.data.labels import CHECKS, Columns
from ftlib.data.preparation import load
from ftlib.evals import span_metrics, thresholds
from ftlib.tasks import extract
from ftlib.tasks.extract import Config
from ftlib.tasks.task import unlabelled
from tests import tiny

CONTEXT = 'the film was good and the plot was bad , very bad'
SQUAD = pathlib.Path(__file__).resolve().parents[3] / 'shared' / 'data' / 'squad'
QUESTION = 'was it good'


@pytest.fixture(scope='module')
def tokenizer(tiny_bert):
  return tokens.load(tiny_bert)


def checked(answers, context=CONTEXT, **settings):
  return extract.checked(Config(**settings), {'context': context, 'answers': answers})['answers']


def task(rows=(), **settings):
  return extract.build(Config(**settings), train=rows, known=None)


# --- answers as data have them


@pytest.mark.parametrize(
  'answers',
  [
    {'text': ['good'], 'answer_start': [13]},
    {'text': ['good']},
    {'text': 'good', 'answer_start': 13},
    [{'text': 'good', 'start': 13}],
    [{'text': 'good', 'answer_start': 13}],
    [{'text': ' good ', 'start': 12}],  # without the white space around it
    ['good'],
    'good',
  ],
)
def test_forms_of_answers(answers):
  assert checked(answers) == [{'text': 'good', 'start': 13}]


def test_several_answers():
  got = checked({'text': ['bad', 'very bad'], 'answer_start': [35, 41]})
  assert got == [{'text': 'bad', 'start': 35}, {'text': 'very bad', 'start': 41}]
  assert checked(['bad'], repeated='first') == [{'text': 'bad', 'start': 35}]
  assert checked({'text': [], 'answer_start': []}, no_answer=True) == checked([], no_answer=True) == []


@pytest.mark.parametrize(
  ('answers', 'fault'),
  [
    (
      {'text': ['good'], 'answer_start': [12]},
      r"does not hold the answer 'good' at 12, but ' goo', which it holds at 13",
    ),
    ({'text': ['great'], 'answer_start': [13]}, r"does not hold the answer 'great' at 13, but 'good '$"),
    (['great'], "does not hold the answer 'great'"),
    (['bad'], r"'bad' several times, at 35 and 46, .*repeated=first"),
    ([], r'no answer; --config.task.no_answer=true'),
    ({'text': ['good', 'bad'], 'answer_start': [13]}, 'not as many starts as texts'),
    ([{'text': ''}], 'has no text'),
    ([3], 'has no text'),
    ([{'text': 'good', 'start': -1}], 'starts at -1'),
    ([{'text': 'good', 'start': '13'}], "starts at '13'"),
    (7, 'are the int 7'),
  ],
)
def test_faulty_answers(answers, fault):
  with pytest.raises(ValueError, match=fault):
    checked(answers)


def written(folder, rows, name='train'):
  (folder / f'{name}.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
  return str(folder)


def prepared(path, config=None, **settings):
  return load(preparation.Config(path=path, **settings), **Columns(*extract.columns(config or Config()))._asdict())


def good_rows(count):
  return [
    {
      'question': QUESTION,
      'context': f'{word} {CONTEXT}',
      'answers': {'text': ['good'], 'answer_start': [14 + len(word)]},
    }
    for word, _ in zip(itertools.cycle(tiny.NEUTRAL), range(count))
  ]


@pytest.mark.parametrize(
  ('change', 'fault'),
  [
    ({'answers': {'text': ['great'], 'answer_start': [13]}}, r'train.jsonl:8: the context does not hold the answer'),
    ({'context': ''}, r'train.jsonl:8: "context" is empty'),
    ({'question': None}, r'train.jsonl:8: "question" is null'),
    ({'answers': {'text': [], 'answer_start': []}}, r'train.jsonl:8: there is no answer'),
    ({'answers': None}, r'train.jsonl:8: "answers" is null'),
  ],
)
def test_a_faulty_row_is_told_with_its_line(tmp_path, change, fault):
  rows = good_rows(40)
  rows[7] |= change
  path = written(tmp_path, rows)
  with pytest.raises(InputError, match=fault):
    prepared(path)
  data = prepared(path, on_bad_row='skip', split='0.5,0.5,0')
  assert sum(map(len, data.splits.values())) == 39
  assert any('1 of 40 rows skipped' in note for note in data.notes)


def test_a_missing_column(tmp_path):
  rows = [{'question': QUESTION, 'passage': CONTEXT, 'answers': ['good']}] * 4
  with pytest.raises(InputError, match=r'task.context: .*no column "context"'):
    prepared(written(tmp_path, rows))


def test_nothing_to_learn():
  with pytest.raises(InputError, match='no training row has an answer'):
    task([{'context': CONTEXT, 'answers': []}], no_answer=True)


@pytest.mark.parametrize('value', ['tune', 'nan', ''])
def test_thresholds_are_numbers(value):
  with pytest.raises(InputError, match='null_threshold'):
    read(Config, {'null_threshold': value}, where='task')
  with pytest.raises(InputError, match='is for no_answer=true'):
    read(Config, {'null_threshold': 'tuned'}, where='task')


# --- from logits to spans


def judged(own, rows, tokenizer, logits=None, *, limit=20):
  """(examples, batch, predictions of windows) of logits [N, L, 2], drawn where none are given."""
  examples = own.examples(rows, tokenizer, limit=limit)
  count, longest = len(examples), int(examples.lengths.max())
  batch = batches.collate(examples, range(count), size=count, edges=(longest,), pad_id=0)
  if logits is None:
    logits = np.random.default_rng(0).normal(0, 3, (count, longest, 2))
  got = own.predict(Outputs(None, logits=jnp.asarray(logits, jnp.float32)), batch)
  return examples, batch, {n: np.asarray(x) for n, x in got.items()}, logits


def rows_of(*contexts, answers=(), question=QUESTION):
  return [{'question': question, 'context': c, 'answers': [*answers]} for c in contexts]


LONG = ' '.join((tiny.NEUTRAL * 3)[:40])


@pytest.mark.parametrize('most', [1, 3, 50])
def test_the_best_spans_are_all_there_is(tokenizer, most):
  own = task(n_best=12, max_answer=most, no_answer=True, stride=4)
  examples, batch, got, logits = judged(own, rows_of(CONTEXT, LONG, 'good'), tokenizer)
  assert len(examples) > 3
  for i in range(len(examples)):
    inside = np.flatnonzero(batch['candidates'][i] == passages.INSIDE)
    pairs = [(s, e) for s in inside for e in inside if s <= e < s + most]
    every = sorted(((logits[i, s, 0] + logits[i, e, 1], s, e) for s, e in pairs), reverse=True)[:12]
    count = len(every)
    np.testing.assert_allclose(got['scores'][i, :count], [x for x, *_ in every], rtol=1e-5)
    found = zip(got['starts'][i, :count], got['ends'][i, :count])
    assert [*found] == [(s, e) for _, s, e in every]
    assert (got['scores'][i, count:] < -1e8).all()
    assert got['null'][i] == pytest.approx(logits[i, 0].sum(), rel=1e-5)


def test_rows_get_the_best_spans_of_their_windows_each_once(tokenizer):
  own = task(n_best=6, no_answer=True, stride=4)
  rows = rows_of(LONG, CONTEXT)
  examples, _, got, _ = judged(own, rows, tokenizer)
  found = own.combined(examples, got)
  for r, row in enumerate(rows):
    best = {}
    for i in np.flatnonzero(examples.windows == r):
      chars = examples.spans['characters'][examples.tokens.offsets[i] :]
      for s, e, x in zip(got['starts'][i], got['ends'][i], got['scores'][i]):
        if x > -1e8:
          span = (int(chars[s, 0]), int(chars[e, 1]))
          best[span] = max(best.get(span, -np.inf), x)
    want = sorted(best.items(), key=lambda item: -item[1])[:6]
    assert len(want) == 6
    assert [*zip(found['starts'][r], found['ends'][r])] == [span for span, _ in want]
    np.testing.assert_allclose(found['scores'][r], [x for _, x in want])
    assert found['null'][r] == got['null'][examples.windows == r].min()
    text = row['context'][found['starts'][r, 0] : found['ends'][r, 0]]
    assert text == ' '.join(text.split())


def test_records_have_n_best(tokenizer):
  own = task(n_best=5, no_answer=True)
  rows = [extract.checked(own.config, row) for row in rows_of(CONTEXT, answers=['good'])]
  examples, _, got, _ = judged(own, rows, tokenizer)
  (record,) = own.records(rows, own.combined(examples, got))
  assert json.loads(json.dumps(record)) == record
  shares = [best['probability'] for best in record['n_best']]
  assert sum(shares) + record['null_probability'] == pytest.approx(1, abs=1e-5)
  assert shares == sorted(shares, reverse=True)
  gap = record['n_best'][0]['score'] - record['n_best'][1]['score']
  assert np.log(shares[0] / shares[1]) == pytest.approx(gap, abs=1e-3)
  for best in record['n_best']:
    assert CONTEXT[best['start'] : best['end']] == best['text']
  exact, f1 = span_metrics.scores([record['prediction']], [['good']], empty=True)
  assert (record['exact_match'], record['f1']) == (exact[0], pytest.approx(f1[0], abs=1e-6))


def predictions(nulls, rows):
  """What `combined` would give: the answer first, else 'film', and no answer so much above it."""
  golds = [(r['answers'] or [{'text': 'film', 'start': 4}])[0] for r in rows]
  starts = np.array([[gold['start']] for gold in golds])
  ends = starts + [[len(gold['text'])] for gold in golds]
  return {'starts': starts, 'ends': ends, 'scores': np.zeros((len(rows), 1)), 'null': np.array(nulls, float)}


def test_no_answer_is_given_above_the_threshold(tokenizer):
  rows = [*rows_of(CONTEXT, answers=[{'text': 'good', 'start': 13}]), *rows_of(CONTEXT, CONTEXT)]
  for threshold, f1, none in (('0', 2 / 3, 0.5), ('1.5', 1 / 3, 0.0), ('-3', 2 / 3, 1.0)):
    own = task(no_answer=True, null_threshold=threshold, n_best=1)
    found = predictions([-1.0, 1.0, -0.5], rows)
    examples = own.examples(rows, tokenizer, limit=40)
    got = own.metrics(examples, found)
    assert (got['f1'], got['no_answer_f1']) == (pytest.approx(f1), none), threshold
    assert (got['best_f1'], got['thresholds']['f1']) == (1.0, -1.0)
    said = [r['prediction'] for r in own.records(rows, found)]
    assert [s == '' for s in said] == [n > float(threshold) for n in found['null']]
    once = own.resampled(examples, found)(np.ones(3, np.int64))
    assert once == {n: got[n] for n in own.metric_names}
    twice = own.resampled(examples, found)(np.array([2, 1, 0]))
    assert twice['no_answer_f1'] == float(float(threshold) < 1.0)


def test_a_threshold_is_tuned_on_validation(tokenizer):
  rows = [*rows_of(CONTEXT, answers=[{'text': 'good', 'start': 13}]), *rows_of(CONTEXT, CONTEXT)]
  own = task(no_answer=True, null_threshold='tuned', n_best=1)
  examples, found = own.examples(rows, tokenizer, limit=40), predictions([-1.0, 1.0, -0.5], rows)
  with pytest.raises(InputError, match=r'null_threshold=tuned: it is tuned on the validation split'):
    own.metrics(examples, found)
  tuned = own.tuned(examples, found)
  assert own.metrics(examples, tuned)['f1'] == 1.0
  assert [r['prediction'] for r in own.records(rows, tuned)] == ['good', '', '']
  later = dataclasses.replace(own, thresholds=tuned['thresholds'][0])
  assert later.metrics(examples, found)['f1'] == 1.0
  assert 'thresholds' not in task(n_best=1).tuned(examples, found)


@pytest.mark.parametrize(
  ('nulls', 'f1', 'said'),
  [
    ([-2.0, -3.0, -1.0], 2 / 3, 0),  # nothing is worth an answer, though spans score above "no answer"
    ([-3.0, -3.0, 1.0], 2 / 3, 0),  # the one that is cannot be told from one that is not
    ([-3.0, -2.0, -1.0], 1.0, 1),
    ([4.0, 5.0, 6.0], 1.0, 1),
  ],
)
def test_the_tuned_threshold_is_the_best_there_is(tokenizer, nulls, f1, said):
  rows = [*rows_of(CONTEXT, answers=[{'text': 'good', 'start': 13}]), *rows_of(CONTEXT, CONTEXT)]
  own = task(no_answer=True, null_threshold='tuned', n_best=1)
  examples, found = own.examples(rows, tokenizer, limit=40), predictions(nulls, rows)
  tuned = own.tuned(examples, found)
  assert own.metrics(examples, tuned)['f1'] == pytest.approx(f1)
  for other in (*np.unique(nulls), -9.0, 0.0, 9.0):
    assert own.metrics(examples, thresholds.attached(dict(found), np.array([other])))['f1'] <= f1 + 1e-9
  assert sum(r['prediction'] != '' for r in own.records(rows, tuned)) == said


def test_means_over_resampled_rows(tokenizer):
  rows = [extract.checked(Config(), row) for row in rows_of(CONTEXT, answers=['good'])] * 2
  own = task(n_best=1)
  found = predictions([0, 0], rows) | {'ends': np.array([[17], [21]])}  # 'good', 'good and'
  examples = own.examples(rows, tokenizer, limit=40)
  assert own.metrics(examples, found) == {'exact_match': 0.5, 'f1': pytest.approx((1 + 2 / 3) / 2)}
  assert own.resampled(examples, found)(np.array([1, 2])) == {
    'exact_match': pytest.approx(1 / 3),
    'f1': pytest.approx((1 + 4 / 3) / 3),
  }


def test_chinese_is_judged_by_characters(tokenizer):
  rows = [{'question': QUESTION, 'context': '三国演义是小说', 'answers': [{'text': '三国演义', 'start': 0}]}]
  found = predictions([0], rows) | {'ends': np.array([[5]])}
  own = task(n_best=1)
  examples = own.examples(rows, tokenizer, limit=40)
  assert own.metrics(examples, found)['f1'] == pytest.approx(8 / 9)
  assert next(own.records(rows, found))['f1'] == pytest.approx(8 / 9, abs=1e-6)
  assert task(n_best=1, language='en').metrics(examples, found)['f1'] == 0.0


def test_rows_to_be_answered_need_no_answers(tokenizer):
  own = task(n_best=2)
  columns = Columns(*extract.columns(own.config))
  rows = unlabelled(own, [{'question': QUESTION, 'context': CONTEXT}], columns)
  rows = [columns.row(row) for row in rows]
  examples, _, got, _ = judged(own, rows, tokenizer)
  (record,) = own.records(rows, own.combined(examples, got))
  assert record['prediction'] in CONTEXT
  assert not {'f1', 'answers'} & set(record)
  assert columns.kind in CHECKS


def test_notes_say_what_became_of_rows(tokenizer):
  rows = [
    {'question': ' '.join(['good'] * 30), 'context': LONG, 'answers': [{'text': LONG, 'start': 0}]},
    {'question': QUESTION, 'context': CONTEXT, 'answers': [{'text': 'ood', 'start': 14}]},
  ]
  examples = task().examples(rows, tokenizer, limit=24)
  assert [re.sub('[(;].*', '', note).strip() for note in examples.notes] == [
    'rows: 1 of 2 questions were cut to fit into a window',
    'rows: 1 of 2 answers stand whole in no window, and are not learnt',
    'rows: 1 of 2 answers begin or end inside a token, so that they cannot be given exactly',
  ]
  assert examples.tokens.truncated == 1


def test_a_decoder_answers_too(tmp_path):
  """Its last token stands for no answer."""
  model = tiny.llama_folder(tmp_path)
  for name in ('train', 'validation'):
    written(tmp_path, good_rows(4), name)
  c = recipe.recipe(task='extract', method='lora', optim='adamw')
  c.model.pretrained, c.data.path, c.mesh.shape, c.task.no_answer = str(model), str(tmp_path), 'data=1', True
  built = run.build(c)
  assert built.task.head.pooling == 'last'
  metrics, found = built.evaluate(*built.load(), 'validation')
  assert 0 <= metrics['f1'] <= 1
  assert found['starts'].shape == (4, 20)
  examples = built.examples['validation']
  last = examples.tokens.offsets[1:] - 1
  assert (examples.per_token['candidates'][last] == passages.NULL).all()


@pytest.mark.skipif(not SQUAD.is_dir(), reason='shared data is not here')
def test_answers_of_squad_come_back(tokenizer):
  """Of a WordPiece that knows no word of them: to the words that an answer begins and ends in, at least."""
  lines = (SQUAD / 'validation.jsonl').read_text(encoding='utf-8').splitlines()[::30]
  rows = [extract.checked(Config(), json.loads(line)) for line in lines]
  own = task()
  examples = own.examples(rows, tokenizer, limit=400)
  assert len(examples) >= len(rows) > 25
  first = np.flatnonzero(np.diff(examples.windows, prepend=-1))
  for row, i in zip(rows, first):
    at, answer = examples.tokens.offsets[i], row['answers'][0]
    start, end = (examples.spans['characters'][at + examples.extra[n][i]] for n in ('starts', 'ends'))
    text = row['context'][start[0] : end[1]]
    assert answer['text'] in text
    assert text in row['context']
    assert span_metrics.normalised(answer['text']) in span_metrics.normalised(text)
