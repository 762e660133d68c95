"""Metrics of resampled rows equal those of the rows written out, of every kind that is counted quickly."""

import numpy as np
import pytest

from ftlib.evals import counted, metrics, text_metrics


def case(C, N=60, seed=0, ties=False):
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, C, N)
  logits = rng.normal(size=(N, C)) + np.eye(C)[labels]
  p = np.exp(np.round(logits, 0) if ties else logits)
  return labels, p / p.sum(1, keepdims=True)


def same(got, want):
  assert got.keys() <= want.keys()
  for of_class, one in got.get('per_class', {}).items():
    assert one == pytest.approx({n: want['per_class'][of_class][n] for n in metrics.SHARES}, abs=1e-12), of_class
  for name, value in got.items():
    assert name == 'per_class' or value == (None if want[name] is None else pytest.approx(want[name], abs=1e-12)), name


@pytest.mark.parametrize('C', [2, 4])
@pytest.mark.parametrize('ties', [False, True])
def test_classes(C, ties):
  labels, p = case(C, ties=ties)
  names = [*'abcd'][:C]
  fn = counted.classification(labels, p, names=names)
  same(fn(np.ones(60, int)), metrics.classification(labels, p, names=names))
  assert fn(np.ones(60, int)).keys() == {*metrics.classification_names(C), 'per_class'}
  for seed in range(4):
    counts = np.random.default_rng(seed).integers(0, 3, 60)
    rows = np.repeat(np.arange(60), counts)
    same(fn(counts), metrics.classification(labels[rows], p[rows], names=names))
  alone = (labels == 1).astype(int)  # no ranking with one class
  same(fn(alone), metrics.classification(labels[labels == 1], p[labels == 1], names=names))
  assert fn(alone)['roc_auc'] is None


def test_predictions_by_a_threshold():
  labels, p = case(2)
  said = (p[:, 1] >= 0.3).astype(int)
  got = counted.classification(labels, p, names=['a', 'b'], predictions_N=said)(np.ones(60, int))
  same(got, metrics.classification(labels, p, names=['a', 'b'], predictions_N=said))


def test_scores():
  rng = np.random.default_rng(0)
  x = np.round(rng.normal(size=50), 1)
  y = np.round(x + rng.normal(size=50), 1)
  fn, ranked = counted.regression(x, y), counted.ranking(x > 0, y)
  assert fn(np.ones(50, int)).keys() == metrics.REGRESSION.keys()
  for seed in range(4):
    counts = np.random.default_rng(seed).integers(0, 3, 50)
    rows = np.repeat(np.arange(50), counts)
    same(fn(counts), metrics.regression(x[rows], y[rows]))
    same(ranked(counts), metrics.ranking(x[rows] > 0, y[rows]))
  one = np.zeros(50, int)
  one[7] = 3
  assert fn(one)['pearson'] == fn(one)['spearman'] == 0.0
  assert ranked(one) == metrics.ranking(x[[7]] > 0, y[[7]]) == dict.fromkeys(metrics.RANKING)


def test_sums():
  fn = counted.sums([[1, 2], [0, 1], [1, 1]], lambda s: {'share': s[0] / s[1]})
  assert fn(np.array([1, 0, 2])) == {'share': 3 / 4}


def test_numbers_in_texts():
  texts, references = ['so 3 and 4', 'none', '#### 7'], [['4'], ['8'], ['7.0']]
  got = counted.texts(['number'], texts, references)(np.array([1, 2, 1]))
  assert got == {'number_match': 0.5}
  assert text_metrics.scores(['number'], texts, references) == counted.texts(['number'], texts, references)(np.ones(3))


def test_texts():
  texts = ['the cat sat on the mat today', 'a dog', 'it rains in the north of spain', 'no']
  references = [['the cat sat on a mat'], ['a dog barks', 'dog'], ['it rains in the south of spain'], ['yes']]
  groups = ['rouge', 'rouge_zh', 'exact', 'f1', 'f1_zh', 'bleu', 'bleu_zh', 'ter', 'ter_zh']
  fn = counted.texts([*groups, 'length'], texts, references)
  for counts in ([1, 1, 1, 1], [2, 0, 3, 1], [0, 1, 1, 0]):
    rows = np.repeat(np.arange(4), counts)
    want = text_metrics.scores(groups, [texts[i] for i in rows], [references[i] for i in rows])
    got = fn(np.array(counts))
    assert got.keys() == want.keys()
    same(got, want)
