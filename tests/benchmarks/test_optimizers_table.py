"""benchmarks/tables/optimizers.py without the training: the search of rates, what is measured again, table and plot;
and the arithmetic of benchmarks/optimizer_step.py."""

from __future__ import annotations

import importlib.util
import json
import math
import pathlib
import sys
import types
import xml.etree.ElementTree
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ftlib.base import trees

BENCHMARKS = pathlib.Path(__file__).resolve().parents[2] / 'benchmarks'


def loaded(path: pathlib.Path):
  spec = importlib.util.spec_from_file_location(f'bench_{path.stem}', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture(scope='module')
def table():
  return loaded(BENCHMARKS / 'tables' / 'optimizers.py')


@pytest.fixture(scope='module')
def step():
  return loaded(BENCHMARKS / 'optimizer_step.py')


@pytest.fixture
def args(table, tmp_path):
  """Flags over a data folder of numbered rows."""
  (tmp_path / 'data').mkdir()
  for split, count in (('train', 90), ('validation', 30)):
    lines = [json.dumps({'text': f'{split} {i}', 'label': i % 2}) for i in range(count)]
    (tmp_path / 'data' / f'{split}.jsonl').write_text('\n'.join(lines) + '\n')
  (tmp_path / 'page.md').write_text('before\n<!-- optimizers -->\nold\n<!-- /optimizers -->\nafter\n')
  flags = {'data': 'data', 'results': '', 'readme': 'page.md'}
  words = [f'--{k}={tmp_path / v}' for k, v in flags.items()]
  more = '--optimizers=adamw,sgd --methods=lora --rows=40 --judged=20 --points=4 --seeds=2 --looks=2'.split()
  return table.parse([*words, *more])


def ended(accuracy: float, loss: float = 0.5, **more):
  return {'curve': [[4, accuracy / 2, loss], [8, accuracy, loss]], **more}


@pytest.mark.parametrize('peak', range(-7, 4))
@pytest.mark.parametrize('start', [-6, -2, 0])
def test_the_search_has_one_budget_and_climbs(table, peak, start):
  """Of a hill with one peak it finds the peak if that is within reach of the budget, whatever the start."""
  tried = {}
  for _ in range(table.POINTS):
    point = table.next_point(tried, start)
    assert point not in tried
    tried[point] = ended(1 - 0.01 * abs(point - peak))
  assert len(tried) == table.POINTS
  assert sorted(tried) == list(range(min(tried), max(tried) + 1))  # no holes
  if abs(peak - start) <= table.POINTS - 2:
    assert table.best_point(tried) == peak
    assert min(tried) < peak < max(tried) or abs(peak - start) == table.POINTS - 2
  else:
    assert table.best_point(tried) == min(tried, key=lambda k: abs(k - peak))


def test_equals_go_by_the_loss_and_what_diverged_is_last(table):
  tried = {-3: ended(0.8, 0.6), -2: ended(0.8, 0.4), -1: ended(0.9, 0.1, diverged=7), 0: {'curve': [], 'diverged': 1}}
  assert table.best_point(tried) == -2
  assert table.best_point({1: {'curve': [], 'diverged': 1}, 2: ended(0.1)}) == 2


def test_rates_are_powers_of_the_root_of_ten(table):
  assert [table.rate_of(k) for k in (-8, -5, -4, 0, 1)] == [1e-4, 3.16e-3, 1e-2, 1.0, 3.16]


class Fake:
  """A trainer that is best at one rate."""

  calls: ClassVar[list] = []

  def __init__(self, optimizer, method, best):
    self.optimizer, self.best = optimizer, best

  def trained(self, rate, *, seed, judged_by, looks=1):
    self.calls.append((self.optimizer, judged_by, rate, seed, looks))
    return ended(0.9 - 0.1 * abs(math.log10(rate / self.best)) + 0.01 * seed * (judged_by == 'test'))

  def costs(self, other):
    self.calls.append((self.optimizer, 'costs', other.optimizer))
    return {'bytes_per_parameter': 4.0, 'update_over_adamw': 0.5, 'step_over_adamw': 0.9, 'trainable': 10}


@pytest.fixture
def faked(monkeypatch):
  """The worker, replaced."""
  Fake.calls = []
  made = lambda recipe, method, optimizer, data: Fake(optimizer, method, {'adamw': 1e-2, 'sgd': 0.1}[optimizer])  # noqa: E731
  monkeypatch.setitem(sys.modules, 'optimizers_worker', types.SimpleNamespace(Trainer=made))
  return Fake.calls


def measured(table, args, tmp_path, name):
  (tmp_path / name).mkdir()
  table.measure(args, tmp_path / name)
  return [json.loads(line) for line in (args.results / 'optimizers.jsonl').read_text().splitlines()]


def test_what_is_there_is_not_measured_again(table, args, faked, tmp_path, capsys):
  rows = measured(table, args, tmp_path, 'a')
  assert [r['kind'] for r in rows] == 2 * [*4 * ['rate'], *2 * ['seed'], 'costs']
  adamw, sgd = faked[:7], faked[7:]
  # from the default, 1e-3, moved one point up for LoRA; then uphill
  assert [c[2] for c in adamw[:4]] == [3.16e-3, 1e-3, 1e-2, 3.16e-2]
  assert {c[1:2] + c[3:] for c in adamw[:4]} == {('validation', 100, 1)}
  assert adamw[4:6] == [('adamw', 'test', 1e-2, seed, 2) for seed in (0, 1)]
  assert sgd[4:] == [('sgd', 'test', 0.1, 0, 2), ('sgd', 'test', 0.1, 1, 2), ('sgd', 'costs', 'adamw')]
  assert len({c[2] for c in sgd[:4]}) == 4
  assert 'rate 0.01, seed 1: accuracy 0.910' in capsys.readouterr().out
  faked.clear()
  assert measured(table, args, tmp_path, 'b') == rows
  assert faked == []
  args.seeds = 3
  assert len(measured(table, args, tmp_path, 'c')) == len(rows) + 2
  assert [c[3] for c in faked] == [2, 2]
  args.again, args.optimizers = True, ['sgd']
  faked.clear()
  again = measured(table, args, tmp_path, 'd')
  assert {c[0] for c in faked} == {'sgd'}
  assert len(again) == len(rows) + 2


def test_no_minute_measures_nothing_and_another_setting_all(table, args, faked, tmp_path):
  args.minutes = 0
  (tmp_path / 'e').mkdir()
  table.measure(args, tmp_path / 'e')
  assert faked == []
  args.minutes = math.inf
  rows = measured(table, args, tmp_path, 'f')
  args.rows = 50
  assert len(measured(table, args, tmp_path, 'g')) == 2 * len(rows)


def test_one_that_fails_does_not_end_the_rest(table, args, faked, tmp_path, monkeypatch, capsys):
  real = Fake.trained
  broken = lambda self, rate, **k: real(self, rate, **k) if self.optimizer == 'sgd' else 1 / 0  # noqa: E731
  monkeypatch.setattr(Fake, 'trained', broken)
  assert {r['optimizer'] for r in measured(table, args, tmp_path, 'h')} == {'sgd'}
  assert 'adamw (lora): ZeroDivisionError' in capsys.readouterr().out


def test_rows_to_choose_and_to_judge_by_are_apart(table, args, tmp_path):
  (tmp_path / 'i').mkdir()
  folder = table.split(args, tmp_path / 'i')
  texts = {p.stem: [json.loads(s)['text'] for s in p.read_text().splitlines()] for p in folder.iterdir()}
  assert {k: len(v) for k, v in texts.items()} == {'train': 40, 'validation': 20, 'test': 20}
  assert all(t.startswith('train') for t in texts['train'] + texts['validation'])
  assert all(t.startswith('validation') for t in texts['test'])
  assert not {*texts['train']} & {*texts['validation']}


def test_table_plot_and_page(table, args, faked, tmp_path):
  rows = measured(table, args, tmp_path, 'j')
  found = table.results(rows, 'lora')
  assert found['adamw']['mean'] == pytest.approx(0.905)
  assert found['adamw']['spread'] == pytest.approx(0.01 / math.sqrt(2))
  assert found['adamw']['steps'] == 8  # half of it at step 4 is below 97 %
  lines = table.render(rows).splitlines()
  assert len({line.count('|') for line in lines}) == 1
  assert lines[2].startswith('| `adamw` | 0.905 ± 0.007 | 0.01 | 8 | 4.00 | 0.50 | 0.90 |')
  assert 'not measured yet' in table.render([])
  svg = table.plot(rows)
  assert {'adamw', 'sgd'} <= {e.text for e in xml.etree.ElementTree.fromstring(svg).iter() if e.text}
  assert table.plot([]) == ''
  assert table.table_parts.between(args.readme, 'optimizers', 'new\n')
  assert args.readme.read_text() == 'before\n<!-- optimizers -->\nnew\n<!-- /optimizers -->\nafter\n'
  assert not table.table_parts.between(args.readme, 'other', 'new')


def test_a_rate_at_the_end_of_those_tried_is_marked(table):
  base = {'optimizer': 'x', 'method': 'full'}
  rows = [{**base, 'kind': 'rate', 'point': k, **ended(0.5 + 0.1 * k)} for k in (-2, -1, 0)]
  rows.append({**base, 'kind': 'seed', 'seed': 0, 'point': 0, **ended(0.6)})
  assert '| 0.600 | 1* | 8 |' in table.render(rows)
  rows[-1]['diverged'] = 3
  assert '| 0.000 | 1* |' in table.render(rows)


@pytest.mark.parametrize(
  ('flag', 'said'),
  [
    ('--optimizers=adafactr', 'did you mean "adafactor"'),
    ('--optimizers=tests.tiny', 'lacks Config and build'),
    ('--methods=dora', 'dora is none of full, lora'),
    ('--points=2', 'at least 3'),
  ],
)
def test_wrong_flags_end_at_once(table, tmp_path, flag, said, capsys):
  with pytest.raises(SystemExit):
    table.parse([f'--results={tmp_path}', flag])
  assert said in capsys.readouterr().err


def test_all_optimizers_but_the_convex_one_are_in_the_table(table, tmp_path):
  names = table.parse([f'--results={tmp_path}']).optimizers
  assert len(names) >= 14
  assert 'lbfgs' not in names


def test_the_hand_fused_adamw_is_adamw(step):
  info = step.parameters(30_000)
  params, grads = step.filled(info), step.filled(info, seed=1)
  tx = optax.adamw(
    step.RATE,
    step.B1,
    step.B2,
    step.EPS,
    weight_decay=step.DECAY,
    mask=lambda tree: trees.map_named(lambda n, _: not n.endswith(('bias', 'scale')), tree),
  )
  theirs, opt = params, tx.init(params)
  ours, state = params, (jnp.zeros((), jnp.int32), *2 * [jax.tree.map(jnp.zeros_like, params)])
  fused, update = jax.jit(step.fused), jax.jit(tx.update)
  for _ in range(2):
    updates, opt = update(grads, opt, theirs)
    theirs = optax.apply_updates(theirs, updates)
    ours, state = fused(ours, state, grads)
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8)


def test_parameters_are_as_many_as_asked_for(step):
  for count in (1_000_000, 100_000_000):
    size = sum(i.size for i in step.parameters(count).values())
    assert size == pytest.approx(count, rel=0.06)


def test_state_bytes_are_those_of_theory(step):
  """By shapes alone, for every optimizer of ftlib, at the size of the benchmark."""
  from ftlib.base import lookup

  info = step.parameters(100_000_000)
  shapes = trees.unflatten({n: jax.ShapeDtypeStruct(i.shape, i.dtype) for n, i in info.items()})
  for name in lookup.names('optim'):
    wanted = step.theory(name, info)
    assert wanted is not None, f'{name}: say in benchmarks/optimizer_step.py what it keeps'
    state = trees.nbytes(jax.eval_shape(step.optimizer(name, info).tx.init, shapes))
    assert abs(state - wanted) <= 256, f'{name}: {state} bytes, {wanted:.0f} in theory'
