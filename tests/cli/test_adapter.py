"""`model.adapter`: a run that starts from another run's best checkpoint, or from some of its parameters."""

import json
import shutil

import jax
import numpy as np
import pytest

from ftlib import adapter, export, fine_tune, judge
from ftlib import run as runs
from ftlib.base import trees
from ftlib.base.errors import InputError
from ftlib.io import hf
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


def test_what_trained_the_source(trained, workdir):
  """Schedule-free sources are refused, their parameters are not what was judged; gone code from outside is a note."""
  path = workdir.with_name('first')
  shutil.copytree(trained.folder, path)
  settings = json.loads((path / 'config.json').read_text())

  def build(name):
    settings['optim']['name'] = name
    (path / 'config.json').write_text(json.dumps(settings))
    return runs.build(trained.config(model__adapter=str(path)))

  with pytest.raises(InputError, match='was trained with schedule_free_adamw, which evaluates with a mean'):
    build('schedule_free_adamw')
  assert any('gone_lab.gone cannot be imported here' in n for n in build('gone_lab.gone').notes)
  assert not any('cannot be imported' in n for n in build('adamw').notes)


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


# --- some of its parameters


def base_of(built):
  """{name: value}, layers unstacked, of what is frozen at the start of a run."""
  return {n: np.asarray(x) for n, x in trees.flatten(stack.unstack(built.load()[1])).items()}


@pytest.fixture(scope='module')
def whole(trained, full):
  """{name: value} of the best checkpoint of the run of method=full."""
  source = adapter.opened(full, json.loads((full / 'run.json').read_text())['weights'], 'x')
  return source.values([*source.held()])


def test_parts(trained, values):
  plain = loaded(runs.build(trained.config(seed=5)))
  config = trained.config(model__adapter=str(trained.folder), seed=5)
  for parts, taken in (('head', ['head']), ('adapter', ['layers']), ('adapter,head', ['head', 'layers'])):
    config.model.adapter_parts = parts
    here = loaded(runs.build(config))
    for name in here:
      want = values[1] if name.split('/')[0] in taken else plain
      np.testing.assert_array_equal(here[name], want[name], err_msg=f'{parts} {name}')


def test_a_head_for_another_method(trained, values):
  config = trained.config(method='bitfit', model__adapter=str(trained.folder), model__adapter_parts='head')
  built = runs.build(config)
  np.testing.assert_array_equal(loaded(built)['head/out/kernel'], values[1]['head/out/kernel'])
  assert any(n.startswith('2 of ') and 'start from' in n for n in built.notes)
  assert 'adapter' not in built.identity


def test_the_encoder_alone(trained, whole, full, data):
  config = trained.config(method='full', model__adapter=str(full), data__path=three_classes(data))
  config.model.adapter_parts = 'encoder'
  built = runs.build(config)
  here = loaded(built)
  for name in ('layers/0/attn/q/kernel', 'pooler/kernel', 'embed/token/table'):
    np.testing.assert_array_equal(here[name], whole[name])
  assert not any('made new' in n for n in built.notes)  # the head is not looked at
  assert 'adapter' not in built.identity


def test_parts_of_a_folder_of_peft(trained, values, tmp_path):
  export.export(trained.folder, tmp_path / 'peft', format='peft')
  config = trained.config(model__adapter=str(tmp_path / 'peft'), seed=5)
  plain = loaded(runs.build(trained.config(seed=5)))
  config.model.adapter_parts = 'adapter'
  here = loaded(runs.build(config))
  for name in here:
    want = plain if name.startswith('head/') else values[1]
    np.testing.assert_array_equal(here[name], want[name], err_msg=name)
  config = trained.config(method='bitfit', model__adapter=str(tmp_path / 'peft'), model__adapter_parts='head')
  built = runs.build(config)
  np.testing.assert_array_equal(loaded(built)['head/out/kernel'], values[1]['head/out/kernel'])
  config.model.adapter_parts = 'encoder'
  with pytest.raises(InputError, match=r'nothing of it can be used with model.adapter_parts=encoder'):
    runs.build(config)


def test_wrong_parts(trained, refused):
  config = trained.config(method='bitfit', model__adapter=str(trained.folder), model__adapter_parts='encoder')
  refused(config, 'holds nothing of model.adapter_parts=encoder', 'it has adapter, head')
  config.model.adapter_parts = 'head,encodr'
  refused(config, "'encodr' is none of all, encoder, head, adapter", 'did you mean "encoder"?')
  config.model.adapter_parts, config.model.adapter = 'head', ''
  refused(config, "adapter_parts='head'", 'model.adapter, which is not given')


