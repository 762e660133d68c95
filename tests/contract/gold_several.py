"""Two tasks, classes and scores, each over rows of its own; their right answers, as logits of both."""

import json
import pathlib

import numpy as np

from ftlib.base.types import Outputs
from tests import tiny

PARTS = ('length', 'tone')


def rows(count, seed):
  """Those of the one part, then those of the other, as a file to be predicted has them; training reads `config`'s."""
  found = [{**row, 'score': len(row['text']) / 20 + (row['label'] == 'good')} for row in tiny.rows(count, seed)]
  return [{**row, 'task': PARTS[i >= count // 2]} for i, row in enumerate(found)]


def config(c):
  c.task.parts = 'length=similarity,text=text,pair=; tone=classify'
  c.task.temperature = 2.0
  folder = pathlib.Path(c.data.path)
  for file in folder.glob('*.jsonl'):
    for part in PARTS:
      (folder / part).mkdir(exist_ok=True)
      lines = [line for line in file.read_text().splitlines() if json.loads(line)['task'] == part]
      (folder / part / file.name).write_text(''.join(f'{line}\n' for line in lines))


def answered(built, split, noise):
  answers, part = (built.examples[split].extra[n] for n in ('answers', 'part'))
  exact = answers * np.where(part == 1, 40.0, 1.0)[:, None]
  spread = np.array([exact[part == k].std() for k in (0, 1)])[part]
  exact = exact + noise * spread[:, None] * np.random.default_rng(0).normal(size=exact.shape)
  got = built.task.predict(Outputs(None, logits=np.asarray(exact, np.float32)), {})
  return {n: np.asarray(x) for n, x in got.items()}
