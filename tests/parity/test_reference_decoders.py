"""Decoders live against transformers, both ways: `make test-reference`."""

import functools
import json
import zlib

import jax
import numpy as np
import pytest
from folders import batch_of, head_of, load
from numpy.testing import assert_allclose
from reference import CLASSES, DECODER_HEADS, DECODERS, inputs

from ftlib.io import hf

pytestmark = pytest.mark.reference

AUTO = {'lm': 'AutoModelForCausalLM', 'classify': 'AutoModelForSequenceClassification'}
close = functools.partial(assert_allclose, rtol=0, atol=1e-4)
each_case = pytest.mark.parametrize('case', DECODERS)
each_kind = pytest.mark.parametrize('kind', DECODER_HEADS)


def fresh(case, kind):
  """A transformers model whose every parameter is random."""
  import torch
  import transformers

  torch.set_num_threads(1)
  torch.manual_seed(zlib.crc32(f'{case}-{kind}'.encode()))
  given = json.loads(json.dumps({k: v for k, v in DECODERS[case].items() if k != 'model_type'}))
  config = transformers.AutoConfig.for_model(DECODERS[case]['model_type'], **given, num_labels=CLASSES)
  model = getattr(transformers, AUTO[kind]).from_config(config).eval()
  with torch.no_grad():
    for p in model.parameters():
      p.add_(0.25 * torch.randn_like(p))
  return model


def loaded_there(folder, kind):
  """The transformers model of a folder, from which nothing is missing and in which nothing is left over."""
  import transformers

  model, info = getattr(transformers, AUTO[kind]).from_pretrained(folder, output_loading_info=True)
  assert not {k: v for k, v in info.items() if v}
  return model.eval()


def logits_there(model, values):
  import torch

  with torch.no_grad():
    return model(**{name: torch.from_numpy(np.asarray(v, np.int64)) for name, v in values.items()}).logits.numpy()


def run(here, values):
  """Logits of real tokens, or of the classes."""

  @jax.jit
  def compute(params, batch):
    out = here.model.apply(params, batch)
    return out.unembed(out.hidden) if out.logits is None else out.logits

  return real(compute(here.params, batch_of(values)), values)


def real(logits, values):
  return logits[values['attention_mask'] > 0] if logits.ndim == 3 else logits


def opened(folder, kind):
  return load(folder, head_of(kind, classes=CLASSES, pooling='last'))


@each_kind
@each_case
def test_folders_of_transformers_compute_the_same_here_and_go_back(tmp_path, case, kind):
  model, values = fresh(case, kind), inputs(case)
  model.save_pretrained(tmp_path / 'there')
  here = opened(tmp_path / 'there', kind)
  assert (here.match.fresh, here.match.unused) == ([], [])
  theirs = real(logits_there(model, values), values)
  assert np.abs(theirs).max() > 0.5
  close(run(here, values), theirs)
  hf.save(tmp_path / 'here', here.tensors(), here.values)
  back = loaded_there(tmp_path / 'here', kind)
  assert type(back).__name__ == here.family.MODEL_TYPES[here.values['model_type']][kind]
  np.testing.assert_array_equal(real(logits_there(back, values), values), theirs)


@pytest.mark.parametrize('case', ['llama', 'gpt2', 'gemma3'])
def test_shards_that_transformers_writes_compute_the_same_here(tmp_path, case):
  model, values = fresh(case, 'lm'), inputs(case)
  model.save_pretrained(tmp_path, max_shard_size='20KB')
  assert len(list(tmp_path.glob('*.safetensors'))) > 2
  close(run(opened(tmp_path, 'lm'), values), real(logits_there(model, values), values))


@pytest.mark.parametrize('case', ['mistral', 'qwen2_window', 'gemma2', 'gemma3'])
def test_rows_are_longer_than_windows_there_too(case):
  """The numbers compared above would be others without the window."""
  model, values = fresh(case, 'lm'), inputs(case)
  before = logits_there(model, values)
  model.config.sliding_window = 64
  assert np.abs(logits_there(model, values) - before)[0, 6:].max() > 0.01
