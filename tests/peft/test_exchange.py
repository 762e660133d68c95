"""Settings of PEFT that ftlib does not compute are refused for every method, whether or not its file thinks of them."""

from __future__ import annotations

import numpy as np
import pytest

from ftlib import peft_config, peft_folder
from ftlib.base.errors import InputError
from ftlib.base.types import Head
from ftlib.models import bert, gpt2
from ftlib.peft import adalora, hira, ia3, loha, lokr, lora, miss, norm, oft, sparse, vera
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


# Parameters of the base in a folder of PEFT.


def norms(model, **values):
  config = norm.Config(**values)
  method = norm.build(config, model)
  form, save = peft_folder.form_of_run(norm, config, method.model, method.trains)
  return form, save, peft_config.of_run(norm, config, method.model, base='B', save=save)


def test_norms_are_copies_of_their_modules(model):
  """A gain that trains alone takes its bias along, for PEFT saves whole modules."""
  for target, count in (('norm/(scale|bias)$', 5), ('attn_norm/scale$', 2)):
    form, save, values = norms(model, target=target)
    own = {k for k in form.shapes if 'classifier' not in k}
    modules = {k.rpartition('.')[0].removeprefix('base_model.model.') for k in own}
    assert all(m.endswith('LayerNorm.ln_tuning_layers') for m in modules)
    assert (len(modules), len(own), save) == (count, 2 * count, ['classifier', 'score'])
    assert {f'{m}.ln_tuning_layers' for m in values['target_modules']} == modules
    assert 'fan_in_fan_out' not in values
    asked = peft_config.read(values, norm, model, where='X').settings(model)
    assert len(norm.build(norm.Config(**asked, also=''), model).shown) == 2 * count
  with pytest.raises(InputError, match=r"bias='all'(.|\n)*merge the adapter"):
    peft_config.read({**values, 'bias': 'all'}, norm, model, where='X')


def test_norms_there_and_back(model):
  form, _, _ = norms(model)
  rng = np.random.default_rng(0)
  flat = {n: rng.normal(size=i.shape).astype(np.float32) for n, i in model.info().items()}
  back = form.flat({k: x for part in form.parts(flat).values() for k, x in part.items()})
  assert {n for n in back if not n.startswith('head/')} == {n for n in flat if 'norm/' in n}
  for name, x in back.items():
    np.testing.assert_array_equal(x, flat[name])


def test_a_part_of_a_matrix_that_trains_takes_the_others_along():
  """GPT-2's query, key and value are one matrix there, which PEFT saves whole."""
  sizes = {'n_embd': 8, 'n_layer': 1, 'n_head': 2, 'n_positions': 8, 'vocab_size': 9}
  plain = gpt2.build(gpt2.from_hf({'model_type': 'gpt2', **sizes}), head=Head('lm'))
  config = lora.Config(rank=2, target='mlp/up$', also='attn/k/bias$')
  method = lora.build(config, plain)
  form, save = peft_folder.form_of_run(lora, config, method.model, method.trains)
  rng = np.random.default_rng(0)
  flat = {n: rng.normal(size=i.shape).astype(np.float32) for n, i in method.model.info().items()}
  tensors = {k: x for part in form.parts(flat).values() for k, x in part.items()}
  assert save == ['transformer.h.0.attn.c_attn']
  start = 'base_model.model.transformer.h.0.attn.c_attn.'
  np.testing.assert_array_equal(
    tensors[f'{start}bias'], np.concatenate([flat[f'layers/0/attn/{x}/bias'].reshape(-1) for x in 'qkv'])
  )
  assert tensors[f'{start}weight'].shape == (8, 24)
  for name, x in form.flat(tensors).items():
    np.testing.assert_array_equal(x, flat[name], name)


@pytest.mark.parametrize('tied', [True, False])
def test_a_tied_table_that_trains_whole(tied):
  """PEFT trains a copy of the table and leaves the output matrix; neither way may that pass unnoticed."""
  sizes = {'n_embd': 8, 'n_layer': 1, 'n_head': 2, 'n_positions': 8, 'vocab_size': 9, 'tie_word_embeddings': tied}
  plain = gpt2.build(gpt2.from_hf({'model_type': 'gpt2', **sizes}), head=Head('lm'))
  config = lora.Config(rank=2, target='mlp/up$', also='^embed/token/')
  method = lora.build(config, plain)
  folder = peft_folder.Folder(None, 'model.adapter=X', {'modules_to_save': ['wte']}, None, {})
  if not tied:
    assert peft_folder.form_of_run(lora, config, method.model, method.trains)[1] == ['transformer.wte']
    assert peft_folder.form_of_folder(folder, lora, config, method.model).saved == ('embed/token/table',)
    return
  with pytest.raises(InputError, match=r'--format=peft: embed/token/table is tied(.|\n)*--format=hf'):
    peft_folder.form_of_run(lora, config, method.model, method.trains)
  with pytest.raises(InputError, match=r'model\.adapter=X: embed/token/table is tied(.|\n)*with peft'):
    peft_folder.form_of_folder(folder, lora, config, method.model)
