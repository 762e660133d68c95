"""The sides of benchmarks/tables/tasks.py, live: from the same weights and without dropout, fine-tuning in PyTorch ends
where ftlib's does (`make test-reference`).

So order and rates of the steps, losses, clipping and the optimizer are the same, and how logits are read; what differs
in the table is what each library draws for itself.
"""

import importlib.util
import json
import pathlib
import sys
import types

import jax
import numpy as np
import pytest

from ftlib import export, recipe, run
from ftlib.base import trees
from ftlib.models import stack
from ftlib.objectives.cosine import cosine
from tests import tiny
from tests.contract import gold_extract, gold_multilabel, gold_relation, gold_tag

pytestmark = pytest.mark.reference

TABLES = pathlib.Path(__file__).resolve().parents[2] / 'benchmarks' / 'tables'
ROWS = {'classify': tiny.rows, 'multilabel': gold_multilabel.rows, 'tag': gold_tag.rows, 'extract': gold_extract.rows}
ROWS |= {'relation': gold_relation.rows}
SEED = 1


def module(name, folder=TABLES):
  spec = importlib.util.spec_from_file_location(f'{name}_there', folder / f'{name}.py')
  found = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = found
  spec.loader.exec_module(found)
  return found


def pairs(count, seed):
  both = zip(tiny.rows(count, seed), tiny.rows(count, seed + 5))
  return [{'text_a': a['text'], 'text_b': b['text'], 'score': i % 6} for i, (a, b) in enumerate(both)]


def with_head(kernel, bias):
  """The peer as `subprocess.run` would run it, but that its head of `marks`, which no checkpoint has, is given."""
  import torch

  def run(command, **_):
    peer = module('torch_tasks', TABLES.parent / 'peers')
    build = peer.build

    def begun(args, train):
      model = build(args, train)
      with torch.no_grad():
        model.out.weight.copy_(torch.tensor(np.asarray(kernel).T))
        model.out.bias.copy_(torch.tensor(np.asarray(bias)))
      return model

    peer.build = begun
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(sys, 'argv', [str(word) for word in command[1:]])
      peer.main()

  return types.SimpleNamespace(run=run)


@pytest.mark.parametrize('task', ['classify', 'multilabel', 'tag', 'extract', 'embed', 'relation'])
def test_both_sides_train_alike(tmp_path, monkeypatch, task):
  monkeypatch.setattr(sys, 'path', [str(TABLES), *sys.path])
  table, worker = module('tasks'), module('tasks_worker')
  still = {'hidden_dropout_prob': 0.0, 'attention_probs_dropout_prob': 0.0}
  (tmp_path / 'bare').mkdir()
  base = tiny.bert_folder(tmp_path / 'bare', **still)
  for seed, (split, count) in enumerate((('train', 40), ('validation', 20))):
    rows = ROWS.get(task, pairs)(count, seed)
    (tmp_path / f'{split}.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))

  def built(folder):
    c = recipe.recipe(task=task, method='full', optim='adamw')
    c.seed = SEED
    c.model.pretrained, c.data.path, c.mesh.shape = str(folder), str(tmp_path), 'data=1'
    for name, value in {**table.COMMON, 'train.max_length': 40, 'optim.learning_rate': 3e-3}.items():
      section, _, field = name.partition('.')
      c[section][field] = value
    return run.build(c)

  first = built(base)
  params = stack.unstack(trees.join(*first.load()))
  if task == 'relation':
    ours = first
    monkeypatch.setattr(worker, 'subprocess', with_head(**params['head']['out']))
  else:
    (tmp_path / 'start').mkdir()
    export.write(first.method.model, params, first, tmp_path / 'start')
    ours = built(tmp_path / 'start')
    assert not ours.match.fresh
  job = {'reference_python': sys.executable, 'kind': table.KINDS[task]}
  theirs, _ = worker.peer_logits(ours, job, SEED, tmp_path)
  state, frozen, _ = worker.trained(ours, SEED)
  before, after = (stack.unstack(trees.join(own, frozen)) for own in (ours.load()[0], ours.evaluated(state)))

  @jax.jit
  def logits(params, batch):
    found = ours.method.model.apply(params, batch)
    return cosine(found.pooled)[:, None] if task == 'embed' else found.logits

  moved = 0.0
  for numbers, batch in ours.eval_batches('validation'):
    found, start = (np.asarray(logits(p, batch))[: len(numbers)] for p in (after, before))
    real = np.asarray(batch['segments'])[: len(numbers)] > 0
    there = theirs[numbers]
    if found.ndim == 3:
      wide = min(found.shape[1], there.shape[1])
      found, start, there = (x[:, :wide][real[:, :wide]] for x in (found, start, there))
    if task == 'extract':  # what a softmax over tokens does not see is left to rounding: the head's bias
      found, start, there = (x - x.mean(0) for x in (found, start, there))
    np.testing.assert_allclose(found, there, rtol=0, atol=1e-3)
    moved = max(moved, np.abs(found - start).max())
  assert moved > 0.2
