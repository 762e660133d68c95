"""`python -m ftlib.merge`: the formulas against plain NumPy, what is written, and what is refused."""

import json
import math
import shutil
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

from ftlib import merge, peft_folder
from ftlib import run as runs
from ftlib.base import trees
from ftlib.base.errors import InputError
from ftlib.models import stack
from tests.cli.conftest import ROOT, one_screen

QUERY = 'bert.encoder.layer.{}.attention.self.{}'
MODULES = [QUERY.format(i, m) for i in (0, 1) for m in ('query', 'value')]


def folder(
  path, *, seed, rank=4, alpha=6.0, base='some/tiny', modules=MODULES, ours=None, labels=('bad', 'good'), **changes
):
  """A LoRA as PEFT writes it, of random values, on the tiny model."""
  rng = np.random.default_rng(seed)
  ranks = changes.get('rank_pattern', {})
  tensors = {}
  for m in modules:
    r = ranks.get(m, rank)
    tensors[f'base_model.model.{m}.lora_A.weight'] = rng.normal(size=(r, 32)).astype(np.float32)
    tensors[f'base_model.model.{m}.lora_B.weight'] = rng.normal(size=(32, r)).astype(np.float32)
  tensors['base_model.model.classifier.weight'] = rng.normal(size=(len(labels), 32)).astype(np.float32)
  tensors['base_model.model.classifier.bias'] = rng.normal(size=len(labels)).astype(np.float32)
  path.mkdir()
  safetensors.numpy.save_file(tensors, path / 'adapter_model.safetensors')
  values = {'peft_type': 'LORA', 'task_type': 'SEQ_CLS', 'r': rank, 'lora_alpha': alpha, 'lora_dropout': 0.1}
  values |= {
    'target_modules': list(modules),
    'base_model_name_or_path': base,
    'modules_to_save': ['classifier', 'score'],
  }
  (path / 'adapter_config.json').write_text(json.dumps({**values, **changes}))
  ours = {'weights': 'abc', 'labels': list(labels)} if ours is None else ours
  (path / 'ftlib.json').write_text(json.dumps(ours))
  return str(path)


@pytest.fixture
def two(tmp_path):
  return [folder(tmp_path / 'a', seed=1), folder(tmp_path / 'b', seed=2, alpha=10.0)]


def tensors(path):
  return safetensors.numpy.load_file(path / 'adapter_model.safetensors')


def factors(path, module):
  there = tensors(path)
  return [there[f'base_model.model.{module}.lora_{x}.weight'].astype(np.float64) for x in 'AB']


def close(a, b):
  np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


# --- the formulas


def test_linear(two, tmp_path):
  merge.merge(two, tmp_path / 'd', how='linear', weights=[0.7, -0.2])
  for m in MODULES:
    (a0, b0), (a1, b1), (a, b) = (factors(tmp_path / n, m) for n in 'abd')
    r0, r1 = math.sqrt(0.7 * 6 / 4), math.sqrt(0.2 * 10 / 4)
    close(a, r0 * a0 - r1 * a1)
    close(b, r0 * b0 + r1 * b1)
  config = json.loads((tmp_path / 'd' / 'adapter_config.json').read_text())
  assert (config['r'], config['lora_alpha'], config['rank_pattern'], config['use_rslora']) == (4, 4, {}, False)
  assert config['target_modules'] == sorted(MODULES)


def test_cat_and_svd_are_the_weighted_sum(tmp_path):
  """Of ranks, scalings and modules that differ; the sum has rank 6, of which svd keeps the best 4."""
  pattern = {'rank_pattern': {MODULES[1]: 2}, 'alpha_pattern': {MODULES[1]: 3.0}, 'use_rslora': True}
  two = [folder(tmp_path / 'a', seed=1, **pattern), folder(tmp_path / 'b', seed=2, modules=MODULES[:3])]
  merge.merge(two, tmp_path / 'cat', how='cat', weights=[0.7, -0.2])
  merge.merge(two, tmp_path / 'svd', how='svd', weights=[0.7, -0.2])
  for m in MODULES:
    a0, b0 = factors(tmp_path / 'a', m)
    want = 0.7 * (3 / math.sqrt(2) if m == MODULES[1] else 6 / 2) * b0 @ a0
    if m in MODULES[:3]:
      a1, b1 = factors(tmp_path / 'b', m)
      want = want - 0.2 * 6 / 4 * b1 @ a1
    a, b = factors(tmp_path / 'cat', m)
    close(b @ a, want)
    u, s, vt = np.linalg.svd(want)
    a, b = factors(tmp_path / 'svd', m)
    assert len(a) == 4
    close(b @ a, (u[:, :4] * s[:4]) @ vt[:4])
  config = json.loads((tmp_path / 'cat' / 'adapter_config.json').read_text())
  assert config['r'] == 8
  assert config['rank_pattern'] == config['alpha_pattern'] == {MODULES[1]: 6, MODULES[3]: 4}
  for name in ('cat', 'svd'):
    back = merge.read(str(tmp_path / name), tmp_path / 'scratch')
    assert set(back.scales.values()) == {1.0}


