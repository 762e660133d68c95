"""Rows and right answers of several labels for `test_tasks.py`."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from ftlib.base.types import Outputs
from tests import tiny


def rows(count, seed):
  """'good' by the words, 'the' where that is one of them; a third of the rows have none."""
  out = []
  for row in tiny.rows(count, seed):
    labels = ['the'] if 'the' in row['text'].split() else []
    out.append({'text': row['text'], 'labels': labels + ['good'] * (row['label'] == 'good')})
  return out


def answered(built, split, noise):
  """The logits of each label, 20 where a row has it and -20 where not."""
  exact = 40.0 * built.examples[split].extra['labels'] - 20.0
  exact = exact + 20 * noise * np.random.default_rng(0).normal(size=exact.shape)
  got = built.task.predict(Outputs(None, logits=jnp.asarray(exact, jnp.float32)), {})
  return {n: np.asarray(x) for n, x in got.items()}
