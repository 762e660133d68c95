"""The predictions of the same rows in two batches, for tasks that say something of tokens."""

from __future__ import annotations

import numpy as np

from ftlib.data import batches


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
