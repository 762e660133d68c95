"""The report of a run with diagnostics: a chart a quantity, the landscape, and nothing where there is nothing."""

import json
import re

import pytest

from ftlib.evals import plots, plots_diagnostics, report
from ftlib.train import diagnostics

pytestmark = pytest.mark.filterwarnings('error')
X = [-0.05, -0.025, 0.0, 0.025, 0.05]
LANDSCAPE = {'update': 0.003, 'distance': X, 'loss': [1.0 + (x - 0.025) ** 2 for x in X]}


def history(groups, zeros=0.0):
  rows = []
  for step in (10, 20, 30):
    values = {f'{q}/{g}': step / 7 for q in ('learning_rate', *diagnostics.QUANTITIES[:-1]) for g in groups}
    rows.append({'step': step, 'split': 'train', 'loss': 1.0, **values, **{f'zeros/{g}': zeros for g in groups}})
  rows += [{'step': s, 'split': 'validation', 'loss': 1.0, 'hessian_trace': 5.0 * s} for s in (15, 30)]
  return rows


def test_page(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, history(['default', '_head<b>'], 0.25))) + '\n')
  (tmp_path / 'summary.json').write_text(json.dumps({'landscape': LANDSCAPE, 'steps': 30, 'skipped_steps': 2}))
  page = report.write(tmp_path).read_text()
  for title, _ in plots_diagnostics._TITLES.values():
    assert title in page
  for words in ('Curvature', 'Loss along the last update', '0.003 back', '2 without an update', 'default'):
    assert words in page
  assert '<b>' not in page
  assert page.count('<svg') == len(diagnostics.QUANTITIES) + 4  # and rates, loss, curvature, landscape


def test_only_what_was_logged_is_drawn():
  rows = history(['default'])
  titles = [c.title for c in plots_diagnostics.curves({'train': rows[:3], 'validation': rows[3:]})]
  assert 'Exact zeros' not in titles  # all 0
  assert len(titles) == len(diagnostics.QUANTITIES) + 1
  assert list(plots_diagnostics.curves({'train': [{'step': 1, 'loss': 1.0, 'grad_norm': 2.0}]})) == []
  assert list(plots_diagnostics.curves({})) == []


def test_axes_are_in_plain_numbers():
  """Of a rate that falls to a thousandth, and of scores that are nearly the same."""
  rows = [{'step': s, 'learning_rate/a': x, 'learning_rate/b': x} for s, x in ((1, 1e-3), (2, 1e-5), (3, 1e-6))]
  (chart,) = plots_diagnostics.curves({'train': rows})
  assert {'>0.001<', '>0.0001<', '>1e-5<', '>1e-6<'} <= {*re.findall(r'>[^<>]+<', chart.svg)}
  assert '$' not in chart.svg
  still = [{'step': s, 'param_norm/a': 5 + s * 1e-5} for s in (1, 2)]
  assert '>5.0000' in next(plots_diagnostics.curves({'train': still})).svg
  scores = {'validation': [{'step': 9, 'accuracy': 0.86009, 'f1_macro': 0.86003}]}
  ticks = [float(x) for x in re.findall(r'>(0\.[\d]+)<', plots.metric(scores, {'name': 'accuracy'}).svg)]
  assert max(ticks) - min(ticks) > 0.01


def test_more_groups_than_colours_are_told():
  rows = history([f'g{i}' for i in range(9)])
  assert '3 more groups' in next(plots_diagnostics.curves({'train': rows[:3]})).note


def test_the_metric_shown_is_that_of_the_parameters_that_were_judged():
  rows = {
    s: [{'step': i, 'f1': f1 + i / 100} for i in (1, 2)] for s, f1 in (('validation', 0.5), ('validation_ema', 0.7))
  }
  best = {'name': 'f1', 'value': 0.72, 'step': 2}
  assert '0.72 at the best step' in plots.metric(rows, {**best, 'split': 'validation_ema'}).alt
  assert '0.52 at the best step' in plots.metric(rows, best).alt


@pytest.mark.parametrize(
  'found', [None, 'x', {}, {'distance': [0.0], 'loss': [1.0]}, {'distance': [0.0, 1.0], 'loss': [None, None]}, []]
)
def test_a_damaged_landscape_is_none(found):
  assert plots_diagnostics.landscape({'landscape': found}) is None
  assert plots_diagnostics.landscape({'landscape': {**LANDSCAPE, 'update': None}}) is not None
