"""Whose a run folder is, what may change when a run goes on, what eval.py refuses, and runs that diverge."""

import fcntl
import json
import re
import shutil

import numpy as np
import pytest
import safetensors.numpy

from ftlib import fine_tune, folder, judge
from ftlib import run as runs
from ftlib.base import trees
from ftlib.base.errors import Diverged, InputError
from ftlib.io.checkpoint import Checkpoints
from tests import tiny
from tests.cli.conftest import ROOT, contents

# --- another run's folder

OTHER = {
  'seed': ({'seed': 7}, ['seed: 0 -> 7']),
  'batch size': ({'train__batch_size': 8}, ['train.batch_size: 16 -> 8']),
  'method field': ({'method__rank': 4, 'method__alpha': 8.0}, ['method.rank: 8 -> 4', 'method.alpha: 16.0 -> 8.0']),
  'method': ({'method': 'bitfit'}, ['method.name: lora -> bitfit', 'method.rank: 8 -> null']),
  'optimizer': ({'optim': 'sgd'}, ['optim.name: adamw -> sgd', 'optim.momentum: null -> 0.9']),
  'learning rate': ({'optim__learning_rate': 0.5}, ['optim.learning_rate: 0.01 -> 0.5']),
  'rows': ({'data__limit': 20}, ['data.limit: null -> 20', 'data.path (its content)']),
  'what best means': ({'checkpoint__metric': 'loss'}, ['checkpoint.metric:  -> loss']),
}


@pytest.mark.parametrize('case', OTHER)
def test_another_config(trained, copied, refused, case):
  changes, words = OTHER[case]
  again = f'--config={copied / "config.json"}'
  refused(trained.config(**changes), f'--workdir={copied} belongs to another run', *words, 'another --workdir', again)


def test_another_content_of_the_data(trained, copied, refused, data):
  config = trained.config(data__path=str(data(test=tiny.rows(20, 5))))
  text = refused(config, 'belongs to another run', 'data.path (its content): ')
  assert 'label' not in text
  shutil.rmtree(config.data.path)
  config.data.path = str(data(train=UPPER, validation=UPPER, test=UPPER))
  refused(config, 'the label list: ["bad", "good"] -> ["BAD", "GOOD"]')


UPPER = [{**r, 'label': r['label'].upper()} for r in tiny.rows(8, 6)]


def new_weights(model):
  path = model / 'model.safetensors'
  tensors = safetensors.numpy.load_file(path)
  next(iter(tensors.values()))[...] += 1e-3
  safetensors.numpy.save_file(tensors, path)


def new_activation(model):
  path = model / 'config.json'
  path.write_text(json.dumps({**json.loads(path.read_text()), 'hidden_act': 'relu'}))


def new_vocabulary(model):
  path = model / 'vocab.txt'
  path.write_text(path.read_text().replace('good\ngreat', 'great\ngood'))


@pytest.mark.parametrize('change', [new_weights, new_activation, new_vocabulary])
def test_another_content_of_the_model(trained, copied, refused, model, change):
  change(model)
  config = trained.config(model__pretrained=str(model))
  refused(config, f'--workdir={copied} belongs to another run', 'model.pretrained (its content): ')
  change_stored(copied, 'model', 'pretrained', str(model))
  call = lambda: judge.run(str(copied), split='test', checkpoint='best')  # noqa: E731
  refused(None, f'model.pretrained={model} has changed since', 'put them back', call=call)


def test_what_may_change(trained, copied, data, model, capfd, program):
  """One run that goes on after all of it changed at once, with data and model in other folders."""
  moved = {'data__path': str(data()), 'model__pretrained': str(model)}
  path = model / 'config.json'
  path.write_text(json.dumps({'transformers_version': '9.9', **json.loads(path.read_text())}))  # means nothing
  changes = {'train__log_every': 1, 'train__steps': 6, 'train__eval_every': 3, 'checkpoint__every': 2}
  fine_tune.run(trained.config(**moved, **changes, mesh__shape='data=2'), copied)
  out = capfd.readouterr().out
  assert 'resumed at step 4 of 6' in out
  assert 'data=2' in out
  assert '\r' not in out  # no terminal: lines, from the summary to the table and the report
  said = [
    'model  ',
    'loaded in ',
    'resumed at step 4',
    'step 5/6  loss ',
    'step 6  validation accuracy ',
    'validation, ch',
  ]
  places = [out.find(words) for words in [*said, f'report: {copied / "report.html"}']]
  assert -1 not in places
  assert places == sorted(places), out
  assert json.loads((copied / 'config.json').read_text())['train']['steps'] == 6
  assert json.loads((copied / 'summary.json').read_text())['steps'] == 6
  done = program('train.py', f'--config={copied / "config.json"}', f'--workdir={copied}')  # and its own config
  assert done.status == 0
  assert 'resumed at step 6 of 6' in done.out


