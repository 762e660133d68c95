"""--format=peft and `model.adapter` of a PEFT folder: the same numbers, and a refusal of all that does not fit."""

import json
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
import safetensors.numpy

from ftlib import export, judge, peft_config, peft_folder
from ftlib import run as runs
from ftlib.base import trees
from ftlib.base.errors import InputError
from ftlib.base.types import Head
from ftlib.models import bert, stack
from tests import tiny
from tests.cli.conftest import ROOT, one_screen

QUERY = 'base_model.model.bert.encoder.layer.{}.attention.self.{}.lora_{}.weight'
KEYS = [QUERY.format(i, m, x) for i in (0, 1) for m in ('query', 'value') for x in 'AB']
KEYS += ['base_model.model.classifier.bias', 'base_model.model.classifier.weight']


@pytest.fixture(scope='package')
def exported(trained, tmp_path_factory):
  """The trained run as a PEFT folder. Copy it before you change it."""
  folder = tmp_path_factory.mktemp('exported') / 'adapter'
  assert export.export(trained.folder, folder, format='peft') < 1e-6
  return folder


@pytest.fixture
def folder(exported, tmp_path):
  """A copy to be damaged: `path`, `change(key=value)` of its config and `tensors(fn)` of its file."""
  path = shutil.copytree(exported, tmp_path / 'adapter')

  def change(**values):
    config = {**json.loads((path / 'adapter_config.json').read_text()), **values}
    (path / 'adapter_config.json').write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))

  def tensors(fn):
    there = fn(safetensors.numpy.load_file(path / 'adapter_model.safetensors'))
    there = {k: np.ascontiguousarray(v) for k, v in there.items()}
    safetensors.numpy.save_file(there, path / 'adapter_model.safetensors')

  return types.SimpleNamespace(path=path, change=change, tensors=tensors)


@pytest.fixture
def refuses(trained, folder):
  """`refuses(*words, method__rank=4)`: a run that starts from `folder` is refused with these words."""

  def check(*words, screen=True, **changes):
    with pytest.raises(InputError) as e:
      runs.build(trained.config(model__adapter=str(folder.path), **changes))
    text = str(e.value)
    missing = [w for w in words if w not in text]
    assert not missing, f'{missing} not in:\n{text}'
    if screen:
      one_screen(text)
    return text

  return check


def own(built):
  return {n: np.asarray(x) for n, x in trees.flatten(stack.unstack(built.load()[0])).items()}


def test_what_is_written(exported, tiny_bert):
  assert sorted(p.name for p in exported.iterdir()) == [
    'README.md',
    'adapter_config.json',
    'adapter_model.safetensors',
    'ftlib.json',
  ]
  tensors = safetensors.numpy.load_file(exported / 'adapter_model.safetensors')
  assert sorted(tensors) == sorted(KEYS)
  assert tensors[KEYS[0]].shape == (8, 32)
  config = json.loads((exported / 'adapter_config.json').read_text())
  assert list(config) == sorted(config)
  assert config['base_model_name_or_path'] == str(tiny_bert)
  assert config['modules_to_save'] == ['classifier', 'score']
  assert (config['peft_type'], config['task_type'], config['r'], config['lora_alpha']) == ('LORA', 'SEQ_CLS', 8, 16.0)
  assert config['target_modules'] == [k.removeprefix('base_model.model.')[:-14] for k in KEYS[:8:2]]


@pytest.mark.parametrize('layers', ['unroll', 'scan'])
def test_a_run_starts_from_it(trained, exported, layers):
  config = json.loads((trained.folder / 'config.json').read_text())
  before = runs.build(config, labels=['bad', 'good'], split='test')
  want = {n: np.asarray(x) for n, x in trees.flatten(judge.restored(before, trained.folder, 'best')[0]).items()}
  built = runs.build(trained.config(model__adapter=str(exported), model__layers=layers, seed=7))
  got = own(built)
  assert got.keys() == want.keys()
  for name in got:
    np.testing.assert_array_equal(got[name], want[name], err_msg=name)
  assert f'10 of 10 parameters of its own start from {exported}' in built.notes


