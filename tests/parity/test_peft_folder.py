"""PEFT folders live against PEFT, both ways, for every method that has a form there: `make test-reference`."""

import functools
import json
import types

import jax
import numpy as np
import pytest
from folders import batch_of, load
from numpy.testing import assert_allclose
from reference import CLASSES, DECODERS, TINY, inputs

from ftlib import export, fine_tune, peft_config, peft_folder
from ftlib.base import lookup, settings, trees
from ftlib.base.errors import InputError
from ftlib.base.types import Head
from ftlib.io import hf
from ftlib.peft.method import added

pytestmark = pytest.mark.reference

SETTINGS = {  # where a method's own do not fit the tiny models, or hide something
  'adalora': {'init_rank': 4, 'target_rank': 2, 'total_steps': 10, 'tinit': 1, 'tfinal': 2},
  'lora': {'rank': 4, 'rank_pattern': '^layers/1/attn/v$=2;attn/q$=6', 'alpha_pattern': '^layers/0/=7'},
  'dora': {'rank': 4, 'alpha_pattern': '^layers/0/=7'},
  'p_tuning': {'length': 4},
  'p_tuning_v2': {'length': 4},
  'prefix': {'length': 4, 'hidden': 16},
  'prompt': {'length': 4},
  'sparse': {'rank': 2},
}
READS_PLAIN = {'prefix': {'reparametrise': False}, 'p_tuning': {'encoder': 'none'}, 'sparse': {'choose': 'random'}}
METHODS = [n for n in lookup.names('peft') if hasattr(lookup.component('peft', n, field='method.name'), 'PEFT_TYPE')]
close = functools.partial(assert_allclose, rtol=0, atol=1e-4)


@pytest.fixture(scope='module')
def bases(tmp_path_factory):
  """`bases(case)`: the folder of a tiny base model with random weights, and no head."""

  @functools.cache
  def make(case):
    import torch
    import transformers

    torch.set_num_threads(1)
    torch.manual_seed(0)
    given = dict({**TINY, **DECODERS}[case])
    config = transformers.AutoConfig.for_model(given.pop('model_type'), **given, initializer_range=0.2)
    folder = tmp_path_factory.mktemp(case)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    return folder

  return make


def adapted(folder, name, *, draw, head=None, **changes):
  """A method on a base, with its random parameters: what a trained run is to the export."""
  here = load(folder, head or Head('classify', CLASSES))
  module = lookup.component('peft', name, field='method.name')
  values = {k: v for k, v in {**SETTINGS.get(name, {}), **changes}.items() if v is not ...}
  config = settings.read(module.Config, values, where='method')
  method = module.build(config, here.model)
  owns = lambda n: method.trains(n) or added(n) or n in here.match.fresh  # noqa: E731
  initial = trees.flatten(method.model.initial(jax.random.key(draw)))
  flat, rng = {**initial, **trees.flatten(here.params)}, np.random.default_rng(draw)
  for n in method.model.info():
    if method.trains(n) or n in here.match.fresh:
      flat[n] = np.asarray(flat[n] + 0.1 * rng.normal(size=flat[n].shape), np.float32)
  run = lambda values: method.model.apply(trees.unflatten(flat), batch_of(values)).logits  # noqa: E731
  return types.SimpleNamespace(
    module=module, config=config, model=method.model, owns=owns, flat=flat, run=run, here=here, name=name
  )


def written(ours, output, base):
  form, save = peft_folder.form_of_run(ours.module, ours.config, ours.model, ours.owns)
  peft_folder.write(output, form, ours.flat, base=str(base), save=save, ours={})


def model_there(folder):
  import transformers

  return transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=CLASSES).eval()


def logits_there(model, values):
  import torch

  with torch.no_grad():
    return model.eval()(**{k: torch.from_numpy(np.asarray(v, np.int64)) for k, v in values.items()}).logits.numpy()


def read_here(output, ours):
  """The parameters of a PEFT folder, after all that `model.adapter` checks."""
  source = peft_folder.opened(output, field=f'model.adapter={output}')
  peft_folder.check_method(source, ours.name, ours.module, ours.config, ours.model)
  got = peft_folder.values(source, peft_folder.form_of_folder(source, ours.module, ours.config, ours.model))
  assert {n for n in ours.flat if ours.owns(n)} <= {*got}
  return got


@pytest.mark.parametrize('name', METHODS)
def test_an_adapter_from_here_computes_the_same_there(tmp_path, bases, name):
  import peft

  ours, values = adapted(bases('bert'), name, draw=1), inputs('bert')
  written(ours, tmp_path, bases('bert'))
  logits = ours.run(values)
  base = trees.flatten(ours.here.params)
  fresh = {*ours.here.match.fresh}
  plain = {n: x if n in fresh else base[n] for n, x in ours.flat.items() if not added(n)}
  assert np.abs(logits - ours.here.model.apply(trees.unflatten(plain), batch_of(values)).logits).max() > 1e-2
  there = peft.PeftModel.from_pretrained(model_there(bases('bert')), tmp_path)
  keys = peft.get_peft_model_state_dict(there)
  weights = hf.Weights(tmp_path)
  assert {k: tuple(x.shape) for k, x in keys.items()} == {k: weights.shape(k) for k in weights.where}
  close(logits_there(there, values), logits)


