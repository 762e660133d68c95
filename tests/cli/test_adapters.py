"""Several named adapters on one base: the same buffers, the same numbers as of their own runs, one table."""

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy

from ftlib import export, fine_tune, judge
from ftlib import run as runs
from ftlib.adapters import Adapters
from ftlib.base import trees
from ftlib.base.errors import InputError
from ftlib.io import hf
from ftlib.models import stack

LABELS = ['bad', 'good']


@pytest.fixture(scope='module')
def others(trained, full, tmp_path_factory):
  """{name: folder}: the trained LoRA, a folder of PEFT with twice its B, a run of last_n and one of method=full."""
  folder = tmp_path_factory.mktemp('others')
  export.export(trained.folder, folder / 'peft', format='peft')
  file = folder / 'peft' / 'adapter_model.safetensors'
  there = safetensors.numpy.load_file(file)
  safetensors.numpy.save_file({k: 2 * v if '.lora_B.' in k else v for k, v in there.items()}, file)
  fine_tune.run(trained.config(method='last_n', method__layers=1, train__steps=1), folder / 'last')
  return {'lora': trained.folder, 'peft': folder / 'peft', 'last': folder / 'last', 'full': full}


def base(trained, **changes):
  return runs.build(trained.config(**changes), labels=LABELS, split='test')


def logits_of_its_own_run(folder, batch):
  config = json.loads((folder / 'config.json').read_text())
  built = runs.build(config, labels=LABELS, split='test')
  own, frozen, _ = judge.restored(built, folder, 'best')
  return np.asarray(built.method.model.apply(stack.unstack(trees.join(own, frozen)), batch).logits)


@pytest.mark.parametrize('layers', ['unroll', 'scan'])
def test_each_computes_what_its_own_run_does(trained, others, layers):
  adapters = Adapters(base(trained, model__layers=layers))
  for name, path in others.items():
    adapters.add(name, path)
  assert adapters.names == ['lora', 'peft', 'last', 'full']
  batch = next(iter(adapters.use('lora').run.eval_batches('test')))[1]
  got = {name: np.asarray(adapters.use(name).logits(batch)) for name in adapters.names}
  for name in ('lora', 'last', 'full'):
    np.testing.assert_allclose(got[name], logits_of_its_own_run(others[name], batch), rtol=0, atol=2e-6, err_msg=name)
  assert min(np.abs(got[a] - got[b]).max() for a in got for b in got if a < b) > 1e-3
  np.testing.assert_array_equal(adapters.use('lora').logits(batch), got['lora'])  # whatever was used in between


def test_the_base_is_read_once_and_shared(trained, others, monkeypatch):
  read, reads = hf.Weights.read, []
  monkeypatch.setattr(hf.Weights, 'read', lambda self, key: (reads.append((self.folder, key)), read(self, key))[1])
  built = base(trained, model__layers='scan')
  adapters = Adapters(built)
  for name in ('lora', 'peft', 'last'):
    adapters.add(name, others[name])
  of_base = [key for folder, key in reads if folder == built.base.folder]
  assert len(of_base) == len({*of_base}) > 30
  first, second, last = (trees.flatten(adapters.use(n).params) for n in ('lora', 'peft', 'last'))
  shared = [n for n in first if 'adapter' not in n and not n.startswith('head/')]
  assert len(shared) > 20
  for name in shared:
    assert first[name] is second[name], name
    assert first[name].unsafe_buffer_pointer() == second[name].unsafe_buffer_pointer()
  assert last['embed/token/table'] is first['embed/token/table']
  differing = last['layers/0:2/attn/q/kernel'], first['layers/0:2/attn/q/kernel']
  np.testing.assert_array_equal(differing[0][0], differing[1][0])  # the layer that last_n leaves alone
  assert np.abs(differing[0][1] - differing[1][1]).max() > 0


def test_equal_shapes_compile_once(trained, others):
  adapters = Adapters(base(trained))
  for name in ('lora', 'peft'):
    adapters.add(name, others[name])
  metrics = {}
  for name in ('lora', 'peft', 'lora'):
    metrics.setdefault(name, []).append(adapters.use(name).evaluate('test')[0]['loss'])
  assert adapters.use('lora').run is adapters.use('peft').run
  assert len(adapters.run.eval_step.shapes) == 1
  assert metrics['lora'][0] == metrics['lora'][1] != metrics['peft'][0]


