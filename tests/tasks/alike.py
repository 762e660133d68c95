"""What must come out the same: predictions of the same rows in two batches, for tasks that say something of tokens, and
a run with and without a stop."""

from __future__ import annotations

import jax
import numpy as np

from ftlib.data import batches
from ftlib.io.checkpoint import Checkpoints
from ftlib.train.state import restored, storable


def tight_and_wide(built):
  """(of 16 rows of validation padded to the longest, of the same rows last first in a longer and wider batch, put back
  in order): {name: array of 16}."""
  own, frozen = built.load()
  examples = built.examples['validation']

  def find(numbers, size, edge):
    batch = batches.collate(examples, numbers, size=size, edges=(edge,), pad_id=0)
    return {n: np.asarray(x)[: len(numbers)] for n, x in built.eval_step(own, frozen, batch)[1].items()}

  longest, order = int(examples.lengths.max()), [*range(16)]
  return find(order, 16, longest), {n: x[::-1] for n, x in find(order[::-1], 19, longest + 5).items()}


def stopped_and_not(built, again, folder):
  """(the state after four steps, the same where `again`, another run of the config, takes the last two from what was
  saved after the second): lists of arrays."""
  own, frozen = built.load()
  whole = built.start(own, frozen)
  with Checkpoints(folder) as checkpoints:
    for step in range(4):
      if step == 2:
        checkpoints.save(step, storable(whole), {})
      whole, _ = built.train_step(whole, frozen, built.batch(step)[1])
    checkpoints.wait()
    state = restored(checkpoints.restore(storable(again.abstract_state)).state)
  frozen = again.load()[1]
  for step in (2, 3):
    state, _ = built.train_step(state, frozen, again.batch(step)[1])
  return tuple([np.asarray(x) for x in jax.tree.leaves(storable(s))] for s in (whole, state))