@pytest.mark.parametrize('name', METHODS)
def test_an_adapter_from_there_computes_the_same_here(tmp_path, bases, name):
  """PEFT makes it from the settings that ftlib writes, draws its values and saves it."""
  import peft
  import torch

  first = adapted(bases('bert'), name, draw=1)
  written(first, tmp_path / 'ours', bases('bert'))
  config = peft.PeftConfig.from_pretrained(tmp_path / 'ours')
  config.inference_mode = False
  torch.manual_seed(0)
  there = peft.get_peft_model(model_there(bases('bert')), config)
  with torch.no_grad():
    for p in there.parameters():
      if p.requires_grad:
        p.add_(0.1 * torch.randn_like(p))
  there.eval().save_pretrained(tmp_path / 'theirs')
  assert len(json.loads((tmp_path / 'theirs' / 'adapter_config.json').read_text())) > 8
  ours = adapted(bases('bert'), name, draw=2, **READS_PLAIN.get(name, {}))
  ours.flat.update(read_here(tmp_path / 'theirs', ours))
  close(ours.run(inputs('bert')), logits_there(there, inputs('bert')))


# As people write it, with PEFT's own defaults.

TYPES = sorted({lookup.component('peft', n, field='method.name').PEFT_TYPE for n in METHODS})
GIVEN = {
  'ADALORA': {'total_step': 10},
  'IA3': {'target_modules': None},
  'LN_TUNING': {'target_modules': ['attention.output.LayerNorm', '1.output.LayerNorm']},
  'MISS': {'r': 8},
  'PREFIX_TUNING': {'num_virtual_tokens': 4},
  'PROMPT_TUNING': {'num_virtual_tokens': 4},
  'P_TUNING': {'num_virtual_tokens': 4},
  'SHIRA': {'r': 2},
}


@pytest.mark.parametrize('kind', TYPES)
def test_a_folder_of_each_type_is_read_by_a_method(tmp_path, bases, kind):
  import peft
  import torch

  torch.manual_seed(0)
  targets = {} if kind in peft_config.PROMPTS else {'target_modules': ['query', 'value']}
  make = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[kind]
  there = peft.get_peft_model(
    model_there(bases('bert')), make(task_type='SEQ_CLS', **{**targets, **GIVEN.get(kind, {})})
  )
  with torch.no_grad():
    for p in there.parameters():
      if p.requires_grad:
        p.add_(0.1 * torch.randn_like(p))
  there.eval().save_pretrained(tmp_path)
  source = peft_folder.opened(tmp_path, field='model.adapter=X')
  found = peft_config.candidates(source.values, load(bases('bert'), Head('classify', CLASSES)).model, where='X')
  assert found
  for name, (_, fields) in found.items():
    ours = adapted(bases('bert'), name, draw=2, **{**dict.fromkeys(SETTINGS.get(name, {}), ...), **fields})
    ours.flat.update(read_here(tmp_path, ours))
    close(ours.run(inputs('bert')), logits_there(there, inputs('bert')))


# LoRA in other words, and heads of other families.

USES = {
  'bert': {'target_modules': ['query', 'value'], 'rank_pattern': {'layer.1.attention.self.value': 2}},
  'roberta': {'target_modules': ['query', 'dense'], 'alpha_pattern': {'intermediate.dense': 3}, 'use_rslora': True},
  'distilbert': {'target_modules': r'.*\.layer\.1\..*(q_lin|lin1)', 'modules_to_save': ['output_layer_norm']},
  'ernie': {'target_modules': ['key', 'word_embeddings'], 'layers_to_transform': None},
  'bert_relu': {'target_modules': ['query', 'output.dense'], 'layers_to_transform': [1], 'exclude_modules': ['query']},
}