# --- frozen parameters that start from a run


@pytest.fixture(scope='package')
def upon(trained, full):
  """LoRA upon a copy of the run of method=full: (folder, the copy, its metrics). Copy them before you change them."""
  source, folder = full.with_name('source'), full.with_name('upon')
  shutil.copytree(full, source)
  config = trained.config(model__adapter=str(source), train__steps=2, train__eval_every=1, optim__learning_rate=1e-3)
  metrics = fine_tune.run(config, folder)
  return folder, source, config, metrics


def test_frozen_parameters_start_from_it(trained, full, whole):
  built = runs.build(trained.config(model__adapter=str(full), precision__frozen='bfloat16'))
  frozen, own = base_of(built), loaded(built)
  assert len(frozen) > 30
  for name, value in frozen.items():
    np.testing.assert_array_equal(value, whole[name].astype(value.dtype), err_msg=name)
  np.testing.assert_array_equal(own['head/out/kernel'], whole['head/out/kernel'])
  pretrained = base_of(runs.build(trained.config()))
  assert not np.array_equal(frozen['layers/0/attn/q/kernel'], pretrained['layers/0/attn/q/kernel'])
  assert any(n.startswith(f'{len(frozen)} frozen parameters start from {full}') for n in built.notes)
  assert len(built.identity['adapter']) == 64


def test_it_is_evaluated_and_exported_upon_it(upon, whole, tmp_path):
  folder, source, _, metrics = upon
  assert judge.run(str(folder), split='validation', checkpoint='best')['loss'] == pytest.approx(
    metrics['loss'], abs=1e-6
  )
  assert export.export(folder, tmp_path / 'hf') < 1e-4
  there = hf.Weights(tmp_path / 'hf')
  kernel = there.read('bert.encoder.layer.0.intermediate.dense.weight')  # LoRA is on queries and values
  np.testing.assert_array_equal(kernel.T, whole['layers/0/mlp/up/kernel'])
  with pytest.raises(InputError, match=f'start from {source}; PEFT would put the adapter on the wrong base'):
    export.export(folder, tmp_path / 'peft', format='peft')


def test_it_resumes_upon_it_wherever_it_lies(upon, capsys, workdir, tmp_path):
  folder, source, config, _ = upon
  shutil.copytree(folder, workdir)
  moved = shutil.copytree(source, tmp_path / 'moved')
  config = config.copy_and_resolve_references()
  config.train.steps, config.model.adapter = 3, str(moved)
  fine_tune.run(config, workdir)
  assert 'resumed at step 2 of 3' in capsys.readouterr().out
  assert json.loads((workdir / 'config.json').read_text())['model']['adapter'] == str(moved)
  shutil.rmtree(moved)
  with pytest.raises(InputError, match=r'there is no such folder, and the frozen parameters of .* start from it'):
    judge.run(str(workdir), split='validation', checkpoint='best')


def test_it_is_refused_upon_another(upon, refused, workdir, tmp_path):
  folder, source, config, _ = upon
  shutil.copytree(folder, workdir)
  other = shutil.copytree(source, tmp_path / 'other')
  best = adapter.opened(other, json.loads((other / 'run.json').read_text())['weights'], 'x').step
  shutil.rmtree(other / 'checkpoints' / str(best))  # then another one is the best
  config = config.copy_and_resolve_references()
  config.train.steps, config.model.adapter = 3, str(other)
  refused(config, 'it differs in', 'model.adapter (its content)', 'give another --workdir')
  config.model.adapter = ''
  refused(config, 'it differs in', 'model.adapter (its content)')
  stored = json.loads((workdir / 'config.json').read_text())
  stored['model']['adapter'] = str(other)
  (workdir / 'config.json').write_text(json.dumps(stored))
  call = lambda: judge.run(str(workdir), split='validation', checkpoint='best')  # noqa: E731
  refused(None, f'model.adapter={other} has changed since', 'put it back', call=call)
  with pytest.raises(InputError, match=r'its frozen parameters start from .*other, which has changed since'):
    adapter.opened(workdir, stored_weights(workdir), 'x')


def stored_weights(folder):
  return json.loads((folder / 'run.json').read_text())['weights']


