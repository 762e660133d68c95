"""config.json, key by key: what is used, what is refused, what may be allowed."""

import pytest

from ftlib.models import bert, hf_config
from tests import tiny
from tests.refusal import refused


def read(allow='', **changes):
  values = {k: v for k, v in {**tiny.CONFIG, **changes}.items() if v != 'absent'}
  return bert.from_hf(values, where='m/config.json', allow=allow)


def test_keys_set_fields_and_absent_ones_have_the_defaults_of_transformers():
  c = read(hidden_dropout_prob=0.3, classifier_dropout=None, num_labels=7, torch_dtype='float16')
  assert (c.vocab, c.embed, c.layers, c.heads, c.mlp, c.positions) == (64, 32, 2, 4, 64, 40)
  assert (c.dropout, c.head_dropout) == (0.3, 0.3)
  assert read(hidden_dropout_prob=None, classifier_dropout=None).head_dropout == 0.1
  assert read(classifier_dropout=0.5).head_dropout == 0.5
  assert read(layer_norm_eps='absent', hidden_act='absent') == read(layer_norm_eps=1e-12, hidden_act='gelu')


@pytest.mark.parametrize(
  ('changes', 'text'),
  [
    ({'rotary_dim': 16}, 'rotary_dim=16 is not known'),
    ({'position_embedding_type': 'relative_key'}, "position_embedding_type='relative_key' is not supported"),
    ({'is_decoder': True}, 'is_decoder=True is not supported (only False)'),
    ({'tie_word_embeddings': False}, 'tie_word_embeddings=False is not supported'),
    ({'quantization_config': {'bits': 4}}, 'quantization_config'),
    ({'vocab_size': 'absent'}, 'vocab_size is missing'),
    ({'vocab_size': None}, 'vocab_size is missing'),
    ({'hidden_act': 'gelu_nw'}, 'hidden_act=\'gelu_nw\' is not supported; did you mean "gelu_new"?'),
    ({'num_attention_heads': 0}, 'hidden_size=32 is not a multiple of num_attention_heads=0'),
    ({'num_attention_heads': 5}, 'hidden_size=32 is not a multiple of num_attention_heads=5'),
  ],
)
def test_what_would_be_another_model_is_refused(changes, text):
  refused(lambda: read(**changes), 'm/config.json', text)


@pytest.mark.parametrize(
  ('key', 'value'),
  [
    ('hidden_size', '32'),
    ('num_hidden_layers', 2.5),
    ('hidden_act', ['gelu']),
    ('layer_norm_eps', True),
    ('hidden_dropout_prob', 'none'),
    ('vocab_size', -1),
  ],
)
def test_a_value_of_the_wrong_kind_is_refused(key, value):
  refused(lambda: read(**{key: value}), 'm/config.json', f'{key}={value!r}')


def test_all_problems_are_named_at_once():
  message = refused(lambda: read(rotary_dim=16, is_decoder=True, vocab_size='absent'), 'rotary_dim', 'is_decoder')
  assert 'vocab_size is missing' in message
  assert 'model.allow_config' in message
  assert 'allow_config' not in refused(
    lambda: read(is_decoder=True, vocab_size='absent'), 'is_decoder'
  )  # would not help


def test_unknown_keys_can_be_allowed_but_not_unsupported_values():
  assert read(allow='^rotary_', rotary_dim=16, rotary_base=1) == read()
  refused(lambda: read(allow='^rotary_dim$', rotary_dim=16, rope=1), 'rope=1')
  assert 'rotary' not in refused(lambda: read(allow='rotary|is_decoder', rotary_dim=16, is_decoder=True), 'is_decoder')


def test_read_gives_our_fields():
  used = {'a': 'embed', 'b': 'dropout', 'c': 'no_field'}
  got = hf_config.read({'a': 1, 'c': True}, used, bert.Config, defaults={'dropout': 2}, where='c')
  assert got == {'embed': 1, 'dropout': 2, 'no_field': True}
  refused(lambda: hf_config.read({'c': 1}, used, bert.Config, defaults={}, where='c'), 'c=1 is not true or false')
