"""Checkpoints in order: what goes in comes out, on any devices, and retention keeps what it says."""

import json
import logging
import os
import random
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_states import TARGET, Instant, abstract, assert_same, make_state
from jax.sharding import NamedSharding, PartitionSpec

from ftlib.base.errors import InputError
from ftlib.io import checkpoint, manifest
from ftlib.io.checkpoint import Checkpoints

pytestmark = pytest.mark.filterwarnings('error')


def test_round_trip_is_bitwise(tmp_path):
  state = make_state(3)
  with Checkpoints(tmp_path) as c:
    assert c.restore(TARGET) is None
    c.save(3, state, {'config': {'rank': 8}, 'data': [1, None, 'x']}, metric=0.5)
    c.wait()
    got = c.restore(TARGET)
    assert (got.step, got.meta) == (3, {'config': {'rank': 8}, 'data': [1, None, 'x']})
    assert_same(got.state, state)
    assert c.steps() == [3]
    assert c.size(3) == sum(p.stat().st_size for p in (tmp_path / '3').rglob('*') if p.is_file())
  assert json.loads((tmp_path / '3/meta.json').read_text())['metric'] == 0.5


def test_restored_leaves_without_sharding_are_uncommitted(saved):
  # A committed array would refuse to meet arrays of another device in one computation.
  got = Checkpoints(saved, readonly=True).restore(TARGET).state
  assert (got['trainable']['head'] + jax.device_put(jnp.ones(3), jax.devices()[3])).devices() == {jax.devices()[3]}


def test_arrays_may_be_donated_and_overwritten_right_after_save(tmp_path, monkeypatch):
  go = threading.Event()
  orbax_save = checkpoint.ocp.Checkpointer.save
  monkeypatch.setattr(checkpoint.ocp.Checkpointer, 'save', lambda *a, **k: (go.wait(20), orbax_save(*a, **k)))
  host = np.arange(6.0, dtype=np.float32)
  state = {'w': jax.device_put(jnp.arange(4096.0)), 'host': host}
  with Checkpoints(tmp_path) as c:
    c.save(1, state, {})
    after = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)(state['w'])
    host[:] = -1
    jax.block_until_ready(after)
    assert state['w'].is_deleted()
    go.set()
    c.wait()
    got = c.restore({'w': jax.ShapeDtypeStruct((4096,), jnp.float32), 'host': host}).state
  np.testing.assert_array_equal(got['w'], np.arange(4096.0))
  np.testing.assert_array_equal(got['host'], np.arange(6.0))


def test_any_number_of_devices(tmp_path):
  mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  over_eight = NamedSharding(mesh, PartitionSpec('data'))
  state = make_state(1)
  with Checkpoints(tmp_path) as c:
    c.save(1, state, {})
    c.wait()
    wide = c.restore(abstract(state, over_eight)).state
    assert wide['trainable']['layers']['0']['q'].sharding == over_eight
    assert_same(wide, state)
    c.save(2, wide, {})
    c.wait()
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    back = c.restore(abstract(state, one))
    assert back.step == 2
    assert back.state['trainable']['layers']['0']['q'].sharding == one
    assert_same(back.state, state)


def test_sharding_that_does_not_divide_is_no_corruption(folder):
  mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  target = abstract(make_state(0))
  target['trainable']['head'] = jax.ShapeDtypeStruct(
    (3,), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec('data'))
  )
  with Checkpoints(folder) as c, pytest.raises(InputError, match=r'trainable/head float32\[3\] cannot be laid out'):
    c.restore(target)
  assert sorted(os.listdir(folder)) == ['10', '20']


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (
      lambda t: t | {'step': jax.ShapeDtypeStruct((), jnp.int8)},
      r'step: int32\[\] in the checkpoint, int8\[\] in this',
    ),
    (lambda t: t | {'step': jax.ShapeDtypeStruct((1,), jnp.int32)}, r'step: int32\[\] .*, int32\[1\] in this run'),
    (lambda t: t | {'more': jax.ShapeDtypeStruct((), jnp.int32)}, 'more: absent in the checkpoint'),
    (lambda t: {k: v for k, v in t.items() if k != 'opt'}, 'opt/0/count: int32.* absent in this run'),
  ],
)
def test_another_tree_shape_or_dtype_is_an_error_and_no_corruption(folder, change, message):
  with Checkpoints(folder) as c:
    for step in (None, 20):
      with pytest.raises(InputError, match=message):
        c.restore(change(dict(TARGET)), step=step)
  assert sorted(os.listdir(folder)) == ['10', '20']


