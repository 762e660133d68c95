"""ftlib.evals.metrics against scikit-learn and against hand-made cases."""

import json
import subprocess
import sys

import numpy as np
import pytest
import sklearn.metrics as sk

from ftlib.evals import metrics

BINARY = ['negative', 'positive']
FIVE = ['a', 'b', 'c', 'd', 'e']


pytestmark = pytest.mark.filterwarnings('error')


def softmax(logits):
  exp = np.exp(logits - logits.max(axis=1, keepdims=True))
  return exp / exp.sum(axis=1, keepdims=True)


def random_case(C, N=300, seed=0, signal=1.0):
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, C, size=N)
  return labels, softmax(rng.normal(size=(N, C)) + signal * np.eye(C)[labels])


@pytest.mark.parametrize('names', [BINARY, FIVE])
@pytest.mark.parametrize('seed', range(3))
def test_equals_scikit_learn(names, seed):
  C = len(names)
  labels, probabilities = random_case(C, seed=seed)
  got = metrics.classification(labels, probabilities, names=names)
  predictions = probabilities.argmax(1)
  assert got['accuracy'] == pytest.approx(sk.accuracy_score(labels, predictions))
  for average in ('macro', 'micro'):
    for key, function in {'precision': sk.precision_score, 'recall': sk.recall_score, 'f1': sk.f1_score}.items():
      assert got[f'{key}_{average}'] == pytest.approx(function(labels, predictions, average=average))
  assert got['f1_weighted'] == pytest.approx(sk.f1_score(labels, predictions, average='weighted'))
  assert got['mcc'] == pytest.approx(sk.matthews_corrcoef(labels, predictions))
  assert got['log_loss'] == pytest.approx(sk.log_loss(labels, probabilities))
  if C == 2:
    assert got['roc_auc'] == pytest.approx(sk.roc_auc_score(labels, probabilities[:, 1]))
    assert got['average_precision'] == pytest.approx(sk.average_precision_score(labels, probabilities[:, 1]))
  else:
    assert got['roc_auc'] == pytest.approx(sk.roc_auc_score(labels, probabilities, multi_class='ovr'))
    one_hot = np.eye(C)[labels]
    assert got['average_precision'] == pytest.approx(sk.average_precision_score(one_hot, probabilities))
  report = sk.classification_report(labels, predictions, target_names=names, output_dict=True)
  for c, name in enumerate(names):
    one = got['per_class'][name]
    assert one['f1'] == pytest.approx(report[name]['f1-score'])
    assert one['precision'] == pytest.approx(report[name]['precision'])
    assert one['recall'] == pytest.approx(report[name]['recall'])
    assert one['support'] == report[name]['support']
    assert one['roc_auc'] == pytest.approx(sk.roc_auc_score(labels == c, probabilities[:, c]))
  np.testing.assert_array_equal(got['confusion'], sk.confusion_matrix(labels, predictions))


def test_binary_scores_of_the_positive_class():
  labels, probabilities = random_case(2)
  got = metrics.classification(labels, probabilities, names=BINARY)
  for key, function in {'precision': sk.precision_score, 'recall': sk.recall_score, 'f1': sk.f1_score}.items():
    assert got[key] == pytest.approx(function(labels, probabilities.argmax(1), pos_label=1))
    assert got[key] == got['per_class']['positive'][key]
  assert 'f1' not in metrics.classification(*random_case(5), names=FIVE)


def test_confusion_by_hand():
  labels = np.array([0, 0, 1, 2])
  probabilities = np.array([[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1]], np.float32)
  got = metrics.classification(labels, probabilities, names=['x', 'y', 'z'])
  assert got['confusion'] == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
  assert got['per_class']['x'] == {'precision': 1, 'recall': 0.5, 'f1': pytest.approx(2 / 3), 'support': 2,
                                   'roc_auc': pytest.approx(0.75)}  # fmt: skip


def test_sums_and_identities():
  labels, probabilities = random_case(5, N=211)
  got = metrics.classification(labels, probabilities, names=FIVE)
  confusion = np.array(got['confusion'])
  assert confusion.sum() == 211
  assert confusion.trace() / 211 == pytest.approx(got['accuracy'])
  assert confusion.sum(1).tolist() == [got['per_class'][n]['support'] for n in FIVE]
  assert got['precision_micro'] == got['recall_micro'] == pytest.approx(got['accuracy'])
  assert np.mean([v['f1'] for v in got['per_class'].values()]) == pytest.approx(got['f1_macro'])
  # Halves of a split: their confusion counts add up, and accuracy is the mean weighted by size.
  halves = [metrics.classification(labels[s], probabilities[s], names=FIVE) for s in (np.s_[:100], np.s_[100:])]
  np.testing.assert_array_equal(sum(np.array(h['confusion']) for h in halves), confusion)
  assert (halves[0]['accuracy'] * 100 + halves[1]['accuracy'] * 111) / 211 == pytest.approx(got['accuracy'])


