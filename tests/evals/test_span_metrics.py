"""Exact match and F1 of spans against the official scripts' definitions, worked out again here in other ways."""

from __future__ import annotations

import collections
import difflib
import re
import string

import numpy as np
import pytest

from ftlib.evals import span_metrics

MARKS = '-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』'


def words(text):
  """SQuAD's normalising, by one regular expression a step."""
  text = re.sub('[' + re.escape(string.punctuation) + ']', '', text.lower())
  return re.sub(r'\b(?:a|an|the)\b', ' ', text).split()


def squad(text, gold):
  a, b = words(text), words(gold)
  shared = sum(min(a.count(w), b.count(w)) for w in {*a})
  return ' '.join(a) == ' '.join(b), 2 * shared / (len(a) + len(b)) if shared else 0.0


def cmrc(text, gold):
  """By difflib's longest block and a split at single Chinese characters; the cases have no words that NLTK parts."""
  plain = [re.sub('[' + re.escape(MARKS) + ']', '', t.lower().strip()) for t in (text, gold)]
  a, b = ([w for part in re.split('([一-龥])', t) for w in part.split()] for t in plain)
  run = difflib.SequenceMatcher(None, a, b, autojunk=False).find_longest_match(0, len(a), 0, len(b)).size
  return plain[0] == plain[1], 2 * run / (len(a) + len(b)) if run else 0.0


@pytest.mark.parametrize(
  ('text', 'golds', 'exact', 'f1'),
  [
    ('The Eiffel Tower.', ['eiffel tower'], 1, 1),
    ('July, August and September', ['July, August, and September'], 1, 1),
    ('a cat', ['the cat', 'dogs'], 1, 1),
    ('cat the dog', ['cat dog'], 1, 1),  # an article between
    ('another theory', ['other theory'], 0, 0.5),  # articles are whole words
    ('10th and 11th centuries', ['in the 10th and 11th centuries', '11th'], 0, 8 / 9),
    ('ho ho ho', ['ho ho'], 0, 0.8),
    ('red', ['blue', 'green'], 0, 0),
    ("don't", ['dont'], 1, 1),
    ('the', ['an'], 1, 0),  # SQuAD 1.1: nothing is left of both
    ('Saint Étienne', ['étienne'], 0, 2 / 3),
  ],
)
def test_cases_of_squad(text, golds, exact, f1):
  got = span_metrics.spans([text], [golds])
  assert got == {'exact_match': exact, 'f1': pytest.approx(f1)}
  best = [float(max(of_gold)) for of_gold in zip(*(squad(text, g) for g in golds), strict=True)]
  assert [*got.values()] == pytest.approx(best)


@pytest.mark.parametrize(
  ('text', 'golds', 'exact', 'f1'),
  [
    ('《三国演义》', ['三国演义'], 1, 1),
    ('北京大学', ['北京'], 0, 2 / 3),
    ('在北京的大学', ['北京大学'], 0, 2 * 2 / 10),  # a run, not a sub-sequence: 北京, or 大学
    ('1998年', ['1998年6月'], 0, 2 * 2 / 6),
    ('iPhone 6s手机', ['iphone 6s手机'], 1, 1),
    ('windows-nt系统', ['windowsnt系统'], 1, 1),  # a mark between two stretches joins them
    ('上海', ['广州', '上海市'], 0, 0.8),
    ('天津', ['武汉'], 0, 0),
    ('，。', ['！'], 1, 0),
  ],
)
def test_cases_of_cmrc(text, golds, exact, f1):
  got = span_metrics.spans([text], [golds], language='zh')
  assert got == {'exact_match': exact, 'f1': pytest.approx(f1)}
  best = [float(max(of_gold)) for of_gold in zip(*(cmrc(text, g) for g in golds), strict=True)]
  assert [*got.values()] == pytest.approx(best)


def test_what_is_not_chinese_is_cut_up_by_nltk():
  """As the script does: a percent sign is a word, and '3.5 % 的' shares one of three with the two of '3.5 的'."""
  assert span_metrics.segments('3.5%的') == ['3.5', '%', '的']
  got = span_metrics.spans(['3.5%的'], [['3.5的']], language='zh')
  assert got == {'exact_match': 0, 'f1': pytest.approx(2 * 1 / (3 + 2))}