def ties_of_one_entry(values, weights):
  """Yadav et al. 2023: the mean of what has the elected sign, entry by entry."""
  sign = 1 if sum(values) >= 0 else -1
  agree = [w * v for v, w in zip(values, weights) if v * sign > 0]
  return sum(agree) / len(agree) if agree else 0.0


def test_ties(two, tmp_path):
  merge.merge(two, tmp_path / 'd', how='ties', weights=[0.7, 0.2], density=0.3)
  roots = [math.sqrt(0.7 * 6 / 4), math.sqrt(0.2 * 10 / 4)]
  for m in MODULES:
    for k in (0, 1):
      x, y, got = (factors(tmp_path / n, m)[k] for n in 'abd')
      kept = []
      for z in (x, y):
        least = np.sort(np.abs(z).ravel())[-int(0.3 * z.size)]
        kept.append(np.where(np.abs(z) >= least, z, 0).ravel())
        assert np.count_nonzero(kept[-1]) == int(0.3 * z.size)
      close(got.ravel(), [ties_of_one_entry(v, roots) for v in zip(*kept)])


def test_ties_by_hand():
  x, y = np.array([3.0, -1.0, 0.5, 2.0]), np.array([-4.0, -2.0, 0.1, 1.0])
  assert list(merge.trimmed(x, 0.5)) == [3, 0, 0, 2]
  assert list(merge.elected([x, y], [1.0, 0.5])) == [-2.0, -1.0, (0.5 + 0.05) / 2, (2 + 0.5) / 2]
  assert list(merge.elected([np.array([1.0, 0.0]), np.array([-1.0, 0.0])], [1.0, 1.0])) == [1.0, 0.0]  # ties are +


def test_dare_keeps_its_share_and_the_expectation():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(50, 40)).astype(np.float32)
  draws = np.stack([merge.dropped(x, 0.2, np.random.default_rng(i)) for i in range(2000)])
  assert abs(np.mean(draws[:20] != 0) - 0.2) < 0.005
  np.testing.assert_allclose(draws[draws != 0], np.broadcast_to(x / 0.2, draws.shape)[draws != 0], rtol=1e-6)
  deviation = np.abs(x) * math.sqrt(0.8 / 0.2 / len(draws))
  assert np.abs(draws.mean(0) - x).max() < 6 * deviation.max()
  assert abs(((draws.mean(0) - x) / deviation).std() - 1) < 0.1


@pytest.mark.parametrize('how', ['dare_linear', 'dare_ties'])
def test_dare(two, tmp_path, how):
  merge.merge(two, tmp_path / 'd', how=how, weights=[0.7, 0.2], density=0.5, seed=3)
  merge.merge(two, tmp_path / 'again', how=how, weights=[0.7, 0.2], density=0.5, seed=3)
  merge.merge(two, tmp_path / 'other', how=how, weights=[0.7, 0.2], density=0.5, seed=4)
  d, again, other = (tensors(tmp_path / n) for n in ('d', 'again', 'other'))
  assert all(np.array_equal(d[k], again[k]) for k in d)
  assert not np.array_equal(
    d[f'base_model.model.{MODULES[0]}.lora_A.weight'], other[f'base_model.model.{MODULES[0]}.lora_A.weight']
  )
  roots = [math.sqrt(0.7 * 6 / 4), math.sqrt(0.2 * 10 / 4)]
  masks = []
  for m in MODULES:
    (x, _), (y, _), (got, _) = (factors(tmp_path / n, m) for n in 'abd')
    options = []
    for keep in ((0, 0), (1, 0), (0, 1), (1, 1)):
      pair = [keep[0] * x / 0.5, keep[1] * y / 0.5]
      if how == 'dare_linear':
        options.append(roots[0] * pair[0] + roots[1] * pair[1])
      else:
        flat = [ties_of_one_entry(v, roots) for v in zip(*(p.ravel() for p in pair))]
        options.append(np.reshape(flat, x.shape))
    apart = np.abs(np.stack(options) - got)
    assert apart.min(0).max() < 1e-5  # every entry is what one of the four masks gives
    masks.append(np.argmin(apart, 0).ravel())
  if how == 'dare_linear':
    shares = np.bincount(np.concatenate(masks), minlength=4) / (4 * x.size)
    assert np.abs(shares - 0.25).max() < 0.1  # both masks, each by itself


