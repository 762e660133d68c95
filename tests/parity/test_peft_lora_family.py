"""LoRA, LoRA-FA and DoRA live against PEFT, both ways: `make test-reference`."""

import json

import jax
import numpy as np
import pytest
from folders import batch_of, load
from numpy.testing import assert_allclose, assert_array_equal
from reference import CLASSES, inputs
from test_reference import fresh, outputs

from ftlib.base import trees
from ftlib.base.types import Head
from ftlib.models.layers import Embed
from ftlib.peft import dora, lora, lora_fa

pytestmark = pytest.mark.reference

ALL = 'attn/(q|v|o)$|mlp/(up|down)$'
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
  """(module, config, method, the model here, PEFT's, {site: its module there})."""
  import peft

  module, fields = CASES[request.param]
  config = module.Config(**fields, also='')
  model = fresh('bert', 'classify')
  model.save_pretrained(tmp_path / 'base')
  here = load(tmp_path / 'base', Head('classify', CLASSES))
  method = module.build(config, here.model)
  hf = here.model.hf_names()
  names = {s: (hf.get(f'{s}/kernel') or hf[f'{s}/table']).removesuffix('.weight') for s in method.shown}
  settings = {**module.peft_config(config), **module.peft_patterns(config, names)}
  targets = {'target_modules': list(names.values()), 'task_type': 'FEATURE_EXTRACTION'}
  there = peft.get_peft_model(model, peft.LoraConfig(**settings, **targets)).eval()
  return module, config, method, here, there, names


def cases(*names):
  return pytest.mark.parametrize('pair', names or CASES, indirect=True)


def tensors_of(there, name):
  """The tensors of one module in PEFT's file, by suffix."""
  import peft

  state = peft.get_peft_model_state_dict(there, save_embedding_layers=False)
  prefix = f'base_model.model.{name}.'
  return {n.removeprefix(prefix): x.numpy() for n, x in state.items() if n.startswith(prefix)}


def slots(model):
  return {**model.sites(), **model.sites(Embed)}


def own(method, flat, site):
  return {n.rpartition('/')[2]: np.asarray(x) for n, x in flat.items() if n.startswith(f'{site}/adapter/')}


def drawn(method):
  """Random values of every adapter parameter."""
  rng = np.random.default_rng(0)
  info = {n: i for n, i in method.model.info().items() if '/adapter/' in n}
  return {n: (0.3 * rng.normal(size=i.shape)).astype(np.float32) for n, i in info.items()}


def same(method, here, there, adapters):
  values = inputs('bert')
  params = trees.unflatten({**trees.flatten(here.params), **adapters})
  logits = method.model.apply(params, batch_of(values)).logits
  theirs = outputs(there, values)['logits']
  assert_allclose(logits, theirs, rtol=0, atol=1e-5 * max(1, np.abs(theirs).max()))
  merged = here.model.apply(method.merge(params), batch_of(values)).logits
  assert_allclose(merged, theirs, rtol=0, atol=1e-4)
  assert np.abs(logits - here.run(batch_of(values)).logits).max() > 0.05


@cases()
def test_drawn_here_peft_computes_the_same(pair):
  import peft
  import torch

  module, config, method, here, there, names = pair
  adapters, tensors = drawn(method), {}
  for site, name in names.items():
    suffixes = module.to_peft(config, own(method, adapters, site), slots(method.model)[site])
    assert {n: x.shape for n, x in suffixes.items()} == {n: x.shape for n, x in tensors_of(there, name).items()}
    tensors |= {f'base_model.model.{name}.{s}': torch.from_numpy(x.copy()) for s, x in suffixes.items()}
  assert set(tensors) == set(peft.get_peft_model_state_dict(there, save_embedding_layers=False))
  assert not peft.set_peft_model_state_dict(there, tensors).unexpected_keys
  same(method, here, there, adapters)


