"""Gradual unfreezing: what waits stays as it is, what trains goes on as it was, and the backward pass is no longer than
it must be."""

from __future__ import annotations

import re

import jax
import numpy as np
import pytest

from ftlib import fine_tune, run
from ftlib.base import trees
from ftlib.base.errors import InputError
from ftlib.train.compiled import Staged
from tests import tiny
from tests.contract import flops, runs

STARTS = (0, 2, 4)  # the head; layer 1; layer 0 and the embeddings
STEPS = 6


def config(model, data, **values):
  plain = {'method__layers': 1, 'method__steps': 2, 'train__steps': STEPS, 'optim__weight_decay': 0.1}
  return tiny.config(model, data, method='gradual', **{**plain, 'optim__warmup': 0.0, **values})


def stage_of(name: str) -> int:
  if name.startswith(('head/', 'pooler/')):
    return 0
  return 1 if name.startswith('layers/1/') else 2


class Taken:
  """A run and its state before each step and after the last: parameters, moments, and Adam's counts by group."""

  def __init__(self, built: run.Run, steps: int = STEPS):
    self.run, self.losses = built, []
    own, frozen = built.load()
    state = built.start(own, frozen)
    self.states = [jax.device_get(trees.flatten(state.trainable))]
    self.opt = [jax.device_get(state.opt)]
    for i in range(steps):
      state, sums = built.train_step(state, frozen, built.batch(i)[1])
      self.states.append(jax.tree.map(np.array, jax.device_get(trees.flatten(state.trainable))))
      self.opt.append(jax.tree.map(np.array, jax.device_get(state.opt)))
      self.losses.append(float(sums['loss'][0] / sums['loss'][1]))

  def adam(self, step: int, *, part: str) -> dict[str, np.ndarray]:
    """{name: moment} for 'mu' and 'nu', {group: count} for 'count', before a step."""
    out = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(self.opt[step]):
      name = trees.path_name(path)
      group = re.fullmatch(r'(default(?:-\d)?)/rule/count', name)
      if part == 'count' and group:
        out[group[1]] = int(leaf)
      elif f'/{part}/' in name:
        out[name.partition(f'/{part}/')[2]] = leaf
    return out


@pytest.fixture(scope='module')
def taken(tiny_bert, toy_data):
  return Taken(run.build(config(tiny_bert, toy_data)))


def test_what_waits_is_bit_for_bit_as_it_was(taken):
  """With decay on; and its moments are zero."""
  for step in range(STEPS):
    stage = step // 2
    before, after = taken.states[step], taken.states[step + 1]
    changed = {n for n in after if before[n].tobytes() != after[n].tobytes()}
    assert changed == {n for n in after if stage_of(n) <= stage}
    moments = taken.adam(step + 1, part='mu')
    assert set(moments) == set(after)
    assert {n for n, m in moments.items() if m.any()} == changed


def test_minus_zero_waits_too(taken, tiny_bert, toy_data):
  """x + 0 is x in all bits but for x = -0."""
  r = taken.run
  own, frozen = r.load()
  own = trees.map_named(lambda n, x: -0.0 * abs(x) if n == 'layers/0/mlp/up/bias' else x, own)
  state, _ = r.train_step(r.start(own, frozen), frozen, r.batch(0)[1])
  assert np.signbit(trees.flatten(state.trainable)['layers/0/mlp/up/bias']).all()


def test_moments_go_on_across_a_boundary(taken):
  """By hand: m' = 0.9 m + 0.1 g, so that what the next step adds is bounded by its own gradient; and they are kept."""
  for boundary in STARTS[1:]:
    nu, then = (taken.adam(s, part='nu') for s in (boundary, boundary + 1))
    for name, x in nu.items():
      if stage_of(name) < boundary // 2:
        assert x.any()
        assert (then[name] >= 0.999 * x * (1 - 1e-6)).all(), name


def test_each_stage_counts_its_own_steps(taken):
  counts = [taken.adam(s, part='count') for s in range(STEPS + 1)]
  for step, count in enumerate(counts):
    assert count == {g: max(0, step - s) for g, s in zip(('default', 'default-1', 'default-2'), STARTS, strict=True)}


def test_the_first_update_of_a_late_starter_has_the_size_of_adams_first(tiny_bert, toy_data, taken):
  """Bias correction by its own count: |update| = rate where the gradient is not small, and not sqrt(1 - b2^3) of it."""
  r = run.build(config(tiny_bert, toy_data, optim__schedule='constant', method__decay=1.0, optim__weight_decay=0.0))
  late = Taken(r, steps=3)
  name = 'layers/1/mlp/up/kernel'
  step = np.abs(late.states[3][name] - late.states[2][name])
  np.testing.assert_allclose(np.median(step), 1e-2, rtol=1e-3)


@pytest.mark.slow
def test_rates_fall_by_layer(tiny_bert, toy_data):
  """The first step of every parameter is rate * decay^-depth, whatever the storage of layers."""
  values = {'optim__schedule': 'constant', 'optim__weight_decay': 0.0, 'method__layers': 2, 'method__steps': 1}
  for layers in ('unroll', 'scan'):
    r = run.build(config(tiny_bert, toy_data, **values, model__layers=layers))
    assert any(n.startswith('layers/0:2/') for n in r.info) == (layers == 'scan')
    got = Taken(r, steps=2)
    states = [runs.unstacked(s) for s in got.states]
    kernels = {'pooler/kernel': (0, 0), 'layers/1/mlp/up/kernel': (1, 1), 'layers/0/mlp/up/kernel': (2, 1)}
    for name, (depth, begins) in kernels.items():
      step = np.abs(states[begins + 1][name] - states[begins][name])
      np.testing.assert_allclose(np.median(step), 1e-2 * 2.6**-depth, rtol=1e-2, err_msg=name)


