"""Three tasks, scores, labels and classes, each over rows of its own; their right answers, as logits of all."""

import json
import pathlib

import numpy as np

from ftlib.base.types import Outputs
from tests import tiny
from tests.contract import gold_multilabel

PARTS = ('length', 'words', 'tone')


def rows(count, seed):
  """Those of the first part, then those of the second, ..., as a file to be predicted has them; training reads
  `config`'s."""
  found = [{**row, 'score': len(row['text']) / 20 + (row['label'] == 'good')} for row in tiny.rows(count, seed)]
  several = gold_multilabel.rows(count, seed)
  return [{**a, **b, 'task': PARTS[3 * i // count]} for i, (a, b) in enumerate(zip(found, several))]


def config(c):
  c.task.parts = 'length=similarity,text=text,pair=; words=multilabel; tone=classify'
  c.task.temperature = 2.0
  folder = pathlib.Path(c.data.path)
  for file in folder.glob('*.jsonl'):
    for part in PARTS:
      (folder / part).mkdir(exist_ok=True)
      lines = [line for line in file.read_text().splitlines() if json.loads(line)['task'] == part]
      (folder / part / file.name).write_text(''.join(f'{line}\n' for line in lines))


def answered(built, split, noise):
  answers, part = (built.examples[split].extra[n] for n in ('answers', 'part'))
  scale, start = np.array([1.0, 40.0, 40.0]), np.array([0.0, -20.0, 0.0])
  exact = answers * scale[part][:, None] + start[part][:, None]
  spread = np.array([exact[part == k].std() for k in range(3)])[part]
  exact = exact + noise * spread[:, None] * np.random.default_rng(0).normal(size=exact.shape)
  got = built.task.predict(Outputs(None, logits=np.asarray(exact, np.float32)), {})
  return {n: np.asarray(x) for n, x in got.items()}
