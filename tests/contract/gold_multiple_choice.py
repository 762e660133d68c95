"""Rows and right answers of multiple choice for `test_tasks.py`."""

from __future__ import annotations

import random

import jax.numpy as jnp
import numpy as np

from ftlib.base.types import Outputs
from tests import tiny


def rows(count, seed):
  """Two to four options, of which the right one alone has a good word."""
  rng, out = random.Random(seed), []
  for i in range(count):
    options = [' '.join([*rng.choices(tiny.NEUTRAL, k=2), rng.choice(tiny.BAD)]) for _ in range(2 + i % 3)]
    right = rng.randrange(len(options))
    options[right] = ' '.join([rng.choice(tiny.NEUTRAL), rng.choice(tiny.GOOD)])
    question = ' '.join(rng.choices(tiny.NEUTRAL, k=rng.randint(2, 5)))
    out.append({'question': question, 'options': options, 'label': right})
  return out


def answered(built, split, noise):
  """Logits [N, K, 1]."""
  extra = built.examples[split].extra
  logits = 40.0 * np.eye(len(built.task.labels))[extra['labels']]
  logits = logits + 20 * noise * np.random.default_rng(0).normal(size=logits.shape)
  got = built.task.predict(Outputs(None, logits=jnp.asarray(logits[..., None], jnp.float32)), extra)
  return {n: np.asarray(x) for n, x in got.items()}
