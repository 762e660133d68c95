"""Binary cross-entropy of several labels against PyTorch's, with its gradient by the logits: `make test-reference`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from ftlib.base.types import Outputs
from ftlib.objectives import multilabel

pytestmark = pytest.mark.reference

NAMES = ['a', 'b', 'c', 'd']


@pytest.mark.parametrize('weights', ['', 'a=3,c=0.25'])
def test_binary_cross_entropy(weights):
  import torch

  rng = np.random.default_rng(0)
  logits = rng.normal(0, 3, (7, 4)).astype(np.float32)
  labels = (rng.random((7, 4)) < 0.4).astype(np.int32)
  objective = multilabel.build(
    multilabel.Config(pos_weight=weights), labels=NAMES, counts=np.stack([7 - labels.sum(0), labels.sum(0)], 1)
  )
  batch = {'labels': labels, 'weights': np.ones(7, np.float32)}

  def mean(x):
    total, weight = objective.sums(Outputs(jnp.zeros((7, 1, 1)), logits=x), batch)['loss']
    return total / weight

  x = torch.from_numpy(logits).double().requires_grad_()
  positive = torch.tensor([3, 1, 0.25, 1] if weights else [1] * 4).double()
  theirs = torch.nn.BCEWithLogitsLoss(pos_weight=positive)(x, torch.from_numpy(labels).double())
  theirs.backward()
  ours, slope = jax.value_and_grad(mean)(logits)
  assert_allclose(ours, theirs.item(), rtol=1e-6)
  assert_allclose(slope, x.grad.numpy(), atol=1e-7)
