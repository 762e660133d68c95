"""The command line: what is written reaches the run exactly, and what is wrong is told in one screen."""

import json
import os
import signal
import subprocess
import sys

import pytest

from ftlib import fine_tune, judge, judge_file
from ftlib.analysis import Options
from ftlib.base.errors import Diverged, Stopped
from tests.cli.conftest import ROOT, one_screen

CLASSIFY = str(ROOT / 'configs' / 'classify.py')
CONFIG = f'--config={CLASSIFY}:data=DIR,model=./base'


@pytest.fixture
def given(monkeypatch, program):
  """`given('--flag', ...)`: (config as a dict, workdir) that train.py would run."""

  def call(*argv):
    got = []
    monkeypatch.setattr(fine_tune, 'run', lambda config, workdir: got.append((config.to_dict(), workdir)))
    done = program('train.py', *argv)
    assert (done.status, done.err) == (0, '')
    return got[0]

  return call


@pytest.fixture
def fails(program):
  """`fails('--flag', ..., words=[...])`: train.py ends with status 2 and one screen on stderr that has the words."""

  def call(*argv, words, name='train.py'):
    done = program(name, *argv)
    assert done.status == 2
    assert done.out == ''
    assert done.err.startswith('error: ')
    missing = [w for w in words if w not in done.err]
    assert not missing, f'{missing} not in:\n{done.err}'
    one_screen(done.err)
    return done.err

  return call


# --- what is written reaches the run


def test_arguments_and_defaults(given):
  config, workdir = given(CONFIG, '--workdir=runs/x')
  assert workdir == 'runs/x'
  assert config['data']['path'] == 'DIR'
  assert config['model']['pretrained'] == './base'
  assert config['train']['epochs'] == 2.0
  assert config['train']['steps'] is None


VALUES = [
  ('train.steps', '100', 100),
  ('train.patience', '3', 3),
  ('train.eval_every', 'none', None),
  ('train.epochs', '3', 3.0),
  ('train.epochs', '2.5e-1', 0.25),
  ('train.grouped', 'false', False),
  ('train.grouped', 'True', True),
  ('train.min_delta', '0', 0.0),
  ('optim.warmup_steps', '0', 0),
  ('optim.learning_rate', '1', 1.0),
  ('optim.no_decay', '(bias|scale)$,x=y:z', '(bias|scale)$,x=y:z'),
  ('optim.groups', "{'head': {'pattern': '^head/'}}", {'head': {'pattern': '^head/'}}),
  ('method.target', 'attn/(q|k)$', 'attn/(q|k)$'),
  ('method.rank', '4', 4),
  ('data.path', 'a b/ü=1.jsonl', 'a b/ü=1.jsonl'),
  ('data.path', '007', '007'),
  ('data.limit', '1_000', 1000),
  ('task.pair', 'none', 'none'),  # a text field takes every word
  ('mesh.shape', 'data=2,fsdp=2', 'data=2,fsdp=2'),
]


@pytest.mark.parametrize(('field', 'text', 'value'), VALUES)
@pytest.mark.parametrize('first', [True, False])
def test_values_arrive_exactly(given, field, text, value, first):
  flag = f'--config.{field}={text}'
  config, _ = given(*([flag, CONFIG] if first else [CONFIG, flag]), '--workdir=w')
  section, key = field.split('.')
  got = config[section][key]
  assert got == value
  assert type(got) is type(value)


def test_ways_of_writing(given):
  config, workdir = given(
    *('--config.train.steps', '7', '-config.optim.final=0.5', '--noconfig.train.grouped', '--config.seed=3'),
    *('--workdir', 'w', '--config', CLASSIFY, '--config.train.batch_size=8', '--config.train.batch_size=16'),
  )
  assert workdir == 'w'
  assert (config['train']['steps'], config['optim']['final'], config['train']['grouped']) == (7, 0.5, False)
  assert (config['seed'], config['train']['batch_size']) == (3, 16)  # the last one holds
  assert given(CONFIG, '--config.train.grouped')[0]['train']['grouped'] is True


def test_component_names_go_to_the_recipe(given):
  plain, _ = given(CONFIG)
  config, _ = given('--config.method.name=full', CONFIG, '--config.optim.name=sgd', '--config.optim.momentum=0.5')
  assert plain['optim']['learning_rate'] == 1e-3
  assert (
    config['optim']['learning_rate'] == 5e-4
  )  # the recipe's choice for full fine-tuning, and ten times as much with sgd
  assert config['method'] == {'name': 'full', 'target': '', 'also': '^head/'}
  assert (config['optim']['name'], config['optim']['momentum']) == ('sgd', 0.5)
  assert 'b1' not in config['optim']


