"""Our BiLSTM against torch.nn.LSTM on packed rows (stored). Reached on a CPU: states 6.0e-8, gradients 3.0e-7 of the
largest entry."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from folders import batch_of, longer
from numpy.testing import assert_allclose
from reference import load as stored

from ftlib.base import trees
from ftlib.base.types import Head
from ftlib.models import bilstm, stack

TOLERANCE = 1e-5
close = functools.partial(assert_allclose, rtol=0, atol=TOLERANCE)


@pytest.fixture(scope='module')
def ref():
  return stored('bilstm')


def made(ref, head=None, **changes):
  """A model with the stored tensors, and its parameters (those of a head, or of a third layer, are drawn)."""
  config = dataclasses.replace(bilstm.from_hf(ref.config), **changes)
  model = bilstm.build(config, head=head or Head(pooling='last'))
  tensors, flat = ref.tensors(), trees.flatten(model.initial(jax.random.key(0)))
  names = {ours: theirs for ours, theirs in model.hf_names().items() if theirs in tensors}
  assert set(names.values()) == set(tensors)  # those of torch.nn.LSTM
  assert {n: s for n, s in model.hf_shapes().items() if n in names} == {n: tensors[t].shape for n, t in names.items()}
  return model, trees.unflatten(flat | {n: np.asarray(model.from_hf(n, tensors[t])) for n, t in names.items()})


def test_states_are_those_of_torch(ref):
  model, params = made(ref)
  out = model.apply(params, batch_of(ref.arrays))
  close(out.hidden, ref['last_hidden_state'])  # zero at padding
  close(out.pooled, ref['pooler_output'])  # where each direction ended
  close(model.apply(params, longer(batch_of(ref.arrays), 3, 0)).hidden[:, :-3], ref['last_hidden_state'])


def test_gradients_are_those_of_torch(ref):
  model, params = made(ref)
  loss = lambda p: (model.apply(p, batch_of(ref.arrays)).hidden * ref['toward']).sum()  # noqa: E731
  got = trees.flatten(jax.grad(loss)(params))
  want = ref.gradients()
  assert len(want) == len(got) == 1 + 2 * 2 * 4  # the embedding; layers, directions
  for name, theirs in model.hf_names().items():
    unit = np.abs(want[theirs]).max()
    close(model.to_hf(name, got[name]) / unit, want[theirs] / unit, err_msg=name)


@pytest.mark.parametrize('pooling', ['last', 'max', 'mean', 'cls'])
def test_documents_of_a_row_are_as_each_alone(ref, pooling):
  model, params = made(ref, Head('classify', 3, pooling))
  alone = batch_of(ref.arrays)
  want = model.apply(params, alone)
  several, _ = made(ref, Head('classify', 3, pooling, documents=4))
  row = {k: np.zeros((2, 18), np.int32) for k in ('tokens', 'segments')}
  places = [(0, 0, 0, 9), (0, 9, 2, 5), (0, 14, 1, 1), (1, 0, 1, 1)]  # row, first token, document, tokens
  for (r, start, document, length), number in zip(places, (1, 2, 3, 1)):
    row['tokens'][r, start : start + length] = alone['tokens'][document, :length]
    row['segments'][r, start : start + length] = number
  out = several.apply(params, row)
  assert out.pooled.shape == (2, 4, 16)
  for (r, start, document, length), number in zip(places, (1, 2, 3, 1)):
    close(out.hidden[r, start : start + length], want.hidden[document, :length])
    close(out.logits[r, number - 1], want.logits[document])
  assert np.abs(out.pooled[1, 1:]).max() == 0  # documents that are not there


def test_max_and_marks_are_what_they_say(ref):
  states = ref['last_hidden_state']
  real = ref['attention_mask'] > 0
  model, params = made(ref, Head('embed', pooling='max'))
  out = model.apply(params, batch_of(ref.arrays))
  close(out.pooled, [s[m].max(0) for s, m in zip(states, real)])
  model, params = made(ref, Head('classify', 2, marks=2))
  marks = np.array([[0, 3], [0, 0], [4, 1]], np.int32)
  out = model.apply(params, {**batch_of(ref.arrays), 'marks': marks})
  close(out.pooled, [np.concatenate([s[a], s[b]]) for s, (a, b) in zip(states, marks)])


def test_dropout_goes_by_the_row_and_layers_scan(ref):
  """In training too, with more padding and whatever the storage, a row computes the same."""
  model, params = made(ref, Head('tag', 3), layers=3)
  batch, key = batch_of(ref.arrays), jax.random.key(1)
  want = model.apply(params, batch, key).logits
  assert np.abs(want - model.apply(params, batch).logits).max() > 0.01
  stacked = stack.stack(params, [(0, 1), (1, 3)])
  real = batch['segments'] > 0
  again = jax.jit(model.apply)(stacked, longer(batch, 3, 0), key).logits[:, :-3]
  close(again[real], want[real])


def test_half_precision_keeps_its_cells_whole(ref):
  model, params = made(ref)
  half = dataclasses.replace(model, compute=jnp.bfloat16)
  error = np.abs(half.apply(params, batch_of(ref.arrays)).hidden - ref['last_hidden_state']).max()
  assert 1e-5 < error < 2e-2
