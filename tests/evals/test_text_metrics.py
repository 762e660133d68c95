"""Known answers of the measures of texts."""

from __future__ import annotations

import math
from decimal import Decimal

import pytest

from ftlib.base.errors import InputError
from ftlib.evals import text_metrics as m


def test_bleu_by_hand():
  """Precisions 4/5, 3/4, 2/3, 1/2 and a hypothesis as long as the reference: the geometric mean."""
  text, reference = 'one two three four six', 'one two three four five'
  wanted = 100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
  assert m.scores(['bleu'], [text], [[reference]])['bleu'] == pytest.approx(wanted, abs=1e-6)


def test_brevity_is_punished():
  """All n-grams are right, 4 words stand for 5: e to 1 - 5 / 4."""
  got = m.scores(['bleu'], ['one two three four'], [['one two three four five']])['bleu']
  assert got == pytest.approx(100 * math.exp(1 - 5 / 4), abs=1e-6)


def test_the_same_text_is_best_by_all():
  texts = ['the cat sat on the mat today', 'forty two is the answer 42']
  found = m.scores(['bleu', 'chrf', 'rouge', 'exact', 'f1'], texts, [[t] for t in texts])
  assert found == pytest.approx(
    {'bleu': 100, 'chrf': 100}
    | dict.fromkeys(('rouge1', 'rouge2', 'rougeL', 'exact_match', 'answer_match', 'token_f1'), 1)
  )


def test_several_references_of_different_number():
  texts, references = (
    ['one two three four', 'five six seven eight'],
    [['x', 'one two three four'], ['five six seven eight']],
  )
  found = m.scores(['bleu', 'chrf', 'rouge', 'exact', 'f1'], texts, references)
  assert found['bleu'] == pytest.approx(100)
  assert found['rougeL'] == found['exact_match'] == found['token_f1'] == 1


def test_rouge_by_hand():
  """'the cat sat' of 'the cat sat down here': recall 3/5; bigrams 2 of 2 and of 4; the longest common sequence is 3."""
  found = m.scores(['rouge'], ['the cat sat'], [['the cat sat down here']])
  assert found == pytest.approx({'rouge1': 2 * 3 / 8, 'rouge2': 2 * 2 / 6, 'rougeL': 2 * 3 / 8})
  assert m.rouge(['sat cat the'], [['the cat sat']]) == pytest.approx({'rouge1': 1, 'rouge2': 0, 'rougeL': 1 / 3})
  assert m.rouge(['cats sitting'], [['cat sits']])['rouge2'] == 1  # by stems


@pytest.mark.parametrize(
  ('text', 'number'),
  [
    ('so 3 + 4 = 7.\n#### 7', 7),
    ('#### 1,234 dollars, or 9', 1234),
    ('first #### 1 and then #### 2', 2),
    ('It costs $1,000.50', '1000.5'),
    ('The answer is 42.', 42),
    ('it went from 5 to -3', -3),
    ('42.0', 42),
    ('in 1,23 parts', 23),
    ('no number', None),
    ('5 apples #### none', None),
    ('', None),
  ],
)
def test_the_number_of_an_answer(text, number):
  assert m.extracted(text) == (None if number is None else Decimal(number))


def test_number_match():
  texts, references = ['I think 7', '#### 8', 'none'], [['... #### 7'], ['#### 9'], ['#### 1']]
  assert m.number(texts, references) == {'number_match': pytest.approx(1 / 3)}
  assert m.exact(['a ', 'b'], [['a'], ['c', 'd']]) == {'exact_match': 0.5}
  with pytest.raises(InputError, match='no reference holds one'):
    m.number(['1'], [['one']])


def test_the_same_chinese_text_is_best_by_all():
  texts = ['我的房间在楼上的左边。', '他有 3 台 iPhone 吗？']
  found = m.scores(['bleu_zh', 'ter', 'ter_zh', 'rouge_zh', 'f1_zh'], texts, [[t] for t in texts])
  ones = ('rouge1_zh', 'rouge2_zh', 'rougeL_zh', 'answer_match_zh', 'token_f1_zh')
  wanted = {'bleu_zh': 100, 'ter': 0, 'ter_zh': 0, **dict.fromkeys(ones, 1)}
  assert found == pytest.approx(wanted)