def test_absent_class_keeps_its_place():
  labels, probabilities = random_case(5)
  labels[labels == 3] = 0
  got = metrics.classification(labels, probabilities, names=FIVE)
  assert got['roc_auc'] is None
  assert got['average_precision'] is None
  assert got['per_class']['d']['roc_auc'] is None
  assert got['per_class']['a']['roc_auc'] is not None
  assert got['per_class']['d']['support'] == got['per_class']['d']['recall'] == 0
  assert np.shape(got['confusion']) == (5, 5)
  want = sk.f1_score(labels, probabilities.argmax(1), average='macro', labels=range(5), zero_division=0)
  assert got['f1_macro'] == pytest.approx(want)
  assert 'NaN' not in json.dumps(got)


@pytest.mark.parametrize('label', [0, 1])
def test_one_row(label):
  got = metrics.classification(np.array([label]), np.array([[0.25, 0.75]]), names=BINARY)
  assert got['accuracy'] == label
  assert got['mcc'] == 0
  assert got['roc_auc'] is got['average_precision'] is None
  assert got['log_loss'] == pytest.approx(-np.log([0.25, 0.75][label]))
  assert got['confusion'] == [[0, 1 - label], [0, label]]


@pytest.mark.parametrize('names', [BINARY, FIVE])
def test_perfect_predictions(names):
  C = len(names)
  labels = np.arange(4 * C) % C
  got = metrics.classification(labels, np.eye(C)[labels], names=names)
  for key, value in metrics.flat(got).items():
    assert value == pytest.approx(0 if key == 'log_loss' else 1, abs=1e-9), key


def test_constant_predictions():
  labels = np.array([0, 1, 1, 0])
  got = metrics.classification(labels, np.full((4, 2), 0.5), names=BINARY)
  assert got['mcc'] == 0
  assert got['f1'] == 0  # a tie goes to the first class
  assert got['roc_auc'] == 0.5


def test_certain_and_wrong_is_finite():
  got = metrics.classification(np.array([0, 1]), np.array([[0.0, 1], [0, 1]]), names=BINARY)
  assert np.isfinite(got['log_loss'])
  assert got['log_loss'] > 10


def test_rounded_rows_are_scaled_and_half_precision_is_accepted():
  exact = metrics.classification(np.array([0, 1]), np.array([[0.6, 0.4], [0.2, 0.8]]), names=BINARY)
  rounded = metrics.classification(np.array([0, 1]), np.array([[0.6003, 0.4002], [0.2, 0.8]]), names=BINARY)
  assert rounded['log_loss'] == pytest.approx(exact['log_loss'], abs=1e-3)
  labels, probabilities = random_case(5)
  half = metrics.classification(labels, probabilities.astype(np.float16), names=FIVE)
  assert half['log_loss'] == pytest.approx(sk.log_loss(labels, probabilities), abs=1e-3)


OK = np.array([[0.5, 0.5], [0.1, 0.9]])


@pytest.mark.parametrize(
  ('labels', 'probabilities', 'names', 'text'),
  [
    ([0, 1, 1], OK, BINARY, 'shape'),
    ([0, 1], OK[:, :1], BINARY, 'shape'),
    ([0, 1], OK[0], BINARY, 'shape'),
    ([0, 1], OK, FIVE, 'shape'),
    ([[0], [1]], OK, BINARY, '1-d'),
    ([0.0, 1.0], OK, BINARY, 'integers'),
    ([True, False], OK, BINARY, 'integers'),
    ([0, 2], OK, BINARY, 'row 1: 2'),
    ([-1, 0], OK, BINARY, r'\[0, 2\)'),
    ([0, 1], [[0.5, 0.5], [np.nan, 1]], BINARY, 'finite'),
    ([0, 1], [[0.5, 0.5], [np.inf, 0]], BINARY, 'finite'),
    ([0, 1], [[0.5, 0.5], [1.2, -0.2]], BINARY, 'logits'),
    ([0, 1], [[0.5, 0.5], [0.5, 0.498]], BINARY, 'sum to 1'),
    (np.zeros(0, int), np.zeros((0, 2)), BINARY, 'no examples'),
    ([0, 0], [[1.0], [1.0]], ['only'], 'names'),
    ([0, 1], OK, ['same', 'same'], 'names'),
  ],
)
def test_wrong_input_raises(labels, probabilities, names, text):
  with pytest.raises(ValueError, match=text):
    metrics.classification(np.array(labels), np.array(probabilities), names=names)