def test_the_schedule_is_the_runs(taken):
  """The learning rate of a late starter is that of the run's step, and not of its own first."""
  late = Taken(
    run.build(config(taken.run.base.folder, taken.run.settings.data.path, method__decay=1.0, optim__weight_decay=0.0)),
    steps=3,
  )
  name = 'layers/1/mlp/up/kernel'
  step = np.abs(late.states[3][name] - late.states[2][name])
  np.testing.assert_allclose(np.median(step), 1e-2 * (1 - 2 / STEPS), rtol=1e-3)


def test_one_compile_a_stage_and_shape(tiny_bert, tmp_path):
  data = runs.uneven_folder(tmp_path)
  sizes = {'train__buckets': 2, 'train__batch_size': 4, 'train__steps': 16}
  r = run.build(config(tiny_bert, data, method__layers=2, method__steps=8, **sizes))
  lengths = [{r.batch(i)[1]['tokens'].shape for i in range(s, s + 8)} for s in (0, 8)]
  assert max(map(len, lengths)) == 2
  own, frozen = r.load()
  state = r.start(own, frozen)
  for i in range(16):
    state, _ = r.train_step(state, frozen, r.batch(i)[1])
  assert isinstance(r.train_step, Staged)
  assert [set(p.shapes) for p in r.train_step.parts] == lengths
  assert len(r.train_step.shapes) == sum(map(len, lengths))
  assert r.train_step.seconds > 0


@pytest.mark.parametrize('layers', ['unroll', 'scan'])
def test_the_backward_pass_ends_at_the_lowest_layer_that_trains(tmp_path, toy_data, layers):
  """Of 4 layers: forward 4 and 2 for each that trains."""
  model = tiny.bert_folder(tmp_path, num_hidden_layers=4)
  r = run.build(config(model, toy_data, method__layers=2, model__layers=layers))
  args = (*runs.shapes(r), r.batch(0)[1])
  counts = [flops.of_jaxpr(jax.make_jaxpr(p._fn.__wrapped__)(*args).jaxpr) for p in r.train_step.parts]
  assert len(counts) == 3
  assert counts == sorted(counts)
  full = flops.of_step(run.build(runs.config(model, toy_data, method='full', model__layers=layers)))
  assert counts[2] == pytest.approx(full, rel=0.01)
  assert 0.3 < counts[0] / full < 0.35
  assert 0.6 < counts[1] / full < 0.7  # (4 + 4) / (4 + 8)


class _Killed(Exception):
  pass


@pytest.mark.slow
def test_a_resumed_run_is_the_same_run(tiny_bert, toy_data, tmp_path, monkeypatch):
  """Stopped at a boundary, then within a stage: the digest of the parameters is that of the run that was not."""
  make = lambda: config(tiny_bert, toy_data, train__eval_every=6, checkpoint__every=1)  # noqa: E731
  save = fine_tune.Checkpoints.save
  for at in (2, 3):

    def killed(self, step, *args, at=at, **kwargs):
      save(self, step, *args, **kwargs)
      if step == at:
        self.wait()
        raise _Killed

    with monkeypatch.context() as patch:
      patch.setattr(fine_tune.Checkpoints, 'save', killed)
      with pytest.raises(_Killed):
        fine_tune.run(make(), str(tmp_path / 'stops'))
  summaries = []
  for where in (tmp_path / 'stops', tmp_path / 'goes on'):
    fine_tune.run(make(), str(where))
    summaries.append(fine_tune.files.read_json(where / 'summary.json'))
  assert [s['steps'] for s in summaries] == [STEPS, STEPS]
  assert summaries[0]['params_sha256'] == summaries[1]['params_sha256']


def test_stages_that_the_run_does_not_reach(tiny_bert, toy_data):
  with pytest.raises(
    InputError, match=r'method\.steps: the last of 3 stages begins at step 6, but the run has 6 steps'
  ):
    run.build(config(tiny_bert, toy_data, method__steps=3))


@pytest.mark.parametrize(
  ('values', 'starts'),
  [
    ({'method__steps': None}, [0, 2, 4]),
    ({'method__steps': None, 'method__share': 0.5}, [0, 1, 2]),
    ({'method__steps': None, 'train__steps': 2}, [0, 0, 1]),
    ({'method__steps': 1, 'method__layers': 5}, [0, 1]),
  ],
)
def test_starts(tiny_bert, toy_data, values, starts):
  r = run.build(config(tiny_bert, toy_data, **values))
  assert r.method.stages.steps(r.steps) == starts
  assert f'stages begin at steps {", ".join(map(str, starts))}' in r.notes


def test_new_parameters_train_from_the_start(tiny_bert, toy_data):
  """The head, even where `also` does not name it."""
  r = run.build(config(tiny_bert, toy_data, method__also='^pooler/'))
  assert r.method.stage('head/out/kernel') == 0
  assert r.method.stage('layers/0/attn/q/kernel') == 2


def test_state_is_read_from_the_device_once(taken):
  """Then steps are counted: reading would wait for the step before."""
  reads = []

  class State:
    def __init__(self, step):
      self.step = step

  class Step:
    def __init__(self, value):
      self.value = value

    def __int__(self):
      reads.append(self.value)
      return self.value

  called = []
  parts = [lambda s, k=k: (called.append(k), (State(Step(s.step.value + 1)), {}))[1] for k in range(3)]
  staged = Staged(parts, [0, 2, 3])
  state = State(Step(1))
  for _ in range(3):
    state, _ = staged(state)
  assert called == [0, 1, 2]
  assert reads == [1]
  staged(State(Step(0)))  # another run of it
  assert called[-1] == 0
  assert reads == [1, 0]