@pytest.mark.parametrize(('language', 'reference'), [('en', squad), ('zh', cmrc)])
def test_random_answers(language, reference):
  rng = np.random.default_rng(0)
  pieces = {
    'en': ['the ', 'a ', 'Red ', 'red, ', 'fox', '-', ' fox', 'an apple ', '1,5 ', "it's "],
    'zh': ['三', '国', '演义', '《', '》', 'abc ', 'ABC', '12', '，', '国国'],
  }[language]
  texts = [''.join(rng.choice(pieces, rng.integers(1, 7))) for _ in range(300)]
  golds = [[''.join(rng.choice(pieces, rng.integers(1, 7))) for _ in range(rng.integers(1, 4))] for _ in texts]
  want = [[max(x) for x in zip(*(reference(t, g) for g in gs), strict=True)] for t, gs in zip(texts, golds)]
  assert 0.02 < np.mean([w[0] for w in want]) < 0.9
  exact, f1 = span_metrics.scores(texts, golds, language=language)
  np.testing.assert_allclose(np.stack([exact, f1], 1), np.asarray(want, float), rtol=1e-12)


# --- SQuAD 2.0

TEXTS = ['red fox', 'the dog', 'cat', 'a big bird', 'fish']
GOLDS = [['red fox'], [], ['mouse', 'cat'], ['bird'], []]
NULLS = [-3.0, -2.0, -1.0, 0.5, 2.0]


def script(threshold, raw):
  """Means over all, those with and those without an answer, after the threshold: SQuAD 2.0's, question by question."""
  final = [float(not g) if n > threshold else r for g, n, r in zip(GOLDS, NULLS, raw)]
  parts = collections.defaultdict(list)
  for g, x in zip(GOLDS, final):
    parts[''].append(x)
    parts['has_answer_' if g else 'no_answer_'].append(x)
  return {name: sum(x) / len(x) for name, x in parts.items()}


RAW = {'exact_match': [1, 0, 1, 0, 0], 'f1': [1, 0, 1, 2 / 3, 0]}


@pytest.mark.parametrize('threshold', [-5, -1.5, 0.0, 1.0, 9.0])
def test_squad_2(threshold):
  got = span_metrics.spans_or_none(TEXTS, NULLS, GOLDS, threshold=threshold)
  for name, raw in RAW.items():
    for prefix, value in script(threshold, raw).items():
      assert got[f'{prefix}{name}'] == pytest.approx(value), (prefix, name)
  every = [script(t, RAW['f1'])[''] for t in [-9, *NULLS]]
  assert got['best_f1'] == pytest.approx(max(every)) == pytest.approx((1 + 0 + 1 + 2 / 3 + 1) / 5)
  assert got['thresholds'] == {'exact_match': -3.0, 'f1': 0.5}  # the first of equals
  assert got['best_exact_match'] == pytest.approx(3 / 5)
  assert span_metrics.names(True).keys() == got.keys() - {'thresholds'}


def test_what_is_never_worth_an_answer_has_threshold_0():
  got = span_metrics.spans_or_none(['x', 'y'], [5.0, 6.0], [[], ['z']], threshold=0.0)
  assert (got['best_f1'], got['thresholds']['f1']) == (0.5, 0.0)


def test_a_split_without_questions_of_a_sort_has_no_number():
  got = span_metrics.spans_or_none(['x'], [0.0], [['x']], threshold=1.0)
  assert got['no_answer_f1'] is None
  assert got['has_answer_f1'] == 1.0


def test_a_gold_answer_of_nothing_but_an_article_is_an_answer_that_cannot_be_given():
  """As in the script: the question counts as answerable, and an answer of which nothing is left is right."""
  got = span_metrics.spans_or_none(['the', 'dog'], [-1.0, -1.0], [['a'], ['a']], threshold=0.0)
  assert (got['has_answer_exact_match'], got['has_answer_f1'], got['no_answer_f1']) == (0.5, 0.5, None)


def test_chinese_without_an_answer():
  got = span_metrics.spans_or_none(['北京', '上海'], [1.0, -1.0], [[], ['上海']], threshold=0.0, language='zh')
  assert (got['f1'], got['no_answer_f1'], got['has_answer_f1']) == (1.0, 1.0, 1.0)


def test_language():
  assert span_metrics.language_of(['The Normans', 'who were they']) == 'en'
  assert span_metrics.language_of(['范廷颂是越南罗马天主教枢机。', 'Phạm Ðình Tụng']) == 'zh'
  assert span_metrics.language_of(['He wrote 北京 once in a long English text', '']) == 'en'
  assert span_metrics.language_of([]) == 'en'


def test_wrong_arguments():
  with pytest.raises(ValueError, match='each with a gold answer'):
    span_metrics.spans(['a'], [[]])
  with pytest.raises(ValueError, match='one question or more'):
    span_metrics.spans_or_none([], [], [], threshold=0.0)
