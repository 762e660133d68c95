"""Greedy, sampled and beam-searched tokens beside those of transformers, on tiny models of random weights."""

from __future__ import annotations

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from ftlib.base import trees
from ftlib.base.types import Head
from ftlib.generation import sampling
from ftlib.generation.generator import Generator
from ftlib.generation.sampling import Sampling
from ftlib.generation.settings import Settings
from ftlib.io import hf
from ftlib.models import gpt2, llama
from tests.generation.conftest import byte_tokenizer

pytestmark = pytest.mark.reference
EOS = [7, 30, 31, 55]
SIZES = {'vocab_size': 259, 'num_hidden_layers': 2, 'initializer_range': 0.5}


@pytest.fixture(scope='module', params=['llama', 'gpt2'])
def pair(request, tmp_path_factory):
  """(transformers' model, a function that gives a Generator for settings)."""
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  if request.param == 'llama':
    family, config = (
      llama,
      transformers.LlamaConfig(
        **SIZES,
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
      ),
    )
  else:
    values = {**SIZES, 'initializer_range': 0.3}
    family, config = gpt2, transformers.GPT2Config(**values, n_embd=32, n_head=4, n_layer=2, n_positions=64)
  config.eos_token_id = EOS
  config.bos_token_id = config.pad_token_id = 256
  torch.manual_seed(0)
  theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
  folder = tmp_path_factory.mktemp(request.param)
  theirs.save_pretrained(folder)
  arch = family.from_hf(hf.read_config(folder), where='config.json', allow='')
  model = family.build(arch, head=Head('lm'))
  weights = hf.Weights(folder)
  match = hf.match(weights, model.hf_names(), model.hf_shapes(), prefix=family.PREFIX)
  params = {n: jnp.asarray(model.from_hf(n, weights.read(k))) for n, k in match.pairs.items()}
  tokenizer = byte_tokenizer(eos_token=None)

  def make(**values):
    return Generator(model, trees.unflatten(params), tokenizer, Settings(eos=tuple(EOS), batch_size=3, **values))

  return theirs, make


@pytest.fixture(scope='module')
def prompts():
  rng = np.random.default_rng(0)
  return [rng.integers(60, 250, n).tolist() for n in (5, 17, 1, 9, 12, 30, 3)]


def of_transformers(theirs, prompts, *, padded, **options):
  """The new tokens of every prompt, until what ends it; the rows padded on the left, or one by one."""
  import torch

  out = []
  for part in [prompts] if padded else [[p] for p in prompts]:
    longest = max(map(len, part))
    ids = torch.tensor([[256] * (longest - len(p)) + p for p in part])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in part])
    rows = theirs.generate(ids, attention_mask=mask, **{'do_sample': False, **options}).numpy()[:, longest:]
    for row in rows.tolist():
      end = next((i for i, t in enumerate(row) if t in EOS), len(row))
      out.append(row[: end + 1])
  return out


@pytest.mark.parametrize('padded', [True, False])
def test_greedy(pair, prompts, padded):
  theirs, make = pair
  wanted = of_transformers(theirs, prompts, padded=padded, max_new_tokens=20)
  assert [t.tokens.tolist() for (t,) in make(max_new_tokens=20).generate(prompts)] == wanted
  assert len({len(w) for w in wanted}) > 1, 'all rows end alike'


@pytest.mark.parametrize('penalty', [1.3, 5.0, 0.7])
def test_greedy_with_repetition_penalty(pair, prompts, penalty):
  """Row by row: in a padded batch transformers counts the padding as said."""
  theirs, make = pair
  wanted = of_transformers(theirs, prompts, padded=False, max_new_tokens=20, repetition_penalty=penalty)
  got = [t.tokens.tolist() for (t,) in make(max_new_tokens=20, repetition_penalty=penalty).generate(prompts)]
  assert got == wanted
  assert wanted != of_transformers(theirs, prompts, padded=False, max_new_tokens=20)


BEAMS = [
  {'num_beams': 2},
  {'num_beams': 4, 'early_stopping': True},
  {'num_beams': 4, 'early_stopping': 'never', 'length_penalty': 2.0},
  {'num_beams': 3, 'length_penalty': 0.0},
  {'num_beams': 4, 'length_penalty': -1.0, 'early_stopping': 'never'},
  {'num_beams': 3, 'length_penalty': 0.6, 'repetition_penalty': 1.5},
  {'num_beams': 5, 'length_penalty': 3.0},
]