@cases('rslora', 'embeddings', 'lora_fa', 'dora')
def test_drawn_there_it_is_the_same_here(pair, tmp_path):
  """The config too is read from what PEFT wrote."""
  import torch

  module, config, _, here, there, names = pair
  torch.manual_seed(1)
  with torch.no_grad():
    for p in (p for _, p in there.named_parameters() if p.requires_grad):
      p.normal_(std=0.3)
  there.save_pretrained(tmp_path / 'adapter', save_embedding_layers=False)
  values = json.loads((tmp_path / 'adapter' / 'adapter_config.json').read_text())
  assert values['peft_type'] == module.PEFT_TYPE
  fields = {**module.config_of_peft(values), **module.patterns_of_peft(values, names)}
  fields |= {'embeddings': config.embeddings} if module is lora else {}
  method = module.build(module.Config(**fields, target=config.target, also=''), here.model)
  adapters = {}
  for site, name in names.items():
    leaves = module.from_peft(config, tensors_of(there, name), slots(method.model)[site])
    adapters |= {f'{site}/adapter/{n}': x for n, x in leaves.items()}
  assert {n: x.shape for n, x in adapters.items()} == {
    n: i.shape for n, i in method.model.info().items() if '/adapter/' in n
  }
  same(method, here, there, adapters)


@cases('pissa', 'olora', 'dora', 'dora_pissa')
def test_the_start_is_that_of_peft(pair, tmp_path):
  """PEFT's own decomposition of the same weights gives the same products, and DoRA's the same magnitudes."""
  import peft

  module, config, method, here, _, names = pair
  model = fresh('bert', 'classify')  # the same weights again
  settings = {**module.peft_config(config), 'r': config.rank, 'lora_alpha': config.alpha}
  settings['init_lora_weights'] = {'kaiming': True}.get(config.init, config.init)
  if config.rank_pattern:
    ranks = {n: slots(method.model)[s].adapter.a.get_value().shape[-1] for s, n in names.items()}
    alphas = lora.by_site(config.alpha_pattern, config.alpha, list(names), field='')
    settings |= {'rank_pattern': ranks, 'alpha_pattern': {n: alphas[s] for s, n in names.items()}}
  there = peft.get_peft_model(model, peft.LoraConfig(**settings, target_modules=list(names.values()))).eval()
  flat = trees.flatten(here.params) | trees.flatten(
    method.model.initial(jax.random.key(0), [n for n in method.model.info() if '/adapter/' in n])
  )
  flat |= method.prepare(flat, None)
  for site, name in names.items():
    theirs, ours = tensors_of(there, name), own(method, flat, site)
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
  assert_allclose(logits, outputs(there, values)['logits'], rtol=0, atol=1e-4)


@cases('rslora', 'dora', 'embeddings')
def test_gradients_are_those_of_peft(pair):
  """Without dropout: what DoRA holds constant is the same there."""
  import torch

  module, config, method, here, there, names = pair
  adapters, values = drawn(method), inputs('bert')
  with torch.no_grad():
    for site, name in names.items():
      for suffix, x in module.to_peft(config, own(method, adapters, site), slots(method.model)[site]).items():
        _parameter(there, name, suffix).copy_(torch.from_numpy(x.copy()))
  tensors = {n: torch.from_numpy(np.asarray(v, np.int64)) for n, v in values.items()}
  there(**tensors).logits.square().sum().backward()
  base = trees.flatten(here.params)
  loss = lambda own: (method.model.apply(trees.unflatten({**base, **own}), batch_of(values)).logits ** 2).sum()  # noqa: E731
  got = jax.grad(loss)(adapters)
  for site, name in names.items():
    for suffix, ours in module.to_peft(config, own(method, got, site), slots(method.model)[site]).items():
      theirs = _parameter(there, name, suffix).grad.numpy()
      assert_allclose(ours, theirs, rtol=0, atol=2e-4 * max(1, np.abs(theirs).max()), err_msg=f'{name}.{suffix}')


def _parameter(there, name, suffix):
  first, _, rest = suffix.partition('.')
  rest = 'weight' if 'magnitude' in first else rest
  return there.get_parameter('.'.join(filter(None, ['base_model.model', name, first, 'default', rest])))
