"""A score's loss against PyTorch's, and its export against transformers."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose

from ftlib import export, fine_tune, recipe
from ftlib.base.errors import InputError
from ftlib.base.types import Outputs
from ftlib.objectives import classification, regression
from tests import tiny

Y, T = np.array([0.1, 2.0, -3.0, 0.5], np.float32), np.array([0.0, 5.0, -2.5, 0.5], np.float32)


def sums(config, y_B, t_B, rows_B):
  objective = regression.build(config, labels=[], counts=np.zeros(0))
  return objective(lambda *_: Outputs(None, logits=y_B[:, None]), {'labels': t_B, 'weights': rows_B}, None)


@pytest.mark.parametrize('delta', [0.3, 1.0, 4.0])
@pytest.mark.parametrize('loss', ['mse', 'huber'])
def test_loss_and_gradient_are_those_of_pytorch(loss, delta):
  torch = pytest.importorskip('torch')
  there = torch.nn.MSELoss() if loss == 'mse' else torch.nn.HuberLoss(delta=delta)
  y = torch.tensor(Y, requires_grad=True)
  want = there(y, torch.tensor(T))
  want.backward()
  config = regression.Config(loss=loss, delta=delta)

  def mean(y_B):
    total, weight = sums(config, y_B, T, np.ones(4, np.float32))['loss']
    return total / weight

  got, gradient = jax.value_and_grad(mean)(Y)
  assert_allclose(got, want.item(), rtol=1e-6)
  assert_allclose(gradient, y.grad.numpy(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('loss', ['mse', 'huber'])
def test_parts_add_up_and_padding_is_nothing(loss):
  config, ones = regression.Config(loss=loss), np.ones(4, np.float32)
  whole = sums(config, Y, T, ones)
  parts = [sums(config, Y[i : i + 2], T[i : i + 2], ones[:2]) for i in (0, 2)]
  padded = sums(config, np.where([1, 1, 0, 0], Y, np.inf).astype(np.float32), T, np.array([1, 1, 0, 0], np.float32))
  for name in ('loss', 'mae'):
    for i in range(2):
      assert_allclose(parts[0][name][i] + parts[1][name][i], whole[name][i], rtol=1e-6)
      assert_allclose(padded[name][i], parts[0][name][i], rtol=1e-6)
  assert_allclose(whole['mae'][0], abs(Y - T).sum(), rtol=1e-6)


def test_objectives_are_for_tasks_of_their_kind():
  with pytest.raises(InputError, match=r'objective.name=regression is for tasks whose labels are scores'):
    regression.build(regression.Config(), labels=['a', 'b'], counts=np.ones(2))
  with pytest.raises(InputError, match=r'objective.name=classification is for tasks with a list of labels'):
    classification.build(classification.Config(), labels=[], counts=np.zeros(0))


@pytest.fixture(scope='module')
def trained(tiny_bert, tmp_path_factory):
  """A run over pairs of texts with scores."""
  data, folder = tmp_path_factory.mktemp('scores'), tmp_path_factory.mktemp('runs') / 'run'
  for seed, (split, count) in enumerate((('train', 64), ('validation', 24))):
    pairs = zip(tiny.rows(count, seed), tiny.rows(count, seed + 5))
    rows = [{'text_a': a['text'], 'text_b': b['text'], 'score': len(a['text']) / 30} for a, b in pairs]
    (data / f'{split}.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
  c = tiny.config(tiny_bert, data, train__steps=6, train__eval_every=3)
  names = (('task', 'similarity'), ('objective', 'regression'))
  c.task, c.objective = (recipe.component_section(s, n) for s, n in names)
  fine_tune.run(c, str(folder))
  return folder


def test_exported_scores_are_those_of_transformers(trained, tmp_path):
  torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
  assert export.export(trained, tmp_path / 'out') < 1e-5
  model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / 'out').eval()
  assert (model.config.num_labels, model.config.problem_type) == (1, 'regression')
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'out')
  records = [json.loads(line) for line in (trained / 'eval' / 'validation_predictions.jsonl').read_text().splitlines()]
  texts = [[r[c] for r in records] for c in ('text', 'pair')]
  with torch.no_grad():
    got = model(**tokenizer(*texts, padding=True, truncation=True, max_length=40, return_tensors='pt')).logits[:, 0]
  want = [r['prediction'] for r in records]
  assert np.std(want) > 1e-3
  assert_allclose(got.numpy(), want, rtol=0, atol=1e-5)


def test_an_exported_adapter_goes_on_in_a_task_of_its_kind(trained, tmp_path):
  assert export.export(trained, tmp_path / 'out', format='peft') < 1e-5
  assert json.loads((tmp_path / 'out' / 'ftlib.json').read_text())['labels'] == []
