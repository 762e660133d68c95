"""LoRA, LoRA-FA and DoRA live against PEFT, both ways: `make test-reference`."""

import dataclasses

import jax
import numpy as np
import pytest
from folders import batch_of
from numpy.testing import assert_allclose, assert_array_equal
from pairs import ALL, check_from_here, check_from_there, drawn, pair_of
from reference import inputs
from test_reference import fresh, outputs

from ftlib.base import trees
from ftlib.peft import dora, lora, lora_fa
from ftlib.peft.method import added
from ftlib.peft.parts import lora_patterns

pytestmark = pytest.mark.reference

PATTERNS = {'rank_pattern': '/q$=2;^layers/1=6', 'alpha_pattern': '^layers/1/attn=5;mlp/=1.5'}
CASES = {
  'rslora': (lora, {'rank': 4, 'alpha': 3.0, 'scaling': 'rsqrt', 'target': ALL}),
  'patterns': (lora, {'rank': 4, 'alpha': 12.0, 'target': ALL, **PATTERNS}),
  'embeddings': (lora, {'rank': 4, 'alpha': 6.0, 'embeddings': 'embed/(token|position)$', **PATTERNS, 'target': ALL}),
  'pissa': (lora, {'rank': 4, 'init': 'pissa', 'target': ALL, 'embeddings': 'embed/token', **PATTERNS}),
  'olora': (lora, {'rank': 4, 'init': 'olora', 'scaling': 'rsqrt', 'target': ALL, **PATTERNS}),
  'lora_fa': (lora_fa, {'rank': 4, 'alpha': 12.0}),
  'dora': (dora, {'rank': 4, 'alpha': 6.0, 'target': ALL, **PATTERNS}),
  'dora_pissa': (dora, {'rank': 4, 'init': 'pissa', 'target': ALL}),
}


@pytest.fixture
def pair(request, tmp_path):
  return pair_of(*CASES[request.param], tmp_path)


def cases(*names):
  return pytest.mark.parametrize('pair', names or CASES, indirect=True)


@cases()
def test_drawn_here_peft_computes_the_same(pair, tmp_path):
  check_from_here(pair, tmp_path)


@cases('rslora', 'embeddings', 'lora_fa', 'dora')
def test_drawn_there_it_is_the_same_here(pair, tmp_path):
  check_from_there(pair, tmp_path)


@cases('pissa', 'olora', 'dora', 'dora_pissa')
def test_the_start_is_that_of_peft(pair):
  """PEFT's own decomposition of the same weights gives the same products, and DoRA's the same magnitudes."""
  import peft

  config, method, here, names = pair.config, pair.method, pair.here, pair.names
  settings = {**pair.module.peft_config(config), 'r': config.rank, 'lora_alpha': config.alpha}
  settings['init_lora_weights'] = {'kaiming': True}.get(config.init, config.init)
  if config.rank_pattern:
    ranks = {n: pair.slots[s].adapter.a.get_value().shape[-1] for s, n in names.items()}
    alphas = lora_patterns.by_site(config.alpha_pattern, config.alpha, list(names), field='')
    settings |= {'rank_pattern': ranks, 'alpha_pattern': {n: alphas[s] for s, n in names.items()}}
  made = peft.LoraConfig(**settings, target_modules=list(names.values()))
  again = dataclasses.replace(pair, there=peft.get_peft_model(fresh('bert', 'classify'), made).eval())
  flat = trees.flatten(here.params) | trees.flatten(
    method.model.initial(jax.random.key(0), [n for n in method.model.info() if added(n)])
  )
  flat |= method.prepare(flat, None)
  for site in names:
    theirs, ours = again.tensors(site), pair.own(flat, site)
    if 'm' in ours:
      assert_allclose(ours['m'].reshape(-1), theirs['lora_magnitude_vector'], rtol=1e-5)
    if 'a0' in ours:
      rank = ours['a'].shape[-1]
      product = ours['a'].reshape(-1, rank) @ ours['b'].reshape(rank, -1)
      assert_allclose(product, (theirs['lora_B.weight'] @ theirs['lora_A.weight']).T, rtol=0, atol=1e-4)
      size = lambda x: np.linalg.norm(x, axis=1)  # noqa: E731
      assert_allclose(size(ours['a'].reshape(-1, rank).T), size(theirs['lora_A.weight']), rtol=1e-3)
  values = inputs('bert')
  logits = method.model.apply(trees.unflatten(flat), batch_of(values)).logits
  assert_array_equal(logits, here.run(batch_of(values)).logits)
  assert_allclose(logits, outputs(again.there, values)['logits'], rtol=0, atol=1e-4)


@cases('rslora', 'dora', 'embeddings')
def test_gradients_are_those_of_peft(pair):
  """Without dropout: what DoRA holds constant is the same there."""
  import torch

  method, there = pair.method, pair.there
  adapters, values = drawn(method), inputs('bert')
  with torch.no_grad():
    for site, tensors in pair.to_peft(adapters).items():
      for suffix, x in tensors.items():
        _parameter(there, pair.names[site], suffix).copy_(torch.from_numpy(x.copy()))
  tensors = {n: torch.from_numpy(np.asarray(v, np.int64)) for n, v in values.items()}
  there(**tensors).logits.square().sum().backward()
  base = trees.flatten(pair.here.params)
  loss = lambda own: (method.model.apply(trees.unflatten({**base, **own}), batch_of(values)).logits ** 2).sum()  # noqa: E731
  got = jax.grad(loss)(adapters)
  for site, tensors in pair.to_peft(got).items():
    for suffix, ours in tensors.items():
      theirs = _parameter(there, pair.names[site], suffix).grad.numpy()
      assert_allclose(ours, theirs, rtol=0, atol=2e-4 * max(1, np.abs(theirs).max()), err_msg=f'{site} {suffix}')


def _parameter(there, name, suffix):
  first, _, rest = suffix.partition('.')
  rest = 'weight' if 'magnitude' in first else rest
  return there.get_parameter('.'.join(filter(None, ['base_model.model', name, first, 'default', rest])))
