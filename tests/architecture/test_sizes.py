"""Files are short, what is public says what it is, and nothing is left for later."""

from __future__ import annotations

import ast
import functools
import importlib
import pathlib
import re
import statistics
from collections.abc import Iterator

import pytest

import ftlib
from ftlib.base import lookup

PACKAGE = pathlib.Path(ftlib.__file__).parent
ROOT = PACKAGE.parent
LONGEST, MEDIAN, METHOD = 400, 150, 90
SELF_EXPLAINING = 8  # lines under which a public function may go without a docstring
COMPONENTS = [(f, n) for f in ('models', 'objectives', 'optim', 'peft', 'tasks') for n in lookup.names(f)]
LATER = re.compile(r'NotImplementedError|\b(TODO|FIXME|XXX)\b')


def files(*, of: pathlib.Path = ROOT) -> list[pathlib.Path]:
  """The repository's own Python files: neither environments, caches nor the folders of runs."""
  outside = {'runs', 'build', 'dist', '__pycache__', 'node_modules', 'shared'}
  inside = lambda p: not any(d.startswith('.') or d in outside for d in p.relative_to(ROOT).parts[:-1])  # noqa: E731
  return sorted(p for p in of.rglob('*.py') if inside(p))


def lines(path: pathlib.Path) -> int:
  return len(path.read_text(encoding='utf-8').splitlines())


def test_no_file_is_long():
  assert {str(p.relative_to(ROOT)): lines(p) for p in files() if lines(p) > LONGEST} == {}


def test_the_median_file_is_short():
  counts = [n for n in map(lines, files(of=PACKAGE)) if n]
  assert statistics.median(counts) <= MEDIAN


@pytest.mark.parametrize('name', lookup.names('peft'))
def test_a_method_is_read_at_once(name):
  assert lines(PACKAGE / 'peft' / f'{name}.py') <= METHOD, 'what is large goes to ftlib/peft/parts'


def test_tests_keep_up_with_the_code():
  tests, code = (sum(map(lines, files(of=ROOT / d))) for d in ('tests', 'ftlib'))
  assert tests >= 0.6 * code


@pytest.mark.parametrize(('folder', 'name'), COMPONENTS, ids=[f'{folder}/{name}' for folder, name in COMPONENTS])
def test_components_say_what_they_are(folder, name):
  module = importlib.import_module(f'ftlib.{folder}.{name}')
  for what, doc in ((f'{name}.py', module.__doc__), ('Config', module.Config.__doc__), ('build', module.build.__doc__)):
    assert (doc or '').strip(), f'{what} of ftlib/{folder} has no docstring'
    assert not doc.startswith(f'{what}('), f'{what} of ftlib/{folder} has only the docstring that dataclass makes'


def undocumented(tree: ast.Module, *, protocols: frozenset[str] = frozenset()) -> Iterator[str]:
  """Public classes, and public functions and methods of more than a few lines, without a docstring.

  A method that a Protocol documents is documented there.
  """

  def walk(body: list[ast.stmt], prefix: str) -> Iterator[str]:
    for node in body:
      if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith('_'):
        continue
      name = f'{prefix}{node.name}'
      short = not isinstance(node, ast.ClassDef) and node.end_lineno - node.lineno < SELF_EXPLAINING
      if not (ast.get_docstring(node) or short or (prefix and node.name in protocols)):
        yield name
      if isinstance(node, ast.ClassDef):
        yield from walk(node.body, f'{name}.')

  yield from walk(tree.body, '')


@functools.cache
def protocol_methods() -> frozenset[str]:
  names = set()
  for path in files(of=PACKAGE):
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
      if isinstance(node, ast.ClassDef) and any(getattr(b, 'id', '') == 'Protocol' for b in node.bases):
        names |= {m.name for m in node.body if isinstance(m, ast.FunctionDef) and ast.get_docstring(m)}
  return frozenset(names)


def test_the_docstring_rule_sees():
  long = '\n'.join(f'  x = {i}' for i in range(SELF_EXPLAINING))
  text = f'class A:\n  pass\ndef f():\n{long}\ndef _g():\n{long}\nclass B:\n  "Doc."\n  def h(self):\n  {long}'
  text = text.replace('\n  x', '\n    x')
  assert list(undocumented(ast.parse(text))) == ['A', 'f', 'B.h']
  assert list(undocumented(ast.parse(text), protocols=frozenset('h'))) == ['A', 'f']


@pytest.mark.parametrize('path', files(of=PACKAGE), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_what_is_public_is_documented(path):
  tree = ast.parse(path.read_text(encoding='utf-8'))
  if path.name != '__init__.py':
    assert ast.get_docstring(tree), 'the file has no docstring'
  assert list(undocumented(tree, protocols=protocol_methods())) == []


@pytest.mark.parametrize('path', files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_is_left_for_later(path):
  if path != pathlib.Path(__file__).resolve():
    found = [i for i, line in enumerate(path.read_text(encoding='utf-8').splitlines(), 1) if LATER.search(line)]
    assert found == []
