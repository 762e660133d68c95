"""Merged LoRAs live against PEFT's `add_weighted_adapter`: `make test-reference`."""

import functools
import json
import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy
from folders import batch_of, load
from numpy.testing import assert_allclose
from reference import CLASSES, TINY, inputs

from ftlib import merge, peft_config, peft_folder
from ftlib.base import settings, trees
from ftlib.base.types import Head
from ftlib.io import hf

pytestmark = pytest.mark.reference
WEIGHTS = [0.7, -0.4]
close = functools.partial(assert_allclose, rtol=0, atol=1e-5)


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  """The folder of a tiny BERT with random weights, and no head."""
  import torch
  import transformers

  torch.set_num_threads(1)
  torch.manual_seed(0)
  given = {k: v for k, v in TINY['bert'].items() if k != 'model_type'}
  config = transformers.AutoConfig.for_model('bert', **given, initializer_range=0.2)
  folder = tmp_path_factory.mktemp('bert')
  transformers.AutoModel.from_config(config).save_pretrained(folder)
  return folder


def model_there(base):
  import transformers

  return transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=CLASSES).eval()


@pytest.fixture(scope='module')
def two(base, tmp_path_factory):
  """Two LoRAs that PEFT saved, of two scales and alphas, on projections and a table; random values."""
  import peft
  import torch

  paths = []
  for i, more in enumerate(({'lora_alpha': 6}, {'lora_alpha': 10, 'use_rslora': True})):
    torch.manual_seed(i + 1)
    targets = ['query', 'value', 'word_embeddings']
    config = peft.LoraConfig(task_type='SEQ_CLS', r=4, target_modules=targets, init_lora_weights=False, **more)
    there = peft.get_peft_model(model_there(base), config)
    with torch.no_grad():
      for p in there.parameters():
        if p.requires_grad:
          p.add_(0.1 * torch.randn_like(p))
    paths.append(tmp_path_factory.mktemp('adapter') / 'lora')
    there.save_pretrained(paths[-1])
  return [str(p) for p in paths]


@pytest.fixture(scope='module')
def headless(two, tmp_path_factory):
  """The same without their heads: PEFT refuses to merge adapters with `modules_to_save`."""
  paths = []
  for path in map(pathlib.Path, two):
    paths.append(tmp_path_factory.mktemp('headless'))
    values = json.loads((path / 'adapter_config.json').read_text())
    (paths[-1] / 'adapter_config.json').write_text(json.dumps({**values, 'task_type': None, 'modules_to_save': None}))
    there = safetensors.numpy.load_file(path / 'adapter_model.safetensors')
    there = {k: x for k, x in there.items() if 'lora_' in k}
    safetensors.numpy.save_file(there, paths[-1] / 'adapter_model.safetensors', metadata={'format': 'pt'})
  return paths


def there_merged(base, headless, how, density):
  """The tensors of PEFT's merged adapter by key."""
  import peft

  there = peft.PeftModel.from_pretrained(model_there(base), headless[0], adapter_name='a')
  there.load_adapter(headless[1], adapter_name='b')
  there.add_weighted_adapter(['a', 'b'], WEIGHTS, 'm', combination_type=how, density=density)
  return {k: x.numpy() for k, x in peft.get_peft_model_state_dict(there, adapter_name='m').items()}


def logits_there(model, values):
  import torch

  with torch.no_grad():
    return model.eval()(**{k: torch.from_numpy(np.asarray(v, np.int64)) for k, v in values.items()}).logits.numpy()


@pytest.mark.parametrize('how', ['linear', 'cat', 'ties', 'svd'])
def test_the_factors_are_peft_s(tmp_path, base, two, headless, how):
  density = 0.3 if how == 'ties' else None
  merge.merge(two, tmp_path / 'd', how=how, weights=WEIGHTS, density=density, head=two[0])
  want = there_merged(base, headless, how, density)
  weights = hf.Weights(tmp_path / 'd')
  got = {k: weights.read(k) for k in weights.where if 'lora_' in k}
  assert got.keys() == want.keys()
  assert any('lora_embedding_A' in k for k in got)
  for key in got:
    assert got[key].shape == want[key].shape, key
    if how != 'svd':
      close(got[key], want[key], err_msg=key)
    elif '_A' in key:  # vectors of singular values have a sign of their own
      other = key.replace('_A', '_B')
      update, same = (x[other] @ x[key] for x in (got, want))
      assert_allclose(update, same, rtol=0, atol=1e-5 * np.abs(same).max(), err_msg=key)  # theirs in float32


@pytest.mark.parametrize('how', ['linear', 'cat', 'ties', 'dare_linear', 'dare_ties', 'svd'])
def test_peft_and_ftlib_read_the_folder_alike(tmp_path, base, two, how):
  import peft

  density = 0.3 if how.startswith(('ties', 'dare')) else None
  output = tmp_path / 'd'
  merge.merge(two, output, how=how, weights=WEIGHTS, density=density, head=two[0])
  there = peft.PeftModel.from_pretrained(model_there(base), output)
  logits = logits_there(there, inputs('bert'))
  here = load(base, Head('classify', CLASSES))
  source = peft_folder.opened(output, field='model.adapter=D')
  module, fields = peft_config.candidates(source.values, here.model, where='D')['lora']
  config = settings.read(module.Config, fields, where='method')
  model = module.build(config, here.model).model
  peft_folder.check_method(source, 'lora', module, config, model)
  values = peft_folder.values(source, peft_folder.form_of_folder(source, module, config, model))
  flat = {**trees.flatten(model.initial(jax.random.key(0))), **trees.flatten(here.params), **values}
  ours = model.apply(trees.unflatten(flat), batch_of(inputs('bert'))).logits
  assert_allclose(ours, logits, rtol=0, atol=1e-4)
  plain = peft.PeftModel.from_pretrained(model_there(base), two[0])
  assert np.abs(logits_there(plain, inputs('bert')) - logits).max() > 1e-2


def test_dare_has_the_mean_of_peft_s(tmp_path, base, two, headless):
  """Both are random: over many draws each has the mean of `linear`, within its own deviation."""
  import torch

  torch.manual_seed(0)
  key = 'base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight'
  linear = there_merged(base, headless, 'linear', None)
  theirs = np.stack([there_merged(base, headless, 'dare_linear', 0.5)[key] for _ in range(12)])
  ours = []
  for seed in range(12):
    output = tmp_path / str(seed)
    merge.merge(two, output, how='dare_linear', weights=WEIGHTS, density=0.5, seed=seed, head=two[0])
    ours.append(hf.Weights(output).read(key))
  bound = 5 * theirs.std(0).max() / np.sqrt(12)
  for draws in (theirs, np.stack(ours)):
    assert np.abs(draws.mean(0) - linear[key]).max() < bound
  assert abs(np.mean(np.stack(ours) == 0) - np.mean(theirs == 0)) < 0.05  # both masks at once: a quarter
