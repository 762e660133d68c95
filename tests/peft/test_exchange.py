"""Settings of PEFT that ftlib does not compute are refused for every method, whether or not its file thinks of them."""

from __future__ import annotations

import numpy as np
import pytest

from ftlib import peft_config
from ftlib.base.errors import InputError
from ftlib.base.types import Head
from ftlib.models import bert
from ftlib.peft import adalora, hira, ia3, loha, lokr, lora, miss, oft, sparse, vera
from tests.tiny import CONFIG

TARGETS = {'target_modules': ['query', 'value'], 'task_type': 'SEQ_CLS', 'peft_version': '0.21.2'}
TYPES = (adalora, hira, ia3, loha, lokr, miss, oft, vera)


KEYS = {  # what stands behind a module's name in PEFT's file
  'ADALORA': {'lora_A', 'lora_B', 'lora_E'},
  'HIRA': {'hira_A', 'hira_B'},
  'IA3': {'ia3_l'},
  'LOHA': {'hada_w1_a', 'hada_w1_b', 'hada_w2_a', 'hada_w2_b'},
  'LOKR': {'lokr_w1', 'lokr_w2'},
  'LORA': {'lora_A.weight', 'lora_B.weight'},
  'MISS': {'miss_block'},
  'OFT': {'oft_R.weight'},
  'SHIRA': {'shira_weight', 'shira_indices'},
  'VERA': {'vera_lambda_b', 'vera_lambda_d'},
}


@pytest.fixture(scope='module')
def model():
  return bert.build(bert.from_hf(CONFIG), head=Head('classify', 2))


def read(module, model, **values):
  values = {'peft_type': module.PEFT_TYPE, **TARGETS, **module.peft_config(module.Config()), **values}
  return peft_config.read(values, module, model, where='X')


@pytest.mark.parametrize('module', TYPES, ids=lambda m: m.PEFT_TYPE)
def test_what_a_method_writes_is_read(model, module):
  """With the settings that are off in PEFT, and those that say how values started."""
  off = {'bias': 'none', 'trainable_token_indices': None, 'alpha_pattern': {}, 'init_weights': True}
  fields = read(module, model, **off).fields
  assert module.Config(**fields) == module.Config()


@pytest.mark.parametrize('module', [*TYPES, lora, sparse], ids=lambda m: m.PEFT_TYPE)
def test_keys_are_those_of_peft(model, module):
  """A key that is renamed in both directions is read back here all the same."""
  made = module.build(module.Config(), model).model
  site = next(n.partition('/adapter/')[0] for n in made.info() if '/adapter/' in n)
  start = f'{site}/adapter/'
  leaves = {n.removeprefix(start): np.zeros(i.shape, i.dtype) for n, i in made.info().items() if n.startswith(start)}
  assert {*module.to_peft(module.Config(), leaves, made.modules()[site])} == KEYS[module.PEFT_TYPE]


@pytest.mark.parametrize('module', TYPES, ids=lambda m: m.PEFT_TYPE)
@pytest.mark.parametrize(
  ('field', 'value'),
  [('bias', 'all'), ('trainable_token_indices', [1]), ('alpha_pattern', {'q': 4}), ('of_tomorrow', 3)],
)
def test_what_no_method_has(model, module, field, value):
  with pytest.raises(InputError, match=rf'X: settings that ftlib does not implement for {module.PEFT_TYPE}') as e:
    read(module, model, **{field: value})
  assert f'{field}={value!r}' in str(e.value)


@pytest.mark.parametrize(
  ('module', 'values'),
  [
    (hira, {'rank_pattern': {'query': 4}}),
    (hira, {'fan_in_fan_out': True}),
    (loha, {'rank_pattern': {'query': 4}}),
    (lokr, {'rank_pattern': {'query': 4}}),
    (vera, {'fan_in_fan_out': True}),
    (oft, {'coft': True, 'block_share': True}),
    (miss, {'init_weights': 'bat'}),
    (adalora, {'layer_replication': [[0, 1]]}),
  ],
)
def test_what_this_method_has_not(model, module, values):
  with pytest.raises(InputError, match='will not ignore') as e:
    read(module, model, **values)
  assert all(f'{k}={v!r}' in str(e.value) for k, v in values.items())


def test_the_series_of_an_old_oft(model):
  with pytest.raises(InputError, match=r'X: ftlib has no OFT with use_cayley_neumann=True of PEFT 0\.17, before 0\.18'):
    read(oft, model, use_cayley_neumann=True, peft_version='0.17.1')
