"""Wrong settings, data and model folders: train.py says what, where and what to do, and makes no folder."""

import json
import os
import shutil

import numpy as np
import pytest
import safetensors.numpy

from ftlib import run as runs
from ftlib import show
from ftlib.base import layout
from ftlib.base.errors import InputError
from tests import tiny

ROWS = tiny.rows(24, 9)


def with_row(i, **values):
  """The rows with line i + 1 changed; a value of `...` takes the column away."""
  row = {k: v for k, v in {**ROWS[i], **values}.items() if v is not ...}
  return [*ROWS[:i], row, *ROWS[i + 1 :]]


# --- settings that do not fit model, data or machine

SETTINGS = {
  'no site': (
    {'method__target': 'attn/x$'},
    ["method.target='attn/x$' matches none of the 14 sites", 'layers/*/attn/q', 'layers/*/mlp/down', 'pooler'],
  ),
  'no expression': ({'method__target': 'attn/('}, ["method.target='attn/('", 'no regular expression']),
  'part of another task': ({'method__also': '^mlm/'}, ["method.also='^mlm/' matches none", 'head/out/kernel']),
  'also': ({'method__also': '^haed/'}, ["method.also='^haed/' matches none", 'head/out/kernel']),
  'rank': ({'method__rank': 64}, ['method.rank=64 is larger than a matrix of 32 x 32']),
  'warmup': ({'optim__warmup_steps': 9}, ['9 warmup steps', 'the run has 8', 'lower optim.warmup_steps']),
  'group without names': (
    {'optim__groups': {'emb': {'pattern': '^embed/'}}},
    ["optim.groups.emb.pattern='^embed/' matches none of the 10 trainable parameters", 'head/out/kernel'],
  ),
  'group emptied': (
    {'optim__groups': {'all': {'pattern': '.'}, 'head': {'pattern': '^head/'}}},
    ['optim.groups.head is empty', "earlier groups took all that '^head/' matches"],
  ),
  'group key': (
    {'optim__groups': {'head': {'patern': '^head/'}}},
    ['optim.groups.head.patern', 'did you mean "pattern"?'],
  ),
  'class weights': (
    {'objective__class_weights': 'god=2'},
    ["objective.class_weights='god=2'", 'did you mean "good"?', 'labels are bad, good'],
  ),
  'class weight': ({'objective__class_weights': 'good=x'}, ["'x' is no number"]),
  'smoothing': ({'objective__label_smoothing': 1.0}, ['objective.label_smoothing=1.0', 'below 1']),
  'metric': (
    {'checkpoint__metric': 'acuracy'},
    ["checkpoint.metric='acuracy'", 'did you mean "accuracy"?', 'known: loss, accuracy'],
  ),
  'accumulate': ({'train__accumulate': 3}, ['train.batch_size=16', 'train.accumulate=3']),
  'mesh too large': ({'mesh__shape': 'data=16'}, ["mesh.shape='data=16' wants 16 devices", 'there are 8', 'lower it']),
  'mesh axis': ({'mesh__shape': 'dat=2'}, ["mesh.shape='dat=2'", 'did you mean "data"?']),
  'mesh size': ({'mesh__shape': 'data=two'}, ["'data=two' is no positive size", 'data=4,fsdp=2']),
  'batch on mesh': (
    {'mesh__shape': 'data=3'},
    ['a batch of 16 rows does not divide', "mesh.shape='data=3'", 'train.batch_size', 'a multiple of 3'],
  ),
  'micro-batch on mesh': ({'mesh__shape': 'data=8', 'train__accumulate': 4}, ['a batch of 4 rows', 'train.accumulate']),
  'masters': (
    {'precision__trainable': 'bfloat16'},
    ['precision.trainable=bfloat16', 'kept in float32', 'precision.compute=bfloat16', 'precision.frozen=bfloat16'],
  ),
  'max_length': ({'train__max_length': 2}, ['train.max_length=2 leaves no room', '2 special tokens', 'give 0']),
  'pretrained empty': ({'model__pretrained': ''}, ['model.pretrained is empty', 'package:import_name/path']),
  'unknown package': (
    {'model__pretrained': 'package:no_such_package_here/model'},
    ['model.pretrained=', "no package 'no_such_package_here' is installed"],
  ),
  'unknown folder of a package': (
    {'model__pretrained': 'package:ftlib/modles'},
    ['model.pretrained=', 'did you mean "models"?'],
  ),
  'text': ({'task__text': 'txt'}, ['task.text', 'train.jsonl has no column "txt"', 'did you mean "text"?', 'label']),
  'pair': ({'task__pair': 'other'}, ['task.pair', 'no column "other"', '--config.task.pair=']),
  'label': ({'task__label': 'lable'}, ['task.label', 'did you mean "label"?', '--config.task.label=']),
}


