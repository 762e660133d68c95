"""What eval.py --file keeps of rows until the end does not grow with their tokens."""

import gc
import tracemalloc
import types

import numpy as np
import pytest

from ftlib import judge_file
from ftlib.base import lookup
from ftlib.data import tokens
from ftlib.data.sources import Rows

ROWS, PIECE = 120, 40
ASKED = {
  'classify': lambda text: {'text': text, 'label': 'a'},
  'mask': lambda text: {'text': text},
  'extract': lambda text: {'question': 'was it', 'context': text, 'answers': [{'text': 'good', 'start': 0}]},
}


def answered(name, count):
  """The predictions of some rows."""
  numbers = lambda *shape: np.zeros((count, *shape), np.float32)  # noqa: E731
  return {
    'classify': lambda: {'probabilities': numbers(2) + 0.5},
    'mask': lambda: {n: numbers() + 1 for n in ('nll', 'correct', 'counted')},
    'extract': lambda: {
      **{n: np.zeros((count, 20), np.int64) for n in ('starts', 'ends')},
      'scores': np.zeros((count, 20)),
      'null': numbers(),
    },
  }[name]()


def kept(name, tokenizer, *, words):
  """Bytes that are held when the answers to rows of so many words are there; the rows' own texts are not counted."""
  module = lookup.component('tasks', name, field='task.name')
  task = module.build(module.Config(), train=None, known=['a', 'b'])
  settings = types.SimpleNamespace(modules={'task': module}, task=task.config)
  texts = ['good film' + f' {i % 9}' * (words - 2) for i in range(ROWS)]
  pieces = [
    Rows([ASKED[name](t) for t in texts[i : i + PIECE]], 'x', 'x.jsonl', range(i, i + PIECE))
    for i in range(0, ROWS, PIECE)
  ]

  def over(incoming):
    for rows in pieces:
      yield rows, task.examples(rows, tokenizer, limit=512), answered(name, len(rows))

  source = types.SimpleNamespace(run=types.SimpleNamespace(task=task, settings=settings), over=over)
  incoming = types.SimpleNamespace(path='x.jsonl')
  tracemalloc.start()
  try:
    found = judge_file._answers(source, incoming, set(), lambda records: None)
    gc.collect()
    assert len(found.rows) == ROWS
    return tracemalloc.get_traced_memory()[0]
  finally:
    tracemalloc.stop()


@pytest.mark.parametrize('name', ASKED)
def test_long_rows_take_no_more_room(name, tiny_bert):
  tokenizer = tokens.load(tiny_bert)
  short, long, short, long = (kept(name, tokenizer, words=n) for n in (4, 204) * 2)  # caches are filled at first
  assert long - short < 20 * ROWS  # 200 ids of a row would be 800
