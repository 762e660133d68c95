"""A run with averages and every diagnostic: what stands in its folder, and which parameters are judged."""

import json
import types

import jax
import numpy as np
import pytest

from ftlib import fine_tune, judge, recipe, run, watched
from ftlib.base import trees
from ftlib.base.errors import InputError
from ftlib.evals import report
from ftlib.train import diagnostics, loop, state
from ftlib.train.step import make_train_step
from tests import tiny
from tests.train import linear

VALUES = {
  'train__steps': 6,
  'train__eval_every': 3,
  'train__log_every': 2,
  'train__ema': 0.9,
  'train__swa_start': 0.5,
  'train__diagnostics': 'all',
  'checkpoint__weights': 'ema',
  'checkpoint__metric': 'loss',
  'optim__schedule': 'plateau',
}


@pytest.fixture(scope='module')
def done(tiny_bert, toy_data, tmp_path_factory):
  """`folder`, rows of the log by (step, split), `summary` and `config` of a run."""
  folder = tmp_path_factory.mktemp('watched') / 'run'
  config = tiny.config(tiny_bert, toy_data, method='lora', **VALUES)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(report, 'write', lambda where: where / 'report.html')
    fine_tune.run(config, str(folder))
  rows = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
  summary = json.loads((folder / 'summary.json').read_text())
  return types.SimpleNamespace(
    folder=folder, rows={(r['step'], r['split']): r for r in rows}, summary=summary, config=config
  )


def test_averages_are_evaluated_side_by_side(done):
  """The equal mean has begun when it holds more than one update's parameters."""
  splits = ('validation', 'validation_ema', 'validation_swa')
  assert [k for k in done.rows if k[1] in splits] == [(3, s) for s in splits[:2]] + [(6, s) for s in splits]
  losses = [done.rows[6, s]['loss'] for s in splits]
  assert len(set(losses)) == 3


def test_the_weights_asked_for_are_judged_and_exported(done):
  best = done.summary['best_metric']
  assert best['value'] == min(done.rows[s, 'validation_ema']['loss'] for s in (3, 6))
  stored = json.loads((done.folder / 'eval' / 'validation.json').read_text())
  assert stored['checkpoint'] == best['step']
  assert stored['metrics']['loss'] == done.rows[best['step'], 'validation_ema']['loss']
  built = judge._built(*judge.folder.stored(done.folder), 'validation', done.folder)
  own, _, step = judge.restored(built, done.folder, 'best')
  with judge.Checkpoints(done.folder / 'checkpoints', readonly=True) as checkpoints:
    now = state.restored(checkpoints.restore(state.storable(built.abstract_state), step=step).state)
  ours, ema, raw = linear.flat(own), linear.flat(now.averages['ema']), linear.flat(now.trainable)
  assert set(ours) == set(raw)
  for name, x in ours.items():
    np.testing.assert_array_equal(x, ema[name])
  assert any(abs(ema[n] - raw[n]).max() > 1e-5 for n in raw)


def test_diagnostics_are_logged(done):
  for step in (2, 4, 6):
    row = done.rows[step, 'train']
    assert {f'{q}/default' for q in diagnostics.QUANTITIES} < set(row)
    assert row['grad_norm/default'] == pytest.approx(row['grad_norm'], rel=1e-4)
    assert 0 < row['update_ratio/default'] < 1
    assert row['skipped'] == 0
  assert done.summary['skipped_steps'] == 0
  for step in (3, 6):
    assert np.isfinite(done.rows[step, 'validation']['hessian_trace'])
    assert 'hessian_trace' not in done.rows[step, 'validation_ema']


