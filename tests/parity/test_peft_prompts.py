"""Prompt learning live against PEFT, both ways, by the tensor of its files: `make test-reference`.

PEFT on transformers 5 still gives a prefix to encoders, as past keys and values: tokens then have the positions from P
on, and P more columns of the mask are open. DistilBERT takes none, so there PEFT has no prefix.
"""

import numpy as np
import pytest
from folders import load
from numpy.testing import assert_allclose
from pairs import drawn, logits_of
from reference import CLASSES, inputs
from test_reference import fresh, outputs

from ftlib.base.types import Head
from tests.peft.test_prompts import WHOLE, P

pytestmark = pytest.mark.reference

CASES = {k: v for k, v in WHOLE.items() if k != 'no encoder'}  # PEFT has one always
THERE = {  # the same model made by PEFT's own config
  'prefix': ('PrefixTuningConfig', {'prefix_projection': True, 'encoder_hidden_size': 7}),
  'plain prefix': ('PrefixTuningConfig', {}),
  'p_tuning_v2': ('PrefixTuningConfig', {}),
  'prompt': ('PromptTuningConfig', {}),
  'p_tuning': ('PromptEncoderConfig', {'encoder_hidden_size': 7}),
  'lstm': ('PromptEncoderConfig', {'encoder_hidden_size': 7, 'encoder_reparameterization_type': 'LSTM'}),
}
PAIRS = [(c, k) for c in ('bert', 'roberta', 'distilbert') for k in CASES if c == 'bert' or k in ('prefix', 'prompt')]
PAIRS.remove(('distilbert', 'prefix'))


def sizes(here):
  """What PEFT asks for where it does not know a model's config.json (DistilBERT's)."""
  c = here.model.config
  return {'token_dim': c.embed, 'num_layers': c.layers, 'num_attention_heads': c.heads}


def there(model, kind, **sizes):
  """PEFT's model, its parameters random."""
  import peft
  import torch

  name, values = THERE[kind]
  config = getattr(peft, name)(task_type='SEQ_CLS', num_virtual_tokens=P, **values, **sizes)
  made = peft.get_peft_model(model, config).eval()
  with torch.no_grad():
    for p in made.prompt_encoder.parameters():
      p.copy_(0.3 * torch.randn_like(p))
  return made


def compare(ours, theirs, base):
  assert np.abs(np.asarray(ours) - base).max() > 0.01  # it does something
  assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(('case', 'kind'), PAIRS)
def test_peft_loads_what_is_written_here(tmp_path, case, kind):
  import peft
  import torch
  from safetensors.torch import load_file, save_file

  model = fresh(case, 'classify')
  model.save_pretrained(tmp_path)
  module, config = CASES[kind]
  here, values = load(tmp_path, Head('classify', CLASSES)), inputs(case)
  method = module.build(config, here.model)
  own = drawn(method)
  tensors = {n: torch.from_numpy(np.array(x)) for n, x in module.to_peft_whole(config, own).items()}
  heads = {f'base_model.{n}': x for n, x in model.state_dict().items() if 'classifier' in n}  # it wants them
  peft_config = peft.get_peft_config(
    {'peft_type': module.PEFT_TYPE, 'task_type': 'SEQ_CLS', **module.peft_config(config), **sizes(here)}
  )
  peft_config.save_pretrained(tmp_path / 'adapter')
  save_file(tensors | heads, tmp_path / 'adapter' / 'adapter_model.safetensors')
  base = outputs(model, values)['logits']
  loaded = peft.PeftModel.from_pretrained(model, tmp_path / 'adapter').eval()
  compare(logits_of(method, here, own, values), outputs(loaded, values)['logits'], base)
  loaded.save_pretrained(tmp_path / 'again')
  saved = load_file(tmp_path / 'again' / 'adapter_model.safetensors')
  assert_allclose(saved['prompt_embeddings'], tensors['prompt_embeddings'])
  assert set(saved) == set(tensors | heads)


