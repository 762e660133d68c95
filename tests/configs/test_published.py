"""The recipes of published tables, at full size by shapes alone; and the page that lists all recipes.

Nothing is trained: weights and data of these tables cannot be had here. What a docstring says of parameters is read
from it and compared with the model that the recipe makes.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ftlib
from ftlib import config_file, recipe, shapes, shapes_batch
from ftlib.base import trees
from ftlib.base.errors import InputError
from ftlib.models.presets import PRESETS
from ftlib.peft.method import added
from ftlib.shapes import Shapes

ROOT = pathlib.Path(ftlib.__file__).parent.parent
BASE, LARGE = 'FacebookAI/roberta-base', 'FacebookAI/roberta-large'
TASKS = ('mnli', 'sst2', 'mrpc', 'cola', 'qnli', 'qqp', 'rte', 'stsb')
VARIANTS = {  # of the table in configs/metamathqa.py: what is not the method's default there
  'lora, rank 64, rsqrt': [('method.rank', '64'), ('method.scaling', 'rsqrt')],
  'lora, rank 64, alpha 128': [('method.rank', '64'), ('method.alpha', '128')],
  'lora on the MLP, rank 10, alpha 20': [('method.target', 'mlp/'), ('method.rank', '10'), ('method.alpha', '20')],
}


def docstring(name: str) -> str:
  spec = importlib.util.spec_from_file_location(f'published_{name}', ROOT / 'configs' / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.__doc__


def table(name: str) -> list[list[str]]:
  """The cells of the rows of the table in a config's docstring."""
  lines = [line for line in docstring(name).splitlines() if line.startswith('| ')]
  return [[cell.strip() for cell in line.strip('|').split('|')] for line in lines[2:]]


def load(name: str, argument: str = '', changes: config_file.Changes = ()) -> recipe.Settings:
  return recipe.read(config_file.load(f'{ROOT}/configs/{name}.py:{argument}', changes))


def built(s: recipe.Settings, *, classes: int = 2) -> Shapes:
  """At full size: only presets are read, no file."""
  return shapes.of(s, PRESETS[s.model.pretrained], classes=classes)


def trainable(x: Shapes) -> int:
  return sum(i.size for i in x.train_info.values())


def adapters(x: Shapes) -> int:
  return sum(i.size for n, i in x.train_info.items() if added(trees.canonical(n)))


def trace(x: Shapes) -> None:
  """A training step keeps the shapes and dtypes of its state, and gives sums."""
  assert any(re.match(r'layers/0:\d+/', n) for n in x.info)  # the layers are scanned
  assert x.batch['tokens'].shape == (x.settings.train.batch_size, x.settings.train.max_length)
  after, sums = jax.eval_shape(x.step, x.state, x.frozen, x.batch)
  alike = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), x.state, after)
  assert all(jax.tree.leaves(alike))
  assert {'loss', 'grad_norm'} <= set(sums)
  assert sums['loss'][0].shape == ()
  assert {leaf.dtype for leaf in jax.tree.leaves(after.trainable)} == {np.dtype(np.float32)}
  assert {leaf.dtype for leaf in jax.tree.leaves(x.frozen)} <= {jnp.dtype(x.settings.precision.frozen)}


@pytest.mark.parametrize('name', ['lora_glue', 'lora_e2e', 'metamathqa'])
def test_it_says_that_it_was_not_run_here(name):
  says = r'^Not run here: weights( and data)? cannot be had on this machine\. Published'
  assert re.search(says, docstring(name), re.M)
  assert all(len(row) == len(table(name)[0]) for row in table(name))


@pytest.mark.parametrize('model', [BASE, LARGE])
@pytest.mark.parametrize('task', TASKS)
def test_every_task_of_glue_is_read(task, model):
  s = load('lora_glue', f'task={task},model={model},first=runs/mnli')
  t = shapes_batch.task_of(s, 2)
  assert t.head.classes == (1 if task == 'stsb' else 2)
  assert (s.checkpoint.metric or t.metric) == {'cola': 'mcc', 'stsb': 'pearson'}.get(task, 'accuracy')
  assert not s.checkpoint.metric or s.checkpoint.metric in t.metric_names
  assert (s.task.label, bool(s.task.pair)) == ('label', task not in ('sst2', 'cola'))
  assert s.data.path == ('' if task == 'mnli' else f'hf:nyu-mll/glue:{task}')
  assert (s.model.adapter, recipe.parts_of(s.model.adapter_parts)) == ('runs/mnli', {'encoder', 'adapter'})
  assert s.train.max_length <= 512
  assert 2e-4 <= s.optim.learning_rate <= 5e-4
  assert s.train.batch_size == (4 if model == LARGE else 16) or task in ('cola', 'qnli', 'rte', 'stsb')


def test_glue_is_8_tasks():
  with pytest.raises(InputError, match='did you mean "qnli"'):
    load('lora_glue', 'task=qnil')
  assert [*docstring('lora_glue').split('| trainable | ')[1].split(' | ')[: len(TASKS)]] == [*TASKS]