def test_zeros_of_l1_and_the_rates_of_groups_are_logged_unasked(tiny_bert, toy_data, tmp_path, monkeypatch):
  """A plateau of half lowers the head alone; the rate without a group's name is that of the rest."""
  monkeypatch.setattr(report, 'write', lambda where: where / 'report.html')
  head = {'pattern': '^head/', 'learning_rate': 0.5, 'schedule': 'plateau', 'l1': 2.0}
  values = {'optim__groups': {'head': head}, 'optim__schedule': 'linear', 'optim__warmup': 0.0}
  config = tiny.config(tiny_bert, toy_data, method='head', **{**values, 'train__steps': 2, 'train__log_every': 2})
  config.method.also = 'pooler'
  fine_tune.run(config, str(tmp_path / 'w'))
  row = next(r for r in map(json.loads, (tmp_path / 'w' / 'metrics.jsonl').open()) if r['split'] == 'train')
  rates = {'learning_rate': 0.005, 'learning_rate/default': 0.005, 'learning_rate/head': 0.5}  # of the second step
  assert {k: row[k] for k in row if 'rate' in k} == pytest.approx(rates)
  assert [k for k in row if k.startswith('zeros/')] == ['zeros/head', 'zeros/default']
  assert row['zeros/head'] > 0.5
  assert not [k for k in row if k.startswith('update_norm/')]
  hooks = watched.hooks(run.build(config), tmp_path, None)
  assert hooks.rates(0, 0.5) == {'head': 0.25, 'default': pytest.approx(0.01)}


def test_the_landscape_is_kept(done):
  found = done.summary['landscape']
  assert len(found['distance']) == len(found['loss']) == 11
  assert found['distance'][5] == 0
  assert len(set(found['loss'])) > 5
  assert 0 < found['update'] < 0.5
  probe = types.SimpleNamespace(landscape=lambda last, frozen: None)  # of the same run, started again when it is done
  assert watched.ended(None, done.folder, probe, None, {}) == {'landscape': found}


def test_norms_of_a_fault_have_the_names_of_layers(done, tmp_path):
  built = fine_tune.runs.build(done.config)
  hooks = watched.hooks(built, tmp_path, watched.Evaluations(built, loop.Progress()))
  stacked = lambda n: len(trees.members(n)) > 1  # noqa: E731
  trainable = built.abstract_state.trainable
  tree = trees.map_named(lambda n, s: np.full(s.shape, 2.0 if n.startswith('head') else 1.0, np.float32), trainable)
  squares = np.asarray(diagnostics.squares(tree, {}, stacked))
  assert len(squares) == diagnostics.width(trainable, stacked)
  found = hooks.norms(squares)
  assert {'layers/0', 'layers/1', 'head'} <= set(found['layers'])
  for name, norm in found['parameters'].items():
    size = next(i.size // len(trees.members(n)) for n, i in built.train_info.items() if name in trees.members(n))
    assert norm == pytest.approx((2.0 if name.startswith('head') else 1.0) * size**0.5, rel=1e-5)
  whole = sum(x**2 for x in found['parameters'].values()) ** 0.5
  assert found['groups'] == {'default': pytest.approx(whole)}
  path = hooks.bundle(7, {'step': 7, 'gradient_norms': found})
  assert path == str(tmp_path / 'nonfinite' / 'step_7.json')
  assert json.loads((tmp_path / 'nonfinite' / 'step_7.json').read_text())['gradient_norms']['groups'].keys() == {
    'default'
  }


@pytest.mark.parametrize(('weights', 'words'), [('ema', 'set train.ema=0.999'), ('swa', 'set train.swa_start=0.75')])
def test_weights_that_are_not_kept_are_an_error(tiny_bert, toy_data, weights, words):
  with pytest.raises(InputError, match=f'checkpoint.weights={weights}: there is no such average; {words}'):
    recipe.read(tiny.config(tiny_bert, toy_data, checkpoint__weights=weights))


def test_an_optimizer_with_an_average_of_its_own_is_judged_by_it():
  """Schedule-free: what is trained goes on from a checkpoint, what it averages to is evaluated."""
  built = linear.optimizer('schedule_free_sgd')
  step = jax.jit(make_train_step(linear.apply, linear.objective, built.tx, needs=built.needs))
  now = state.create(linear.parameters(), {}, tx=built.tx, seed=0)
  for i in range(4):
    now, _ = step(now, {}, linear.batch(i))
  raw, mean = linear.flat(now.own), linear.flat(now.evaluated('raw', built.averaged))
  assert set(raw) == set(mean)
  assert all(abs(mean[n] - raw[n]).max() > 1e-4 for n in raw)