def test_groups_of_a_recipe(given, fails, tmp_path):
  path = tmp_path / 'grouped.py'
  path.write_text(
    'from ftlib import recipe\n\n\ndef get_config():\n'
    "  c = recipe.recipe(task='classify', method='full', optim='adamw')\n"
    "  c.optim.groups = {'head': {'pattern': '^head/'}}\n  return c\n"
  )
  config, _ = given(f'--config={path}', '--config.optim.groups.head.learning_rate=1e-2')
  assert config['optim']['groups'] == {'head': {'pattern': '^head/', 'learning_rate': 0.01}}
  words = ["there is no group 'haed'", 'did you mean "head"?']
  fails(f'--config={path}', '--config.optim.groups.haed.learning_rate=1', words=words)
  words = ['optim.groups.head.learning_rat', 'did you mean "learning_rate"?']
  fails(f'--config={path}', '--config.optim.groups.head.learning_rat=1', words=words)


def test_a_stored_config(given, fails, tmp_path):
  path = tmp_path / 'config.json'
  stored, _ = given(CONFIG, '--config.train.steps=5')
  path.write_text(json.dumps(stored))
  assert given(f'--config={path}')[0] == stored
  config, _ = given('--config.train.steps=none', f'--config={path}', '--config.train.patience=2')
  assert config == {**stored, 'train': {**stored['train'], 'steps': None, 'patience': 2}}
  config, _ = given(f'--config={path}', '--config.method.rank=2', '--config.method.name=lora')
  assert config['method'] == {**stored['method'], 'rank': 2}
  assert given(f'--config={path}', '--config.method.name=last_n')[0]['method']['name'] == 'last_n'
  fails(f'--config={path}:method=lora', words=['takes no arguments', '--config.SECTION.FIELD=VALUE'])
  fails(f'--config={tmp_path}', words=['is a folder', f'did you mean --config={path}?'])
  path.write_text(json.dumps({**stored, 'tarin': {}}))
  fails(f'--config={path}', words=['unknown config key tarin', 'did you mean "train"?'])
  path.write_text('{"train": {},\n  nonsense')
  fails(f'--config={path}', words=[f'{path}:2', 'not JSON'])
  path.write_text('{"model_type": "bert"}')
  fails(f'--config={path}', words=['is not the config.json of a run folder'])


# --- what is wrong is told

