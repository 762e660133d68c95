"""Who may import whom, read from the syntax tree of every file: base <- models <- peft, base <- data <- tasks, ...

`faults` gives what is wrong with a file; it is tried on bad lines before it is believed on good ones.
"""

from __future__ import annotations

import ast
import graphlib
import pathlib
from collections.abc import Iterator

import pytest

import ftlib

PACKAGE = pathlib.Path(ftlib.__file__).parent
MAY_IMPORT = {  # folder -> what of ftlib its files may import
  'base': ('base',),
  'models': ('base', 'models'),
  'peft': ('base', 'models', 'peft'),
  'peft/parts': ('base', 'models', 'peft.method', 'peft.parts'),  # of methods, and so of none of them
  'data': ('base', 'data'),
  'generation': ('base', 'models', 'generation'),
  'tasks': (
    *('base', 'data', 'tasks'),
    *(
      'evals.counted',
      'evals.entities',
      'evals.metrics',
      'evals.relations',
      'evals.multilabel_metrics',
      'evals.span_metrics',
      'evals.text_metrics',
      'evals.thresholds',
      'generation.settings',
      'objectives.cosine',
      'objectives.crf',
      'objectives.several',
      'objectives.vocabulary',
    ),
  ),
  'objectives': ('base', 'objectives'),
  'optim': ('base', 'optim'),
  'train': ('base', 'train'),
  'evals': ('base', 'evals'),
  'io': ('base', 'io'),
}
PROGRAMS = ('optim/check.py',)  # commands: they may import what the files of ftlib itself may, and nothing imports them
ONLY_IN = {'flax': ('models', 'peft', 'peft/parts'), 'orbax': ('io',), 'transformers': ('data',), 'grain': ('data',)}
NOWHERE = ('torch', 'pickle', 'dill', 'cloudpickle', 'joblib', 'shelve', 'marshal')
NO_NNX = ('jit', 'Optimizer', 'Rngs', 'grad', 'value_and_grad', 'scan', 'vmap')  # JAX's own are used around NNX
NO_CALLS = ('trust_remote_code', 'allow_pickle')  # arguments that may not be True
FILES = sorted(PACKAGE.rglob('*.py'))


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
  """(module or module.name, line) of every import, inside functions too."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from ((a.name, node.lineno) for a in node.names)
    elif isinstance(node, ast.ImportFrom):
      stem = '.' * node.level + (node.module or '')
      yield from ((f'{stem}.{a.name}', node.lineno) for a in node.names)


def folder_of(path: pathlib.Path) -> str:
  """Of a file below `ftlib`: 'peft/parts', or '' of ftlib itself."""
  return path.parent.relative_to(PACKAGE).as_posix().removeprefix('.')


def allowed(folder: str, name: str) -> bool:
  """Whether a file of `ftlib/<folder>` may import `ftlib.<name>`."""
  return not folder or name == '__version__' or any(f'{name}.'.startswith(f'{m}.') for m in MAY_IMPORT[folder])


def faults(folder: str, text: str) -> list[str]:
  """What a file of `ftlib/<folder>` ('' for ftlib itself) may not do, with its line."""
  tree = ast.parse(text)
  found = []
  for name, line in imports(tree):
    top, _, inside = name.partition('.')
    if name.startswith('.'):
      found.append(f'{line}: relative import {name}')
    elif top in NOWHERE:
      found.append(f'{line}: imports {top}')
    elif folder not in ONLY_IN.get(top, (folder,)):
      found.append(f'{line}: imports {top}, which is for {ONLY_IN[top]}')
    elif top == 'ftlib' and not allowed(folder, inside):
      found.append(f'{line}: {folder} imports {name}')
  for node in ast.walk(tree):
    if isinstance(node, ast.Attribute) and getattr(node.value, 'id', '') == 'nnx' and node.attr in NO_NNX:
      found.append(f'{node.lineno}: nnx.{node.attr}')
    if isinstance(node, ast.keyword) and node.arg in NO_CALLS and getattr(node.value, 'value', None) is True:
      found.append(f'{node.lineno}: {node.arg}=True')
  return found


@pytest.mark.parametrize(
  ('folder', 'line'),
  [
    ('base', 'from ftlib.models import bert'),
    ('base', 'import ftlib.data.tokens'),
    ('models', 'from ftlib.peft.method import Method'),
    ('models', 'from ftlib.data import tokens'),
    ('peft', 'from ftlib.optim import chain'),
    ('peft/parts', 'from ftlib.peft import lora'),
    ('data', 'from ftlib.tasks.task import Task'),
    ('tasks', 'from ftlib.evals import report'),
    ('tasks', 'from ftlib.evals import metrics_of_another_kind'),
    ('tasks', 'from ftlib.models import bert'),
    ('train', 'from ftlib.models import stack'),
    ('train', 'from ftlib import run'),
    ('train', 'def f():\n  from ftlib.io import checkpoint'),
    ('optim', 'from ftlib import recipe'),
    ('objectives', 'from ftlib.models.model import Model'),
    ('evals', 'from ftlib.run import Run'),
    ('io', 'import ftlib.cli'),
    ('io', 'import ftlib'),
    ('optim', 'from . import chain'),
    ('train', 'from flax import nnx'),
    ('', 'import flax.linen as nn'),
    ('train', 'import orbax.checkpoint as ocp'),
    ('', 'from orbax import checkpoint'),
    ('io', 'import pickle'),
    ('models', 'from torch import nn'),
    ('models', 'f = nnx.jit(g)'),
    ('models', '@nnx.jit\ndef f(): pass'),
    ('peft', 'o = nnx.Optimizer(m, tx)'),
    ('data', 'load(x, trust_remote_code=True)'),
    ('io', 'np.load(x, allow_pickle=True)'),
  ],
)
def test_the_rule_sees(folder, line):
  assert len(faults(folder, line)) == 1, line


@pytest.mark.parametrize(
  ('folder', 'line'),
  [
    ('tasks', 'from ftlib.evals import metrics'),
    ('tasks', 'from ftlib.evals.metrics import accuracy'),
    ('peft', 'from ftlib.models.layers import Proj'),
    ('io', 'from ftlib import __version__'),
    ('', 'from ftlib import run'),
    ('models', 'from flax import nnx\nx = nnx.merge(a, b)'),
    ('data', 'load(x, trust_remote_code=False)'),
  ],
)
def test_the_rule_lets_pass(folder, line):
  assert faults(folder, line) == []


def test_every_folder_has_a_rule():
  assert {folder_of(p) for p in FILES} - {''} == set(MAY_IMPORT)


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports(path):
  inside = path.relative_to(PACKAGE).as_posix() not in PROGRAMS
  assert faults(folder_of(path) if inside else '', path.read_text(encoding='utf-8')) == []


def test_no_two_files_import_each_other():
  """Inside folders and among the files of ftlib itself too; what only a type checker imports aside."""
  modules = {'.'.join(p.relative_to(PACKAGE.parent).with_suffix('').parts): p for p in FILES}
  graph = {}
  for module, path in modules.items():
    tree = ast.parse(path.read_text(encoding='utf-8'))
    typing = {n for n in ast.walk(tree) if isinstance(n, ast.If) and getattr(n.test, 'id', '') == 'TYPE_CHECKING'}
    names = {n for n, _ in imports(tree)} - {n for block in typing for n, _ in imports(block)}
    graph[module] = {m for n in names for m in (n, n.rpartition('.')[0]) if m in modules}
  order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, naming the files
  assert set(order) >= set(modules)
  programs = {'.'.join(('ftlib', *pathlib.PurePath(p).with_suffix('').parts)) for p in PROGRAMS}
  assert programs <= set(modules)
  assert not programs & set().union(*graph.values())
  inside = {m for m in modules if m.count('.') == 2} - programs
  assert order.index('ftlib.run') > max(map(order.index, inside))