@pytest.mark.parametrize('case', SETTINGS)
def test_settings(config, refused, case):
  changes, words = SETTINGS[case]
  refused(config(**changes), *words)


def test_more_layers_than_there_are(config, refused):
  refused(config(method='last_n', method__layers=3), 'method.layers=3', 'the model has 2 layers')


# --- data

DATA = {
  'empty file': ({'train': ''}, ['train.jsonl: is empty']),
  'malformed line': (
    {'train': '{"text": "a b", "label": "good"}\n{"text": "a b", label}\n{"text": "c", "label": "bad"}\n'},
    ['train.jsonl:2: not valid JSON at column', 'one whole JSON object'],
  ),
  'cut off': ({'validation': '{"text": "a", "label": "good"}\n{"text": "a'}, ['validation.jsonl:2', 'is cut off']),
  'null text': ({'train': with_row(6, text=None)}, ['train.jsonl:7: "text" is null', 'data.on_bad_row=skip']),
  'missing text': ({'train': with_row(2, text=...)}, ['train.jsonl:3: "text" is missing', 'data.on_bad_row=skip']),
  'empty text': ({'train': with_row(2, text=' ')}, ['train.jsonl:3: "text" is empty']),
  'null label': ({'validation': with_row(2, label=None)}, ['validation.jsonl:3: "label" is null']),
  'a number as text': ({'train': with_row(2, text=5)}, ['train.jsonl:3: "text" is the int 5', '--config.task.text=']),
  'mixed labels': ({'train': with_row(4, label=1)}, ['"label" is of several kinds', 'train.jsonl:5: the integer 1']),
  'only one class': (
    {'train': [{**r, 'label': 'good'} for r in ROWS]},
    ["task.label='label'", "only one class, 'good'", 'two or more'],
  ),
  'label of no training row': (
    {'validation': with_row(3, label='god')},
    ["validation.jsonl:4: label 'god'", 'did you mean "good"?', '(1 such rows)', 'label list: bad, good'],
  ),
  'encoding': (
    {'train': json.dumps(ROWS[0]).encode() + '\n{"text": "schön", "label": "good"}\n'.encode('latin-1')},
    ['train.jsonl:2: not utf-8 (byte 0xf6', '--config.data.encoding=latin-1'],
  ),
}


@pytest.mark.parametrize('case', DATA)
def test_data(config, refused, data, case):
  splits, words = DATA[case]
  refused(config(data=data(**splits)), *words)


def test_missing_files(config, refused, data, tmp_path):
  folder = data()
  refused(config(data=tmp_path / 'dta'), 'no such file or folder', 'did you mean "data"?', '--config.data.path=')
  refused(config(data=folder / 'tset.jsonl'), 'no such file', 'did you mean "test.jsonl"?')
  refused(config(data__path=''), 'data.path is empty', '--config.data.path=')
  (folder / 'train.jsonl').rename(folder / 'trian.jsonl')
  refused(config(data=folder), 'has no train file', 'trian.jsonl', 'train.EXT')


LONG = ' '.join(['movie'] * 60)


def test_some_rows_longer_than_the_model(config, data):
  built = runs.build(config(data=data(train=with_row(1, text=LONG)), train__max_length=0))
  assert built.limit == 40
  assert built.examples['train'].tokens.lengths[1] == 40
  note = 'train: 1 of 24 rows (4.2%) were cut to 40 tokens'
  assert note in built.notes
  assert f'note  {note}' in show.summary(built, 'runs/x')


def test_most_rows_longer_than_the_model(config, data, refused):
  folder = data(validation=[{**r, 'text': LONG} if i < 13 else r for i, r in enumerate(ROWS)])
  words = ['validation: 13 of 24 rows are longer than the 40 tokens', 'positions', 'cut the texts into pieces']
  refused(config(data=folder, train__max_length=0), *words)
  refused(config(data=folder, train__max_length=128), *words)
  assert runs.build(config(data=folder, train__max_length=20)).limit == 20  # what was asked for is no error


# --- model folders


def change_config(folder, **values):
  path = folder / 'config.json'
  path.write_text(json.dumps({k: v for k, v in {**json.loads(path.read_text()), **values}.items() if v is not ...}))


def change_weights(folder, change):
  path = folder / 'model.safetensors'
  tensors = safetensors.numpy.load_file(path)
  change(tensors)
  safetensors.numpy.save_file(tensors, path)