WRONG = [
  ([], ['give a config', '--config=configs/quickstart.py']),
  ([CONFIG], ['give the folder to write to', '--workdir=runs/NAME']),
  ([CONFIG, '--workdir='], ['give the folder to write to']),
  (['--config.train.steps=5'], ['--config.train.steps', 'give --config=']),
  ([CONFIG, '--config.optim.learning_rat=1'], ['optim.learning_rat;', 'did you mean "learning_rate"?', 'clip_norm']),
  ([CONFIG, '--config.modle.pretrained=x'], ['modle.pretrained;', '"model.pretrained"?', 'sections: seed, model']),
  ([CONFIG, '--config.modle.name=x'], ['unknown config key modle.name', 'sections: seed, model']),
  ([CONFIG, '--config.learning_rate=1'], ['unknown config key learning_rate;', '"optim.learning_rate"?']),
  ([CONFIG, '--config.train.steps=abc'], ['--config.train.steps=abc', 'a whole number or none']),
  ([CONFIG, '--config.train.steps='], ['--config.train.steps=: wanted a whole number or none']),
  ([CONFIG, '--config.train.batch_size=1.5'], ['--config.train.batch_size=1.5', 'a whole number']),
  ([CONFIG, '--config.train.batch_size=none'], ['--config.train.batch_size=none', 'a whole number']),
  ([CONFIG, '--config.train.grouped=maybe'], ['--config.train.grouped=maybe', 'true or false']),
  ([CONFIG, '--config.optim.learning_rate=fast'], ['--config.optim.learning_rate=fast', 'a number']),
  ([CONFIG, '--config.optim.groups=[1]'], ['--config.optim.groups=[1]', 'a dict']),
  ([CONFIG, '--config.seed=x'], ['--config.seed=x', 'a whole number']),
  ([CONFIG, '--config.train.steps'], ['--config.train.steps has no value', 'write --config.train.steps=VALUE']),
  ([CONFIG, '--config.train=3'], ['--config.train is a section', '--config.train.steps=']),
  ([CONFIG, '--config.train.batch_size=0'], ['train.batch_size=0 is out of range', 'at least 1']),
  ([CONFIG, '--config.optim.learning_rate=0'], ['optim.learning_rate=0.0 is out of range', 'above 0']),
  ([CONFIG, '--config.optim.learning_rate=nan'], ['optim.learning_rate=nan is not finite']),
  ([CONFIG, '--config.optim.learning_rate=inf'], ['optim.learning_rate=inf is not finite']),
  ([CONFIG, '--config.objective.label_smoothing=1.0'], ['objective.label_smoothing=1.0', 'must be below 1']),
  ([CONFIG, '--config.optim.schedule=cosin'], ["optim.schedule='cosin'", 'linear, cosine', 'did you mean "cosine"?']),
  ([CONFIG, '--config.seed=-1'], ['seed=-1', 'from 0 to 2147483647']),
  ([CONFIG, '--config.precision.trainable=bfloat16'], ['precision.trainable=bfloat16', 'precision.compute=bfloat16']),
  ([CONFIG, '--work_dir=x'], ['--work_dir is no flag of train.py', 'did you mean "workdir"?', '--config.SECTION']),
  ([CONFIG, '--verbose=1'], ['--verbose is no flag of train.py', '--workdir, --preview, --config, --traceback']),
  ([CONFIG, 'fast'], ["'fast' is no flag of train.py", '--name=value']),
  ([CLASSIFY, '--workdir=x'], ['is no flag of train.py', f'did you mean --config={CLASSIFY}?']),
  ([CONFIG, '--traceback=maybe'], ['--traceback=maybe', 'Non-boolean']),
  ([f'{CONFIG},metod=lora'], ["'metod=lora' is no argument", 'did you mean "method"?', 'method=lora, optim=adamw']),
  ([f'{CONFIG},method'], ["'method' is no argument of this recipe", 'arguments: data=']),
  ([f'{CONFIG},method=lroa'], ["method.name='lroa'", 'did you mean "lora"?', 'known: adalora, bitfit', 'my_lab.lroa']),
  ([CONFIG, '--config.method.name=lroa'], ["method.name='lroa'", 'did you mean "lora"?', 'ftlib/peft']),
  ([CONFIG, '--config.optim.name=adamw_'], ["optim.name='adamw_'", 'did you mean "adamw"?', 'known: adadelta']),
  ([CONFIG, '--config.task.name=clasify'], ["task.name='clasify'", 'did you mean "classify"?', 'ftlib/tasks']),
  ([CONFIG, '--config.objective.name=x'], ["objective.name='x'", 'known: choice, classification']),
  (['--config=configs/quickstrat.py'], ['there is no file', 'did you mean "quickstart.py"?', 'classify.py']),
  (['--config=configs/quickstart'], ['there is no file', 'did you mean "quickstart.py"?']),
  (['--config=confgis/quickstart.py'], ['there is no folder', 'confgis']),
  (['--config=train.cfg'], ['there is no file train.cfg', 'train.py']),
  (['--config=Makefile'], ['--config=Makefile', 'a .py file with get_config']),
]


@pytest.mark.parametrize(('argv', 'words'), WRONG, ids=[' '.join(a).replace(CONFIG, '') or 'none' for a, _ in WRONG])
def test_wrong_flags(fails, monkeypatch, argv, words):
  monkeypatch.chdir(ROOT)
  fails(*argv, words=words)


FILES = {
  'syntax': ('def get_config(arg):\n  return (\n', ["config.py:2: SyntaxError: '(' was never closed", 'return (']),
  'at import': ('import os\nx = 1 / 0\n', ['config.py:2: ZeroDivisionError: division by zero', 'x = 1 / 0']),
  'inside': (
    "from ftlib import recipe\n\ndef get_config(arg=''):\n  c = recipe.recipe(task='classify', method='lora', "
    "optim='adamw')\n  c.train.steps = 'many'\n  return c\n",
    ['config.py:5: TypeError', "c.train.steps = 'many'"],
  ),
  'a library inside': (
    'import json\n\ndef get_config():\n  return json.loads("{")\n',
    ['config.py:4: JSONDecodeError'],
  ),
  'no get_config': ('x = 1\n', ['config.py defines no get_config(arg)', 'configs/classify.py']),
  'no config': ('def get_config():\n  return 3\n', ['get_config returned int', 'recipe.recipe(...)']),
  'a part of one': ("def get_config():\n  return {'seed': 1}\n", ['lacks the section model', 'recipe.recipe(...)']),
  'a flat one': (
    "from ftlib import recipe\n\ndef get_config():\n  c = recipe.recipe(task='classify', method='lora', optim='sgd')"
    ".to_dict()\n  return {**c, 'train': 3}\n",
    ['train=3 is a section of the config', 'train.FIELD'],
  ),
  'an unknown key': (
    "from ftlib import recipe\n\ndef get_config():\n  c = recipe.recipe(task='classify', method='lora', optim='sgd')\n"
    '  c.optim.lr = 3\n  return c\n',
    ['unknown config key optim.lr', 'learning_rate'],
  ),
  'not text': (b'\xff\xfe\x00', ['config.py']),
}


