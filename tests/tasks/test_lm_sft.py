"""Rows to documents: what stands in them, what of it counts, and what is cut, dropped or refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ftlib.base.errors import InputError
from ftlib.data import tokens
from ftlib.data.preparation import Config, load
from ftlib.data.sources import Rows
from ftlib.tasks import lm, preference, sft
from tests import tiny
from tests.refusal import refused


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  return tokens.load(tiny.chat_tokenizer(tmp_path_factory.mktemp('tasks'), size=300))


def rows(*values):
  return Rows([*values], 'train', 'data/train.jsonl', range(1, len(values) + 1))


def document(examples, i):
  start, stop = examples.tokens.offsets[i : i + 2]
  return examples.tokens.ids[start:stop].tolist(), examples.per_token['weights'][start:stop].tolist()


def learnt(tokenizer, examples, i):
  """The text of what document i counts."""
  start, stop = examples.tokens.offsets[i : i + 2]
  targets, weights = (examples.per_token[n][start:stop] for n in ('targets', 'weights'))
  return tokenizer.decode(targets[weights > 0], clean_up_tokenization_spaces=False)


# --- plain text


def text(tokenizer, *texts, limit=64, **values):
  return lm.build(lm.Config(**values), train=None, known=None).examples(
    rows(*({'text': t} for t in texts)), tokenizer, limit=limit
  )


def test_a_text_ends_and_all_of_it_counts(tokenizer):
  found = text(tokenizer, 'the good film', 'bad<|im_end|>')
  plain = tokenizer('the good film')['input_ids']
  assert document(found, 0) == ([*plain, tokenizer.eos_token_id], [1.0] * len(plain) + [0.0])
  assert document(found, 1)[0].count(tokenizer.eos_token_id) == 1
  assert found.rows.tolist() == [0, 1]


def test_what_the_tokenizer_puts_in_front_stays_in_front(tmp_path):
  from tokenizers import processors

  own = tokens.load(tiny.chat_tokenizer(tmp_path, size=300))
  own.backend_tokenizer.post_processor = processors.TemplateProcessing(
    single='<|im_start|> $A', special_tokens=[('<|im_start|>', 1)]
  )
  ids = document(text(own, 'good'), 0)[0]
  assert (ids[0], ids[-1]) == (own.bos_token_id, own.eos_token_id)
  assert own.decode(ids[1:-1]) == 'good'


@pytest.mark.parametrize('stride', [0, 3, 5, 8])
@pytest.mark.parametrize('size', [7, 8, 9, 10, 15, 16, 17, 40])
def test_windows_predict_each_token_once(tokenizer, stride, size):
  whole = 'abcdefghijklmnopqrstuvwxyz0123456789!?.,;'[: size - 1]
  ids = [*tokenizer(whole)['input_ids'], tokenizer.eos_token_id]
  found = text(tokenizer, whole, limit=8, stride=stride)
  assert found.tokens.lengths.max() <= 8
  assert {*found.rows.tolist()} == {0}
  targets = found.per_token['targets'][found.per_token['weights'] > 0]
  assert targets.tolist() == ids[1:]  # each but the first, once, in order
  for i in range(len(found)):
    start, stop = found.tokens.offsets[i : i + 2]
    at = i * (stride or 8)
    assert found.tokens.ids[start:stop].tolist() == ids[at : at + 8]
    after = ids[at + 1 : at + 9]
    np.testing.assert_array_equal(found.per_token['targets'][start:stop][: len(after)], after)


def test_a_stride_that_skips_text_is_refused(tokenizer):
  with pytest.raises(InputError, match=r'task.stride=9 is more than the 8 tokens'):
    text(tokenizer, 'x', limit=8, stride=9)


# --- answers


def tuned(tokenizer, *values, limit=200, **config):
  task = sft.build(sft.Config(**config), train=None, known=None)
  return task, task.examples(rows(*values), tokenizer, limit=limit)


QA = {'prompt': 'is it <|im_end|> good', 'completion': 'it is {input}'}
TASKS = {
  'plain': ({'form': 'prompt'}, QA, 'is it <|im_end|> good\n'),
  'bare': ({'form': 'prompt', 'template': 'bare'}, QA, 'is it <|im_end|> good'),
  'wrapped': (
    {'form': 'prompt', 'wrap': '({prompt}) {prompt}?'},
    QA,
    '(is it <|im_end|> good) is it <|im_end|> good?\n',
  ),
  'alpaca': (
    {'form': 'instruction', 'template': 'alpaca'},
    {'instruction': 'tell {input}', 'input': '{prompt}', 'output': 'it is {input}'},
    sft.TEMPLATES['alpaca'][0].split('{prompt}')[0] + 'tell {input}\n\n### Input:\n{prompt}\n\n### Response:\n',
  ),
  'alpaca, nothing put in': (
    {'form': 'instruction', 'template': 'alpaca'},
    {'instruction': 'tell', 'input': '', 'output': 'it is {input}'},
    sft.TEMPLATES['alpaca'][1].replace('{prompt}', 'tell'),
  ),
}


@pytest.mark.parametrize('name', TASKS)
def test_prompts_are_read_and_answers_learnt(tokenizer, name):
  config, row, prompt = TASKS[name]
  task, found = tuned(tokenizer, row, limit=999, **config)
  ids, _ = document(found, 0)
  assert learnt(tokenizer, found, 0) == 'it is {input}<|im_end|>'
  assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == prompt + 'it is {input}<|im_end|>'
  assert ids.count(tokenizer.eos_token_id) == 1
  asked = task.prompts(rows(row), tokenizer)[0]
  assert ids[: len(asked)] == asked
  assert tokenizer.decode(asked, clean_up_tokenization_spaces=False) == prompt
  everything = tuned(tokenizer, row, limit=999, **config, train_on='all')[1]
  assert document(everything, 0)[1] == [1.0] * (len(ids) - 1) + [0.0]


def test_a_name_in_an_answer_is_no_token(tokenizer):
  text = 'so <|im_end|> it is'
  _, answer = tuned(tokenizer, {'prompt': 'x', 'completion': text}, form='prompt')
  task = preference.build(preference.Config(template='plain'), train=None, known=None)
  pair = task.examples(rows({'prompt': 'x', 'chosen': text, 'rejected': 'no'}), tokenizer, limit=99)
  for found in (answer, pair):
    assert document(found, 0)[0].count(tokenizer.eos_token_id) == 1
    assert learnt(tokenizer, found, 0) == f'{text}<|im_end|>'


def test_prompts_through_the_chat_template(tokenizer):
  task, found = tuned(tokenizer, QA, form='prompt', template='chat', system='be good')
  talk = [{'role': 'system', 'content': 'be good'}, {'role': 'user', 'content': 'x'}]
  shape = tokenizer.apply_chat_template(talk, tokenize=False).replace('\nx<', '\nis it <|im_end|> good<')
  got = tokenizer.decode(document(found, 0)[0], clean_up_tokenization_spaces=False)
  assert got == shape + '<|im_start|>assistant\nit is {input}<|im_end|>\n'
  assert learnt(tokenizer, found, 0) == 'it is {input}<|im_end|>'
  asked = task.prompts(rows(QA), tokenizer)[0]
  assert document(found, 0)[0][: len(asked)] == asked


TALK = [{'role': r, 'content': c} for r, c in (('user', 'a b c d e f g h'), ('assistant', 'good'))]


def talks(*lengths):
  return [{'messages': [{'role': 'user', 'content': 'x ' * n}, TALK[1]]} for n in lengths]


def test_a_long_prompt_loses_its_beginning(tokenizer):
  _, found = tuned(tokenizer, *talks(100), limit=30)
  ids, _ = document(found, 0)
  assert len(ids) == 30
  assert learnt(tokenizer, found, 0) == 'good<|im_end|>'
  whole = document(tuned(tokenizer, *talks(100), limit=999)[1], 0)[0]
  assert ids == whole[-31:-1]  # the line break after the answer is not learnt, and goes first
  assert found.tokens.truncated == 1


def test_what_the_tokenizer_puts_in_front_survives_the_cut(tmp_path):
  own = tokens.load(tiny.chat_tokenizer(tmp_path, size=300))
  own.chat_template = '{{ bos_token }}' + tiny.CHAT_TEMPLATE
  from tokenizers import processors

  own.backend_tokenizer.post_processor = processors.TemplateProcessing(
    single='<|im_start|> $A', special_tokens=[('<|im_start|>', 1)]
  )
  _, found = tuned(own, *talks(100), limit=30)
  assert document(found, 0)[0][0] == own.bos_token_id
  assert learnt(own, found, 0) == 'good<|im_end|>'


def test_rows_without_a_supervised_token_are_dropped_counted_and_stop_a_run(tokenizer):
  few = talks(*[1] * 30, 100)
  _, found = tuned(tokenizer, *few, limit=60, truncate='right')
  assert len(found) == 30
  assert found.rows.tolist() == [*range(30)]
  note = 'train: 1 of 31 rows have no supervised token and were dropped, the first data/train.jsonl:31'
  assert found.notes == [note]
  assert len(tuned(tokenizer, *few, limit=60, truncate='drop')[1]) == 30
  assert len(tuned(tokenizer, *few, limit=60)[1]) == 31
  with pytest.raises(InputError, match=r'(?s)2 of 31 rows have no supervised token within 60.*5%.*jsonl:1: \d+ tokens'):
    tuned(tokenizer, *talks(100, *[1] * 29, 100), limit=60, truncate='right')


def test_a_tokenizer_without_an_end_is_refused(tmp_path):
  own = tokens.load(tiny.chat_tokenizer(tmp_path, size=300))
  own.eos_token = None
  for make in (lambda: text(own, 'x'), lambda: tuned(own, *talks(1)), lambda: tuned(own, QA, form='prompt')):
    with pytest.raises(InputError, match='no token that ends a text'):
      make()


def test_settings_are_checked():
  with pytest.raises(ValueError, match='no place'):
    sft.Config(wrap='summarise this')
  columns = sft.columns(sft.Config(form='prompt', completion='reference', references='references'))
  assert (columns.texts, columns.spare) == (['prompt', 'reference'], {'reference': 'references'})
  assert sft.columns(sft.Config(messages='turns')).label == 'turns'


FORMS = {
  'messages': {'messages': [{'role': 'user', 'content': 'x'}, {'role': 'assistant', 'content': 'y'}]},
  'prompt': {'prompt': 'x', 'completion': 'y'},
  'instruction': {'instruction': 'x', 'input': '', 'output': 'y'},
}


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize(
  ('values', 'says'),
  [
    (['y', ['y', 'z'], None, []], None),
    (['y', ['y', 3]], 'validation.jsonl:2: "refs" holds 3, but references are a text or a list of texts'),
    ([[None]], 'validation.jsonl:1: "refs" holds None'),
    ([4.5], 'validation.jsonl:1: "refs" is 4.5'),
    ([], 'task.references: no split has a column "refs"; did you mean "ref"?'),
  ],
)
def test_references_are_texts_of_a_column_that_is_there(tmp_path, form, values, says):
  found = {'train': [{**FORMS[form], 'id': 1}], 'validation': [{**FORMS[form], 'refs': v} for v in values]}
  found['validation'] = found['validation'] or [{**FORMS[form], 'ref': 'y'}]
  for name, own in found.items():
    (tmp_path / f'{name}.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in own))
  read = lambda: load(Config(path=str(tmp_path)), **columns._asdict())  # noqa: E731
  columns = sft.columns(sft.Config(form=form, references='refs'))
  if says is None:
    assert len(read().splits['validation']) == len(values)
  else:
    refused(read, says)


def test_records_say_what_was_asked_and_answered(tokenizer):
  task, _ = tuned(tokenizer, *talks(2))
  got = {n: np.array([v], np.float32) for n, v in (('nll', 6.0), ('counted', 3.0), ('correct', 1.0))}
  record = next(task.records(rows(*talks(2)), got))
  assert record == {'id': 0, 'label': 'good', 'loss': 2.0, 'tokens': 3, 'text': 'x x '}
  metrics = task.metrics(None, {n: np.repeat(v, 2) for n, v in got.items()})
  assert metrics['perplexity'] == pytest.approx(np.exp(2))
  assert metrics['bits_per_token'] == pytest.approx(2 / np.log(2))
  assert metrics['accuracy'] == pytest.approx(1 / 3)
  assert metrics.keys() == task.metric_names.keys()
