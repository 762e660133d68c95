"""Rows of the task 'relation', for `test_tasks.py`: two marked words, of which the kinds and the order say how they are
related."""

from __future__ import annotations

import random

from tests import tiny


def rows(count, seed):
  """Good before bad is one direction of a relation, bad before good the other; two alike are 'Other'."""
  rng = random.Random(seed)
  out = []
  for i in range(count):
    first, second, label = [
      (tiny.GOOD, tiny.BAD, 'Over(e1,e2)'),
      (tiny.BAD, tiny.GOOD, 'Over(e2,e1)'),
      (tiny.GOOD, tiny.GOOD, 'Same'),
      (tiny.BAD, tiny.BAD, 'Other'),
    ][i % 4]
    left, between, right = (' '.join(rng.choices(tiny.NEUTRAL, k=rng.randint(1, 4))) for _ in range(3))
    e1, e2 = f'<e1>{rng.choice(first)}</e1>', f'<e2> {rng.choice(second)} </e2>'
    out.append({'text': f'{left} {e1} {between} {e2} {right}', 'label': label})
  return out