def test_a_checkpoint_of_a_newer_ftlib_is_no_corruption(folder):
  meta = json.loads((folder / '20/meta.json').read_text())
  (folder / '20/meta.json').write_text(json.dumps(meta | {'format': checkpoint.FORMAT + 1}))
  manifest.seal(folder / '20')
  with Checkpoints(folder) as c, pytest.raises(InputError, match='newer ftlib'):
    c.restore(TARGET)
  assert sorted(os.listdir(folder)) == ['10', '20']


@pytest.mark.parametrize(
  ('state', 'message'),
  [
    ({'key': jax.random.key(0)}, "'key' is a typed key"),
    ({'n': 3}, "'n' is a int, not an array"),
    ({'a': {'b': np.ones(2)}, 'a.b': np.zeros(2)}, "'a.b' has no name of its own"),
    (np.ones(2), 'no name of its own'),
  ],
)
def test_what_cannot_be_saved_faithfully_is_refused_at_once(tmp_path, state, message):
  with Checkpoints(tmp_path) as c:
    with pytest.raises(ValueError, match=message):
      c.save(1, state, {})
    with pytest.raises(TypeError, match='object'):
      c.save(1, {'a': np.ones(2)}, {'fn': object()})
  assert os.listdir(tmp_path) == []


def test_orbax_is_silent(tmp_path, caplog):
  with caplog.at_level(logging.DEBUG):
    logging.getLogger('absl').setLevel(logging.DEBUG)
    try:
      with Checkpoints(tmp_path) as c:
        c.save(1, make_state(1), {})
        c.restore(TARGET)
    finally:
      logging.getLogger('absl').setLevel(logging.NOTSET)
  assert not [r for r in caplog.records if 'orbax' in r.pathname]


# Retention.


@pytest.mark.parametrize('seed', range(8))
def test_retention_over_random_metrics(tmp_path, seed):
  rng = random.Random(seed)
  last, best, higher = rng.randint(1, 3), rng.randint(0, 3), rng.random() < 0.5
  metrics = {}
  with Checkpoints(tmp_path, keep_last=last, keep_best=best, higher_is_better=higher) as c:
    c._orbax = Instant()
    for step in sorted(rng.sample(range(1, 2000), 12)):
      metrics[step] = rng.choice([None, float('nan'), rng.randint(0, 5), rng.random()])
      c.save(step, {'a': np.ones(2)}, {}, metric=metrics[step])
      c.wait()
      ranked = [s for s in metrics if metrics[s] is not None and metrics[s] == metrics[s]]
      ranked.sort(key=lambda s: (-metrics[s] if higher else metrics[s], s))
      assert c.steps() == sorted({*sorted(metrics)[-last:], *ranked[:best]})
      if best:
        assert c.best() == next(iter(ranked), None)
      assert all(manifest.fault(tmp_path / str(s)) is None for s in c.steps())
      assert sorted(os.listdir(tmp_path)) == sorted(map(str, c.steps()))


def test_steps_go_by_number_not_by_clock_or_text(tmp_path):
  with Checkpoints(tmp_path, keep_last=3) as c:
    c._orbax = Instant()
    for step in (9, 100, 20):
      c.save(step, {'a': np.ones(2)}, {})
    c.wait()
    for step, age in ((9, 0), (20, 500), (100, 1000)):
      os.utime(tmp_path / str(step), (age, age))
    assert c.steps() == [9, 20, 100]


def test_a_step_saved_behind_newer_ones_is_not_the_one_deleted(tmp_path):
  with Checkpoints(tmp_path) as c:  # a run rolled back by hand
    c._orbax = Instant()
    c.save(100, {'a': np.ones(2)}, {})
    c.save(50, {'a': np.ones(2)}, {})
    c.wait()
    assert c.steps() == [50, 100]


def test_saving_a_step_again_replaces_it(folder):
  with Checkpoints(folder, keep_last=2) as c:
    c.save(20, make_state(7), {'again': True}, metric=1.0)
    c.wait()
    got = c.restore(TARGET)
    assert (got.step, got.meta, c.best()) == (20, {'again': True}, 20)
    assert_same(got.state, make_state(7))
  assert sorted(os.listdir(folder)) == ['10', '20']


@pytest.mark.parametrize('higher', [True, False])
def test_a_reader_knows_which_step_is_best(tmp_path, higher):
  """eval.py opens a run's checkpoints without knowing what they were ranked by."""
  with Checkpoints(tmp_path, keep_last=3, higher_is_better=higher) as c:
    for step, metric in ((1, 0.5), (2, 0.9), (3, 0.1)):
      c.save(step, {'x': np.ones(3, np.float32)}, {}, metric=metric)
  with Checkpoints(tmp_path, readonly=True) as c:
    assert c.best() == (2 if higher else 3)