def test_the_command(trained, tmp_path):
  output = tmp_path / 'out'
  argv = [sys.executable, '-m', 'ftlib.export', f'--workdir={trained.folder}', f'--output={output}']
  wrong = subprocess.run([*argv, '--format=pfet'], cwd=ROOT, capture_output=True, text=True)
  assert wrong.returncode == 2
  assert '--format=pfet is none of hf, peft; did you mean "peft"?' in wrong.stderr
  assert not output.exists()
  done = subprocess.run([*argv, '--format=peft'], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert f'--config.model.adapter={output} --config.method.name=lora' in done.stdout
  assert 'logits within' in done.stdout


def test_dropout_is_a_matter_of_training(trained, exported):
  built = runs.build(trained.config(model__adapter=str(exported), method__dropout=0.3))
  assert f'method.dropout=0.3 here, 0.1 in {exported}' in built.notes


def test_patterns_that_mean_the_same(trained, exported):
  changes = {'method__rank_pattern': 'attn/q$=8', 'method__target': '^layers/(0|1)/attn/[qv]$'}
  built = runs.build(trained.config(model__adapter=str(exported), **changes))
  assert len(own(built)) == 10


def test_patterns_of_the_folder(folder, refuses):
  folder.change(alpha_pattern={'layer.0.attention.self.query': 4.0})
  refuses('with other settings', "--config.method.alpha_pattern='^layers/0/attn/q$=4.0'")


# --- the head


def test_other_labels(trained, exported, folder, data):
  rows = [{**r, 'label': {'good': 'yes', 'bad': 'no'}[r['label']]} for r in tiny.rows(24, 3)]
  path = str(data(train=rows, validation=rows, test=rows))
  built = runs.build(trained.config(model__adapter=str(exported), data__path=path))
  assert "head/out/kernel is made new: the labels there are ['bad', 'good']" in built.notes
  assert any(n.startswith('8 of 10 parameters of its own start from') for n in built.notes)
  (folder.path / 'ftlib.json').unlink()
  built = runs.build(trained.config(model__adapter=str(folder.path), data__path=path))
  assert f'{folder.path} does not name its labels; its classes are taken for no, yes' in built.notes
  assert any(n.startswith('10 of 10 parameters') for n in built.notes)


def test_another_number_of_classes(trained, exported, data):
  rows = [{**r, 'label': ('good', 'bad', 'odd')[i % 3]} for i, r in enumerate(tiny.rows(24, 3))]
  config = trained.config(model__adapter=str(exported), data__path=str(data(train=rows, validation=rows)))
  built = runs.build(config)
  assert own(built)['head/out/kernel'].shape == (32, 3)
  assert any(n.startswith('head/out/kernel is made new') for n in built.notes)


def with_pooler(folder, value):
  folder.change(modules_to_save=['classifier', 'score', 'pooler.dense'])
  names = {k: f'base_model.model.bert.pooler.dense.{k}' for k in ('weight', 'bias')}
  folder.tensors(lambda t: {**t, **{names[k]: value[k] for k in names}})


def test_modules_that_are_frozen_here(trained, folder, refuses, tiny_bert):
  base = safetensors.numpy.load_file(tiny_bert / 'model.safetensors')
  pooler = {k: base[f'bert.pooler.dense.{k}'] for k in ('weight', 'bias')}
  with_pooler(folder, pooler)
  assert len(own(runs.build(trained.config(model__adapter=str(folder.path))))) == 10
  with_pooler(folder, {**pooler, 'weight': pooler['weight'] + 1})
  refuses('1 of its parameters are frozen in this run', 'pooler/kernel', "--config.method.also='^(")
  built = runs.build(trained.config(model__adapter=str(folder.path), method__also='^head/|^pooler/'))
  np.testing.assert_array_equal(own(built)['pooler/kernel'], pooler['weight'].T + 1)


# --- what is refused of a folder


def test_keys_and_shapes(folder, refuses):
  def damage(t):
    renamed = {k.replace('layer.1.attention.self.query', 'layer.1.attention.self.qeury'): v for k, v in t.items()}
    renamed[KEYS[2]] = renamed[KEYS[2]].T
    del renamed[KEYS[9]]
    return {**renamed, 'base_model.model.extra': np.zeros(3, np.float32)}

  folder.tensors(damage)
  text = refuses('3 missing:', '3 unknown:', '1 of another shape:', f'{KEYS[2]} is [32, 8], wanted [8, 32]')
  for key in (KEYS[4], KEYS[5], KEYS[9], 'base_model.model.extra'):
    assert key in text
  assert f'did you mean "{KEYS[4]}"?' in text


def test_all_of_many_keys_are_named(folder, refuses):
  more = {f'extra.{i}': np.zeros(1, np.float32) for i in range(50)}
  folder.tensors(lambda t: {**t, **more})
  text = refuses('50 unknown:', screen=False)
  assert all(f'  {k}\n' in f'{text}\n' for k in more)


def test_numbers(folder, refuses):
  folder.tensors(lambda t: {**t, KEYS[1]: np.full_like(t[KEYS[1]], np.nan)})
  refuses(KEYS[1], 'NaN or infinity')


def test_files(folder, refuses):
  (folder.path / 'model.safetensors').write_bytes((folder.path / 'adapter_model.safetensors').read_bytes())
  refuses('holds model.safetensors beside adapter_model.safetensors')
  (folder.path / 'model.safetensors').unlink()
  (folder.path / 'adapter_model.safetensors').rename(folder.path / 'adapter_model.bin')
  refuses('only adapter_model.bin', 'pickled weights can run code and are refused', 'safe_serialization=True')
  (folder.path / 'adapter_model.bin').unlink()
  refuses('holds no adapter_model.safetensors')
  (folder.path / 'adapter_model.safetensors').write_bytes(b'\x80\x04K\x01.' + b'x' * 60)
  refuses('pickle named .safetensors')
  (folder.path / 'adapter_config.json').write_text('{"r": 8')
  refuses('adapter_config.json is not valid JSON')
  (folder.path / 'adapter_config.json').unlink()
  refuses('holds no adapter_config.json')


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'rank': 4}, ['method.rank: 8 there, 4 here', 'set --config.method.rank=8']),
    (
      {'alpha': 5.0, 'rank': 2},
      ['method.alpha: 16.0 there, 5.0 here', '--config.method.rank=8 --config.method.alpha=16'],
    ),
    ({'target': 'attn/q$'}, ['method.target', r"--config.method.target='^(layers/\d+/(attn/q|attn/v))$'"]),
    ({'rank_pattern': 'attn/q$=4'}, ['method.rank_pattern', "--config.method.rank_pattern=''"]),
    ({'scaling': 'rsqrt'}, ['method.scaling', '--config.method.scaling=alpha/rank']),
  ],
)
def test_other_settings(refuses, changes, words):
  refuses('is an adapter of method.name=lora with other', *words, **{f'method__{k}': v for k, v in changes.items()})