@pytest.mark.parametrize('case', FILES)
def test_config_files_that_fail(fails, tmp_path, case):
  text, words = FILES[case]
  path = tmp_path / 'config.py'
  path.write_bytes(text if isinstance(text, bytes) else text.encode())
  fails(f'--config={path}', '--workdir=w', words=words)


def test_a_recipe_without_arguments(fails, tmp_path):
  path = tmp_path / 'config.py'
  path.write_text('def get_config():\n  return 3\n')
  fails(f'--config={path}:method=lora', words=[f'{path}:method=lora', 'takes no arguments'])


MODULES = {
  'absent': (None, ['No module named', 'PYTHONPATH']),
  'fails': ('import json\n\njson.loads("{")\n', ['odd_absent.py:3: JSONDecodeError', 'json.loads("{")']),
  'needs another': ('import not_installed_here\n', ["No module named 'not_installed_here'", 'odd_absent.py:1']),
  'empty': ('x = 1\n', ['lacks Config and build', 'a frozen dataclass Config and a function build']),
  'no build': ('class Config: pass\n', ['lacks build']),
  'no dataclass': ('class Config: pass\ndef build(config, model): pass\n', ['Config must be a frozen dataclass']),
  'no default': (
    'import dataclasses\n@dataclasses.dataclass(frozen=True)\nclass Config:\n  rank: int\ndef build(c, m): pass\n',
    ['with a default for every field', 'rank has none'],
  ),
}


@pytest.mark.parametrize('case', MODULES)
def test_outside_modules_that_fail(fails, tmp_path, monkeypatch, case):
  text, words = MODULES[case]
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.delitem(sys.modules, 'odd_lab', raising=False)
  monkeypatch.delitem(sys.modules, 'odd_lab.odd_absent', raising=False)
  (tmp_path / 'odd_lab').mkdir()
  if text is not None:
    (tmp_path / 'odd_lab' / 'odd_absent.py').write_text(text)
  fails(CONFIG, '--config.method.name=odd_lab.odd_absent', words=["method.name='odd_lab.odd_absent'", *words])


# --- help, eval.py, exit statuses


@pytest.mark.parametrize('flag', ['--help', '-h', '--helpfull'])
def test_help(program, monkeypatch, flag):
  monkeypatch.chdir(ROOT)
  done = program('train.py', flag, '--workdir=x')
  assert (done.status, done.err) == (0, '')
  assert done.out.startswith('Fine-tunes: python train.py --config=configs/quickstart.py')
  for words in ('--workdir=...', '--traceback', '--config.SECTION.FIELD=VALUE', 'configs/classify.py'):
    assert words in done.out
  one_screen(done.out)
  assert 'absl' not in done.out
  done = program('eval.py', flag)
  assert done.status == 0
  assert '--checkpoint=...' in done.out
  assert '(default: best)' in done.out
  assert '--config=...' in done.out


def test_help_of_a_config(program):
  done = program('train.py', CONFIG, '--help', '--config.train.steps=12', '--config.train.grouped=false')
  assert (done.status, done.err) == (0, '')
  assert 'steps=12' in done.out
  assert 'grouped=false' in done.out
  assert 'patience=none' in done.out
  assert 'path=DIR' in done.out
  assert program('train.py', '--config=absent.py', '--help').status == 2