def test_density_1_is_no_pruning(two, tmp_path):
  for how in ('linear', 'dare_linear'):
    merge.merge(two, tmp_path / how, how=how, density=None if how == 'linear' else 1.0)
  a, b = tensors(tmp_path / 'linear'), tensors(tmp_path / 'dare_linear')
  assert all(np.array_equal(a[k], b[k]) for k in a)


# --- heads


def test_heads(two, tmp_path):
  key = 'base_model.model.classifier.weight'
  merge.merge(two, tmp_path / 'mean', weights=[3.0, 1.0])
  merge.merge(two, tmp_path / 'one', weights=[3.0, 1.0], head=two[1])
  a, b, mean, one = (tensors(tmp_path / n)[key] for n in ('a', 'b', 'mean', 'one'))
  close(mean, 0.75 * a + 0.25 * b)
  np.testing.assert_array_equal(one, b)
  assert json.loads((tmp_path / 'mean' / 'ftlib.json').read_text())['labels'] == ['bad', 'good']


# --- runs


@pytest.fixture(scope='module')
def other_run(trained, tmp_path_factory):
  """The trained run with another adapter of the same shapes: its B doubled, in a checkpoint of PEFT's kind."""
  from ftlib import export

  path = tmp_path_factory.mktemp('other') / 'adapter'
  export.export(trained.folder, path, format='peft')
  there = {k: 2 * v if '.lora_B.' in k else v for k, v in tensors(path).items()}
  safetensors.numpy.save_file(there, path / 'adapter_model.safetensors')
  return path


def test_a_run_and_a_folder(trained, other_run, tmp_path):
  """cat of the run and of one with twice its B, each by half: 1.5 times the run's update; and it is read."""
  merge.merge([str(trained.folder), str(other_run)], tmp_path / 'd', how='cat', weights=[0.5, 0.5])
  changes = {'model__adapter': str(tmp_path / 'd'), 'method__rank': 16, 'method__alpha': 16.0}
  built = runs.build(trained.config(**changes))
  assert any(n.startswith('10 of 10 parameters of its own') for n in built.notes)
  got = trees.flatten(stack.unstack(built.load()[0]))
  first = trees.flatten(stack.unstack(runs.build(trained.config(model__adapter=str(trained.folder))).load()[0]))
  for site in ('layers/0/attn/q', 'layers/1/attn/v'):
    update = lambda flat: np.tensordot(flat[f'{site}/adapter/a'], flat[f'{site}/adapter/b'], 1)  # noqa: B023,E731
    np.testing.assert_allclose(update(got) * 16 / 16, 1.5 * update(first) * 16 / 8, rtol=1e-4, atol=1e-6)
  np.testing.assert_array_equal(got['head/out/kernel'], first['head/out/kernel'])


