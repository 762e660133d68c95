"""PEFT folders of language models live against PEFT, both ways: `make test-reference`."""

import functools
import json
import types

import jax
import numpy as np
import pytest
from folders import batch_of, load
from numpy.testing import assert_allclose
from reference import inputs
from test_reference_decoders import fresh

from ftlib import peft_config, peft_folder
from ftlib.base import lookup, settings, trees
from ftlib.base.errors import InputError
from ftlib.base.types import Head
from ftlib.peft.method import added

pytestmark = pytest.mark.reference

LLAMA = {  # method: its settings on Llama
  'lora': {'rank': 4, 'target': 'attn/(q|k|v|o)$|mlp/(gate|up|down)$'},
  'dora': {'rank': 4},
  'ia3': {},
  'prompt': {'length': 4},
  'prefix': {'length': 4, 'reparametrise': False},
  'norm': {},
}
GPT2 = {  # name: (method, settings) on GPT-2, whose c_attn is one matrix there
  'lora of all': ('lora', {'rank': 4, 'target': 'attn/(q|k|v)$'}),
  'lora of two': ('lora', {'rank': 4, 'target': 'attn/(q|v)$', 'scaling': 'rsqrt'}),
  'lora of more': ('lora', {'rank': 4, 'target': 'attn/(q|k|v|o)$|mlp/up$'}),
  'a part of one matrix trains': ('lora', {'rank': 4, 'target': 'mlp/up$', 'also': '^layers/0/attn/k/bias'}),
  'norm': ('norm', {}),
  'dora': ('dora', {'rank': 4, 'target': 'attn/(q|k|v)$'}),
  'ia3': ('ia3', {'target': 'attn/(q|k|v)$', 'feedforward': 'mlp/down$'}),
  'prompt': ('prompt', {'length': 4}),
  'prefix': ('prefix', {'length': 4, 'reparametrise': False}),
}
CASES = [('llama', name, values) for name, values in LLAMA.items()] + [('gpt2', *pair) for pair in GPT2.values()]
close = functools.partial(assert_allclose, rtol=0, atol=1e-4)


@pytest.fixture(scope='module')
def bases(tmp_path_factory):
  """`bases(case)`: the folder of a tiny language model."""

  @functools.cache
  def make(case):
    folder = tmp_path_factory.mktemp(case)
    fresh(case, 'lm').save_pretrained(folder)
    return folder

  return make


def adapted(folder, name, *, draw=1, **fields):
  """A method on a base, its parameters drawn."""
  here, module = load(folder, Head('lm')), lookup.component('peft', name, field='')
  config = settings.read(module.Config, {'also': '', **fields}, where='method')
  method = module.build(config, here.model)
  model, owns, rng = method.model, lambda n: method.trains(n) or added(n), np.random.default_rng(draw)
  flat = {**trees.flatten(model.initial(jax.random.key(draw))), **trees.flatten(here.params)}
  flat |= {n: np.asarray(flat[n] + 0.2 * rng.normal(size=flat[n].shape), np.float32) for n in flat if owns(n)}
  return types.SimpleNamespace(name=name, module=module, config=config, model=model, owns=owns, flat=flat, here=here)


def run(model, flat, values):
  @jax.jit
  def compute(params, batch):
    out = model.apply(params, batch)
    return out.unembed(out.hidden)

  return np.asarray(compute(trees.unflatten(flat), batch_of(values)))[values['attention_mask'] > 0]


def logits_there(model, values):
  import torch

  with torch.no_grad():
    out = model.eval()(**{k: torch.from_numpy(np.asarray(v, np.int64)) for k, v in values.items()}).logits.numpy()
  return out[:, -values['input_ids'].shape[1] :][values['attention_mask'] > 0]


def written(ours, output, base):
  form, save = peft_folder.form_of_run(ours.module, ours.config, ours.model, ours.owns)
  peft_folder.write(output, form, ours.flat, base=str(base), save=save, ours={})


def read(output, plain, ours):
  """(model, adapters) that a folder asks for, by the settings in it."""
  source = peft_folder.opened(output, field='model.adapter=X')
  module, fields = peft_config.candidates(source.values, plain, where='X', also={ours.name: ours.module})[ours.name]
  config = settings.read(module.Config, {'also': '', **fields}, where='method')
  model = module.build(config, plain).model
  peft_folder.check_method(source, ours.name, module, config, model)
  return model, peft_folder.values(source, peft_folder.form_of_folder(source, module, config, model))