def test_a_run_from_a_run_from_a_run(upon, trained, whole):
  """What the second started from is handed on; its own parameters come first."""
  folder, _, _, _ = upon
  built = runs.build(trained.config(model__adapter=str(folder), method='lora+bitfit'))
  frozen, own = base_of(built), loaded(built)
  second = adapter.opened(folder, stored_weights(folder), 'x')
  mine = second.values([*second.own])
  for name, value in frozen.items():
    np.testing.assert_array_equal(value, whole[name], err_msg=name)
  for name, value in own.items():
    np.testing.assert_array_equal(value, mine[name] if name in mine else whole[name], err_msg=name)
  assert not np.array_equal(mine['head/out/kernel'], whole['head/out/kernel'])
  assert 'layers/0/attn/q/bias' in own  # which bitfit trains
  assert 'adapter' in built.identity


def test_an_exported_run_is_a_model(full, whole, trained, data, tmp_path):
  """The other way: model.pretrained takes what --format=hf wrote; with other labels the head is made new."""
  export.export(full, tmp_path / 'hf')
  built = runs.build(trained.config(model__pretrained=str(tmp_path / 'hf'), data__path=three_classes(data)))
  np.testing.assert_array_equal(base_of(built)['layers/1/mlp/down/kernel'], whole['layers/1/mlp/down/kernel'])
  assert loaded(built)['head/out/kernel'].shape == (32, 3)
  assert any(n.startswith('new, not in the checkpoint:') and 'head/out/kernel' in n for n in built.notes)
  assert 'adapter' not in built.identity


# --- what a method prepares


def started(config):
  built = runs.build(config)
  own = built.start(*built.load()).own
  return {n: np.asarray(x) for n, x in trees.flatten(stack.unstack(own)).items()}


def test_a_start_from_the_weights_follows_those_of_the_run(trained, full, whole):
  own = started(trained.config(model__adapter=str(full), method__init='pissa'))
  u, sizes, vt = np.linalg.svd(whole['layers/0/attn/q/kernel'].reshape(32, 32).T, full_matrices=False)
  a, b = (own[f'layers/0/attn/q/adapter/{x}'].reshape(s) for x, s in (('a0', (32, 8)), ('b0', (8, 32))))
  np.testing.assert_allclose(2 * (a @ b).T, (u[:, :8] * sizes[:8]) @ vt[:8], rtol=1e-3, atol=1e-5)


def test_a_start_of_another_rank_is_prepared(trained, values):
  """And one of the same rank is the run's: with a0 = b0 = 0 PiSSA computes what the LoRA there does."""
  config = trained.config(model__adapter=str(trained.folder), method__init='pissa', method__rank=4)
  assert started(config)['layers/0/attn/q/adapter/a0'].any()
  config.method.rank = 8
  own = started(config)
  assert not own['layers/0/attn/q/adapter/a0'].any()
  np.testing.assert_array_equal(own['layers/0/attn/q/adapter/a'], values[1]['layers/0/attn/q/adapter/a'])


@pytest.mark.slow
def test_entries_of_a_sparse_run(trained, workdir, refused, tmp_path):
  make = lambda **more: trained.config(method='sparse', method__choose='magnitude', **more)  # noqa: E731
  path = tmp_path / 'sparse'
  fine_tune.run(make(train__steps=1, method__density=0.02), path)
  source = adapter.opened(path, stored_weights(path), 'x')
  there = source.values([*source.own])
  name = 'layers/0/attn/q/adapter/'
  config = make(model__adapter=str(path), method__density=0.02)
  config.method.choose = 'random'
  own = started(config)
  for leaf in ('indices', 'values'):
    np.testing.assert_array_equal(own[name + leaf], there[name + leaf])
  config = make(model__adapter=str(path), method__density=0.05)
  refused(config, f'{name}indices: 20 entries there, 51 here', 'set method.density', 'adapter_parts=encoder,head')
  config.model.adapter_parts = 'encoder,head'
  own = started(config)
  kernel = base_of(runs.build(config))['layers/0/attn/q/kernel']
  np.testing.assert_array_equal(own[f'{name}indices'], np.sort(np.argsort(-abs(kernel), axis=None)[:51]))
  np.testing.assert_array_equal(own['head/out/kernel'], there['head/out/kernel'])


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


def test_nothing_of_it_fits(trained, refused, data):
  config = trained.config(model__adapter=str(trained.folder), data__path=three_classes(data), method__rank=4)
  refused(config, 'nothing of it can be used here', 'head/out/kernel is made new')
