"""`model.adapter`: a run that starts from another run's best checkpoint."""

import json
import shutil

import jax
import numpy as np
import pytest

from ftlib import fine_tune, judge
from ftlib import run as runs
from ftlib.base import trees
from ftlib.models import stack
from tests import tiny


@pytest.fixture(scope='package')
def values(trained):
  """{name: value} of the trained run's best checkpoint."""
  config, labels = json.loads((trained.folder / 'config.json').read_text()), ['bad', 'good']
  built = runs.build(config, labels=labels, split='test')
  trainable, _, step = judge.restored(built, trained.folder, 'best')
  return step, {n: np.asarray(x) for n, x in trees.flatten(trainable).items()}


def loaded(built):
  """{name: value}, layers unstacked, of what trains at the start of a run."""
  return {n: np.asarray(x) for n, x in trees.flatten(stack.unstack(built.load()[0])).items()}


def three_classes(data):
  rows = [{**r, 'label': ('good', 'bad', 'odd')[i % 3]} for i, r in enumerate(tiny.rows(24, 3))]
  return str(data(train=rows, validation=rows))


def test_starting_values(trained, values):
  step, there = values
  built = runs.build(trained.config(model__adapter=str(trained.folder), seed=5))
  here = loaded(built)
  assert here.keys() == there.keys()
  for name in here:
    np.testing.assert_array_equal(here[name], there[name], err_msg=name)
  assert f'10 of 10 parameters of its own start from {trained.folder}, checkpoint {step}' in built.notes
  assert any(here[n].any() for n in here if n.endswith('adapter/b'))  # it was trained
  plain = loaded(runs.build(trained.config(seed=5)))
  assert not np.array_equal(plain['layers/0/attn/q/adapter/a'], here['layers/0/attn/q/adapter/a'])


def test_layers_that_are_scanned_here(trained, values):
  built = runs.build(trained.config(model__adapter=str(trained.folder), model__layers='scan'))
  here = loaded(built)
  assert any(n.startswith('layers/0:2/') for n in built.train_info)
  for name, value in values[1].items():
    np.testing.assert_array_equal(here[name], value, err_msg=name)


def test_other_classes(trained, values, data):
  config = trained.config(model__adapter=str(trained.folder), data__path=three_classes(data))
  built = runs.build(config)
  here = loaded(built)
  assert here['head/out/kernel'].shape == (32, 3)
  name = 'layers/1/attn/v/adapter/b'
  np.testing.assert_array_equal(here[name], values[1][name])
  assert f'head/out/kernel is made new: [32, 2] in {trained.folder}, [32, 3] here' in built.notes
  assert any(n.startswith('8 of 10 parameters of its own start from') for n in built.notes)


def test_as_many_classes_of_other_names(trained, values, data):
  rows = [{**r, 'label': {'good': 'yes', 'bad': 'no'}[r['label']]} for r in tiny.rows(24, 3)]
  path = str(data(train=rows, validation=rows, test=rows))
  built = runs.build(trained.config(model__adapter=str(trained.folder), data__path=path))
  assert f'head/out/kernel is made new: the labels of {trained.folder} are bad, good' in built.notes
  assert not np.array_equal(loaded(built)['head/out/kernel'], values[1]['head/out/kernel'])


def test_other_ranks(trained, values, config):
  built = runs.build(trained.config(model__adapter=str(trained.folder), method__rank=4))
  notes = [n for n in built.notes if 'is made new' in n]
  assert len(notes) == 8
  np.testing.assert_array_equal(loaded(built)['head/out/kernel'], values[1]['head/out/kernel'])


def test_a_run_from_an_adapter(trained, values, data, workdir, capsys):
  """It trains, resumes and is evaluated, the last two without the folder that it started from."""
  path = workdir.with_name('first')
  shutil.copytree(trained.folder, path)
  config = trained.config(model__adapter=str(path), optim__learning_rate=1e-12, train__steps=1, seed=3)
  fine_tune.run(config, workdir)
  assert f'parameters of its own start from {path}' in capsys.readouterr().out
  assert json.loads((workdir / 'config.json').read_text())['model']['adapter'] == str(path)
  built = runs.build(json.loads((workdir / 'config.json').read_text()))
  trainable = jax.device_get(judge.restored(built, workdir, 'last')[0])
  for name, value in trees.flatten(trainable).items():
    np.testing.assert_allclose(value, values[1][name], rtol=0, atol=1e-8, err_msg=name)
  shutil.rmtree(path)
  config.train.steps = 2
  fine_tune.run(config, workdir)
  assert 'resumed at step 1 of 2' in capsys.readouterr().out
  assert judge.run(str(workdir), split='validation', checkpoint='last')['loss'] > 0


# --- what is refused


def test_no_run(trained, config, refused, tmp_path):
  near = trained.folder.with_name('rnu')
  words = [f'model.adapter={near}: there is no such folder', 'did you mean "run"?']
  refused(config(model__adapter=str(near)), *words)
  words = [f'model.adapter={tmp_path} is no run folder', 'run.json']
  refused(config(model__adapter=str(tmp_path)), *words)


def test_no_checkpoint(trained, config, refused, tmp_path):
  path = shutil.copytree(trained.folder, tmp_path / 'first')
  shutil.rmtree(path / 'checkpoints')
  refused(config(model__adapter=str(path)), f'model.adapter={path} holds no checkpoint yet', 'train it first')


def test_a_damaged_checkpoint(trained, values, config, refused, tmp_path):
  path = shutil.copytree(trained.folder, tmp_path / 'first')
  file = max((path / 'checkpoints' / str(values[0]) / 'state').rglob('d/*'), key=lambda p: p.stat().st_size)
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 1
  file.write_bytes(bytes(data))
  refused(config(model__adapter=str(path)), f'checkpoint of step {values[0]}', 'has changed since it was written')


def test_another_base_model(trained, refused, tmp_path):
  other = tmp_path / 'other'
  other.mkdir()
  tiny.bert_folder(other, hidden_act='relu')
  config = trained.config(model__adapter=str(trained.folder), model__pretrained=str(other))
  words = [f'model.adapter={trained.folder} was trained on another base model', 'tiny_bert', 'set model.pretrained']
  refused(config, *words)


def test_parameters_that_this_model_lacks(trained, refused):
  words = ['8 of its 10 parameters are not in this model', 'layers/0/attn/q/adapter/a', 'method.name=lora']
  refused(trained.config(model__adapter=str(trained.folder), method='full'), *words)
  words = ['4 of its 10 parameters are not in this model', 'layers/1/attn/v/adapter/b']
  refused(trained.config(model__adapter=str(trained.folder), method__target='attn/q$'), *words)


def test_parameters_that_are_frozen_here(trained, values, refused, tmp_path):
  """Frozen parameters are in no checkpoint of the new run: taking them over would lose them."""
  path = shutil.copytree(trained.folder, tmp_path / 'first')
  meta = path / 'checkpoints' / str(values[0]) / 'meta.json'
  meta.write_text(meta.read_text().replace('trainable/head/out/bias', 'trainable/pooler/bias'))  # as of another method
  words = ['1 of its 10 parameters are frozen in this run', 'pooler/bias', 'method.name=lora; use the same']
  refused(trained.config(model__adapter=str(path)), *words)


def test_nothing_of_it_fits(trained, refused, data):
  config = trained.config(model__adapter=str(trained.folder), data__path=three_classes(data), method__rank=4)
  refused(config, 'nothing of it can be used here', 'head/out/kernel is made new')