def test_the_command(two, tmp_path):
  argv = [sys.executable, '-m', 'ftlib.merge', f'--adapters={",".join(two)}', f'--output={tmp_path / "d"}']
  wrong = subprocess.run([*argv, '--how=tie'], cwd=ROOT, capture_output=True, text=True)
  assert wrong.returncode == 2
  assert '--how=tie is none of' in wrong.stderr
  assert 'did you mean "ties"?' in wrong.stderr
  done = subprocess.run(
    [*argv, '--weights=1,2', '--how=ties', '--density=0.5'], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  assert f'--config.model.adapter={tmp_path / "d"}' in done.stdout
  record = json.loads((tmp_path / 'd' / 'ftlib.json').read_text())['merged']
  assert record == {'adapters': two, 'weights': [1.0, 2.0], 'how': 'ties', 'seed': 0, 'density': 0.5}


# --- what is refused


@pytest.fixture
def refuses(tmp_path):
  def check(adapters, *words, **options):
    with pytest.raises(InputError) as e:
      merge.merge(adapters, tmp_path / 'd', **options)
    missing = [w for w in words if w not in str(e.value)]
    assert not missing, f'{missing} not in:\n{e.value}'
    one_screen(str(e.value))
    assert not (tmp_path / 'd').exists()

  return check


def test_flags(two, refuses):
  refuses(two, '--how=dare_lineer', 'did you mean "dare_linear"?', how='dare_lineer')
  refuses(two, '--weights has 3 numbers for 2 adapters', weights=[1, 2, 3])
  refuses(two, 'not all finite', weights=[1, math.nan])
  for density in (0.0, -0.1, 1.5, math.nan):
    refuses(two, f'--density={density}', 'above 0 and at most 1', how='ties', density=density)
  refuses(two, 'has no meaning for --how=cat', how='cat', density=0.5)
  refuses(two[:1], 'give two or more')
  refuses(two, '--head=', 'did you mean', head=two[0] + 'x')
  refuses(two, 'the weights sum to 0', '--head=', weights=[1, -1])


def test_ranks(two, refuses, tmp_path):
  wide = folder(tmp_path / 'wide', seed=3, rank=8)
  for how in ('linear', 'ties', 'dare_linear', 'dare_ties'):
    refuses([two[0], wide], f'--how={how}', 'needs equal ranks', 'rank 8', '--how=svd', how=how)
  merge.merge([two[0], wide], tmp_path / 'd', how='svd')


def test_bases(two, refuses, tmp_path):
  other = folder(tmp_path / 'c', seed=3, ours={'weights': 'xyz', 'labels': ['bad', 'good']})
  refuses([two[0], other], 'different base models', 'xyz')
  unnamed = folder(tmp_path / 'e', seed=3, base='another/one', ours={})
  refuses([two[0], unnamed], 'different base models', 'another/one')
  same = folder(tmp_path / 'f', seed=3, base='elsewhere/tiny', ours={})
  assert 'by their names alone' in merge.merge([two[0], same], tmp_path / 'd')[0]


def test_heads_that_differ(two, refuses, tmp_path):
  other = folder(tmp_path / 'c', seed=3, labels=('no', 'yes'))
  refuses([two[0], other], 'the labels differ', "['no', 'yes']", f'--head={two[0]}')
  more = folder(tmp_path / 'e', seed=3, labels=('a', 'b', 'c'), ours={'weights': 'abc'})
  refuses([two[0], more], 'differs in names or shapes', f'--head={two[0]}')


def test_no_lora(two, refuses, tmp_path, trained, monkeypatch):
  refuses([two[0], folder(tmp_path / 'c', seed=3, peft_type='IA3')], 'PEFT type IA3; only LoRA')
  refuses([two[0], folder(tmp_path / 'e', seed=3, use_dora=True)], 'use_dora = True')
  refuses([two[0], folder(tmp_path / 'f', seed=3, init_lora_weights='pissa_niter_4')], 'init_lora_weights')
  run = shutil.copytree(trained.folder, tmp_path / 'run')
  config = json.loads((run / 'config.json').read_text())
  config['method'] = {'name': 'bitfit'}
  (run / 'config.json').write_text(json.dumps(config))
  refuses([two[0], str(run)], 'method.name=bitfit; only LoRA')
  refuses([two[0], str(tmp_path / 'absent')], 'there is no such folder')


def test_files(two, refuses, tmp_path):
  path = tmp_path / 'b'
  there = tensors(path)
  whole = f'base_model.model.{MODULES[0]}.lora_B.weight'
  safetensors.numpy.save_file({k: v for k, v in there.items() if k != whole}, path / 'adapter_model.safetensors')
  refuses(two, 'lacks A or B', MODULES[0])
  safetensors.numpy.save_file({**there, whole: there[whole][:5].copy()}, path / 'adapter_model.safetensors')
  refuses(two, 'has another shape in each', '5 outputs')
  magnitude = {f'base_model.model.{MODULES[0]}.lora_magnitude_vector': np.ones(32, np.float32)}
  safetensors.numpy.save_file({**there, **magnitude}, path / 'adapter_model.safetensors')
  refuses(two, 'lora_magnitude_vector is no factor')
  (path / peft_folder.CONFIG).write_text((path / peft_folder.CONFIG).read_text().replace('"r": 4', '"r": 5'))
  safetensors.numpy.save_file(there, path / 'adapter_model.safetensors')
  refuses(two, 'has rank 4 in adapter_model.safetensors, 5 in adapter_config.json')


def test_nothing_is_overwritten(two, tmp_path):
  (tmp_path / 'd').mkdir()
  (tmp_path / 'd' / 'mine').write_text('x')
  with pytest.raises(InputError, match='not empty'):
    merge.merge(two, tmp_path / 'd')
