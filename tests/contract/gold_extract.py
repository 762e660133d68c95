"""Rows and right answers of extractive question answering for `test_tasks.py`."""

from __future__ import annotations

import random

import jax.numpy as jnp
import numpy as np

from ftlib.base.types import Outputs
from ftlib.data import batches
from tests import tiny


def rows(count, seed):
  """What is asked for is the only word that is no neutral one; every eighth context takes several windows."""
  rng, out = random.Random(seed), []
  for i in range(count):
    words = rng.choices(tiny.NEUTRAL, k=60 if i % 8 == 0 else rng.randint(4, 14))
    at = rng.randrange(len(words))
    words[at] = rng.choice(tiny.GOOD + tiny.BAD)
    start = len(' '.join([*words[:at], '']))
    answers = {'text': [words[at]], 'answer_start': [start]}
    question = ' '.join(rng.choices(tiny.NEUTRAL, k=3))
    out.append({'question': question, 'context': ' '.join(words), 'answers': answers})
  return out


def answered(built, split, noise):
  """Logits at the places of the labels, by window."""
  examples = built.examples[split]
  count, longest = len(examples), int(examples.lengths.max())
  batch = batches.collate(examples, range(count), size=count, edges=(longest,), pad_id=0)
  targets = np.stack([batch['starts'], batch['ends']], 1)
  logits = 40.0 * (np.arange(longest)[None, :, None] == targets[:, None, :])
  logits = logits + 10 * noise * np.random.default_rng(0).normal(size=logits.shape)
  got = built.task.predict(Outputs(None, logits=jnp.asarray(logits, jnp.float32)), batch)
  return {n: np.asarray(x) for n, x in got.items()}
