"""Intervals of each class: those of a loop over resampled rows with scikit-learn."""

import numpy as np
import pytest
import sklearn.metrics as sk

from ftlib import resampling
from ftlib.base import tags
from ftlib.data.batches import Examples
from ftlib.data.tokens import Tokens
from ftlib.evals import bootstrap, paired
from ftlib.evals.metrics import SHARES
from ftlib.tasks import classify, multilabel, relation, score, tag

N, SAMPLES = 60, 80
NAMES = ['a', 'b', 'c']


def examples(host=None, **extra):
  """N documents of one token."""
  nothing = np.zeros(N, np.int32)
  return Examples(Tokens(nothing, nothing, np.arange(N + 1)), extra, host=host or {})


def drawn():
  """(labels, predicted classes, probabilities) of N rows, two thirds of them right."""
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 3, N).astype(np.int32)
  said = np.where(rng.random(N) < 0.66, labels, rng.integers(0, 3, N))
  p = rng.random((N, 3)) + 2 * np.eye(3)[said]
  return labels, said, p / p.sum(1, keepdims=True)


def of_classes(module, names=NAMES, **config):
  labels, said, p = drawn()
  task = module.build(module.Config(**config), train=None, known=names)
  return task, examples(labels=labels), {'probabilities': p}, labels, said


def of_options():
  """A task without a quick way."""
  return of_classes(score, choices='a=x|b=y|c=z')


def of_labels():
  labels, said = (np.eye(3, dtype=int)[x] | np.eye(3, dtype=int)[np.roll(x, 1)] for x in drawn()[:2])
  task = multilabel.build(multilabel.Config(), train=None, known=NAMES)
  return task, examples(labels=labels), {'probabilities': np.where(said, 0.9, 0.2)}, labels, said


def of_words():
  labels, said, _ = drawn()
  task = tag.build(tag.Config(scheme='plain'), train=None, known=NAMES)
  return task, examples({'tags': [labels[i : i + 1] for i in range(N)]}), {'tags': said[:, None]}, labels, said


def of_entities():
  """Rows of one word, so that its tag is the entity; the last class is none."""
  labels, said, _ = drawn()
  task = tag.build(tag.Config(), train=None, known=['B-a', 'B-b', 'O'])
  numbers = np.array([task.labels.index(t) for t in ('B-a', 'B-b', 'O')])
  entities = [tags.entities([task.labels[numbers[k]]]) for k in labels]
  host = {'tags': [numbers[labels[i : i + 1]] for i in range(N)], 'entities': entities}
  return task, examples(host), {'tags': numbers[said][:, None], 'illegal': np.zeros(N, int)}, labels, said


CASES = {
  'classify': lambda: of_classes(classify),
  'score': of_options,
  'multilabel': of_labels,
  'tag plain': of_words,
  'tag': of_entities,
  'relation': lambda: of_classes(relation, ['a', 'b', 'c'], other='c'),
}


@pytest.mark.parametrize('name', CASES)
def test_they_are_those_of_a_loop(name):
  task, made, predictions, labels, said = CASES[name]()
  counted = resampling.resampled(task, made, predictions, [{}] * N)
  got = bootstrap.intervals(counted, N, samples=SAMPLES, level=0.9).bounds['per_class']
  found = []
  for counts in bootstrap.draws(N, samples=SAMPLES, seed=0):
    rows = np.repeat(np.arange(N), counts)
    found.append(sk.precision_recall_fscore_support(labels[rows], said[rows], labels=[0, 1, 2], zero_division=0)[:3])
  want = np.quantile(found, [0.05, 0.95], axis=0)  # bounds, measures, classes
  assert got.keys() == ({*NAMES[:2]} if name == 'tag' else {*NAMES})
  for c, of_class in enumerate(sorted(got)):
    for k, measure in enumerate(SHARES):
      assert got[of_class][measure] == pytest.approx(want[:, k, c]), (of_class, measure)


def test_what_says_nothing_of_a_class_has_none():
  labels, said, p = drawn()
  said = np.where(labels == 0, 0, np.maximum(said, 1))  # all of the first class are found, and nothing else
  task, made, _, *_ = of_classes(classify)
  counted = resampling.resampled(task, made, {'probabilities': np.eye(3)[said] * 0.9 + p * 0.1}, [{}] * N)
  assert bootstrap.intervals(counted, N, samples=SAMPLES).bounds['per_class'].keys() == {'b', 'c'}


def test_two_runs_are_compared_by_scalars():
  task, made, predictions, *_ = CASES['classify']()
  both = resampling.joined([made, made]), resampling.joined_predictions([predictions, predictions])
  found = paired.compared(resampling.resampled(task, *both, [{}] * (2 * N)), N, samples=3)
  assert found['metrics'].keys() == task.metric_names.keys()
