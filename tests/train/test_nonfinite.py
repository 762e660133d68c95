"""A step that is not finite: nothing of it stays but its counts; so many in a row end the run, with a record."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftlib.base import trees
from ftlib.base.errors import Diverged
from ftlib.train import averages, diagnostics, loop, state
from ftlib.train.step import make_train_step
from tests.train import linear

COUNTS = {'step', 'skipped', 'streak'}
FAULTS = {
  'nan in a row': lambda b: {**b, 'x': b['x'].at[3, 1].set(jnp.nan)},
  'infinite weight': lambda b: {**b, 'weights': b['weights'].at[0].set(jnp.inf)},
  'gradient alone': lambda b: {**b, 'edge': b['edge'].at[2].set(0)},  # of which the loss is finite
}


@pytest.fixture(scope='module')
def step():
  """(compiled step, state after two good steps), with moments, averages and something kept that counts the updates."""
  built, rules = linear.optimizer(), averages.rules(ema=0.9, swa_start=0.0, steps=20)
  count = lambda trainable, kept, grads, i: (trainable, {'seen': kept['seen'] + 1})  # noqa: E731
  fn = make_train_step(
    linear.apply,
    linear.objective,
    built.tx,
    micro=2,
    adjust=count,
    averaging=rules,
    stacked=lambda n: n.startswith('layers/'),
  )
  now = state.create(linear.parameters(), {'seen': jnp.zeros(2)}, tx=built.tx, seed=3, averages=rules)
  step = jax.jit(fn)
  for i in range(2):
    now, sums = step(now, {}, linear.batch(i))
    assert not np.asarray(sums['squares']).any()
  return step, now


@pytest.mark.parametrize('fault', FAULTS)
def test_nothing_stays_of_a_step_that_is_not_finite(step, fault):
  step, now = step
  bad = FAULTS[fault](linear.batch(2))
  after, sums = step(now, {}, bad)
  if fault == 'gradient alone':
    assert np.isfinite(sums['loss'][0])
  assert not (np.isfinite(sums['loss'][0] / sums['loss'][1]) and np.isfinite(sums['grad_norm']))
  was, found = linear.flat(state.storable(now)), linear.flat(state.storable(after))
  assert {n for n in was if not np.array_equal(was[n], found[n])} == COUNTS
  again, _ = step(after, {}, bad)
  assert [int(x) for x in (again.step, again.skipped, again.streak)] == [4, 2, 2]
  good, _ = step(again, {}, linear.batch(4))
  assert [int(x) for x in (good.step, good.skipped, good.streak)] == [5, 2, 0]
  # as if the two steps had never been, but for the dropout, which is that of the run's fifth step
  straight, _ = step(dataclasses.replace(now, step=jnp.int32(4), skipped=jnp.int32(2)), {}, linear.batch(4))
  for name, x in linear.flat(state.storable(straight)).items():
    np.testing.assert_array_equal(linear.flat(state.storable(good))[name], x, err_msg=name)
  was, new, found = (linear.flat(x) for x in (now.averages, good.trainable, good.averages))
  for name, x in new.items():  # averages count updates, of which there were three
    wanted = was[f'swa/{name}'] + (x - was[f'swa/{name}']) / 3
    np.testing.assert_allclose(found[f'swa/{name}'], wanted, rtol=1e-5, atol=1e-7)
    assert not np.array_equal(found[f'ema/{name}'], was[f'ema/{name}'])


@pytest.mark.parametrize('name', ['sam', 'sophia'])
def test_what_an_optimizer_looks_at_besides_is_looked_at_too(name):
  """The first gradient is fine; SAM's, uphill beyond a root's end, and Sophia's second derivative are not."""
  losses = {'sam': lambda w: -jnp.sqrt(1 - w.sum()), 'sophia': lambda w: (jnp.abs(w) ** 1.5 + w).sum()}
  tx, needs = linear.optimizer(name, **{'sam': {'rho': 1.0}}.get(name, {})).tx, {'sam': 'grad_fn', 'sophia': 'obj_fn'}
  params = linear.parameters()
  at = lambda params, batch, key: losses[name](params['head']['kernel'] - batch['kernel'] + batch['by'])  # noqa: E731
  loss = lambda model, batch, key: {'loss': (model(batch, key), jnp.float32(1))}  # noqa: E731
  step = jax.jit(make_train_step(at, loss, tx, needs={needs[name]}))
  now, kernel = state.create(params, {}, tx=tx, seed=0), params['head']['kernel']
  after, sums = step(now, {}, {'by': jnp.float32(0), 'kernel': kernel})
  assert np.isfinite(sums['grad_norm'])
  assert int(after.skipped) == 1
  assert trees.digest((after.trainable, after.opt)) == trees.digest((now.trainable, now.opt))
  good, _ = step(now, {}, {'by': jnp.float32(-0.5), 'kernel': kernel})
  assert int(good.skipped) == 0
  assert trees.digest(good.trainable) != trees.digest(now.trainable)


