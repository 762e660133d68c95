"""A tiny Llama of random weights with a tokenizer of bytes, whose texts are noise and for that reason all different."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from ftlib.base.types import Head
from ftlib.generation.generator import Generator
from ftlib.generation.settings import Settings
from ftlib.models import decoder, llama, stack

SPECIAL = ('<|endoftext|>', '<|im_start|>', '<|im_end|>')
CONFIG = decoder.Config(
  vocab=256 + len(SPECIAL), embed=32, layers=3, heads=4, kv_heads=2, head_dim=8, mlp=64, positions=96, init_std=0.4
)


def byte_tokenizer(**options):
  """A token a byte, and three special ones; '<|im_end|>' ends a text."""
  import tokenizers
  import transformers

  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({c: i for i, c in enumerate(alphabet)}, []))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  tokenizer.add_special_tokens(list(SPECIAL))
  options = {'eos_token': '<|im_end|>', 'pad_token': '<|endoftext|>', **options}
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, additional_special_tokens=list(SPECIAL), **options
  )


@pytest.fixture(scope='session')
def tokenizer():
  return byte_tokenizer()


@pytest.fixture(scope='session')
def tiny_decoder():
  """(model, parameters); they stay as they are made, layer by layer."""
  model = llama.build(CONFIG, head=Head('lm'))
  return model, model.initial(jax.random.key(3))


@pytest.fixture
def generator(tiny_decoder, tokenizer):
  """`generator(max_new_tokens=8)`; `stacked=True` for scanned layers."""

  def make(*, stacked: bool = False, positions: int = 0, **values):
    model, params = tiny_decoder
    if positions:
      model = dataclasses.replace(model, config=dataclasses.replace(model.config, positions=positions))
    params = stack.stack(params, [(0, 2), (2, 3)]) if stacked else params
    return Generator(model, params, tokenizer, Settings(**values))

  return make


@pytest.fixture(scope='session')
def uncached(tiny_decoder):
  """Logits [V] after a row of tokens, computed without a cache."""
  model, params = tiny_decoder

  @jax.jit
  def logits(tokens_BL, segments_BL):
    length = tokens_BL.shape[1]
    positions = np.arange(length, dtype=np.int32)[None]
    inputs = {'tokens': tokens_BL, 'positions': positions, 'segments': segments_BL, 'rows': np.zeros(1, np.int32)}
    out = model.apply(params, inputs)
    return out.unembed(out.hidden)

  def after(ids):
    tokens_BL, segments_BL = np.zeros((1, 96), np.int32), np.zeros((1, 96), np.int32)
    tokens_BL[0, : len(ids)], segments_BL[0, : len(ids)] = ids, 1
    return np.array(logits(tokens_BL, segments_BL)[0, len(ids) - 1])

  return after
