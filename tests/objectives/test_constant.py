"""The best answer that is the same for all rows, and that the bias of a new head starts there."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ftlib import recipe, run
from ftlib.objectives import constant, multilabel, regression, several
from tests import tiny

BIAS = 'head/out/bias'
GOOD = 7  # of 40 rows


def log_odds(positive, total):
  return np.log(np.asarray(positive) / (total - np.asarray(positive)))


def labels(counts, rows):
  return (np.arange(rows)[:, None] < np.asarray(counts)).astype(np.int32)


@pytest.mark.parametrize(
  ('fields', 'wanted'),
  [
    ({}, log_odds([10, 200, 390], 400)),
    ({'pos_weight': 'balanced'}, np.zeros(3)),
    ({'pos_weight': 'a=3'}, log_odds([10, 200, 390], 400) + np.log([3, 1, 1])),
    ({'label_smoothing': 0.2}, log_odds(0.8 * np.array([10, 200, 390]) + 40, 400)),
  ],
)
def test_labels_start_at_the_log_odds(fields, wanted):
  y_NC = labels([10, 200, 390], 400)
  counts = np.stack([400 - y_NC.sum(0), y_NC.sum(0)], 1)
  objective = multilabel.build(multilabel.Config(**fields), labels=['a', 'b', 'c'], counts=counts)
  found = constant.best(objective, {'labels': y_NC, 'weights': np.ones(400, np.float32)}, 3)
  np.testing.assert_allclose(found, wanted, atol=0.05)


def test_a_label_that_no_row_or_every_row_has_stays_finite():
  y_NC = labels([0, 50, 100], 100)
  counts = np.stack([100 - y_NC.sum(0), y_NC.sum(0)], 1)
  objective = multilabel.build(multilabel.Config(), labels=['a', 'b', 'c'], counts=counts)
  found = constant.best(objective, {'labels': y_NC, 'weights': np.ones(100, np.float32)}, 3)
  assert -9 < found[0] < -4
  assert abs(found[1]) < 1e-3
  assert 4 < found[2] < 9


@pytest.mark.parametrize('scale', [1, 1000])
def test_a_score_starts_at_the_mean_of_those_that_count(scale):
  scores = scale * np.array([0.0, 2.0, 3.0, 3.0] * 500, np.float32)
  weights = np.tile(np.array([0, 1, 1, 1], np.float32), 500)
  objective = regression.build(regression.Config(), labels=[], counts=np.zeros(0))
  found = constant.best(objective, {'labels': scores, 'weights': weights}, 1)
  np.testing.assert_allclose(found, [scale * 8 / 3], rtol=2e-3)
  huber = regression.build(regression.Config(loss='huber', delta=0.01 * scale), labels=[], counts=np.zeros(0))
  found = constant.best(huber, {'labels': scores, 'weights': weights}, 1)
  np.testing.assert_allclose(found, [scale * 3], rtol=2e-2)  # nearly the median


def test_several_start_each_by_their_own_rows():
  objective = several.build(several.Config(), labels=['a/x', 'a/y', 'b', 'c+t'], counts=np.zeros(4))
  part = np.repeat([0, 1, 2], 400)
  answers = np.zeros((1200, 4), np.float32)
  answers[:300, 0], answers[300:400, 1], answers[400:800, 2], answers[800:840, 3] = 1, 1, 2.5, 1
  found = constant.best(objective, {'part': part, 'answers': answers, 'weights': np.ones(1200, np.float32)}, 4)
  np.testing.assert_allclose(found[0] - found[1], np.log(3), atol=0.05)
  np.testing.assert_allclose(found[2:], [2.5, log_odds(40, 400)], atol=0.05)


@pytest.fixture(scope='module')
def made(tiny_bert, tmp_path_factory):
  """Builds a run of some labels; `values` are fields of the config."""
  folder = tmp_path_factory.mktemp('labels')
  for name, count in (('train', 40), ('validation', 8)):
    rows = [{'text': r['text'], 'labels': ['good'] if i < GOOD else ['bad']} for i, r in enumerate(tiny.rows(count, 1))]
    (folder / f'{name}.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))

  def make(split=None, **values):
    c = tiny.config(tiny_bert, folder)
    c.task = recipe.component_section('task', 'multilabel')
    c.objective = recipe.component_section('objective', 'multilabel')
    for name, value in values.items():
      section, field = name.split('__')
      c[section][field] = value
    return run.build(c, split=split, labels=['bad', 'good'] if split else None)

  return make


def test_a_new_head_starts_there(made):
  bias = made().load()[0]['head']['out']['bias']
  np.testing.assert_allclose(bias, [log_odds(40 - GOOD, 40), log_odds(GOOD, 40)], atol=0.3)


@pytest.mark.parametrize('values', [{'objective__prior': False}, {'privacy__noise_multiplier': 1.0}])
def test_it_starts_at_0_where_that_is_asked_for_or_labels_are_secret(made, values):
  private = {'privacy__delta': 1e-3} if 'objective__prior' not in values else {}
  np.testing.assert_array_equal(made(**values, **private).load()[0]['head']['out']['bias'], [0, 0])


def test_evaluation_needs_no_training_rows(made):
  np.testing.assert_array_equal(made(split='validation').load()[0]['head']['out']['bias'], [0, 0])


def test_a_head_without_a_bias_is_left_as_it_is(made, tmp_path):
  built = made(model__pretrained=str(tiny.llama_folder(tmp_path)))
  assert built.head_bias == {}
  assert [*built.load()[0]['head']['out']] == ['kernel']