def truncated(folder):
  path = folder / 'model.safetensors'
  os.truncate(path, path.stat().st_size // 2)


def pickled(folder):
  (folder / 'model.safetensors').unlink()
  (folder / 'pytorch_model.bin').write_bytes(b'\x80\x04.')


def larger_vocabulary(folder):
  words = ' '.join(r['text'] for r in ROWS).split()
  lines = (folder / 'vocab.txt').read_text().split('\n')
  place = lines.index(words[0])
  (folder / 'vocab.txt').write_text('\n'.join([*lines[:place], '[moved]', *lines[place + 1 : -1], words[0]]) + '\n')


QUERY = 'bert.encoder.layer.0.attention.self.query.weight'
MODELS = {
  'truncated': (truncated, ['model.safetensors', 'truncated']),
  'empty weights': (lambda f: (f / 'model.safetensors').write_bytes(b''), ['model.safetensors', 'truncated']),
  'another shape': (
    lambda f: change_weights(f, lambda t: t.update({QUERY: np.zeros((32, 16), np.float32)})),
    ['1 of another shape', f'{QUERY} is [32, 16], wanted [32, 32]'],
  ),
  'missing': (lambda f: change_weights(f, lambda t: t.pop(QUERY)), ['1 missing', QUERY]),
  'surplus': (
    lambda f: change_weights(f, lambda t: t.update({'bert.odd.weight': np.zeros(3, np.float32)})),
    ['1 surplus', 'bert.odd.weight'],
  ),
  'not finite': (
    lambda f: change_weights(f, lambda t: t[QUERY].__setitem__((0, 0), np.nan)),
    ['model.safetensors', QUERY, 'NaN or infinity'],
  ),
  'pickled': (pickled, ['pytorch_model.bin', 'can run code and are refused', 'safe_serialization=True']),
  'no weights': (lambda f: (f / 'model.safetensors').unlink(), ['holds no model.safetensors']),
  'no config': (lambda f: (f / 'config.json').unlink(), ['holds no config.json']),
  'config is not JSON': (lambda f: (f / 'config.json').write_text('{'), ['config.json is not JSON', 'line 1']),
  'model_type': (
    lambda f: change_config(f, model_type='brt'),
    ["config.json: model_type='brt'", 'did you mean "bert"?', 'known: albert'],
  ),
  'unknown key': (
    lambda f: change_config(f, rope_theta=10000),
    ['config.json', 'rope_theta=10000 is not known', '--config.model.allow_config=PATTERN'],
  ),
  'unsupported value': (
    lambda f: change_config(f, is_decoder=True),
    ['config.json', 'is_decoder=True is not supported (only False)'],
  ),
  'missing key': (lambda f: change_config(f, hidden_size=...), ['config.json', 'hidden_size is missing']),
  'larger vocabulary': (
    larger_vocabulary,
    ['the tokenizer gives token id 64, the model has 64 embeddings', 'belongs to another model'],
  ),
  'no tokenizer': (lambda f: (f / 'vocab.txt').unlink(), ['holds no tokenizer', 'vocab.txt', 'copy them']),
  'damaged tokenizer': (lambda f: (f / 'tokenizer.json').write_text('{'), ['the tokenizer cannot be loaded']),
}


@pytest.mark.parametrize('case', MODELS)
def test_models(config, refused, model, data, case):
  change, words = MODELS[case]
  change(model)
  refused(config(model__pretrained=str(model), data=data(train=ROWS)), str(model), *words)


def test_allowed_key(config, model):
  change_config(model, rope_theta=10000)
  runs.build(config(model__pretrained=str(model), model__allow_config='^rope_theta$'))


def test_places_of_models(config, refused, model, monkeypatch):
  refused(config(model__pretrained=str(model / 'config.json')), 'is a file', 'the folder that holds config.json')
  refused(config(model__pretrained=f'{model}l'), 'there is no such folder', 'did you mean "model"?')
  monkeypatch.setenv('HF_HUB_OFFLINE', '1')
  monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
  words = ['model.pretrained=', 'is no folder here, and could not be had from the Hugging Face hub']
  refused(config(model__pretrained='somebody/no-such-model-of-ours'), *words)
  monkeypatch.chdir(model.parent)
  refused(config(model__pretrained='modle'), '\'modle\' is no folder here; did you mean "model"? and', 'hub')


def test_one_device(monkeypatch):
  devices = layout.jax.devices()
  monkeypatch.setattr(layout.jax, 'devices', lambda: devices[:1])
  with pytest.raises(InputError, match=r"mesh\.shape='data=2' wants 2 devices; there is 1"):
    layout.build('data=2', batch=16)


def test_work_folder_that_cannot_be(config, refused, tmp_path, workdir):
  file = tmp_path / 'file'
  file.write_text('mine')
  refused(config(), f'--workdir={file} is a file', call=lambda: runs_in(config(), file))
  refused(config(), 'cannot write to run folder', call=lambda: runs_in(config(), file / 'run'))
  assert file.read_text() == 'mine'
  shutil.rmtree(workdir, ignore_errors=True)


def runs_in(config, workdir):
  from ftlib import fine_tune

  return fine_tune.run(config, workdir)