def test_it_is_looked_for_before_clipping():
  """A slope without bound is 1 when it is clipped by value, and the step is skipped all the same."""
  tx, params = linear.optimizer(clip='value', clip_norm=1.0).tx, linear.parameters()
  kernel = params['head']['kernel']
  root = lambda model, batch, key: {'loss': (jnp.sqrt(jnp.maximum(model(batch, key), 0)).sum(), jnp.float32(1))}  # noqa: E731
  step = jax.jit(make_train_step(lambda params, batch, key: params['head']['kernel'] - batch['at'], root, tx))
  now = state.create(params, {}, tx=tx, seed=0)
  after, sums = step(now, {}, {'at': kernel})
  assert (float(sums['loss'][0]), float(sums['grad_norm']), int(after.skipped)) == (0, np.inf, 1)
  np.testing.assert_array_equal(after.trainable['head']['kernel'], kernel)
  after, _ = step(now, {}, {'at': kernel - 1})
  assert int(after.skipped) == 0
  assert not np.array_equal(after.trainable['head']['kernel'], kernel)


def test_gradient_norms_by_layer_and_group():
  gradient = linear.parameters(5)
  found = diagnostics.squares(gradient, {'late': {'w': jnp.ones(3)}}, lambda n: n.startswith('layers/'))
  kernel = np.asarray(gradient['layers']['0:2']['mlp']['kernel'])
  head = np.square(gradient['head']['kernel']).sum()
  np.testing.assert_allclose(found, [head, 0, *np.square(kernel).sum((1, 2))], rtol=1e-6)
  names = {'head/kernel': 'top', 'late/w': 'top', 'layers/0/mlp/kernel': 'rest', 'layers/1/mlp/kernel': 'rest'}
  said = diagnostics.by_layer([4.0, 0.0, float('nan'), 9.0], [*names], names)
  assert said['layers'] == {'head': 2.0, 'late': 0.0, 'layers/0': 'nan', 'layers/1': 3.0}
  assert said['groups'] == {'top': 2.0, 'rest': 'nan'}
  assert said['parameters']['layers/1/mlp/kernel'] == 3.0


class Recorder:
  """Stands for the compiled step, for `Checkpoints` and for `Log`: steps of the given numbers are not finite."""

  seconds, shapes = 0.0, [(2, 8)]

  def __init__(self, bad):
    self.bad, self.said, self.rows, self.shown, self.saved, self.rates = bad, [], {}, {}, {}, []

  def __call__(self, now, frozen, batch):
    done = int(now.step) + 1
    bad = done in self.bad
    skipped, streak = int(now.skipped) + bad, (int(now.streak) + 1) * bad
    sums = {'loss': (np.nan if bad else float(done), 1.0), 'grad_norm': np.inf if bad else 1.0}
    counts = {'skipped': skipped, 'streak': streak, 'squares': np.full(2, np.nan if bad else 0)}
    now = types.SimpleNamespace(step=done, skipped=skipped, streak=streak, trainable={'w': np.zeros(2)}, own={})
    return now, {**sums, **counts}

  def save(self, step, now, meta, *, metric=None):
    self.saved[step] = now

  def row(self, step, split, values):
    self.rows[step, split] = values

  def progress(self, step, **values):
    self.shown[step] = values['loss']

  def wait(self):
    pass

  def say(self, text):
    self.said.append(text)