@pytest.mark.parametrize('case', USES)
def test_a_folder_of_peft_is_read_by_the_settings_that_its_refusal_names(tmp_path, bases, case):
  import peft
  import torch

  torch.manual_seed(0)
  config = peft.LoraConfig(task_type='SEQ_CLS', r=4, lora_alpha=6, init_lora_weights=False, **USES[case])
  there = peft.get_peft_model(model_there(bases(case)), config)
  with torch.no_grad():
    for p in there.parameters():
      if p.requires_grad:
        p.add_(0.1 * torch.randn_like(p))
  there.eval().save_pretrained(tmp_path)
  source = peft_folder.opened(tmp_path, field='model.adapter=X')
  here = load(bases(case), Head('classify', CLASSES))
  found = peft_config.candidates(source.values, here.model, where='X')
  assert 'lora' in found
  assert 'dora' not in found
  ours = adapted(bases(case), 'lora', draw=2, rank_pattern='', alpha_pattern='')
  with pytest.raises(InputError, match=r'method.alpha: 6.0 there, 16.0 here(.|\n)*set .*--config.method.alpha=6.0'):
    peft_folder.check_method(source, 'lora', ours.module, ours.config, ours.model)
  also = '^head/|mlp_norm/' if case == 'distilbert' else '^head/'
  ours = adapted(bases(case), 'lora', draw=2, **found['lora'][1], also=also)
  ours.flat.update(read_here(tmp_path, ours))
  close(ours.run(inputs(case)), logits_there(there, inputs(case)))


@pytest.mark.parametrize('case', ['roberta', 'distilbert', 'ernie', 'bert_relu'])
def test_heads_and_other_trained_modules(tmp_path, bases, case):
  import peft

  also = {'also': r'^head/|^pooler/|layers/1/(mlp_norm/|mlp/up/bias)|embed/norm'}
  ours = adapted(bases(case), 'lora', draw=1, target='attn/(k|o)$', rank_pattern='', alpha_pattern='', **also)
  written(ours, tmp_path, bases(case))
  there = peft.PeftModel.from_pretrained(model_there(bases(case)), tmp_path)
  assert {*peft.get_peft_model_state_dict(there)} == {*hf.Weights(tmp_path).where}
  close(logits_there(there, inputs(case)), ours.run(inputs(case)))


# A whole run.


@pytest.mark.parametrize(
  ('changes', 'reader'),
  [
    ({'method__init': 'pissa', 'method__rank_pattern': 'attn/v$=2', 'model__layers': 'scan'}, 'lora'),
    ({'method': 'dora', 'method__also': '^head/|^pooler/', 'precision__compute': 'bfloat16'}, 'dora'),
    ({'method': 'prefix', 'method__length': 3, 'method__hidden': 8}, 'prefix'),
  ],
)
def test_a_trained_run_predicts_the_same_there(tmp_path, config, changes, reader, capsys):
  import peft
  import torch
  import transformers

  c = config(train__steps=3, train__eval_every=3, **changes)
  fine_tune.run(c, str(tmp_path / 'run'))
  assert export.export(tmp_path / 'run', tmp_path / 'out', format='peft') < 1e-5
  assert f'--config.method.name={reader}' in capsys.readouterr().out
  base = transformers.AutoModelForSequenceClassification.from_pretrained(c.model.pretrained, num_labels=2)
  model = peft.PeftModel.from_pretrained(base, tmp_path / 'out').eval()
  tokenizer = transformers.AutoTokenizer.from_pretrained(c.model.pretrained)
  lines = (tmp_path / 'run' / 'eval' / 'validation_predictions.jsonl').read_text().splitlines()
  records = [json.loads(line) for line in lines]
  with torch.no_grad():
    logits = model(**tokenizer([r['text'] for r in records], padding=True, return_tensors='pt')).logits
  within = 0.02 if 'precision__compute' in changes else 1e-5
  assert_allclose(logits.softmax(-1).numpy(), [r['probabilities'] for r in records], rtol=0, atol=within)


@pytest.mark.parametrize(
  ('case', 'name'),
  [
    ('roberta', 'lora'),
    ('roberta', 'prefix'),
    ('distilbert', 'norm'),
    ('llama', 'dora'),
    ('gpt2', 'prefix'),
    ('gpt2', 'norm'),
  ],
)
def test_vectors_are_the_same_there(tmp_path, bases, case, name):
  """A model without a head is AutoModel there, whose names lack 'roberta.'."""
  import peft
  import torch
  import transformers

  ours = adapted(bases(case), name, draw=1, head=Head('embed', 0, 'mean'), also='')
  written(ours, tmp_path, bases(case))
  there = peft.PeftModel.from_pretrained(transformers.AutoModel.from_pretrained(bases(case)), tmp_path).eval()
  assert type(there).__name__ == 'PeftModelForFeatureExtraction'
  values = inputs(case)
  with torch.no_grad():
    theirs = there(**{k: torch.from_numpy(np.asarray(v, np.int64)) for k, v in values.items()})[0].numpy()
  hidden = ours.model.apply(trees.unflatten(ours.flat), batch_of(values)).hidden
  real = np.asarray(values['attention_mask']) > 0
  close(theirs[real], np.asarray(hidden)[real])
  back = adapted(bases(case), name, draw=2, head=Head('embed', 0, 'mean'), also='', **READS_PLAIN.get(name, {}))
  back.flat.update(read_here(tmp_path, back))
  close(np.asarray(back.model.apply(trees.unflatten(back.flat), batch_of(values)).hidden)[real], theirs[real])
