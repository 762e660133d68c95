"""SHiRA live against PEFT, both ways: `sparse` with a rank."""

import types

import numpy as np
import pytest
from folders import batch_of, load
from numpy.testing import assert_allclose, assert_array_equal
from reference import CLASSES, inputs
from test_reference import fresh, outputs

from ftlib.base import trees
from ftlib.base.errors import InputError
from ftlib.base.types import Head
from ftlib.peft import sparse

pytestmark = pytest.mark.reference

TARGET = 'layers/.*(attn/(q|o)|mlp/down)$'  # one axis to two, two to one, and one to one of another size


def pair(tmp_path, case):
  """The tiny model here with random values in its adapters, and the names of its sites there."""
  model = fresh(case, 'classify')
  model.save_pretrained(tmp_path)
  here = load(tmp_path, Head('classify', CLASSES))
  method = sparse.build(sparse.Config(choose='random', rank=2, target=TARGET, also=''), here.model)
  names = {site: here.model.hf_names()[f'{site}/kernel'].removesuffix('.weight') for site in method.shown}
  assert len(names) == 6
  return types.SimpleNamespace(model=model, here=here, method=method, names=names)


def own(p, leaves):
  """All parameters here, with these of the adapters: {site: {'values', 'indices'}}."""
  flat = trees.flatten(p.here.params)
  for site, of_site in leaves.items():
    for name, x in of_site.items():
      info = p.method.model.info()[f'{site}/adapter/{name}']
      assert (x.shape, x.dtype) == (info.shape, info.dtype)
      flat[f'{site}/adapter/{name}'] = x
  return trees.unflatten(flat)


def same(p, params, there):
  values = inputs(p.case)
  logits = p.method.model.apply(params, batch_of(values)).logits
  assert np.abs(logits - p.here.run(batch_of(values)).logits).max() > 0.01
  assert_allclose(logits, outputs(there, values)['logits'], rtol=0, atol=1e-4)
  merged = p.here.model.apply(p.method.merge(params), batch_of(values)).logits
  assert_allclose(merged, logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize('case', ['bert', 'roberta', 'distilbert'])
@pytest.mark.parametrize('drawn', ['here', 'there'])
def test_shira_is_that_of_peft(tmp_path, case, drawn):
  """Through the file that PEFT writes or reads."""
  import peft
  import safetensors.numpy
  import torch

  p = pair(tmp_path / 'base', case)
  p.case = case
  config = sparse.Config(choose='random', rank=2)
  settings = peft.ShiraConfig(
    **sparse.peft_config(config), target_modules=list(p.names.values()), init_weights=False, inference_mode=True
  )
  there = peft.get_peft_model(p.model, settings).eval()
  there.save_pretrained(tmp_path / 'adapter')
  file = tmp_path / 'adapter' / 'adapter_model.safetensors'
  tensors = safetensors.numpy.load_file(file)
  key = lambda site, name: f'base_model.model.{p.names[site]}.{name}'  # noqa: E731
  suffixes = ('shira_weight', 'shira_indices')
  assert set(tensors) == {key(site, s) for site in p.names for s in suffixes}
  assert sparse.config_of_peft(settings.to_dict()) == {'choose': 'random', 'rank': 2}
  if drawn == 'here':
    rng, leaves, written = np.random.default_rng(0), {}, {}
    for site in p.names:
      proj = p.method.model.sites()[site]
      count = p.method.model.info()[f'{site}/adapter/values'].shape[0]
      size = np.prod(p.method.model.info()[f'{site}/kernel'].shape)
      leaves[site] = {
        'values': rng.normal(size=count).astype(np.float32),
        'indices': np.sort(rng.permutation(size)[:count]).astype(np.int32),
      }
      new = sparse.to_peft(config, leaves[site], proj)
      assert {n: (x.shape, x.dtype) for n, x in new.items()} == {
        s: (tensors[key(site, s)].shape, tensors[key(site, s)].dtype) for s in suffixes
      }
      back = sparse.from_peft(config, new, proj)
      for name, x in leaves[site].items():
        assert_array_equal(back[name], x)
      written |= {key(site, s): x for s, x in new.items()}
    safetensors.numpy.save_file(written, file, {'format': 'pt'})
    plain = there.unload()
    there = peft.PeftModel.from_pretrained(plain, tmp_path / 'adapter').eval()
  else:
    with torch.no_grad():
      assert any(t.abs().max() > 1 for n, t in there.state_dict().items() if 'shira_weight' in n)
    leaves = {
      site: sparse.from_peft(config, {s: tensors[key(site, s)] for s in suffixes}, p.method.model.sites()[site])
      for site in p.names
    }
  same(p, own(p, leaves), there)


def test_what_cannot_be_exchanged_says_so(tmp_path):
  with pytest.raises(InputError, match='train with method'):
    sparse.peft_config(sparse.Config(density=0.01))
  site = pair(tmp_path, 'bert').method.model.sites()['layers/0/attn/q']
  weight = np.ones(2, np.float32)
  for indices in ([[0, 0], [3, 3]], [[0, 32], [3, 3]], [[0, -1], [3, 3]]):
    tensors = {'shira_weight': weight, 'shira_indices': np.array(indices, np.int32)}
    with pytest.raises(InputError, match='outside a matrix of 32 x 32, or some of them twice'):
      sparse.from_peft(sparse.Config(rank=1), tensors, site)