@pytest.mark.parametrize(
  ('options', 'padded'),
  [(o, p) for o, p in itertools.product(BEAMS, [True, False]) if not (p and 'repetition_penalty' in o)],
  ids=str,
)
def test_beams(pair, prompts, options, padded):
  theirs, make = pair
  wanted = of_transformers(theirs, prompts, padded=padded, max_new_tokens=12, **options)
  got = [t.tokens.tolist() for (t,) in make(max_new_tokens=12, **options).generate(prompts)]
  assert got == wanted


def test_beams_differ_from_greedy_and_come_with_scores(pair, prompts):
  theirs, make = pair
  import torch

  got = make(max_new_tokens=12, num_beams=4, num=3).generate(prompts)
  for prompt, texts in zip(prompts, got, strict=True):
    out = theirs.generate(
      torch.tensor([prompt]),
      attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
      max_new_tokens=12,
      num_beams=4,
      num_return_sequences=3,
      do_sample=False,
      return_dict_in_generate=True,
      output_scores=True,
    )
    rows = out.sequences[:, len(prompt) :].tolist()
    ends = [next((i for i, t in enumerate(r) if t in EOS), len(r) - 1) for r in rows]
    assert [t.tokens.tolist() for t in texts] == [r[: e + 1] for r, e in zip(rows, ends, strict=True)]
    np.testing.assert_allclose([t.score for t in texts], out.sequences_scores.numpy(), atol=2e-5)
  greedy = make(max_new_tokens=12).generate(prompts)
  assert [t[0].tokens.tolist() for t in greedy] != [t[0].tokens.tolist() for t in got]


CASES = [
  {},
  {'temperature': 0.3},
  {'top_k': 1},
  {'top_k': 7},
  {'top_k': 10_000},
  {'top_p': 0.5},
  {'top_p': 0.95},
  {'top_p': 0.01},
  {'min_p': 0.02},
  {'min_p': 0.3},
  {'temperature': 1.7, 'top_k': 20, 'top_p': 0.8},
  {'temperature': 0.7, 'top_k': 50, 'top_p': 0.9, 'min_p': 0.05},
]


@pytest.mark.parametrize('values', CASES, ids=str)
def test_what_processors_leave(values):
  torch = pytest.importorskip('torch')
  from transformers.generation import logits_process as processes

  s = Sampling(sample=True, **values)
  logits = np.random.default_rng(1).normal(0, 3, (16, 300)).astype(np.float32)
  steps = [processes.TemperatureLogitsWarper(s.temperature)] if s.temperature != 1 else []
  steps += [processes.TopKLogitsWarper(s.top_k)] if s.top_k else []
  steps += [processes.TopPLogitsWarper(s.top_p)] if s.top_p < 1 else []
  steps += [processes.MinPLogitsWarper(s.min_p)] if s.min_p else []
  theirs = processes.LogitsProcessorList(steps)(None, torch.tensor(logits)).softmax(-1).numpy()
  ours = np.asarray(sampling.filtered(jnp.asarray(logits), s))
  ours = np.exp(ours - ours.max(-1, keepdims=True))
  ours /= ours.sum(-1, keepdims=True)
  assert ((ours > 0) == (theirs > 0)).all()
  np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_repetition_penalty_of_logits():
  torch = pytest.importorskip('torch')
  from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

  rng = np.random.default_rng(2)
  logits, ids = rng.normal(0, 3, (8, 50)).astype(np.float32), rng.integers(0, 50, (8, 20))
  theirs = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor(ids), torch.tensor(logits)).numpy()
  seen = np.zeros((8, 50), bool)
  np.put_along_axis(seen, ids, True, axis=1)
  ours = sampling.penalised(jnp.asarray(logits), jnp.asarray(seen), 1.7)
  np.testing.assert_allclose(ours, theirs, rtol=3e-7)  # a division may be rounded otherwise: one unit in the last place


def test_every_setting_of_sampling_is_tried():
  assert {f.name for f in dataclasses.fields(Sampling)} == {
    *('sample', 'repetition_penalty'),
    *(k for c in CASES for k in c),
  }