@pytest.fixture
def run(monkeypatch):
  monkeypatch.setattr(loop, 'storable', lambda now: now)

  def call(bad, **plan):
    recorder, kept = Recorder(bad), {}
    plan = loop.Plan(
      **{'steps': 12, 'eval_every': 6, 'save_every': 5, 'log_every': 3, 'patience': None, 'min_delta': 0.0, **plan},
      metric='f1',
      higher_is_better=True,
    )
    hooks = loop.Hooks(
      lambda *_: {'f1': 0.5},
      lambda i, scale: recorder.rates.append(i) or {'default': 0.1},
      lambda rows: [f'train.jsonl:{r}' for r in rows],
      norms=lambda squares: {'layers': {'head': str(squares[0])}},
      bundle=lambda step, record: kept.update({step: record}) or f'W/nonfinite/step_{step}.json',
    )
    batches = ((np.array([10 * i, 10 * i + 1]), {'tokens': np.zeros((2, 8))}, 100) for i in range(1, 13))
    start = types.SimpleNamespace(step=0, skipped=0, streak=0)
    raised = None
    try:
      loop.fit(
        plan,
        start,
        {},
        loop.Progress(),
        step=recorder,
        batches=batches,
        hooks=hooks,
        log=recorder,
        checkpoints=recorder,
      )
    except Diverged as e:
      raised = str(e)
    return recorder, kept, raised

  return call


def test_steps_are_skipped_told_counted_and_left_out_of_the_means(run):
  recorder, kept, raised = run({2, 4, 5, 11})
  assert raised is None
  assert not kept
  told = [text for text in recorder.said if 'no update' in text]
  assert [text.split(':')[0] for text in told] == ['step 2', 'step 4', 'step 5', 'step 11']
  assert '(2 in a row, 3 end the run; 3 in all). Its rows: train.jsonl:50, train.jsonl:51' in told[2]
  train = {step: row for (step, split), row in recorder.rows.items() if split == 'train'}
  assert {step: row['skipped'] for step, row in train.items()} == {3: 1, 6: 3, 9: 3, 12: 4}
  assert {step: row['loss'] for step, row in train.items()} == {3: 2.0, 6: 6.0, 9: 8.0, 12: 11.0}
  assert sorted(recorder.saved) == [6, 10, 12]  # step 5, where one was due, may be of something broken
  assert recorder.shown[4] is None
  assert recorder.shown[6] == 6.0
  assert recorder.rates == [0, 1, 1, 2, 2, 2, 3, 4, 5, 6, 7, 7]  # the schedule counts updates


def test_a_window_without_a_finite_step_has_no_loss(run):
  recorder, _, _ = run({2}, log_every=1)
  assert 'loss' not in recorder.rows[2, 'train']
  assert recorder.rows[3, 'train']['loss'] == 3.0


def test_so_many_in_a_row_end_the_run_with_a_record(run):
  recorder, kept, raised = run({2, 7, 8, 9})
  assert raised.startswith('step 9: loss nan, gradient norm inf, 3 steps in a row; nothing of this step was saved')
  assert 'Its rows:\n  train.jsonl:90\n  train.jsonl:91\n' in raised
  assert 'gradient norms by layer and the last losses: W/nonfinite/step_9.json' in raised
  assert [*kept] == [9]
  record = kept[9]
  assert (record['step'], record['in_a_row'], record['skipped']) == (9, 3, 4)
  assert [s['step'] for s in record['steps']] == [7, 8, 9]
  assert record['steps'][0] == {
    'step': 7,
    'loss': 'nan',
    'grad_norm': 'inf',
    'row_numbers': [70, 71],
    'rows': ['train.jsonl:70', 'train.jsonl:71'],
  }
  assert record['gradient_norms'] == {'layers': {'head': 'nan'}}
  assert record['last_losses'] == [[i, 'nan' if i in (2, 7, 8, 9) else float(i)] for i in range(1, 10)]
  assert max(recorder.saved) == 6


@pytest.mark.parametrize('most', [1, 2])
def test_how_many_is_a_setting(run, most):
  _, kept, raised = run({3, 4}, max_nonfinite=most)
  assert [*kept] == [2 + most]
  assert raised.startswith(f'step {2 + most}:')


def test_placed_as_the_parameters():
  """Averages lie as what they are of; the counts are everywhere."""
  from ftlib.base import layout

  mesh = layout.build('data=4,fsdp=2', batch=8)
  make = lambda p: state.create(p, {}, tx=linear.optimizer().tx, seed=0, averages=('ema', 'swa'))  # noqa: E731
  places = state.shardings(jax.eval_shape(make, linear.parameters()), linear.INFO, mesh)
  for name, info in linear.INFO.items():
    wanted = mesh.param(info)
    assert not wanted.is_fully_replicated
    for tree in (places.trainable, places.averages['ema'], places.averages['swa']):
      assert trees.flatten(tree)[name] == wanted
  assert places.rate_scale == places.skipped == mesh.replicated
  made = jax.jit(make, out_shardings=places)(linear.parameters())
  jax.jit(lambda s: s, donate_argnums=0)(made)  # no buffer is there twice
