"""OFT, MiSS, (IA)^3 and AdaLoRA live against PEFT, both ways: `make test-reference`."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from folders import batch_of, load
from numpy.testing import assert_allclose, assert_array_equal
from reference import CLASSES, inputs
from test_reference import fresh, outputs

from ftlib.base import trees
from ftlib.base.types import Head
from ftlib.models import stack
from ftlib.peft import adalora, ia3, miss, oft

pytestmark = pytest.mark.reference

CONFIGS = {'OFT': 'OFTConfig', 'MISS': 'MissConfig', 'IA3': 'IA3Config', 'ADALORA': 'AdaLoraConfig'}
ALL = 'attn/(q|v|o)$|mlp/(up|down)$'
PLAN = {'init_rank': 6, 'target_rank': 3, 'alpha': 9.0, 'total_steps': 20, 'tinit': 3, 'tfinal': 4, 'interval': 3}
CASES = {
  'oft': (oft, {'block_size': 8, 'target': ALL}),
  'oft_blocks': (oft, {'blocks': 2, 'target': ALL}),
  **{f'oft_{n}_terms': (oft, {'block_size': 16, 'neumann_terms': n}) for n in (2, 3, 4, 5, 7)},
  'miss': (miss, {'rank': 8, 'target': ALL}),
  'miss_remainder': (miss, {'rank': 12, 'target': ALL}),
  'ia3': (ia3, {}),
  'ia3_all': (ia3, {'target': 'attn|mlp/up'}),
  'adalora': (adalora, {**PLAN, 'target': ALL}),
}


def pair_of(module, fields, folder):
  """(config, method, the model here, PEFT's, {site: its module there})."""
  import peft

  config = module.Config(**fields, also='')
  model = fresh('bert', 'classify')
  model.save_pretrained(folder / 'base')
  here = load(folder / 'base', Head('classify', CLASSES))
  method = module.build(config, here.model)
  hf = here.model.hf_names()
  names = {site: hf[f'{site}/kernel'].removesuffix('.weight') for site in method.shown}
  more = module.peft_config(config)
  if module is ia3:
    more['feedforward_modules'] = [n for site, n in names.items() if f'{site}/adapter/in_scale' in method.model.info()]
  made = getattr(peft, CONFIGS[module.PEFT_TYPE])(
    **more, target_modules=list(names.values()), task_type='FEATURE_EXTRACTION'
  )
  return config, method, here, peft.get_peft_model(model, made).eval(), names


@pytest.fixture(params=CASES)
def pair(request, tmp_path):
  module, fields = CASES[request.param]
  return module, *pair_of(module, fields, tmp_path)


def tensors_of(there, name):
  """The tensors of one module in PEFT's file, by suffix."""
  import peft

  prefix = f'base_model.model.{name}.'
  state = peft.get_peft_model_state_dict(there)
  return {n.removeprefix(prefix): x.numpy() for n, x in state.items() if n.startswith(prefix)}


def own_of(method, site, *, kept=True):
  prefix = f'{site}/adapter/'
  wanted = {n: i for n, i in method.model.info().items() if n.startswith(prefix) and (kept or method.trains(n))}
  return {n.removeprefix(prefix): i for n, i in wanted.items()}


def same(method, here, there, adapters):
  """The adapted model and the merged one give PEFT's logits."""
  values = inputs('bert')
  params = trees.unflatten({**trees.flatten(here.params), **adapters})
  logits = method.model.apply(params, batch_of(values)).logits
  theirs = outputs(there, values)['logits']
  assert_allclose(logits, theirs, rtol=0, atol=2e-5)
  merged = here.model.apply(method.merge(params), batch_of(values)).logits
  assert_allclose(merged, theirs, rtol=0, atol=2e-5)
  assert np.abs(logits - here.run(batch_of(values)).logits).max() > 0.02
  return theirs


def test_drawn_here_peft_computes_the_same(pair, tmp_path):
  import peft
  import torch

  module, config, method, here, there, names = pair
  rng, sites = np.random.default_rng(0), method.model.sites()
  adapters, state = {}, {}
  for site, name in names.items():
    own = {n: (0.2 * rng.normal(size=i.shape)).astype(np.float32) for n, i in own_of(method, site).items()}
    if module is ia3:
      own = {n: 1 + x for n, x in own.items()}
    adapters |= {f'{site}/adapter/{n}': x for n, x in own.items()}
    state |= {f'base_model.model.{name}.{n}': x for n, x in module.to_peft(config, own, sites[site]).items()}
  known = peft.get_peft_model_state_dict(there)
  assert {n: tuple(x.shape) for n, x in known.items()} == {n: x.shape for n, x in state.items()}
  peft.set_peft_model_state_dict(there, {n: torch.from_numpy(np.ascontiguousarray(x)) for n, x in state.items()})
  theirs = same(method, here, there, adapters)
  there.save_pretrained(tmp_path / 'out')
  values = json.loads((tmp_path / 'out' / 'adapter_config.json').read_text())
  again = module.Config(**module.config_of_peft(values), target=config.target, also='')
  assert again == dataclasses.replace(config)
  merged = there.merge_and_unload()
  assert_allclose(outputs(merged, inputs('bert'))['logits'], theirs, rtol=0, atol=2e-5)


def test_drawn_there_it_computes_the_same_here(pair):
  import torch

  module, config, method, here, there, names = pair
  torch.manual_seed(1)
  with torch.no_grad():
    for name, p in there.named_parameters():
      if p.requires_grad:
        assert any(n in name for n in names.values())
        p.add_(0.2 * torch.randn_like(p))
  adapters = {}
  for site, name in names.items():
    own = module.from_peft(config, tensors_of(there, name), method.model.sites()[site])
    assert {n: x.shape for n, x in own.items()} == {n: i.shape for n, i in own_of(method, site).items()}
    adapters |= {f'{site}/adapter/{n}': x for n, x in own.items()}
  same(method, here, there, adapters)


def test_it_starts_as_peft_does(pair):
  """Zeros and ones are equal; the factors that AdaLoRA draws have its deviation."""
  module, config, method, _, there, names = pair
  for site, name in names.items():
    theirs = module.from_peft(config, tensors_of(there, name), method.model.sites()[site])
    for n, i in own_of(method, site).items():
      ours = i.init(jax.random.key(0), i.shape, i.dtype)
      if module is adalora and n in 'ab':
        assert 0.015 < np.std(ours) < 0.025
        assert 0.015 < np.std(theirs[n]) < 0.025
      else:
        assert_array_equal(ours, theirs[n])


# AdaLoRA in training.


def random_state(method, names, there, rng):
  """(trainable, kept) here, and PEFT's parameters set to the same."""
  import torch

  flat = {}
  for site, name in names.items():
    layer = there.base_model.model.get_submodule(name)
    for n, i in own_of(method, site).items():
      value = np.asarray(i.init(jax.random.key(0), i.shape, i.dtype))
      flat[f'{site}/adapter/{n}'] = rng.normal(size=i.shape).astype(np.float32) if n in 'aeb' else value
    with torch.no_grad():
      for leaf, p in leaves_of(layer).items():
        p.copy_(as_there(leaf, flat[f'{site}/adapter/{leaf}']))
  return trees.split(trees.unflatten(flat), method.trains)


def leaves_of(layer):
  return {'a': layer.lora_A['default'], 'e': layer.lora_E['default'], 'b': layer.lora_B['default']}


def as_there(leaf, x):
  import torch

  rank = PLAN['init_rank']
  flat = {'a': lambda: x.reshape(-1, rank).T, 'e': lambda: x[:, None], 'b': lambda: x.reshape(rank, -1).T}[leaf]()
  return torch.from_numpy(np.array(flat))


@pytest.mark.parametrize('stacked', [False, True])
def test_masks_are_those_of_the_rank_allocator(tmp_path, stacked):
  """The same steps and gradients for 20 steps: the same budget, singular values and masks after each."""
  import torch

  _, method, _, there, names = pair_of(adalora, {**PLAN, 'target': ALL}, tmp_path)
  rng = np.random.default_rng(5)
  trainable, kept = random_state(method, names, there, rng)
  pack = (lambda t: stack.stack(t, [(0, 2)])) if stacked else (lambda t: t)
  unpack = lambda t: {n: np.asarray(x) for n, x in trees.flatten(stack.unstack(t)).items()}  # noqa: E731
  adjust = jax.jit(method.adjust(PLAN['total_steps']))
  state = pack(trainable), pack(kept)
  left, masked = [], 0
  for step in range(PLAN['total_steps']):
    values = unpack(state[0])
    moves, grads = ({n: rng.normal(size=x.shape).astype(np.float32) for n, x in values.items()} for _ in range(2))
    values = {n: x + np.float32(0.1) * moves[n] for n, x in values.items()}
    for site, name in names.items():
      for leaf, p in leaves_of(there.base_model.model.get_submodule(name)).items():
        with torch.no_grad():
          p.copy_(as_there(leaf, values[f'{site}/adapter/{leaf}']))
        p.grad = as_there(leaf, grads[f'{site}/adapter/{leaf}'])
    there.base_model.update_and_allocate(step)
    packed = pack(trees.unflatten(values))
    state = adjust(packed, state[1], pack(trees.unflatten(grads)), jnp.int32(step))
    after, saved = unpack(state[0]), unpack(state[1])
    pattern = there.peft_config['default'].rank_pattern
    for site, name in names.items():
      layer = there.base_model.model.get_submodule(name)
      e = layer.lora_E['default'].detach().numpy()[:, 0]
      assert_allclose(after[f'{site}/adapter/e'], e, rtol=0, atol=1e-6, err_msg=f'{site} after step {step}')
      assert_array_equal(after[f'{site}/adapter/e'] == 0, e == 0)
      mask = saved[f'{site}/adapter/mask']
      if pattern:
        theirs = next(v for n, v in pattern.items() if f'{name}.lora_E' in n)
        assert_array_equal(mask, np.array(theirs, np.float32), err_msg=f'{site} after step {step}')
      masked += (e == 0).sum()
    left.append(int(sum(x.sum() for n, x in saved.items() if n.endswith('/mask'))))
  assert left[0] == 60
  assert left[-1] == 30
  assert sorted(set(left), reverse=True) == list(dict.fromkeys(left))
  assert len(set(left)) >= 4
  assert masked > 100
  counts = [sum(pattern[n]) for n in pattern]
  assert len(set(counts)) > 1  # ranks moved between sites


def test_what_is_left_of_the_ranks_computes_the_same_here(tmp_path):
  """PEFT saves the rows that its mask left, of another number at every site."""
  import peft
  import torch
  import transformers

  config, method, here, there, names = pair_of(adalora, {**PLAN, 'target': ALL}, tmp_path)
  random_state(method, names, there, np.random.default_rng(0))
  for step in range(PLAN['total_steps']):
    for p in there.parameters():
      p.grad = torch.randn_like(p) if p.requires_grad else None
    there.base_model.update_and_allocate(step)
  there.save_pretrained(tmp_path / 'out')
  ranks = [len(tensors_of(there, name)['lora_E']) for name in names.values()]
  assert sum(ranks) == 30
  assert len(set(ranks)) > 1
  base = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / 'base')
  again = peft.PeftModel.from_pretrained(base, tmp_path / 'out').eval()
  values = json.loads((tmp_path / 'out' / 'adapter_config.json').read_text())
  assert adalora.Config(**adalora.config_of_peft(values), target=ALL, also='') == config
  adapters = {}
  for site, name in names.items():
    own = adalora.from_peft(config, tensors_of(there, name), method.model.sites()[site])
    adapters |= {f'{site}/adapter/{n}': x for n, x in own.items()}
  same(method, here, again, adapters)


def test_the_penalty_is_that_of_peft(tmp_path):
  import torch

  config, method, _, there, names = pair_of(adalora, {**PLAN, 'target': ALL}, tmp_path)
  trainable, _ = random_state(method, names, there, np.random.default_rng(0))
  values = {n: torch.from_numpy(np.asarray(v, np.int64)) for n, v in inputs('bert').items()}
  losses = []
  for weight in (config.orthogonal, 0.0):
    there.peft_config['default'].orth_reg_weight = weight
    losses.append(float(there.base_model(**values, labels=torch.tensor([0, 1, 2])).loss.detach()))
  assert losses[0] > losses[1] + 1
  assert_allclose(method.penalty(trainable), losses[0] - losses[1], rtol=1e-5)
