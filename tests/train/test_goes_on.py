"""Killed at a step and started again, a run with averages, a lowered rate and early stopping ends as one never stopped.

To the bit, from checkpoints on disk, in bfloat16 where moments are kept in it. `tests/resume` does the same with whole
runs and real kills; here a step compiles in no time.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ftlib.io.checkpoint import Checkpoints
from ftlib.train import averages, loop, state
from ftlib.train.compiled import Compiled
from ftlib.train.step import make_train_step
from tests.train import linear

STEPS = 24
PLAN = loop.Plan(
  steps=STEPS,
  eval_every=2,
  save_every=4,
  log_every=4,
  patience=4,
  min_delta=0.0,
  metric='loss',
  higher_is_better=False,
  split='validation_ema',
  plateau_factor=0.7,
  plateau_patience=2,
  plateau_min=0.4,
)
RULES = averages.rules(ema=0.9, swa_start=0.25, steps=STEPS)
# of the exponential average at evaluations: gains at 2, 4, 10 and 12, so the rate falls at 8, 16 and 20, where it ends
LOSSES = dict(zip(range(2, STEPS + 1, 2), (9.0, 8.0, 8.5, 8.5, 7.0, 6.0, 6.5, 6.5, 6.5, 6.5, 6.0, 6.0), strict=True))


class Killed(Exception):
  pass


class Log:
  """Keeps rows by step, as metrics.jsonl does."""

  def __init__(self):
    self.rows, self.said = {}, []

  def row(self, step, split, values):
    self.rows[step, split] = {n: v for n, v in values.items() if n != 'tokens_per_second'}

  def progress(self, step, **values):
    pass

  def say(self, text):
    self.said.append(text)


@pytest.fixture(scope='module')
def parts():
  """(optimizer, compiled step) with bfloat16 moments and a schedule that goes by the metric."""
  built = linear.optimizer(steps=STEPS, schedule='plateau', moments='bfloat16', weight_decay=0.1)
  assert 'rate_scale' in built.needs
  step = make_train_step(linear.apply, linear.objective, built.tx, needs=built.needs, averaging=RULES)
  return built, Compiled(step, donate_argnums=0)


def fit(parts, folder, log, *, kill=None):
  """(last state, progress) of a run in `folder`, from its newest checkpoint; batch `kill` is never made."""
  built, step = parts
  make = lambda p: state.create(p, {}, tx=built.tx, seed=5, averages=RULES)  # noqa: E731
  shapes = jax.eval_shape(make, linear.parameters())
  with Checkpoints(folder, keep_last=99, keep_best=1, higher_is_better=False) as checkpoints:
    found = checkpoints.restore(state.storable(shapes))
    now = state.restored(found.state) if found else make(linear.parameters())
    progress = loop.Progress(**found.meta) if found else loop.Progress()

    def batches():
      for i in range(int(now.step), STEPS):
        if i == kill:
          raise Killed
        bad = {'x': jnp.full((linear.ROWS, 4), jnp.nan)} if i in (4, 14) else {}
        yield np.arange(3) + i, {**linear.batch(i), **bad}, 10

    at = [int(now.step)]
    count = lambda s: at.__setitem__(0, int(s.step)) or {'validation': s.own, 'validation_ema': s.evaluated('ema')}  # noqa: E731
    hooks = loop.Hooks(
      lambda own, *_: {'loss': LOSSES[at[0]], 'norm': float(optax.tree.norm(own))},
      lambda i, scale: {'default': float(built.schedules['default'](i)) * scale},
      lambda rows: [],
      variants=count,
    )
    last = loop.fit(
      PLAN, now, {}, progress, step=step, batches=batches(), hooks=hooks, log=log, checkpoints=checkpoints
    )
    return last, progress


@pytest.fixture(scope='module')
def whole(parts, tmp_path_factory):
  log = Log()
  return *fit(parts, tmp_path_factory.mktemp('whole'), log), log


def test_the_run_does_what_is_to_be_resumed(whole):
  last, progress, log = whole
  assert int(last.step) == 20  # four evaluations without a gain after step 12
  assert (progress.best, progress.best_step, progress.evaluations_without_gain) == (6.0, 12, 4)
  assert float(last.rate_scale) == np.float32(0.4)  # 0.7 after step 8, 0.49 after 16, no lower than 0.4 after 20
  assert len([t for t in log.said if 'learning rates are' in t]) == 3
  rates = {step: row['learning_rate'] for (step, split), row in log.rows.items() if split == 'train'}
  assert rates == pytest.approx({4: 0.05, 8: 0.05, 12: 0.035, 16: 0.035, 20: 0.0245})
  assert int(last.skipped) == 2
  raw, ema = log.rows[12, 'validation'], log.rows[12, 'validation_ema']
  assert raw['norm'] != ema['norm']


@pytest.mark.parametrize('kill', [1, 6, 9, 17])
def test_killed_it_ends_as_one_never_stopped(parts, whole, tmp_path, kill):
  log = Log()
  with pytest.raises(Killed):
    fit(parts, tmp_path, log, kill=kill)
  last, progress = fit(parts, tmp_path, log)
  wanted, theirs, rows = whole
  ours, wanted = (linear.flat(state.storable(s)) for s in (last, wanted))
  assert {'averages/ema/head/kernel', 'averages/swa/head/kernel', 'rate_scale', 'skipped', 'streak'} < set(ours)
  for name, x in wanted.items():
    assert ours[name].dtype == x.dtype
    np.testing.assert_array_equal(ours[name], x, err_msg=name)
  same = lambda p: {k: v for k, v in dataclasses.asdict(p).items() if k not in ('seconds', 'window')}  # noqa: E731
  assert same(progress) == same(theirs)
  assert log.rows == rows.rows


def test_a_moment_keeps_its_dtype(tmp_path):
  """Whatever the transformation: what is saved as bfloat16 is bfloat16 again, with the same bits."""
  tx = optax.chain(optax.scale_by_adam(mu_dtype=jnp.bfloat16), optax.scale(-0.1))
  make = lambda p: state.create(p, {}, tx=tx, seed=0)  # noqa: E731
  step = jax.jit(make_train_step(linear.apply, linear.objective, tx))
  now = make(linear.parameters())
  for i in range(2):
    now, _ = step(now, {}, linear.batch(i))
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(2, state.storable(now), {})
    checkpoints.wait()
    back = checkpoints.restore(state.storable(jax.eval_shape(make, linear.parameters()))).state
  ours, saved = linear.flat(state.restored(back).opt), linear.flat(now.opt)
  halves = {n for n, x in saved.items() if '/mu/' in n}
  assert halves
  for name, x in saved.items():
    assert x.dtype == (jnp.bfloat16 if name in halves else np.int32 if name.endswith('count') else np.float32)
    assert ours[name].dtype == x.dtype
    assert ours[name].tobytes() == x.tobytes()
    assert x.any()
