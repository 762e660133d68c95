"""Two runs on the same rows, each by its own rule: what is said of each is what it says of itself."""

from __future__ import annotations

import types

import numpy as np
import pytest

from ftlib import analysis
from ftlib.analysis import Options
from ftlib.base.errors import InputError
from ftlib.data.batches import Examples
from ftlib.data.sources import Rows
from ftlib.data.tokens import Tokens
from ftlib.evals import thresholds
from ftlib.tasks import classify, embed, extract, multilabel, retrieve

N = 40
RNG = np.random.default_rng(0)
P = RNG.random(N)
TWO = {'probabilities': np.stack([1 - P, P], 1).astype(np.float32)}
GOLD = RNG.integers(0, 2, N)


def tokens():
  return Tokens(np.zeros(N, np.int32), np.zeros(N, np.int32), np.arange(N + 1), 0)


def run(module, task):
  settings = types.SimpleNamespace(names={'task': 'task'}, modules={'task': module}, task=task.config)
  return types.SimpleNamespace(task=task, settings=settings)


def compared(module, tasks, rows, examples, predictions):
  """What is said of two runs, after it was looked that it is what `Task.metrics` says of each."""
  rows = Rows(rows, 'test', 'test.jsonl', range(1, N + 1))
  pair = [analysis.answers(run(module, task), examples, found, rows) for task, found in zip(tasks, predictions)]
  got = analysis.compared(*pair, Options(bootstrap=3, against='other'))
  for task, found, name in zip(tasks, predictions, ('here', 'there')):
    own = task.metrics(examples, found)
    for metric in got['metrics'].keys() & own.keys():
      assert got['metrics'][metric][name] == pytest.approx(own[metric]), (metric, name)
  return got


def classes(**settings):
  rows = [{'text': 'a', 'label': int(g)} for g in GOLD]
  return rows, classify.build(classify.Config(**settings), train=rows, known=None)


@pytest.mark.parametrize('other', ['0.2', '0.9', 'tuned'])
def test_two_classes(other):
  rows, here = classes()
  there = classes(threshold=other)[1]
  examples = Examples(tokens(), {'labels': GOLD})
  for pair in ((here, there), (there, here)):
    got = compared(classify, pair, rows, examples, [task.tuned(examples, TWO) for task in pair])
    test, apart = got['mcnemar'], got['metrics']['accuracy']['difference']
    assert apart != 0
    assert test['only_here'] - test['only_there'] == round(N * apart)


def test_many_labels():
  labels = RNG.integers(0, 2, (N, 3))
  rows = [{'text': 'a', 'labels': [k for k in range(3) if of[k]]} for of in labels]
  found = {'probabilities': RNG.random((N, 3)).astype(np.float32)}
  build = lambda **c: multilabel.build(multilabel.Config(**c), train=rows, known=None)  # noqa: E731
  here, there = build(), build(threshold='0.2')
  examples = Examples(tokens(), {'labels': labels})
  got = compared(multilabel, (here, there), rows, examples, [found, found])
  assert got['metrics']['f1_macro']['difference'] != 0
  own = thresholds.attached(found, np.array([0.1, 0.9, 0.4]))  # as of the validation split
  compared(multilabel, (build(threshold='tuned'), here), rows, examples, [own, found])


@pytest.mark.parametrize(('settings', 'every'), [({'null_threshold': '-3'}, 2), ({'no_answer': False}, 1)])
def test_questions_without_answers(settings, every):
  answers = [[{'text': 'good', 'start': 0}] * (i % every == 0) for i in range(N)]
  rows = [{'question': 'q', 'context': 'good film', 'answers': a} for a in answers]
  build = lambda **c: extract.build(extract.Config(**{'no_answer': True, **c}), train=rows, known=None)  # noqa: E731
  found = {'starts': np.zeros((N, 1), int), 'ends': np.full((N, 1), 4), 'scores': np.zeros((N, 1)), 'null': P * 8 - 5}
  host = {'contexts': ['good film'] * N, 'golds': [[a['text'] for a in r['answers']] for r in rows]}
  got = compared(extract, (build(), build(**settings)), rows, Examples(tokens(), {}, host=host), [found, found])
  assert got['metrics']['exact_match']['difference'] != 0


def test_each_retrieves_from_its_own_vectors():
  task = retrieve.build(retrieve.Config(), train=None, known=None)
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
  found = [{'asked': (v := unit(RNG.normal(size=(N, d)))), 'answer': unit(v + 0.3)} for d in (3, 8)]
  examples = Examples(tokens(), {'texts': np.arange(2 * N, dtype=np.int32).reshape(N, 2)})
  got = compared(retrieve, (task, task), [{'text_a': 'a', 'text_b': 'b'}] * N, examples, found)
  assert got['metrics']['mrr']['difference'] != 0


def test_runs_that_judge_differently_are_refused():
  rows = [{'text_a': 'a', 'text_b': 'b', 'score': float(g)} for g in GOLD]
  tasks = [embed.build(embed.Config(opposites=o), train=rows, known=None) for o in (False, True)]
  examples, found = Examples(tokens(), {'labels': GOLD.astype(np.float32)}), {'cosine': (2 * P - 1).astype(np.float32)}
  with pytest.raises(InputError, match=r'--against=other: its \w+ is .*task\.opposites=True and not False'):
    compared(embed, tasks, rows, examples, [found, found])
