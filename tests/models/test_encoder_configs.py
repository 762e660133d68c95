"""What a config.json of XLNet, DeBERTa and ModernBERT may say: nothing is ignored."""

import pytest

from ftlib.base.errors import InputError
from ftlib.models import deberta, modernbert, xlnet
from ftlib.models.rope import Rope

BASE = {
  'xlnet': (xlnet, {}),
  'deberta-v2': (
    deberta,
    {
      'vocab_size': 50,
      'hidden_size': 32,
      'num_hidden_layers': 2,
      'num_attention_heads': 4,
      'intermediate_size': 64,
      'relative_attention': True,
      'pos_att_type': ['p2c', 'c2p'],
    },
  ),
  'modernbert': (modernbert, {'num_hidden_layers': 4}),
}


def of(kind, **more):
  module, values = BASE[kind]
  return module.from_hf({'model_type': kind, **values, **more}, where='m/config.json')


@pytest.mark.parametrize(
  ('kind', 'more', 'said'),
  [
    ('xlnet', {'attn_type': 'uni'}, "attn_type='uni' is not supported"),
    ('xlnet', {'clamp_len': 100}, 'clamp_len=100 is not supported'),
    ('xlnet', {'bi_data': True}, 'bi_data=True is not supported'),
    ('xlnet', {'summary_type': 'first'}, "summary_type='first' is not supported"),
    ('xlnet', {'summary_use_proj': False}, 'summary_use_proj=False is not supported'),
    ('xlnet', {'untie_r': False}, 'untie_r=False is not supported'),
    ('xlnet', {'d_head': 32}, 'd_head=32 is not d_model / n_head = 64'),
    ('xlnet', {'n_head': 7}, 'hidden_size=1024 is not a multiple of num_attention_heads=7'),
    ('xlnet', {'d_model': 33, 'n_head': 3}, 'd_model=33 is odd'),
    ('xlnet', {'ff_activation': 'gleu'}, "'gleu' is not supported; did you mean"),
    ('xlnet', {'hidden_act': 'gelu'}, 'hidden_act=.* is not known'),
    ('deberta-v2', {'relative_attention': False}, 'relative_attention=False is not supported'),
    ('deberta-v2', {'relative_attention': None}, 'relative_attention'),
    ('deberta-v2', {'pos_att_type': 'c2p|p2p'}, "pos_att_type has 'p2p'; known: c2p, p2c"),
    ('deberta-v2', {'pos_att_type': None}, 'pos_att_type has None'),
    ('deberta-v2', {'norm_rel_ebd': 'batch_norm'}, "norm_rel_ebd has 'batch_norm'"),
    ('deberta-v2', {'position_buckets': 2.5}, r'position_buckets=2\.5 is no whole number'),
    ('deberta-v2', {'position_buckets': 2}, 'position_buckets=2 cannot hold 512 distances'),
    ('deberta-v2', {'position_buckets': 2000}, 'position_buckets=2000 cannot hold 512 distances'),
    ('deberta-v2', {'max_relative_positions': True}, 'max_relative_positions=True is no whole number'),
    ('deberta-v2', {'attention_head_size': 16}, r'attention_head_size=16 \(only 8\)'),
    ('deberta-v2', {'pooler_hidden_size': 16}, r'pooler_hidden_size=16 \(only 32\)'),
    ('deberta-v2', {'pooler_hidden_act': 'gleu'}, "pooler_hidden_act='gleu'; did you mean"),
    ('deberta-v2', {'pooler_dropout': 0.1}, r'pooler_dropout=0\.1 is not supported'),
    ('deberta-v2', {'conv_kernel_size': 4}, r'conv_kernel_size=4 \(only odd ones\)'),
    ('deberta-v2', {'conv_kernel_size': 3, 'conv_groups': 2}, 'conv_groups=2 is not supported'),
    ('deberta-v2', {'embedding_size': 16}, 'embedding_size=16 is not known'),
    ('deberta-v2', {'hidden_dropout_prob': 1.5}, r'hidden_dropout_prob=1\.5 is no share'),
    ('modernbert', {'classifier_pooling': 'men'}, "classifier_pooling='men' is not cls or mean; did you mean"),
    ('modernbert', {'classifier_activation': 'gleu'}, "classifier_activation='gleu' is not supported"),
    ('modernbert', {'global_attn_every_n_layers': 'x'}, "global_attn_every_n_layers='x' is not a whole number"),
    ('modernbert', {'layer_types': ['full_attention']}, 'layer_types has 1 entries for 4 layers'),
    ('modernbert', {'layer_types': ['chunked'] * 4}, "layer_types has 'chunked'"),
    ('modernbert', {'local_attention': 1}, 'local_attention=1 leaves a token no other to see'),
    ('modernbert', {'num_attention_heads': 256}, 'a head size of 3 cannot be turned'),
    ('modernbert', {'rope_parameters': {'rope_type': 'default'}}, 'rope_parameters=.* wanted one object for each'),
    ('modernbert', {'rope_scaling': {'rope_type': 'dynamic', 'factor': 2.0}}, "rope_type='dynamic' is not supported"),
    ('modernbert', {'tie_word_embeddings': False}, 'tie_word_embeddings=False is not supported'),
  ],
)
def test_what_is_not_implemented_is_an_error(kind, more, said):
  with pytest.raises(InputError, match=said) as e:
    of(kind, **more)
  assert 'm/config.json' in str(e.value)


def test_what_a_config_leaves_out_is_as_transformers_assumes():
  c = of('xlnet', mem_len=None, reuse_len=None, d_head=64, same_length=False, start_n_top=5)
  assert (c.vocab, c.embed, c.layers, c.heads, c.mlp, c.activation) == (32000, 1024, 24, 16, 4096, 'gelu')
  assert (c.max_length, c.pad_id, c.types) == (8192, 5, 0)
  c = of('deberta-v2')
  assert (c.buckets, c.span, c.log, c.absolute, c.max_length) == (512, 512, False, True, 512)
  assert (c.share_key, c.norm_distances, c.conv, c.legacy, c.epsilon) == (False, False, 0, True, 1e-7)
  assert of('deberta-v2', pos_att_type='P2C | c2p') == c
  assert of('deberta-v2', position_biased_input=False).max_length == 8192
  assert of('deberta-v2', hidden_dropout_prob=0.3).head_dropout == 0.3
  c = of('modernbert')
  assert (c.windows, c.rope, c.local_rope) == ((0, 128, 128, 0), Rope(160000.0), Rope(10000.0))
  assert (c.pooling, c.decoder_bias, c.head_bias, c.max_length) == ('cls', True, False, 8192)
  assert of('modernbert', position_embedding_type='sans_pos') == c  # as in the files of mmBERT and Ettin


def test_old_and_new_forms_of_rotations_mean_the_same():
  kinds = ['full_attention', 'sliding_attention']
  old = {'global_rope_theta': 5e5, 'local_rope_theta': 100.0, 'global_attn_every_n_layers': 2}
  turns = {k: {'rope_type': 'default', 'rope_theta': t} for k, t in zip(kinds, (5e5, 100.0))}
  assert of('modernbert', **old) == of('modernbert', layer_types=kinds * 2, rope_parameters=turns)
  assert of('modernbert', **old) != of('modernbert')