def test_flat_leaves_scalars():
  got = {'a': 1, 'b': np.float32(0.5), 'none': None, 'text': 'x', 'flag': True, 'n': {'a': 1}, 'm': [[1]]}
  assert metrics.flat(got) == {'a': 1.0, 'b': 0.5}
  assert all(type(v) is float for v in metrics.flat(got).values())
  full = metrics.flat(metrics.classification(*random_case(2), names=BINARY))
  assert next(iter(full)) == 'accuracy'
  assert not {'per_class', 'confusion'} & set(full)


def test_result_is_plain_json():
  got = metrics.classification(*random_case(5), names=FIVE)
  assert json.loads(json.dumps(got, allow_nan=False)) == got


def test_import_is_light():
  """Tasks import this file: neither JAX nor scikit-learn may load before a metric is asked for."""
  code = 'import sys, ftlib.evals.metrics; print(sorted({"jax", "sklearn", "matplotlib"} & set(sys.modules)))'
  assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip() == '[]'


# Regression


def scores(N=200, seed=0, ties=False):
  rng = np.random.default_rng(seed)
  x = rng.integers(0, 6, N).astype(float) if ties else rng.normal(size=N)
  return x, x + rng.normal(size=N) * (1 if not ties else 2) + 3


@pytest.mark.parametrize('ties', [False, True])
@pytest.mark.parametrize('seed', range(3))
def test_regression_equals_scipy_and_scikit_learn(seed, ties):
  from scipy import stats

  x, y = scores(seed=seed, ties=ties)
  got = metrics.regression(x, y)
  assert got.keys() == metrics.REGRESSION.keys()
  assert got['pearson'] == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)
  assert got['spearman'] == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
  assert got['mse'] == pytest.approx(sk.mean_squared_error(x, y))
  assert got['mae'] == pytest.approx(sk.mean_absolute_error(x, y))
  assert all(type(v) is float for v in got.values())


def test_regression_by_hand():
  assert metrics.regression([1, 2, 3], [1.0, 2.0, 6.0]) == {
    'pearson': pytest.approx(5 / np.sqrt(2 * 14)),
    'spearman': pytest.approx(1),
    'mse': 3.0,
    'mae': 1.0,
  }
  turned = metrics.regression([1, 2, 3], [3, 2, 1])
  assert (turned['pearson'], turned['spearman']) == (pytest.approx(-1), pytest.approx(-1))


@pytest.mark.parametrize('pair', [([1, 2, 3], [2, 2, 2]), ([0.1] * 3, [1, 2, 3]), ([5], [4])])
def test_a_constant_side_correlates_with_nothing(pair):
  got = metrics.regression(*pair)
  assert (got['pearson'], got['spearman']) == (0, 0)
  assert got['mse'] > 0


@pytest.mark.parametrize('scale', [1e-38, 1e-6, 1e6, 1e38])
def test_correlation_at_any_scale(scale):
  x, y = scores()
  assert metrics.regression(x, y)['pearson'] == pytest.approx(metrics.regression(x * scale, y * scale)['pearson'])


@pytest.mark.parametrize(
  ('scores', 'predictions', 'words'),
  [
    ([], [], 'N of 1 or more'),
    ([1.0, 2.0], [1.0], r'\(2,\) and \(1,\)'),
    ([1.0, 2.0], [[1.0], [2.0]], r'\(2, 1\)'),
    ([1.0, float('nan')], [1.0, 2.0], 'scores_N must be finite; 1 rows do not, the first is row 1'),
    ([1.0, 2.0], [float('inf'), 2.0], 'predictions_N must be finite; 1 rows do not, the first is row 0'),
  ],
)
def test_regression_refuses(scores, predictions, words):
  with pytest.raises(ValueError, match=words):
    metrics.regression(scores, predictions)


@pytest.mark.parametrize('names', [BINARY, FIVE])
def test_names_of_classification(names):
  got = metrics.classification(*random_case(len(names)), names=names)
  assert metrics.flat(got).keys() == metrics.classification_names(len(names)).keys()