def test_a_setting_that_came_later(trained, copied):
  """A stored config without a field is one of its default."""
  built = runs.build(trained.config())
  change_stored(copied, 'train', 'buckets', ...)
  config = trained.config(train__buckets=4)
  folder.check(copied, config.to_dict(), built)
  with pytest.raises(InputError, match=r'train\.buckets: 4 -> 1'):
    folder.check(copied, trained.config().to_dict(), built)


# --- folders that are none of ours

FOREIGN = ['config.json', 'run.json', 'metrics.jsonl', 'report.html', 'env.json', 'summary.json']


@pytest.mark.parametrize('name', [*FOREIGN, 'checkpoints/', 'eval/', 'tensorboard/'])
def test_foreign_files_of_the_same_names(config, refused, workdir, name):
  workdir.mkdir()
  (workdir / name).mkdir() if name.endswith('/') else (workdir / name).write_text('{"mine": 1}')
  refused(config(), f'--workdir={workdir} holds {name.rstrip("/")}', 'nothing of it is overwritten', '--workdir')


def test_foreign_files_of_both_names(config, refused, workdir):
  workdir.mkdir()
  (workdir / 'config.json').write_text('{"model_type": "bert"}')
  (workdir / 'run.json').write_text('[1]')
  refused(config(), 'holds config.json, run.json, and is no run folder of train.py')
  call = lambda: judge.run(str(workdir), split='test', checkpoint='best')  # noqa: E731
  refused(None, f'--workdir={workdir} is no run folder', call=call)


def test_other_files_and_a_claim_that_was_killed(config, trained, workdir):
  workdir.mkdir()
  (workdir / 'README.md').write_text('mine')
  built = runs.build(config())
  folder.check(workdir, config().to_dict(), built)
  shutil.copy(trained.folder / 'run.json', workdir)
  folder.check(workdir, config().to_dict(), built)


def test_a_folder_in_use(trained, copied, refused, monkeypatch):
  """Told before the model is loaded: a device may have no room for two."""
  monkeypatch.setattr(runs, 'build', lambda *_, **__: pytest.fail('built'))
  (copied / '.lock').write_text(json.dumps({'pid': 4711, 'host': 'there', 'start': '2026-01-01 10:00:00'}))
  with open(copied / '.lock') as held:  # another open file is another owner, whatever its process
    fcntl.flock(held, fcntl.LOCK_EX)
    words = ['is in use by process 4711 on there since 2026-01-01 10:00:00', 'wait for it, end it, or choose another']
    refused(trained.config(), str(copied), *words)


# --- eval.py

EVAL = {
  'no split': ({'split': 'tset'}, ['--split=tset', 'train, validation, test', 'did you mean "test"?']),
  'no name': ({'checkpoint': 'bets'}, ['--checkpoint=bets', 'did you mean "best"?', 'best, last and the steps 2, 4']),
  'no step': ({'checkpoint': '3'}, ['--checkpoint=3', 'best, last and the steps 2, 4']),
  'negative': ({'checkpoint': '-1'}, ['--checkpoint=-1', 'best, last and the steps 2, 4']),
}


@pytest.mark.parametrize('case', EVAL)
def test_eval_of_what_there_is_not(copied, refused, monkeypatch, case):
  changes, words = EVAL[case]
  if 'checkpoint' in changes:  # told before anything is read
    monkeypatch.setattr(runs, 'build', lambda *_, **__: pytest.fail('built'))
  call = lambda: judge.run(str(copied), **{'split': 'test', 'checkpoint': 'best', **changes})  # noqa: E731
  refused(None, *words, call=call)


def test_eval_of_no_run(copied, refused, workdir, tmp_path):
  evaluate = lambda path: lambda: judge.run(str(path), split='test', checkpoint='best')  # noqa: E731
  words = ['there is no such folder', 'did you mean "run"?']
  refused(None, f'--workdir={tmp_path / "runn"}', *words, call=evaluate(tmp_path / 'runn'))
  refused(None, f'--workdir={ROOT / "configs"} is no run folder', call=evaluate(ROOT / 'configs'))
  shutil.rmtree(copied / 'checkpoints')
  refused(None, f'--workdir={copied} holds no checkpoint yet', call=evaluate(copied))
  with pytest.raises(InputError, match='give the run folder: --workdir=runs/NAME'):
    judge.run(None, split='test', checkpoint='best')


