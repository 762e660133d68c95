"""What a decoder's config.json may say: old and new spellings mean the same, and nothing is ignored."""

import dataclasses

import pytest

from ftlib.base.errors import InputError
from ftlib.base.types import Head
from ftlib.models import gemma, gpt2, llama, qwen
from ftlib.models.rope import Rope

SIZES = {
  'vocab_size': 64,
  'hidden_size': 32,
  'num_hidden_layers': 4,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'intermediate_size': 48,
}
LLAMA3 = {'factor': 8.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0, 'original_max_position_embeddings': 32}


def of(kind, **more):
  family = next(f for f in (llama, qwen, gemma, gpt2) if kind in f.MODEL_TYPES)
  sizes = {} if kind == 'gpt2' else SIZES
  return family.from_hf({'model_type': kind, **sizes, **more}, where='m/config.json')


@pytest.mark.parametrize(
  ('kind', 'old', 'new'),
  [
    ('llama', {'rope_theta': 5e5}, {'rope_parameters': {'rope_type': 'default', 'rope_theta': 5e5}}),
    (
      'llama',
      {'rope_theta': 5e5, 'rope_scaling': {'rope_type': 'llama3', **LLAMA3}},
      {'rope_parameters': {'rope_type': 'llama3', 'rope_theta': 5e5, **LLAMA3}},
    ),
    (
      'llama',
      {'rope_scaling': {'type': 'linear', 'factor': 2.0}},
      {'rope_parameters': {'rope_type': 'linear', 'rope_theta': 10000.0, 'factor': 2.0}},
    ),
    (
      'qwen2',
      {'use_sliding_window': True, 'sliding_window': 8, 'max_window_layers': 3},
      {'use_sliding_window': True, 'sliding_window': 8, 'layer_types': ['full_attention'] * 3 + ['sliding_attention']},
    ),
    (
      'gemma2',
      {'sliding_window': 8},
      {'sliding_window': 8, 'layer_types': ['sliding_attention', 'full_attention'] * 2},
    ),
    (
      'gemma3_text',
      {'sliding_window': 8, 'sliding_window_pattern': 4, 'rope_theta': 1e6, 'rope_local_base_freq': 100.0},
      {
        'sliding_window': 8,
        'layer_types': ['sliding_attention'] * 3 + ['full_attention'],
        'rope_parameters': {
          'full_attention': {'rope_type': 'default', 'rope_theta': 1e6},
          'sliding_attention': {'rope_type': 'default', 'rope_theta': 100.0},
        },
      },
    ),
    ('gemma3_text', {'_sliding_window_pattern': 6}, {'rope_theta': 1e6, 'rope_local_base_freq': 1e4}),
  ],
)
def test_old_and_new_forms_mean_the_same(kind, old, new):
  assert of(kind, **old) == of(kind, **new)
  assert of(kind, **old) != of(kind, vocab_size=65)


def test_what_a_config_leaves_out_is_as_transformers_assumes():
  assert of('llama').rope == Rope(10000.0)
  assert of('mistral').windows == (4096,) * 4
  assert of('mistral', sliding_window=None).windows == ()
  assert of('qwen2', sliding_window=8, max_window_layers=1).windows == ()  # use_sliding_window is off
  assert of('qwen3').head_dim == 128
  assert of('gemma2').windows == (4096, 0) * 2
  second, third = of('gemma2'), of('gemma3_text')
  assert (second.attention_cap, second.logit_cap, second.query_scale) == (50.0, 30.0, 256**-0.5)
  assert (third.attention_cap, third.logit_cap, third.qk_norm) == (0.0, 0.0, True)
  assert (third.rope, third.local_rope) == (Rope(1e6), Rope(1e4))
  assert of('gemma2', attn_logit_softcapping=None).attention_cap == 0
  assert of('gemma', hidden_act='gelu').activation == 'gelu_pytorch_tanh'
  assert (of('gpt2').mlp, of('gpt2').tied, of('gpt2').activation) == (3072, True, 'gelu_new')
  assert of('gpt2', n_ctx=1024, summary_type='cls_index') == of('gpt2')
  yarn = of('llama', rope_scaling={'rope_type': 'yarn', 'factor': 4.0}, max_position_embeddings=64).rope
  assert dict(yarn.numbers) == {'factor': 4.0, 'original_max_position_embeddings': 64.0}


