"""Metrics of rows with several labels are scikit-learn's, and what that leaves open is settled."""

from __future__ import annotations

import json

import numpy as np
import pytest
import sklearn.metrics as sk

from ftlib.evals.multilabel_metrics import NAMES, multilabel, resampled

CLASSES = ['a', 'b', 'c', 'd']


def drawn(seed: int, rows: int = 60, *, empty: bool = False):
  """(labels, probabilities that know something of them); with `empty`, rows without labels and answers are there."""
  rng = np.random.default_rng(seed)
  labels = (rng.random((rows, 4)) < [0.5, 0.3, 0.2, 0.1]).astype(int)
  labels[:2] = [[1, 1, 1, 1], [0, 0, 0, 1]]
  labels[2:, 0] |= (~labels[2:].any(1)) & (not empty)
  return labels, np.clip(0.25 + 0.4 * labels + rng.normal(0, 0.25, labels.shape), 0, 1)


@pytest.mark.parametrize('thresholds', [0.5, np.array([0.3, 0.5, 0.6, 0.2])], ids=['one', 'each'])
@pytest.mark.parametrize('empty', [False, True])
def test_they_are_those_of_scikit_learn(thresholds, empty):
  labels, p = drawn(0, empty=empty)
  said = (p >= thresholds).astype(int)
  neither = ~labels.any(1) & ~said.any(1)
  assert neither.any() == empty
  got = multilabel(labels, p, thresholds=thresholds, names=CLASSES)
  assert got['subset_accuracy'] == pytest.approx(sk.accuracy_score(labels, said))
  assert got['hamming_loss'] == pytest.approx(sk.hamming_loss(labels, said))
  for average in ('micro', 'macro', 'samples'):
    for name in ('precision', 'recall', 'f1'):
      wanted = getattr(sk, f'{name}_score')(labels, said, average=average, zero_division=0)
      more = neither.mean() if average == 'samples' else 0  # rows that are right in having none
      assert got[f'{name}_{average}'] == pytest.approx(wanted + more), (name, average)
  assert got['roc_auc'] == pytest.approx(sk.roc_auc_score(labels, p, average='macro'))
  assert got['average_precision'] == pytest.approx(sk.average_precision_score(labels, p, average='macro'))
  assert got['lrap'] == pytest.approx(sk.label_ranking_average_precision_score(labels, p))
  f1 = sk.f1_score(labels, said, average=None, zero_division=0)
  for c, name in enumerate(CLASSES):
    one = got['per_class'][name]
    assert (one['f1'], one['support']) == (pytest.approx(f1[c]), labels[:, c].sum())
    assert one['roc_auc'] == pytest.approx(sk.roc_auc_score(labels[:, c], p[:, c]))
    assert one['threshold'] == pytest.approx(np.broadcast_to(thresholds, 4)[c])
  assert {n for n, v in got.items() if isinstance(v, float)} == set(NAMES)
  assert json.loads(json.dumps(got)) == got


@pytest.mark.parametrize('empty', [False, True])
def test_rows_that_stand_there_several_times(empty):
  labels, p = drawn(1, empty=empty)
  p = np.round(p, 1)  # many are equal
  counts = np.random.default_rng(0).integers(0, 3, len(p))
  at = np.broadcast_to([0.3, 0.5, 0.6, 0.2], p.shape)
  rows = np.repeat(np.arange(len(p)), counts)
  counted = resampled(labels, p, thresholds=at, names=CLASSES)
  for got, some in ((counted(np.ones(len(p), int)), slice(None)), (counted(counts), rows)):
    wanted = multilabel(labels[some], p[some], thresholds=at[some], names=CLASSES)
    by_class = got.pop('per_class')
    assert got == pytest.approx({n: wanted[n] for n in NAMES})
    for name, one in by_class.items():
      assert one == pytest.approx({n: wanted['per_class'][name][n] for n in ('precision', 'recall', 'f1')})
    assert [*by_class] == [*CLASSES]
  assert resampled(labels[:2], p[:2], thresholds=0.5, names=CLASSES)(np.array([1, 1]))['roc_auc'] is None


def test_a_row_that_rightly_has_none_is_right():
  got = multilabel([[0, 0], [1, 0]], [[0.1, 0.2], [0.9, 0.1]], thresholds=0.5, names='ab')
  assert all(got[n] == (1 if higher else 0) for n, higher in NAMES.items() if n[-8:] == '_samples')
  assert (got['f1_macro'], got['f1_micro'], got['subset_accuracy']) == (0.5, 1, 1)  # b is never there: undefined is 0
  wrong = multilabel([[0, 0], [1, 0]], [[0.9, 0.2], [0.1, 0.1]], thresholds=0.5, names='ab')
  assert (wrong['f1_samples'], wrong['precision_samples'], wrong['hamming_loss']) == (0, 0, 0.5)


def test_what_is_not_defined_is_none():
  got = multilabel([[1, 0], [0, 0]], [[0.9, 0.1], [0.2, 0.3]], thresholds=0.5, names='ab')
  assert (got['roc_auc'], got['average_precision'], got['per_class']['b']['roc_auc']) == (None, None, None)
  assert got['per_class']['a']['roc_auc'] == 1
  assert got['lrap'] == 1


@pytest.mark.parametrize(
  ('labels', 'p', 'names', 'words'),
  [
    ([[0, 2]], [[0.5, 0.5]], 'ab', '0 or 1'),
    ([[0, 1]], [[0.5, 1.5]], 'ab', 'row that does not is 0; were these logits'),
    ([[0, 1]], [[0.5, np.nan]], 'ab', 'must lie in'),
    ([[0, 1]], [[0.5]], 'ab', 'must have shape'),
    (np.zeros((0, 2)), np.zeros((0, 2)), 'ab', 'N of 1 or more'),
    ([[1]], [[0.5]], 'a', 'at least two'),
    ([[1, 0]], [[0.5, 0.5]], 'aa', 'at least two different'),
  ],
)
def test_bad_arguments(labels, p, names, words):
  with pytest.raises(ValueError, match=words):
    multilabel(labels, p, thresholds=0.5, names=list(names))