def test_another_method(refuses):
  refuses('PEFT type LORA, and no form of method.name=bitfit', '--config.method.name=lora', method='bitfit')
  refuses('PEFT type LORA, and no form of method.name=ia3', '--config.method.name=lora', method='ia3')


def test_settings_that_ftlib_lacks(folder, refuses):
  folder.change(use_qalora=True, a_key_of_tomorrow=3, layer_replication=[[0, 1]], task_type='CAUSAL_LM')
  refuses('adapter_config.json', 'use_qalora', 'a_key_of_tomorrow', 'layer_replication')
  folder.change(use_qalora=False, a_key_of_tomorrow=None, layer_replication=None)
  refuses("task_type='CAUSAL_LM' (only SEQ_CLS)", 'merge the adapter with peft')
  folder.change(task_type='SEQ_CLS', target_modules=['nothing'])
  refuses("target_modules=['nothing'] names no module of this model")
  folder.change(peft_type='XLORA')
  refuses('PEFT type XLORA', 'no method of ftlib can read it')
  folder.change(peft_type=...)
  refuses('has no "peft_type"')


def test_another_base(trained, folder, refuses, tmp_path):
  (tmp_path / 'other').mkdir()
  other = str(tiny.bert_folder(tmp_path / 'other', hidden_act='relu'))
  refuses('was trained on another base model', 'tiny_bert', 'set model.pretrained', model__pretrained=other)
  (folder.path / 'ftlib.json').unlink()  # as PEFT writes it; the base that it names lies here
  refuses('was trained on another base model', f'here {other}', 'set model.pretrained', model__pretrained=other)
  folder.change(base_model_name_or_path=str(tmp_path / 'gone'))  # by the name alone it cannot be known
  built = runs.build(trained.config(model__adapter=str(folder.path), model__pretrained=other))
  assert any('was trained on' in n and n.endswith(f'is it {other}?') for n in built.notes)
  (tmp_path / 'gone').mkdir()  # no model
  asked = lambda name: peft_folder.check_base(source, '', name, tmp_path / 'other')  # noqa: E731
  source = peft_folder.opened(folder.path, field='model.adapter=X')
  assert 'is it lab/b?' in asked('lab/b')[0]
  folder.change(base_model_name_or_path='lab/a')
  source = peft_folder.opened(folder.path, field='model.adapter=X')
  assert asked('lab/a') == asked('mirror/a') == []
  with pytest.raises(InputError, match=r'there lab/a .*, here lab/b(.|\n)*base_model_name_or_path'):
    asked('lab/b')