@pytest.mark.parametrize(('task', 'classes', 'model'), [('mnli', 3, BASE), ('rte', 2, LARGE), ('stsb', 1, LARGE)])
def test_lora_on_roberta(task, classes, model):
  x = built(load('lora_glue', f'task={task},model={model}'), classes=classes)
  arch = x.method.model.config
  width = arch.embed
  assert adapters(x) == arch.layers * 2 * 8 * 2 * width
  assert f'{adapters(x):,}' in docstring('lora_glue')
  printed = {'base': 0.3e6, 'large': 0.8e6}[model.rpartition('-')[2]]
  assert round(adapters(x) / 1e6, 1) * 1e6 == printed == float(table('lora_glue')[model == LARGE][1][:-1]) * 1e6
  assert trainable(x) - adapters(x) == width * width + width + classes * (width + 1)  # the head
  assert f'{width * width + width + 2 * (width + 1):,}' in docstring('lora_glue')  # that of two classes
  trace(x)


@pytest.mark.parametrize(('model', 'row'), [('medium', 0), ('large', 2)])
def test_lora_on_gpt2(model, row):
  x = built(load('lora_e2e', f'model=openai-community/gpt2-{model}'))
  arch = x.method.model.config
  assert trainable(x) == adapters(x) == arch.layers * 2 * 4 * 2 * arch.embed
  assert f'{adapters(x):,}' in docstring('lora_e2e')
  lora, full = table('lora_e2e')[row : row + 2]
  assert [lora[:2], full[:2]] == [[model, 'LoRA'], [model, 'full']]
  assert adapters(x) / 1e6 == pytest.approx(float(lora[2][:-1]), rel=0.15)  # printed; the docstring has the difference
  base = sum(i.size for n, i in x.info.items() if not added(trees.canonical(n)))
  assert base / 1e6 == pytest.approx(float(full[2][:-1]), abs=0.1)
  assert (x.settings.optim.warmup_steps, x.settings.optim.clip_norm) == (500, 0.0)
  trace(x)


@pytest.mark.parametrize('row', table('metamathqa'), ids=lambda row: row[1])
def test_what_trains_is_what_peft_counts(row):
  method = row[0].split(',')[0].split(' ')[0]
  s = load('metamathqa', f'method={method}', VARIANTS.get(row[0], ()))
  assert row[0] == method or row[0] in VARIANTS
  x = built(s)
  assert f'{trainable(x):,}' == row[2]
  assert 0 <= float(row[3].removesuffix(' %')) < 100
  if method in ('lora', 'full', 'prompt') and row[0] == method:
    trace(x)


def test_what_is_kept_for_the_backward_pass():
  """It grows with the rows of a micro-batch, and `remat=full` leaves the layers' inputs, and little more."""
  full, x = (built(load('lora_e2e', 'model=openai-community/gpt2', c)) for c in ((('model.remat', 'full'),), ()))
  train = dataclasses.replace(x.settings.train, accumulate=2)
  halves = dataclasses.replace(x, settings=dataclasses.replace(x.settings, train=train))
  c = x.method.model.config
  inputs = c.layers * 8 * 512 * c.embed * 4
  assert halves.kept_bytes() == pytest.approx(x.kept_bytes() / 2, rel=0.02)
  assert inputs <= full.kept_bytes() < 2 * inputs < x.kept_bytes() / 5


def test_the_dry_run_prints_one_screen():
  argument = f'{ROOT}/configs/lora_glue.py:task=mnli'
  command = [sys.executable, '-m', 'ftlib.shapes', f'--config={argument}', '--config.mesh.shape=', '--classes=3']
  out = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout
  x = built(load('lora_glue', 'task=mnli'), classes=3)
  assert f'{trainable(x):,} trainable' in out
  assert f'{adapters(x):,} parameters added' in out
  assert f'optimizer  {trees.nbytes(x.state.opt) / 1e6:.2f} MB' in out
  assert max(map(len, out.splitlines())) <= 120


def test_a_step_of_preferences_traces():
  x = built(load('preference', 'model=HuggingFaceTB/SmolLM2-135M'))
  assert trainable(x) == 460_800  # rank 8 at q and v of 30 layers: 30 * 8 * ((576 + 576) + (576 + 192))
  assert {'pairs', 'reference'} <= set(x.batch)
  jax.eval_shape(x.step, x.state, x.frozen, x.batch)


def test_the_dry_run_refuses_what_it_cannot_know():
  with pytest.raises(InputError, match=r'task\.name=several: its heads follow from the data of its parts'):
    built(load('several', 'model=FacebookAI/roberta-base'))


PAGE = (ROOT / 'docs' / 'recipes.md').read_text(encoding='utf-8')
COMMANDS = sorted(set(re.findall(r'--config=(configs/[a-z][^\s`|]+)((?: --config\.[^\s`|]+)*)', PAGE)))


def test_every_recipe_is_in_the_docs():
  named = re.findall(r'^\| `(\w+)\.py` \|', PAGE, re.M)
  assert sorted(named) == sorted(p.stem for p in (ROOT / 'configs').glob('*.py'))


@pytest.mark.parametrize(('config', 'flags'), COMMANDS)
def test_commands_in_the_docs_are_read(config, flags):
  changes = [tuple(f.removeprefix('--config.').split('=', 1)) for f in flags.split()]
  recipe.read(config_file.load(f'{ROOT}/{config}', changes))
