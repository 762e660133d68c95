"""One step is one step: however it is cut up, padded, spread over devices or batched with others."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftlib import run
from ftlib.base import layout, rng, trees
from ftlib.data import batches
from ftlib.train.compiled import Compiled
from ftlib.train.step import make_train_step
from tests.contract import runs

SIZE, SHORT, LONG = 16, 24, 40  # rows of a batch; lengths it is padded to
WEIGHTS, SMOOTHING = {'good': 1.0, 'bad': 4.0}, 0.1


@pytest.fixture(scope='module')
def lora(tiny_bert, uneven_data):
  """`lora(train__accumulate=2)`: a run with class weights, label smoothing and dropout, made once."""
  made = {}

  def make(**values) -> run.Run:
    key = tuple(values.items())
    if key not in made:
      objective = {'objective__label_smoothing': SMOOTHING}
      objective['objective__class_weights'] = ','.join(f'{k}={v}' for k, v in WEIGHTS.items())
      made[key] = run.build(runs.config(tiny_bert, uneven_data, **objective, **values))
    return made[key]

  return make


@pytest.fixture(scope='module')
def begin(lora):
  """`begin(run)`: (state, frozen) with adapters that have learnt something, the same for every run."""
  made = {}

  def start(r: run.Run):
    if id(r) not in made:
      chosen, frozen = r.load()
      noise = lambda n, x: x + 0.1 * jax.random.normal(rng.key_for(jax.random.key(5), n), x.shape)  # noqa: E731
      made[id(r)] = r.start(trees.map_named(noise, chosen), frozen), frozen
    state, frozen = made[id(r)]
    return jax.tree.map(lambda x: x.copy(), state), frozen

  return start


def uneven(r: run.Run) -> list[int]:
  """16 rows of 3 to 22 tokens, the long ones 'bad' and in one micro-batch of four."""
  lengths = r.examples['train'].tokens.lengths
  order = np.argsort(lengths, kind='stable')
  few = np.concatenate([order[:12], order[-4:]])
  assert lengths[few[:12]].max() < 5
  assert lengths[few[-4:]].min() > 15
  return [int(few[i]) for i in np.arange(16).reshape(4, 4).T.ravel()]


def collated(r: run.Run, rows: list[int], *, size: int = SIZE, length: int = SHORT):
  batch = batches.collate(r.examples['train'], rows, size=size, edges=(length,), pad_id=0)
  return jax.device_put(batch, r.layout.batch)


def outcome(r: run.Run, begin, batch) -> tuple[float, dict[str, np.ndarray]]:
  """(mean loss, {name: trainable parameter after the step})."""
  state, frozen = begin(r)
  state, sums = r.train_step(state, frozen, batch)
  return float(sums['loss'][0] / sums['loss'][1]), runs.flat_copy(state.trainable)


def assert_same(ours, theirs, *, tolerance: float = 1e-6) -> None:
  np.testing.assert_allclose(ours[0], theirs[0], rtol=tolerance)
  assert set(ours[1]) == set(theirs[1])
  for name, x in theirs[1].items():
    np.testing.assert_allclose(ours[1][name], x, atol=tolerance, rtol=0, err_msg=name)


@pytest.fixture(scope='module')
def whole(lora, begin):
  """The step with nothing cut up: 16 rows padded to 24 tokens."""
  r = lora()
  return outcome(r, begin, collated(r, uneven(r)))


@pytest.fixture(scope='module')
def by_hand(lora, begin):
  """(weighted losses [16], weights [16]) of that step's rows: numpy, on logits with the step's own dropout."""
  r = lora()
  state, frozen = begin(r)
  batch = collated(r, uneven(r))
  apply = jax.jit(r.method.model.apply)
  logits = apply(trees.join(state.trainable, frozen), batch, jax.random.fold_in(state.key, 0)).logits
  logits = np.asarray(logits, np.float64)
  nll = np.log(np.exp(logits).sum(1, keepdims=True)) - logits
  of_class = np.asarray([WEIGHTS[label] for label in r.task.labels])
  labels = np.asarray(batch['labels'])
  own = (nll * of_class)[np.arange(SIZE), labels]
  return (1 - SMOOTHING) * own + SMOOTHING * (nll * of_class).mean(1), of_class[labels]


def test_the_loss_is_the_weighted_mean_over_all_rows(whole, by_hand):
  losses, weights = by_hand
  np.testing.assert_allclose(whole[0], losses.sum() / weights.sum(), rtol=1e-6)


@pytest.mark.parametrize(
  'values', [{'train__accumulate': 4}, {'train__accumulate': 2, 'mesh__shape': runs.MESH}], ids=['4', '2 on 8 devices']
)
def test_accumulation_changes_nothing(lora, begin, whole, by_hand, values):
  r = lora(**values)
  assert_same(outcome(r, begin, collated(r, uneven(r))), whole)
  losses, weights = (x.reshape(-1, values['train__accumulate']) for x in by_hand)
  naive = (losses.sum(0) / weights.sum(0)).mean()
  assert abs(naive - whole[0]) > 1e-3  # the mean of micro-batches' means is another number
  memory = lambda r: next(iter(r.train_step._by_shape.values())).memory_analysis().temp_size_in_bytes  # noqa: E731
  assert memory(r) < 0.5 * memory(lora())  # what it is for


def test_padding_to_a_longer_row_changes_nothing(lora, begin, whole):
  """Dropout is on: its masks follow row and position, and not where the padding ends."""
  r = lora()
  assert_same(outcome(r, begin, collated(r, uneven(r), length=LONG)), whole)


def test_rows_of_padding_count_nothing(lora, begin, whole):
  r = lora()
  rows = uneven(r)[:12]
  padded = outcome(r, begin, collated(r, rows))
  assert_same(padded, outcome(r, begin, collated(r, rows, size=12)))
  assert abs(padded[0] - whole[0]) > 1e-3


def test_dropout_is_on_and_follows_the_step_and_the_key(lora, begin):
  r = lora()
  batch = collated(r, uneven(r))
  losses = []
  for change in ({}, {'step': 1}, {'key': jax.random.key(9)}):
    state, frozen = begin(r)
    state = dataclasses.replace(state, **{k: jnp.asarray(v) for k, v in change.items()})
    _, sums = r.train_step(state, frozen, batch)
    losses.append(float(sums['loss'][0]))
  assert len(set(losses)) == 3


def test_the_step_can_be_batched(lora, begin):
  """Two adapters with seeds of their own trained at once over one frozen base are the two alone."""
  r = lora()
  batch = collated(r, uneven(r))
  one, frozen = begin(r)
  two, _ = begin(r)
  two = dataclasses.replace(two, trainable=jax.tree.map(lambda x: 0.5 * x, two.trainable), key=jax.random.key(1))
  both = jax.tree.map(lambda *x: jnp.stack(x), one, two)
  step = make_train_step(r.method.model.apply, r.objective, r.optimizer.tx)
  batched = Compiled(jax.vmap(step, in_axes=(0, None, None)))
  after, sums = batched(both, frozen, batch)
  for i, alone in enumerate((one, two)):
    state, own = r.train_step(alone, frozen, batch)
    np.testing.assert_allclose(sums['loss'][0][i], own['loss'][0], rtol=1e-6)
    for name, x in trees.flatten(state.trainable).items():
      np.testing.assert_allclose(trees.flatten(after.trainable)[name][i], x, atol=1e-6, rtol=0, err_msg=name)
  assert abs(sums['loss'][0][0] - sums['loss'][0][1]) > 1e-3


@pytest.mark.parametrize('kind', rng.KINDS)
def test_masks_are_the_same_on_one_device_and_on_eight(kind):
  def masks(rows, key):
    stream = rng.Stream.start(key, rows, kind=kind).layer(1)
    return stream.at('mlp/out').keep((SIZE, 8, 32), 0.1), stream.at('attn').keep((SIZE, 4, 8, 8), 0.1)

  made = []
  for shape in ('data=1', runs.MESH):
    mesh = layout.build(shape, batch=SIZE)
    rows = jax.device_put(np.arange(SIZE, dtype=np.int32), mesh.batch)
    draw = jax.jit(masks, out_shardings=mesh.batch)
    out = draw(rows, jax.device_put(jax.random.key(3), mesh.replicated))
    assert len(out[0].sharding.device_set) == mesh.shards
    made.append([np.asarray(x) for x in out])
  for ours, theirs in zip(*made, strict=True):
    np.testing.assert_array_equal(ours, theirs)