@pytest.mark.parametrize(
  ('kind', 'more', 'said'),
  [
    ('llama', {'sliding_window': 8}, r'sliding_window=8 is not known'),
    ('llama', {'layer_types': ['full_attention'] * 4}, 'layer_types=.* is not known'),
    ('llama', {'rope_scaling': {'rope_type': 'dynamic', 'factor': 2.0}}, "rope_type='dynamic' is not supported"),
    ('llama', {'rope_scaling': {'rope_type': 'llama3', 'factor': 2.0}}, 'needs low_freq_factor, high_freq_factor'),
    ('llama', {'rope_scaling': {'rope_type': 'linear', 'factor': 'two'}}, "cannot have factor='two'"),
    ('llama', {'rope_scaling': {'rope_type': 'linear', 'factor': 0.0}}, r'cannot have factor=0\.0'),
    ('llama', {'rope_scaling': {'rope_type': 'linear', 'factor': 2.0, 'odd': 1}}, 'not supported: odd'),
    ('llama', {'rope_scaling': {'rope_type': 'linear', 'factor': 2.0, 'partial_rotary_factor': 0.5}}, 'partial_rotary'),
    ('llama', {'rope_scaling': 'linear'}, "rope_scaling='linear' is no object"),
    ('llama', {'rope_scaling': {'rope_type': ['linear']}}, r"rope_type=\['linear'\] is not supported"),
    ('llama', {'rope_scaling': {'rope_type': 'linear', 'factor': True}}, 'cannot have factor=True'),
    ('llama', {'rope_theta': 'high'}, "rope_theta='high' is not a number above 0"),
    ('llama', {'rope_theta': -1.0}, r'rope_theta=-1\.0 is not a number above 0'),
    ('llama', {'rope_theta': 0}, 'rope_theta=0 is not a number above 0'),
    ('llama', {'rope_parameters': {'rope_theta': [1]}}, r'rope_theta=\[1\] is not a number'),
    ('llama', {'rope_parameters': {'full_attention': 5, 'sliding_attention': {}}}, '5 is no object that says how'),
    ('gemma3_text', {'rope_local_base_freq': 'x'}, "rope_local_base_freq='x' is not a number"),
    ('llama', {'num_key_value_heads': 3}, 'num_attention_heads=4 is not a multiple of num_key_value_heads=3'),
    ('llama', {'head_dim': 7}, 'a head size of 7'),
    ('llama', {'hidden_act': 'selu'}, "activation 'selu' is not supported"),
    ('llama', {'quantization_config': {'bits': 4}}, 'quantization_config'),
    ('mistral', {'sliding_window': -1}, 'sliding_window=-1 is not a whole number'),
    ('qwen2', {'layer_types': ['chunked_attention'] * 4}, "layer_types has 'chunked_attention'"),
    ('qwen2', {'use_sliding_window': True, 'layer_types': ['sliding_attention']}, '1 entries for 4 layers'),
    ('gemma2', {'use_bidirectional_attention': True}, 'use_bidirectional_attention=True is not supported'),
    ('gemma3_text', {'sliding_window_pattern': 0.5}, r'sliding_window_pattern=0\.5'),
    ('gpt2', {'scale_attn_by_inverse_layer_idx': True}, 'scale_attn_by_inverse_layer_idx=True is not supported'),
    ('gpt2', {'scale_attn_weights': False}, 'scale_attn_weights=False is not supported'),
    ('gpt2', {'add_cross_attention': True}, 'add_cross_attention=True is not supported'),
  ],
)
def test_what_is_not_implemented_is_an_error(kind, more, said):
  with pytest.raises(InputError, match=said) as e:
    of(kind, **more)
  assert 'm/config.json' in str(e.value)


def test_a_setting_can_be_vouched_for():
  values = {'model_type': 'llama', **SIZES, 'my_note': 3}
  assert llama.from_hf(values, allow='^my_') == of('llama')
  assert gpt2.from_hf({'model_type': 'gpt2', 'my_note': 3, 'n_ctx': 8}, allow='^my_') == of('gpt2')


def test_heads_that_decoders_do_not_have():
  with pytest.raises(InputError, match='no masked-language-model head'):
    llama.build(of('llama'), head=Head('mlm'))
  with pytest.raises(InputError, match=r'has seen nothing of it; set task\.pooling to last or mean'):
    llama.build(of('llama'), head=Head('classify', 2))
  with pytest.raises(InputError, match=r'an entity have not read it; set task\.pooling to last or mean'):
    llama.build(of('llama'), head=Head('classify', 2, 'mean', marks=2))


def test_layers_that_all_have_a_window_turn_by_the_local_rope():
  config = of('gemma3_text', layer_types=['sliding_attention'] * 4, sliding_window=8, rope_local_base_freq=100.0)
  model = gemma.build(config, head=Head('lm'))
  assert model.trunk.ropes == (Rope(100.0),)
  assert gemma.build(dataclasses.replace(config, windows=(8, 0, 8, 8)), head=Head('lm')).trunk.ropes == (
    Rope(1e6),
    Rope(100.0),
  )
