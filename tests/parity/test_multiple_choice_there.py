"""Multiple choice against PyTorch's transformers: `make test-reference`. Reached: 5.4e-7."""

from __future__ import annotations

import types

import numpy as np
import pytest
from folders import batch_of, load
from numpy.testing import assert_allclose
from reference import TINY, inputs, moved, pooling
from test_reference import fresh

from ftlib import export
from ftlib.base.types import Head
from ftlib.data import batches, tokens
from ftlib.objectives import choice
from ftlib.run import Base
from ftlib.tasks import multiple_choice
from tests import tiny

pytestmark = pytest.mark.reference

TOLERANCE = 1e-5
ROWS = [
  {'question': 'was it good', 'options': ['good film', 'bad'], 'label': 0},
  {'question': 'the plot', 'options': ['dull', 'a warm movie', 'cold and grim'], 'label': 2},
]


@pytest.fixture(scope='module')
def there(tmp_path_factory):
  """(a BertForMultipleChoice of random weights, its folder)."""
  import torch
  import transformers

  torch.manual_seed(0)
  folder = tiny.bert_folder(tmp_path_factory.mktemp('choice'))
  settings = {k: v for k, v in tiny.CONFIG.items() if k not in ('model_type', 'architectures')}
  model = transformers.BertForMultipleChoice(transformers.BertConfig(**settings)).eval()
  with torch.no_grad():
    for p in model.parameters():
      p.add_(0.1 * torch.randn_like(p))
  model.save_pretrained(folder)
  return model, folder


def padded(rows, fill):
  width = max(map(len, rows))
  return np.array([[*row, *[fill] * (width - len(row))] for row in rows])


def test_logits_and_loss_are_those_of_transformers(there):
  """Row by row, as all rows of a batch have as many options there."""
  import torch

  model, folder = there
  here = load(folder, Head('classify', 1, 'cls', documents=3))
  assert not here.match.fresh
  assert not here.match.unused
  tokenizer = tokens.load(folder)
  task = multiple_choice.build(multiple_choice.Config(), train=ROWS, known=None)
  examples = task.examples(ROWS, tokenizer, limit=40)
  batch = batches.collate(examples, range(2), size=2, edges=(40,), pad_id=0)
  outputs = here.run(batch)
  objective = choice.build(choice.Config(), labels=task.labels, counts=task.counts)
  ours = objective.sums(outputs, batch)
  total = 0.0
  for i, row in enumerate(ROWS):
    pairs = [tokenizer(row['question'], option) for option in row['options']]
    ids, types = (padded([p[n] for p in pairs], 0) for n in ('input_ids', 'token_type_ids'))
    mask = padded([p['attention_mask'] for p in pairs], 0)
    given = [torch.from_numpy(x)[None] for x in (ids, mask, types)]
    names = ('input_ids', 'attention_mask', 'token_type_ids')
    with torch.no_grad():
      found = model(**dict(zip(names, given)), labels=torch.tensor([row['label']]))
    want = found.logits[0].numpy()
    assert want.std() > 0.01
    assert_allclose(outputs.logits[i, : len(want), 0], want, rtol=0, atol=TOLERANCE)
    total += float(found.loss)
  assert float(ours['loss'][0]) == pytest.approx(total, abs=TOLERANCE)
  assert float(ours['loss'][1]) == 2


@pytest.mark.parametrize(
  'case',
  [
    'bert',
    'roberta',
    'xlm_roberta',
    'ernie',
    'distilbert',
    'albert',
    'electra',
    'deberta_v2',
    'deberta_v3',
    'xlnet',
    'modernbert_biases',
    'modernbert',
  ],
)
def test_an_export_says_the_same_of_options_there(tmp_path, monkeypatch, case):
  import torch
  import transformers

  odd = {'summary_activation': 'relu', 'summary_use_proj': False} if case == 'electra' else {}  # of no head here
  monkeypatch.setitem(TINY, case, {**TINY[case], **odd})
  fresh(case, 'none').save_pretrained(tmp_path / 'base')
  head = Head('classify', 1, pooling(TINY[case]), documents=3)
  here = load(tmp_path / 'base', head)
  base = Base(tmp_path / 'base', here.values, here.family, None, '')
  run = types.SimpleNamespace(base=base, task=types.SimpleNamespace(head=head))
  export.write(here.model, here.params, run, tmp_path / 'out')
  model, info = transformers.AutoModelForMultipleChoice.from_pretrained(tmp_path / 'out', output_loading_info=True)
  assert not {k: v for k, v in info.items() if v}
  assert [type(model).__name__] == model.config.architectures
  values = inputs(case)
  given = moved(TINY[case]['model_type'], values, values['attention_mask'])
  with torch.no_grad():
    found = model.eval()(**{n: torch.from_numpy(x.astype(np.int64))[None] for n, x in given.items()}).logits[0].numpy()
  assert found.std() > 0.01
  assert_allclose(here.run(batch_of(values)).logits[:, 0, 0], found, rtol=0, atol=TOLERANCE)