# --- what is refused of a run


def test_a_method_without_a_form(trained, monkeypatch):
  config = trained.config(method='bitfit')
  monkeypatch.setattr(export.folder, 'stored', lambda where: (config, ['bad', 'good']))
  monkeypatch.setattr(export.judge, 'restored', lambda run, *_: (*run.load(), 1))
  with pytest.raises(InputError, match=r'PEFT has no form of method\.name=bitfit; --format=hf merges it'):
    export.export(trained.folder, trained.folder / 'none', format='peft')
  assert not (trained.folder / 'none').exists()


def test_a_module_that_trains_whole_and_has_an_adapter(trained, monkeypatch):
  config = trained.config(method__target='pooler|attn/q$', method__also='^head/|^pooler/bias')
  monkeypatch.setattr(export.folder, 'stored', lambda where: (config, ['bad', 'good']))
  monkeypatch.setattr(export.judge, 'restored', lambda run, *_: (*run.load(), 1))
  with pytest.raises(InputError, match='saves a module whole or puts an adapter on it') as e:
    export.export(trained.folder, trained.folder / 'none', format='peft')
  assert 'pooler/bias' in str(e.value)
  assert 'attn/q' not in str(e.value)


# --- patterns of sites


def test_a_pattern_finds_its_sites_alone():
  model = bert.build(bert.from_hf({**tiny.CONFIG, 'num_hidden_layers': 12}), head=Head('classify', 2))
  sites, rng = list(model.sites()), np.random.default_rng(0)
  for size in (1, 2, 5, 20, len(sites)):
    chosen = sorted(rng.choice(sites, size, replace=False))
    text = peft_config.pattern(chosen, 12)
    assert sorted(trees.matching(text, sites, field='x')) == chosen
  assert peft_config.pattern([f'layers/{i}/attn/{x}' for i in range(12) for x in 'qv'], 12) == (
    r'^(layers/\d+/(attn/q|attn/v))$'
  )
