"""Rows, right answers and weights of the task 'tag': names of one to three words among plain ones."""

from __future__ import annotations

import random

import jax.numpy as jnp
import numpy as np

from ftlib.base.types import Outputs
from tests import tiny


def rows(count, seed):
  """Good words are of an entity UP, bad ones of DOWN; now and then there are several of one kind in a row."""
  rng = random.Random(seed)
  out = []
  for _ in range(count):
    words, tags = [], []
    for _ in range(rng.randint(2, 5)):
      kind, size = rng.choice(('UP', 'DOWN', '')), rng.randint(1, 3)
      words += rng.choices({'UP': tiny.GOOD, 'DOWN': tiny.BAD, '': tiny.NEUTRAL}[kind], k=size)
      tags += [f'B-{kind}', *[f'I-{kind}'] * (size - 1)] if kind else ['O'] * size
    out.append({'tokens': words, 'tags': tags})
  return out


def answered(built, split, noise):
  """What `predict` gives, document by document, of logits that say what the tags say but for some noise."""
  examples, task = built.examples[split], built.task
  tokens, length = examples.tokens, int(examples.tokens.lengths.max())
  batch = {n: np.zeros((len(tokens), length), x.dtype) for n, x in examples.per_token.items()}
  for i, (start, stop) in enumerate(zip(tokens.offsets, tokens.offsets[1:])):
    for n, x in examples.per_token.items():
      batch[n][i, : stop - start] = x[start:stop]
  exact = np.eye(task.head.classes)[batch['targets']] * 40
  exact = exact + noise * exact.std() * np.random.default_rng(0).normal(size=exact.shape)
  got = task.predict(Outputs(None, logits=jnp.asarray(exact, jnp.float32)), batch)
  return {n: np.asarray(x) for n, x in got.items()}


def weight(examples):
  return examples.per_token['weights'].sum()
