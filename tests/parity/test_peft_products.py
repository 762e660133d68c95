"""VeRA, LoHa, LoKr and HiRA live against PEFT, both ways: `make test-reference`."""

import collections
import dataclasses
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
from ftlib.peft import hira, loha, lokr, vera

pytestmark = pytest.mark.reference

CONFIGS = {'VERA': 'VeraConfig', 'LOHA': 'LoHaConfig', 'LOKR': 'LoKrConfig', 'HIRA': 'HiraConfig'}
ALL = 'attn/(q|v|o)$|mlp/(up|down)$'
CASES = {
  'vera': (vera, {'rank': 12, 'seed': 5, 'd_initial': 0.2}),
  'vera_sizes': (vera, {'rank': 12, 'seed': 5, 'target': ALL}),
  'loha': (loha, {'rank': 3, 'alpha': 4.0, 'target': ALL}),
  'lokr': (lokr, {'rank': 2, 'alpha': 3.0, 'target': ALL}),
  'lokr_both': (lokr, {'rank': 1, 'alpha': 2.0, 'decompose_both': True, 'target': ALL}),
  'lokr_whole': (lokr, {'rank': 16, 'alpha': 8.0}),
  'lokr_factor': (lokr, {'rank': 2, 'alpha': 2.0, 'factor': 16, 'target': ALL}),
  'hira': (hira, {'rank': 4, 'target': ALL}),
}


@pytest.fixture(params=CASES)
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
  names = {site: hf[f'{site}/kernel'].removesuffix('.weight') for site in method.shown}
  there = peft.get_peft_model(
    model,
    getattr(peft, CONFIGS[module.PEFT_TYPE])(
      **module.peft_config(config), target_modules=list(names.values()), task_type='FEATURE_EXTRACTION'
    ),
  ).eval()
  return module, config, method, here, there, names


def tensors_of(there, site):
  """The tensors of one site in PEFT's file, by suffix."""
  import peft

  state = peft.get_peft_model_state_dict(there)
  prefix = f'base_model.model.{site}.'
  return {n.removeprefix(prefix): x.numpy() for n, x in state.items() if n.startswith(prefix)}


def same(method, here, there, adapters):
  values = inputs('bert')
  params = trees.unflatten({**trees.flatten(here.params), **adapters})
  logits = method.model.apply(params, batch_of(values)).logits
  theirs = outputs(there, values)['logits']
  assert_allclose(logits, theirs, rtol=0, atol=1e-5 * max(1, np.abs(theirs).max()))
  merged = here.model.apply(method.merge(params), batch_of(values)).logits
  assert_allclose(merged, theirs, rtol=0, atol=1e-4)
  assert np.abs(logits - here.run(batch_of(values)).logits).max() > 0.05
  return theirs


def test_drawn_here_peft_computes_the_same(pair, tmp_path):
  import peft
  import torch

  module, config, method, here, there, names = pair
  rng, info, sites = np.random.default_rng(0), method.model.info(), method.model.sites()
  adapters = {n: (0.3 * rng.normal(size=i.shape)).astype(np.float32) for n, i in info.items() if '/adapter/' in n}
  tensors = {}
  for site, name in names.items():
    leaves = {n.rpartition('/')[2]: x for n, x in adapters.items() if n.startswith(f'{site}/adapter/')}
    suffixes = module.to_peft(config, leaves, sites[site])
    assert {n: x.shape for n, x in suffixes.items()} == {n: x.shape for n, x in tensors_of(there, name).items()}
    tensors |= {f'base_model.model.{name}.{s}': x for s, x in suffixes.items()}
    if module is vera:
      tensors |= vera.shared_to_peft(config, sites[site])
  assert set(tensors) == set(peft.get_peft_model_state_dict(there))
  state = {n: torch.from_numpy(np.array(x, order='C')) for n, x in tensors.items()}
  assert not peft.set_peft_model_state_dict(there, state).unexpected_keys
  logits = same(method, here, there, adapters)
  there.save_pretrained(tmp_path / 'adapter')
  base = fresh('bert', 'classify')
  again = peft.PeftModel.from_pretrained(base, tmp_path / 'adapter').eval()
  assert_array_equal(outputs(again, inputs('bert'))['logits'], logits)


def test_drawn_there_it_is_the_same_here(pair):
  import torch

  module, config, method, here, there, names = pair
  torch.manual_seed(1)
  with torch.no_grad():
    for name, p in there.named_parameters():
      if p.requires_grad:
        assert any(x in name for x in ('vera_', 'hada_', 'lokr_', 'hira_')), name
        p.normal_(std=0.3)
  info, sites = method.model.info(), method.model.sites()
  adapters = {}
  for site, name in names.items():
    leaves = module.from_peft(config, tensors_of(there, name), sites[site])
    adapters |= {f'{site}/adapter/{n}': x for n, x in leaves.items()}
  assert {n: x.shape for n, x in adapters.items()} == {n: i.shape for n, i in info.items() if '/adapter/' in n}
  same(method, here, there, adapters)


def test_settings_are_read_as_peft_writes_them(pair, tmp_path):
  module, config, _, _, there, _ = pair
  there.save_pretrained(tmp_path / 'adapter')
  values = json.loads((tmp_path / 'adapter' / 'adapter_config.json').read_text())
  assert values['peft_type'] == module.PEFT_TYPE
  read = module.Config(**module.config_of_peft(values), target=config.target, also='')
  assert dataclasses.asdict(read) == dataclasses.asdict(config)


def test_the_start_has_the_spread_of_pefts(pair):
  """Constants are equal; uniform numbers have bounds alike, over all sites of a shape together."""
  module, config, method, _, there, names = pair
  sites = method.model.sites()
  flat = trees.flatten(method.model.initial(jax.random.key(0), [n for n in method.model.info() if '/adapter/' in n]))
  drawn = collections.defaultdict(lambda: ([], []))
  for site, name in names.items():
    leaves = {n.rpartition('/')[2]: np.asarray(x) for n, x in flat.items() if n.startswith(f'{site}/adapter/')}
    ours, theirs = module.to_peft(config, leaves, sites[site]), tensors_of(there, name)
    for suffix in theirs:
      for side, values in zip(drawn[suffix, theirs[suffix].shape], (ours, theirs)):
        side.append(values[suffix])
  for (suffix, shape), sides in drawn.items():
    ours, theirs = map(np.stack, sides)
    if np.ptp(theirs) == 0:
      assert_array_equal(ours, theirs, suffix)
    elif theirs.size >= 16:
      assert_allclose(np.abs(ours).max(), np.abs(theirs).max(), rtol=0.2, err_msg=f'{suffix} {shape}')


def test_veras_matrices_are_those_of_pefts_generator(pair):
  module, config, method, _, there, names = pair
  if module is vera:
    state = there.state_dict()
    for name, ours in vera.shared_to_peft(config, method.model.sites()[next(iter(names))]).items():
      assert_array_equal(ours, state[f'{name}.default'].numpy(), name)