def test_the_command(trained, others, workdir, program):
  shutil.copytree(trained.folder, workdir)
  given = ','.join(f'{n}={others[n]}' for n in ('lora', 'peft'))
  done = program('eval.py', f'--workdir={workdir}', '--split=test', f'--adapters={given}')
  assert done.status == 0, done.err
  assert not (workdir / 'eval' / 'test.json').exists()
  records = {n: json.loads((workdir / 'eval' / f'test_{n}.json').read_text()) for n in ('lora', 'peft')}
  assert records['peft']['adapter'] == str(others['peft'])
  assert (records['lora']['n'], records['lora']['labels']) == (24, LABELS)
  row = next(line for line in done.out.splitlines() if line.split()[:1] == ['loss'])
  assert row.split()[1:] == [f'{records[n]["metrics"]["loss"]:.4f}' for n in ('lora', 'peft')]
  assert any(line.split() == ['lora', 'peft'] for line in done.out.splitlines())
  alone = judge.run(str(workdir), split='test', checkpoint='best')
  assert records['lora']['metrics']['loss'] == pytest.approx(alone['loss'], abs=1e-6)


def test_upon_a_run_whose_base_is_another_run(trained, full, others, tmp_path):
  """A LoRA upon the run of method=full brings what it stands on."""
  path = tmp_path / 'upon'
  config = trained.config(model__adapter=str(full), train__steps=2, train__eval_every=1)
  fine_tune.run(config, path)
  adapters = Adapters(base(trained))
  adapters.add('lora', others['lora'])
  adapters.add('upon', path)
  batch = next(iter(adapters.use('lora').run.eval_batches('test')))[1]
  np.testing.assert_allclose(adapters.use('upon').logits(batch), logits_of_its_own_run(path, batch), rtol=0, atol=2e-6)


# --- what is refused


def test_flags(trained, program):
  run = f'--workdir={trained.folder}'
  for given, words in (
    ('lora', "'lora' is not NAME=FOLDER"),
    ('a=x,a=y', 'two adapters of the name a'),
    (',', 'names none'),
    ('a b=x', "the name 'a b' is no word"),
    (f'a={trained.folder.parent / "rnu"}', 'did you mean "run"?'),
  ):
    done = program('eval.py', run, f'--adapters={given}')
    assert done.status == 2
    assert words in done.err, done.err
  done = program('eval.py', run, f'--adapters=a={trained.folder}', '--checkpoint=last')
  assert (done.status, 'takes the best checkpoint of each' in done.err) == (2, True)


def test_a_name_that_is_not_there(trained):
  adapters = Adapters(base(trained))
  adapters.add('mine', trained.folder)
  with pytest.raises(InputError, match=r'no adapter \'mnie\'; did you mean "mine"\?; there are mine'):
    adapters.use('mnie')
  with pytest.raises(InputError, match='two adapters of the name mine'):
    adapters.add('mine', trained.folder)


def changed(folder, path, **changes):
  shutil.copytree(folder, path)
  stored = json.loads((path / 'run.json').read_text())
  (path / 'run.json').write_text(json.dumps({**stored, **changes}))
  return path


def test_adapters_that_do_not_fit(trained, others, tmp_path):
  adapters = Adapters(base(trained))
  for path, words in (
    (changed(trained.folder, tmp_path / 'a', weights='f' * 64), 'another base model'),
    (changed(trained.folder, tmp_path / 'b', labels=['no', 'yes']), 'other labels .*: no, yes; here bad, good'),
  ):
    with pytest.raises(InputError, match=words):
      adapters.add('a', path)
  path = shutil.copytree(trained.folder, tmp_path / 'c')
  config = json.loads((path / 'config.json').read_text())
  (path / 'config.json').write_text(json.dumps({**config, 'task': {**config['task'], 'pooling': 'mean'}}))
  with pytest.raises(InputError, match=r'task.pooling=mean, here cls'):
    adapters.add('a', path)
  config['method']['target'] = 'attn/q$'
  (path / 'config.json').write_text(json.dumps(config))
  with pytest.raises(InputError, match='it holds and the model lacks') as e:
    adapters.add('a', path)
  assert 'layers/1/attn/v/adapter/b' in str(e.value)
  assert adapters.names == []