@pytest.mark.parametrize(('case', 'name', 'fields'), CASES)
def test_an_adapter_computes_the_same_there_and_back(tmp_path, bases, case, name, fields):
  import peft
  import transformers

  ours, values = adapted(bases(case), name, **fields), inputs(case)
  written(ours, tmp_path / 'out', bases(case))
  said = json.loads((tmp_path / 'out' / 'adapter_config.json').read_text())
  whole = ['transformer.h.0.attn.c_attn'] if fields.get('also') else None
  assert (said['task_type'], said['modules_to_save']) == ('CAUSAL_LM', whole)
  logits = run(ours.model, ours.flat, values)
  assert np.abs(logits - run(ours.here.model, trees.flatten(ours.here.params), values)).max() > 0.05
  base = transformers.AutoModelForCausalLM.from_pretrained(bases(case))
  there = peft.PeftModel.from_pretrained(base, tmp_path / 'out')
  close(logits, logits_there(there, values))
  there.save_pretrained(tmp_path / 'theirs')
  for folder in ('out', 'theirs'):
    model, flat = read(tmp_path / folder, ours.here.model, ours)
    close(run(model, {**trees.flatten(ours.here.params), **flat}, values), logits)


THERE = {
  'lora': lambda peft: peft.LoraConfig(r=4, lora_alpha=8, target_modules=['c_attn'], task_type='CAUSAL_LM'),
  'rslora': lambda peft: peft.LoraConfig(r=4, target_modules='.*(c_attn|c_fc)', use_rslora=True, task_type='CAUSAL_LM'),
  'ia3': lambda peft: peft.IA3Config(task_type='CAUSAL_LM'),
  'prefix': lambda peft: peft.PrefixTuningConfig(num_virtual_tokens=4, task_type='CAUSAL_LM'),
  'prompt': lambda peft: peft.PromptTuningConfig(num_virtual_tokens=4, task_type='CAUSAL_LM'),
}


@pytest.mark.parametrize('case', ['llama', 'gpt2', 'gemma'])
@pytest.mark.parametrize('name', THERE)
def test_an_adapter_that_peft_made_computes_the_same_here(tmp_path, bases, case, name):
  import peft
  import torch

  if case != 'gpt2' and 'lora' in name:
    more = {'use_rslora': name == 'rslora', 'target_modules': ['q_proj', 'down_proj']}
    config = peft.LoraConfig(r=4, task_type='CAUSAL_LM', **more)
  else:
    config = THERE[name](peft)
  model = peft.get_peft_model(fresh(case, 'lm'), config).eval()
  torch.manual_seed(1)
  with torch.no_grad():
    for p in model.parameters():
      if p.requires_grad:
        p.add_(0.2 * torch.randn_like(p))
  model.save_pretrained(tmp_path)
  here, method = load(bases(case), Head('lm')), name.removeprefix('rs')
  ours = types.SimpleNamespace(name=method, module=lookup.component('peft', method, field=''))
  adapted_model, flat = read(tmp_path, here.model, ours)
  got = run(adapted_model, {**trees.flatten(here.params), **flat}, inputs(case))
  theirs = logits_there(model, inputs(case))
  assert np.abs(theirs - run(here.model, trees.flatten(here.params), inputs(case))).max() > 0.05
  close(got, theirs)


@pytest.mark.parametrize(
  ('name', 'fields', 'said'),
  [
    ('dora', {'rank': 4}, r"2 of its 3 parts have an adapter here; all must: method\.target='attn/\(q\|k\|v\)\$'"),
    ('lora', {'rank': 4, 'rank_pattern': 'attn/q$=2'}, r'method\.rank_pattern and method\.alpha_pattern have no form'),
    ('vera', {'rank': 4}, r'PEFT adapts transformer\.h\.0\.attn\.c_attn as one matrix.*VERA has no form of both'),
  ],
)
def test_what_has_no_form_on_a_fused_matrix_is_an_error(tmp_path, bases, name, fields, said):
  with pytest.raises(InputError, match=said):
    written(adapted(bases('gpt2'), name, **fields), tmp_path / 'out', bases('gpt2'))