def test_bleu_by_characters():
  """8 characters of which the fifth is wrong: 7 of 8, 5 of 7 pairs, 3 of 6, 1 of 5; sacrebleu's own tokenizer sees one
  word."""
  text, reference = '我的房间也楼上边', '我的房间在楼上边'
  wanted = 100 * (7 / 8 * 5 / 7 * 3 / 6 * 1 / 5) ** 0.25
  assert m.scores(['bleu_zh'], [text], [[reference]])['bleu_zh'] == pytest.approx(wanted, abs=1e-6)
  assert m.scores(['bleu'], [text], [[reference]])['bleu'] == 0


def test_edit_rate_by_hand():
  """One word for another and one missing, of 6; a shift of a stretch is one edit, however long; the nearest reference
  counts, over the mean length."""
  rate = lambda *pair: m.scores(['ter'], [pair[0]], [pair[1:]])['ter']  # noqa: E731
  assert rate('the cat sat in mat', 'the cat sat on the mat') == pytest.approx(100 * 2 / 6)
  assert rate('c d e a b', 'a b c d e') == pytest.approx(100 * 1 / 5)
  assert rate('a b', 'x y z', 'a b c') == pytest.approx(100 * 1 / 3)
  assert m.scores(['ter_zh'], ['我不去'], [['我也不去']])['ter_zh'] == pytest.approx(25)


def test_rouge_by_characters():
  """'我爱猫' of '我爱你的猫': 3 of 3 and 5; one pair of 2 and 4; in order 3."""
  found = m.scores(['rouge_zh'], ['我爱猫！'], [['我爱你的猫']])
  assert found == pytest.approx({'rouge1_zh': 2 * 3 / 8, 'rouge2_zh': 2 * 1 / 6, 'rougeL_zh': 2 * 3 / 8})
  assert m.rouge_zh(['用 GPT-4 写'], [['用 gpt 4写']])['rougeL_zh'] == 1


def test_token_f1():
  assert m.f1(['the Cat!'], [['dog', 'cat']])['answer_match'] == 1
  assert m.f1_zh(['在北京。'], [['北京']]) == {'answer_match_zh': 0, 'token_f1_zh': pytest.approx(2 * 2 / 5)}
  assert m.f1(['The cat, sat'], [['a cat sat down']])['token_f1'] == pytest.approx(2 * 2 / 5)
  assert m.f1(['', 'x'], [['the'], ['']])['token_f1'] == 0.5


def test_of_the_texts_alone():
  texts = ['a b a b', 'a c']
  assert m.distinct(texts, [])['distinct_1'] == 3 / 6
  assert m.distinct(texts, [])['distinct_2'] == 3 / 4
  assert m.repetition(['a b c d a b c d', 'w x y z', 'short'], []) == {'repetition': pytest.approx((1 / 5 + 0) / 2)}
  assert m.length(['a b c', ''], [['a'], ['b c']]) == {
    'length_mean': 1.5,
    'length_min': 0,
    'length_max': 3,
    'length_ratio': 1.0,
    'empty': 0.5,
  }


def test_a_chinese_character_is_a_word():
  assert m.distinct(['好好学习'], [])['distinct_1'] == 3 / 4
  assert m.distinct(['好好学习'], [])['distinct_2'] == 1
  assert m.length(['我有 iPhone'], [['我有手机']])['length_ratio'] == 3 / 4


def test_perplexity():
  assert m.perplexity(math.log(8) * 5, 5) == pytest.approx(8)
  assert math.isnan(m.perplexity(0, 0))
  assert m.perplexity(1e6, 1) == math.inf


def test_groups():
  assert m.groups('bleu, rouge,bleu') == ['bleu', 'rouge']
  with pytest.raises(InputError, match=r'.blue. is none of .*did you mean "bleu"'):
    m.groups('blue')
  with pytest.raises(InputError, match='names none'):
    m.groups(' ')
  texts, references = ['the answer is 4'] * 2, [['the answer is 4']] * 2
  for name, (_, scalars) in m.GROUPS.items():
    assert set(m.scores([name], texts, references)) == set(scalars)


def test_what_does_not_fit():
  for texts, references in (([], []), (['a'], [[]]), (['a'], [['a'], ['b']])):
    with pytest.raises(ValueError, match='lists of references'):
      m.scores(['bleu'], texts, references)