@pytest.mark.parametrize(('case', 'kind'), PAIRS)
def test_what_peft_writes_is_read_here(tmp_path, case, kind):
  import json

  from safetensors.numpy import load_file

  model = fresh(case, 'classify')
  model.save_pretrained(tmp_path)
  here, values = load(tmp_path, Head('classify', CLASSES)), inputs(case)
  base = outputs(model, values)['logits']
  made = there(model, kind, **sizes(here))
  made.save_pretrained(tmp_path / 'adapter')
  module, _ = CASES[kind]
  settings = json.loads((tmp_path / 'adapter' / 'adapter_config.json').read_text())
  assert settings['peft_type'] == module.PEFT_TYPE
  config = module.Config(**module.config_of_peft(settings))
  method = module.build(config, here.model)
  tensors = load_file(tmp_path / 'adapter' / 'adapter_model.safetensors')
  own = module.from_peft_whole(config, tensors, method.model.info())
  compare(logits_of(method, here, own, values), outputs(made, values)['logits'], base)


def test_encoders_are_those_of_peft(tmp_path):
  """Its own weights in our reparametrisations, before they are folded into vectors."""
  import torch

  for kind in ('prefix', 'p_tuning', 'lstm'):
    model = fresh('bert', 'classify')
    model.save_pretrained(tmp_path / kind)
    here, values = load(tmp_path / kind, Head('classify', CLASSES)), inputs('bert')
    base = outputs(model, values)['logits']
    module, config = CASES[kind]
    method = module.build(config, here.model)
    own = drawn(method)
    made = there(model, kind)
    state = {n: x.detach().numpy() for n, x in made.prompt_encoder['default'].state_dict().items()}
    names = _prefix_names(state) if kind == 'prefix' else _encoder_names(state, kind)
    assert set(names) == set(own)
    ours = {n: np.asarray(names[n]).reshape(own[n].shape) for n in own}
    compare(logits_of(method, here, ours, values), outputs(made, values)['logits'], base)
    with torch.no_grad():
      theirs = made.get_prompt_embedding_to_save('default').numpy()
    assert_allclose(module.to_peft_whole(config, ours)['prompt_embeddings'], theirs, rtol=0, atol=1e-5)


def _prefix_names(state):
  """Our names to PEFT's values: the last matrix has its rows in the order layer, key or value, head."""
  names = {
    'shared/adapter/table': state['embedding.weight'],
    'shared/adapter/first/kernel': state['transform.0.weight'].T,
    'shared/adapter/first/bias': state['transform.0.bias'],
  }
  kernels, biases = np.split(state['transform.2.weight'], 2), np.split(state['transform.2.bias'], 2)  # two layers
  for i in (0, 1):
    names[f'layers/{i}/attn/memory/adapter/second/kernel'] = kernels[i].T
    names[f'layers/{i}/attn/memory/adapter/second/bias'] = biases[i]
  return names


def _encoder_names(state, kind):
  """Our names to PEFT's values."""
  site = 'embed/prompt/adapter'
  names = {f'{site}/table': state['embedding.weight']}
  for ours, number in {'p_tuning': {'first': 0, 'second': 2, 'out': 4}, 'lstm': {'first': 0, 'out': 2}}[kind].items():
    names[f'{site}/{ours}/kernel'] = state[f'mlp_head.{number}.weight'].T
    names[f'{site}/{ours}/bias'] = state[f'mlp_head.{number}.bias']
  for layer in (0, 1) if kind == 'lstm' else ():
    for way, suffix in (('forward', ''), ('backward', '_reverse')):
      of = lambda n, layer=layer, suffix=suffix: state[f'lstm_head.{n}_l{layer}{suffix}']  # noqa: E731
      for ours, theirs in (('input', 'ih'), ('state', 'hh')):
        names[f'{site}/{way}_{layer}/{ours}/kernel'] = of(f'weight_{theirs}').T
        names[f'{site}/{way}_{layer}/{ours}/bias'] = of(f'bias_{theirs}')
  return names


def test_peft_has_no_prefix_for_distilbert(tmp_path):
  model = fresh('distilbert', 'classify')
  model.save_pretrained(tmp_path)
  made = there(model, 'plain prefix', **sizes(load(tmp_path, Head('classify', CLASSES))))
  with pytest.raises(ValueError, match='does not support past key values'):
    outputs(made, inputs('distilbert'))
