"""Every preset is a model of the size that is known of it; the largest of each family computes and trains at that size,
by shapes alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftlib import stored
from ftlib.base import lookup, trees
from ftlib.base.types import Head
from ftlib.models import heads, stack
from ftlib.models.presets import PRESETS
from ftlib.objectives import classification, language
from ftlib.peft import lora

# Parameters of a language model, or of an encoder without a head, as its model card or transformers counts them.
KNOWN = {
  'HuggingFaceTB/SmolLM2-135M': 134_515_008,
  'HuggingFaceTB/SmolLM2-360M': 361_821_120,
  'HuggingFaceTB/SmolLM2-1.7B': 1_711_376_384,
  'meta-llama/Llama-2-7b-hf': 6_738_415_616,
  'meta-llama/Llama-2-13b-hf': 13_015_864_320,
  'meta-llama/Llama-2-70b-hf': 68_976_648_192,
  'meta-llama/Meta-Llama-3-8B': 8_030_261_248,
  'meta-llama/Meta-Llama-3-70B': 70_553_706_496,
  'meta-llama/Llama-3.1-8B': 8_030_261_248,
  'meta-llama/Llama-3.1-70B': 70_553_706_496,
  'meta-llama/Llama-3.2-1B': 1_235_814_400,
  'meta-llama/Llama-3.2-3B': 3_212_749_824,
  'mistralai/Mistral-7B-v0.1': 7_241_732_096,
  'Qwen/Qwen2.5-0.5B': 494_032_768,
  'Qwen/Qwen2.5-1.5B': 1_543_714_304,
  'Qwen/Qwen2.5-3B': 3_085_938_688,
  'Qwen/Qwen2.5-7B': 7_615_616_512,
  'Qwen/Qwen2.5-14B': 14_770_033_664,
  'Qwen/Qwen2.5-32B': 32_763_876_352,
  'Qwen/Qwen2.5-72B': 72_706_203_648,
  'Qwen/Qwen3-0.6B': 596_049_920,
  'Qwen/Qwen3-1.7B': 1_720_574_976,
  'Qwen/Qwen3-4B': 4_022_468_096,
  'Qwen/Qwen3-8B': 8_190_735_360,
  'Qwen/Qwen3-14B': 14_768_307_200,
  'Qwen/Qwen3-32B': 32_762_123_264,
  'google/gemma-2-2b': 2_614_341_888,
  'google/gemma-2-9b': 9_241_705_984,
  'google/gemma-2-27b': 27_227_128_320,
  'google/gemma-3-1b-pt': 999_885_952,
  'openai-community/gpt2': 124_439_808,
  'openai-community/gpt2-medium': 354_823_168,
  'openai-community/gpt2-large': 774_030_080,
  'openai-community/gpt2-xl': 1_557_611_200,
  'microsoft/DialoGPT-small': 124_439_808,
  'microsoft/DialoGPT-medium': 354_823_168,
  'microsoft/DialoGPT-large': 774_030_080,
  'google-bert/bert-base-uncased': 109_482_240,
  'google-bert/bert-base-cased': 108_310_272,
  'google-bert/bert-large-uncased': 335_141_888,
  'google-bert/bert-base-chinese': 102_267_648,
  'FacebookAI/roberta-base': 124_645_632 - 590_592,  # transformers' has a pooler besides
  'FacebookAI/roberta-large': 355_359_744 - 1_049_600,
  'FacebookAI/xlm-roberta-base': 278_043_648 - 590_592,
  'distilbert/distilbert-base-uncased': 66_362_880,
  'google/electra-small-discriminator': 13_483_008,
  'google/electra-base-discriminator': 108_891_648,
  'google/electra-large-discriminator': 334_092_288,
  'albert/albert-base-v2': 11_683_584,
  'albert/albert-large-v2': 17_683_968,
  'albert/albert-xlarge-v2': 58_724_864,
  'albert/albert-xxlarge-v2': 222_595_584,
  'xlnet/xlnet-base-cased': 116_718_336,
  'xlnet/xlnet-large-cased': 360_268_800,
  'microsoft/deberta-v2-xlarge': 884_593_152,
  'microsoft/deberta-v2-xxlarge': 1_564_549_632,
  'microsoft/deberta-v3-xsmall': 70_682_112,
  'microsoft/deberta-v3-small': 141_304_320,
  'microsoft/deberta-v3-base': 183_831_552,
  'microsoft/deberta-v3-large': 434_012_160,
  'microsoft/mdeberta-v3-base': 278_218_752,
  'answerdotai/ModernBERT-base': 149_014_272,
  'answerdotai/ModernBERT-large': 394_781_696,
}
ROWS, LENGTH = 2, 16


@functools.cache
def families():
  modules = [lookup.component('models', n, field='') for n in lookup.names('models')]
  return {kind: m for m in modules for kind in m.MODEL_TYPES}


def made(name, head):
  family = families()[PRESETS[name]['model_type']]
  return family.build(family.from_hf(PRESETS[name]), head=head, compute=jnp.bfloat16, remat='full')


def test_each_preset_has_its_number():
  assert set(KNOWN) == set(PRESETS)


@pytest.mark.parametrize('name', PRESETS)
def test_a_preset_has_as_many_parameters_as_the_model(name):
  lm = 'lm' in families()[PRESETS[name]['model_type']].MODEL_TYPES[PRESETS[name]['model_type']]
  model = made(name, Head('lm' if lm else 'none'))
  assert sum(i.size for i in model.info().values()) == KNOWN[name]


LARGEST = {PRESETS[n]['model_type']: n for n in sorted(PRESETS, key=KNOWN.get)}  # of each family


@pytest.mark.parametrize('name', LARGEST.values())
def test_a_preset_trains_at_its_full_size(name):
  """The shapes of a step's gradients with LoRA, of layers that are scanned, without a weight."""
  lm = 'lm' in families()[PRESETS[name]['model_type']].MODEL_TYPES[PRESETS[name]['model_type']]
  module = families()[PRESETS[name]['model_type']]
  pooling = heads.pooling(module, module.from_hf(PRESETS[name]))
  plain = made(name, Head('lm') if lm else Head('classify', 3, pooling))
  method = lora.build(lora.Config(also='' if lm else '^head/'), plain)
  info = method.model.info()
  dtype = lambda n: jnp.float32 if method.trains(n) else jnp.bfloat16  # noqa: E731
  shapes = {n: jax.ShapeDtypeStruct(i.shape, dtype(n)) for n, i in info.items()}
  _, runs = stored.info_of(method, method.trains, scan=True)  # a first layer may be unlike the others
  own, frozen = trees.split(stack.stack(trees.unflatten(shapes), runs), trained(method))
  names = ('tokens', 'positions', 'segments', 'types', 'targets')
  batch = {n: jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32) for n in names}
  batch |= {n: jax.ShapeDtypeStruct((ROWS,), jnp.int32) for n in ('rows', 'labels')}
  batch['weights'] = jax.ShapeDtypeStruct((ROWS, LENGTH) if lm else (ROWS,), jnp.float32)
  family = language if lm else classification
  objective = family.build(family.Config(), labels=['a', 'b', 'c'], counts=np.ones(3))

  def loss(own, frozen, batch):
    sums = objective(functools.partial(method.model.apply, trees.join(own, frozen)), batch, jax.random.key(0))
    return sums['loss'][0]

  value, grads = jax.eval_shape(jax.value_and_grad(loss), own, frozen, batch)
  assert (value.shape, value.dtype) == ((), jnp.float32)
  assert jax.tree.map(lambda x: x.shape, grads) == jax.tree.map(lambda x: x.shape, own)
  assert len(jax.tree.leaves(grads)) == 4 * len(runs) + (0 if lm else sum(n.startswith('head/') for n in info))


def trained(method):
  return lambda name: method.trains(trees.canonical(name))