def change_stored(copied, section, field, value):
  stored = json.loads((copied / 'config.json').read_text())
  stored[section][field] = value
  (copied / 'config.json').write_text(
    json.dumps({**stored, section: {k: v for k, v in stored[section].items() if v is not ...}})
  )


def test_eval_of_changed_data(copied, refused, data, capsys):
  """A label that the run does not know is refused; other rows are evaluated, with a note."""
  evaluate = lambda: judge.run(str(copied), split='test', checkpoint='last')  # noqa: E731
  path = data(test=[*tiny.rows(10, 5), {'text': 'a plot', 'label': 'great'}])
  change_stored(copied, 'data', 'path', str(path))
  words = ["test.jsonl:11: label 'great' is not in the run's label list", 'label list: bad, good']
  refused(None, *words, call=evaluate)
  (path / 'test.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in tiny.rows(12, 5)))
  capsys.readouterr()
  evaluate()
  assert 'is not what the run was trained on: its content has changed' in capsys.readouterr().out
  assert json.loads((copied / 'eval' / 'test.json').read_text())['n'] == 12
  (path / 'train.jsonl').unlink()
  refused(None, f'{path}: has no train file', f'{copied / "config.json"}; train.py takes new places', call=evaluate)


def test_eval_on_fewer_devices(copied):
  change_stored(copied, 'mesh', 'shape', 'data=64')
  assert folder.stored(copied)[0]['mesh'] == {'shape': ''}
  change_stored(copied, 'mesh', 'shape', 'data=2')
  assert folder.stored(copied)[0]['mesh'] == {'shape': 'data=2'}


# --- runs that diverge

FULL = {'method': 'full', 'optim': 'sgd', 'optim__learning_rate': 1e38, 'optim__clip_norm': 0.0, 'optim__warmup': 0.0}
HUGE = {
  'adamw': ({'optim__learning_rate': 1e30}, 'gradient norm'),
  'sgd': ({'optim': 'sgd', 'optim__learning_rate': 1e30, 'optim__clip_norm': 0.0}, 'gradient norm'),
  'evaluation': (FULL, 'validation loss nan, 32 of 32 predictions not finite, the first .*validation.jsonl:1'),
  'update': ({**FULL, 'optim__weight_decay': 1e6, 'train__eval_every': 9}, 'the update left parameters that are NaN'),
}


def finite(workdir):
  """The committed steps, after a look at every number in them."""
  with Checkpoints(workdir / 'checkpoints', readonly=True) as checkpoints:
    for step in checkpoints.steps():
      meta = json.loads((workdir / 'checkpoints' / str(step) / 'meta.json').read_text())
      target = trees.unflatten({n: folder_struct(s) for n, s in meta['leaves'].items()})
      state = trees.flatten(checkpoints.restore(target, step=step).state)
      assert all(np.isfinite(np.asarray(x, np.float64)).all() for x in state.values()), step
    return checkpoints.steps()


def folder_struct(spec):
  from ftlib import adapter

  return adapter._struct(spec)


@pytest.mark.parametrize('case', HUGE)
def test_huge_rates(config, workdir, case):
  changes, words = HUGE[case]
  with pytest.raises(Diverged, match=words) as e:
    fine_tune.run(
      config(**{'train__eval_every': 1, 'checkpoint__every': 1, 'checkpoint__keep_last': 9, **changes}), workdir
    )
  assert e.value.exit_code == 3
  text = str(e.value)
  step = int(text.split(':')[0].removeprefix('step '))
  assert re.search(r'nothing of this step was saved\. Its rows:\n  /.*/train\.jsonl:', text)
  assert text.count('train.jsonl:') == 16
  assert 'lower optim.learning_rate, set optim.clip_norm' in text
  last = step - 3 if '3 steps in a row' in text else step - 1  # none is saved where steps are skipped
  assert finite(workdir) == list(range(1, last + 1))


def test_a_resumed_run_that_diverges(trained, copied, program, tmp_path):
  """The program ends with status 3, and the checkpoints from before stay as they were."""
  before = contents(copied / 'checkpoints')
  config = trained.config(train__steps=8, optim__learning_rate=1e30)
  stored = tmp_path / 'config.json'
  stored.write_text(json.dumps(config.to_dict(), default=str))
  shutil.copy(stored, copied / 'config.json')  # as if the run had this rate all along
  done = program('train.py', f'--config={stored}', f'--workdir={copied}')
  assert done.status == 3, done.err
  assert done.err.startswith('error: step ')
  assert 'train.jsonl:' in done.err
  assert contents(copied / 'checkpoints') == before
  assert finite(copied) == [2, 4]