def test_eval_flags(program, fails, monkeypatch):
  got = []
  monkeypatch.setattr(judge, 'run', lambda workdir, **more: got.append((workdir, more)))
  assert program('eval.py', '--workdir=w').status == 0
  assert program('eval.py', '--checkpoint=4', '--workdir=w', '--split=validation').status == 0
  more = ('--bootstrap=0', '--slices=length,genre', '--calibrate=validation', '--against=v')
  assert program('eval.py', '--workdir=w', *more).status == 0
  assert got == [
    ('w', {'split': 'test', 'checkpoint': 'best', 'options': Options()}),
    ('w', {'split': 'validation', 'checkpoint': '4', 'options': Options()}),
    ('w', {'split': 'test', 'checkpoint': 'best', 'options': Options(0, ('length', 'genre'), 'validation', 'v')}),
  ]
  got.clear()
  monkeypatch.setattr(judge_file, 'run', lambda workdir, **more: got.append((workdir, more)))
  assert program('eval.py', '--workdir=w', '--file=a.csv', '--on_bad_row=skip', '--bootstrap=7').status == 0
  assert got == [('w', {'file': 'a.csv', 'checkpoint': 'best', 'skip': True, 'options': Options(7)})]
  fails('--workdir=w', '--file=a', '--split=train', words=['--split and --file'], name='eval.py')
  fails('--workdir=w', '--on_bad_row=skip', words=['with --file', 'data.on_bad_row'], name='eval.py')
  fails('--workdir=w', '--bootstrap=-1', words=['--bootstrap=-1', '0 for no intervals'], name='eval.py')
  fails(CONFIG, '--slices=length', words=['--slices goes with --workdir alone'], name='eval.py')
  fails('--workdir=w', '--adapters=a=b', '--against=v', words=['--against goes with'], name='eval.py')
  fails('--config.data.path=x', '--workdir=w', words=['changes a config, and there is none'], name='eval.py')
  fails('--config=configs/quickstart.py', '--workdir=w', words=['--config judges', 'are of runs'], name='eval.py')
  fails('--workdir=w', '--output=x', words=['--output goes with --config'], name='eval.py')
  fails('--spilt=test', words=['--spilt', 'did you mean "split"?'], name='eval.py')
  monkeypatch.undo()
  fails(words=['give the run folder', '--workdir=runs/NAME'], name='eval.py')


@pytest.mark.parametrize(
  ('error', 'status'),
  [
    (Diverged('step 3: loss nan'), 3),
    (Stopped('saved', signum=signal.SIGINT), 130),
    (Stopped('saved', signum=signal.SIGTERM), 143),
    (KeyboardInterrupt(), 130),
  ],
)
def test_exit_statuses(program, monkeypatch, error, status):
  def run(config, workdir):
    raise error

  monkeypatch.setattr(fine_tune, 'run', run)
  done = program('train.py', CONFIG, '--workdir=w')
  assert done.status == status
  assert len(done.err.splitlines()) == 1


def test_traceback_is_asked_for(program):
  done = program('train.py', '--config=absent.py', '--traceback')
  assert done.status == 2
  assert 'Traceback (most recent call last)' in done.err
  assert done.err.splitlines()[-1].startswith(('error: ', '  '))


def _python(*argv, cwd, **env):
  env = {**os.environ, 'JAX_PLATFORMS': 'cpu', **env}
  return subprocess.run([sys.executable, *argv], cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


def test_a_real_program_refuses(tmp_path, toy_data, tiny_bert):
  config = f'--config={CLASSIFY}:data={toy_data},model={tiny_bert}'
  done = _python(str(ROOT / 'train.py'), config, '--config.method.target=attn/x$', '--workdir=run', cwd=tmp_path)
  assert done.returncode == 2
  assert done.stdout == ''
  assert done.stderr.startswith("error: method.target='attn/x$' matches none of the 14 sites:\n  head/out\n")
  assert len(done.stderr.splitlines()) < 20
  assert not (tmp_path / 'run').exists()


def test_a_component_in_the_users_folder(tmp_path):
  (tmp_path / 'my_method.py').write_text((ROOT / 'ftlib/peft/miss.py').read_text().replace('rank: int', 'Rank: int'))
  config = f'--config={CLASSIFY}:method=my_method.lora'
  done = _python(str(ROOT / 'train.py'), config, '--workdir=run', cwd=tmp_path)
  assert done.returncode == 2
  assert "method.name='my_method.lora' cannot be imported" in done.stderr
  (tmp_path / 'lab').mkdir()
  (tmp_path / 'my_method.py').rename(tmp_path / 'lab' / 'odd.py')
  config = f'--config={CLASSIFY}:method=lab.odd'
  done = _python(str(ROOT / 'train.py'), config, '--config.method.rank=4', '--workdir=run', cwd=tmp_path)
  assert done.returncode == 2
  assert 'unknown config key method.rank; did you mean "Rank"?' in done.stderr
  assert not (tmp_path / 'run').exists()


def test_a_bug_is_no_refusal(program, monkeypatch):
  def run(config, workdir):
    raise RuntimeError('a bug of ftlib')

  monkeypatch.setattr(fine_tune, 'run', run)
  with pytest.raises(RuntimeError):
    program('train.py', CONFIG, '--workdir=w')
