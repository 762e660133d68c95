"""What a run says of its groups: the summary before it, the plan in its report; and whose seed the noise has."""

from __future__ import annotations

import json

import pytest

from ftlib import run, show
from ftlib.evals import plots_diagnostics, report
from ftlib.optim import rule
from tests import tiny

GROUPS = {
  'matrices': {'pattern': 'layers/.*kernel$', 'optimizer': 'sgd', 'learning_rate': 0.02, 'schedule': 'wsd'},
  'head': {'pattern': '^head/', 'learning_rate': 0.05, 'schedule': 'plateau'},
}


def test_the_summary_prints_every_group(tiny_bert, toy_data, monkeypatch):
  seeds = []
  group = rule.group
  monkeypatch.setattr(rule, 'group', lambda *args, **options: seeds.append(options['seed']) or group(*args, **options))
  built = run.build(tiny.config(tiny_bert, toy_data, method='full', optim__groups=GROUPS, seed=7))
  text = ' '.join(show.summary(built, 'runs/x').split())
  assert 'optimizer adamw, 3 groups; state' in text
  sizes = {g: sum(built.train_info[n].size for n in names) for g, names in built.optimizer.members.items()}
  assert f'group matrices: sgd at 0.02 (wsd), 12 tensors, {sizes["matrices"]:,} parameters' in text
  count = len(built.optimizer.members['head'])
  assert f'group head: adamw at 0.05 (plateau), {count} tensors, {sizes["head"]:,} parameters' in text
  assert f'group default: adamw at 0.01 (linear), {len(built.optimizer.members["default"])} tensors' in text
  assert sum(sizes.values()) == sum(i.size for i in built.train_info.values())
  assert seeds == [7] * 3
  plan = json.loads(json.dumps(built.optimizer.planned(built.steps)))
  assert plots_diagnostics.planned({'planned_learning_rates': plan}) is not None
  one = run.build(tiny.config(tiny_bert, toy_data, method='head'))
  assert 'optimizer adamw at 0.01 (linear), ' in ' '.join(show.summary(one, 'runs/x').split())


def test_a_stack_ends_where_groups_or_decay_do(config):
  """Patterns are of layers' own names, however many of them lie in one stack."""

  def stacks(method, **optim):
    built = run.build(config(method=method, model__layers='scan', **optim))
    return built.optimizer.members, {n.split('/')[1] for n in built.info if n.startswith('layers/')}

  members, found = stacks('full', optim__groups={'low': {'pattern': '^layers/0/', 'learning_rate': 1e-4}})
  assert found == {'0', '1'}
  assert {n.split('/')[1] for n in members['low']} == {'0'}
  assert stacks('full', optim__no_decay='^layers/1/')[1] == {'0', '1'}
  assert stacks('full', optim__groups={'head': {'pattern': '^head/'}})[1] == {'0:2'}
  assert stacks('lora', optim__groups={'low': {'pattern': 'layers/0/.*(b|kernel)$'}})[1] == {'0', '1'}
  assert stacks('head', optim__no_decay='^layers/1/')[1] == {'0:2'}  # none of it trains


def test_the_report_shows_the_plan(tmp_path):
  plan = {'default': [[0, 0.0], [5, 0.1], [9, 0.02]], '<b>': [[0, 0.3], [9, 0.3]]}
  (tmp_path / 'summary.json').write_text(json.dumps({'planned_learning_rates': plan, 'steps': 10}))
  page = report.write(tmp_path).read_text()
  assert 'Learning rate as planned' in page
  assert 'default from 0 to 0.02' in page
  assert '<b>' not in page
  assert 'planned_learning_rates' not in page  # no table of all the numbers


@pytest.mark.parametrize(
  'plan',
  [None, 'x', [], {}, {'a': None, 'b': None}, {'a': [[0], 'x', [1, None]], 'b': 3}, {'default': [[0, 0.1], [9, 0]]}],
)
def test_a_damaged_plan_or_one_of_one_group_is_none(plan):
  assert plots_diagnostics.planned({'planned_learning_rates': plan}) is None
