"""DP-SGD: clipping against a loop over rows, the noise's deviation, epsilon against dp-accounting, what is refused."""

import json
import sys

import jax
import numpy as np
import optax
import pytest

from ftlib import fine_tune, recipe, run
from ftlib.base import trees
from ftlib.base.errors import InputError
from ftlib.base.types import Outputs
from ftlib.data.batches import Poisson
from ftlib.objectives import classification
from ftlib.train import private
from ftlib.train.private import Config, private_gradient
from ftlib.train.state import create
from ftlib.train.step import make_train_step

ROWS, D, C = 8, 5, 3
RNG = np.random.default_rng(0)
PARAMS = {'head': {'w': RNG.normal(size=(D, C)).astype(np.float32), 'b': np.zeros(C, np.float32)}}
BATCH = {
  'tokens': np.zeros((ROWS, 1), np.int32),
  'x': (RNG.normal(size=(ROWS, D)) * np.geomspace(0.1, 10, ROWS)[:, None]).astype(np.float32),
  'rows': np.arange(ROWS, dtype=np.int32),
  'labels': RNG.integers(0, C, ROWS),
  'weights': np.array([1, 1, 1, 1, 1, 1, 0, 1], np.float32),  # one row of padding
}
KEY = jax.random.key(0)
OBJECTIVE = classification.build(classification.Config(), labels=['a', 'b', 'c'], counts=np.ones(C))


def apply(params, batch, key):
  return Outputs(batch['x'][:, None], logits=batch['x'] @ params['head']['w'] + params['head']['b'])


def loss(params, frozen, batch, key):
  sums = OBJECTIVE(lambda *a: apply(params, *a), batch, key)
  return sums['loss'][0], sums


grad = jax.grad(loss, has_aux=True)


def by_hand(clip):
  """(sum of the clipped gradients, which rows were cut), row by row in numpy."""
  total, cut = np.zeros((D + 1, C)), []
  x = np.concatenate([BATCH['x'], np.ones((ROWS, 1))], 1)
  for i in np.flatnonzero(BATCH['weights']):
    logits = BATCH['x'][i] @ PARAMS['head']['w']
    p = np.exp(logits) / np.exp(logits).sum()
    p[BATCH['labels'][i]] -= 1
    g = np.outer(x[i], p)
    norm = np.linalg.norm(g)
    total += g * min(1, clip / norm)
    cut.append(norm > clip)
  return {'w': total[:D], 'b': total[D]}, cut


@pytest.mark.parametrize('microbatch', [1, 4, 8])
def test_clipping_is_a_loop_over_rows(microbatch):
  wanted, cut = by_hand(0.5)
  assert 0 < sum(cut) < 7
  got, sums = private_gradient(Config(clip_norm=0.5, microbatch=microbatch), expected=6.0)(
    grad, PARAMS, {}, BATCH, KEY, micro=1
  )
  weight = sums['loss'][1]  # by which the step divides
  for name, x in wanted.items():
    np.testing.assert_allclose(got['head'][name] / weight, x / 6, rtol=1e-5, atol=1e-7)
  np.testing.assert_allclose(sums['clipped'], (sum(cut), 7))
  plain = loss(PARAMS, {}, BATCH, KEY)[1]
  np.testing.assert_allclose(sums['loss'], plain['loss'], rtol=1e-6)


def test_a_wide_norm_is_the_usual_gradient():
  gradient = private_gradient(Config(clip_norm=1e6, microbatch=4), expected=7.0)
  got, wanted = gradient(grad, PARAMS, {}, BATCH, KEY, micro=1)[0], grad(PARAMS, {}, BATCH, KEY)[0]
  for name, x in wanted['head'].items():
    np.testing.assert_allclose(got['head'][name], x, rtol=1e-5, atol=1e-6)


def test_the_noise_has_the_stated_deviation_once_a_step():
  """Of 200 steps, over all entries; whatever the micro-batches."""
  draw = lambda config: jax.jit(  # noqa: E731
    jax.vmap(lambda k: private_gradient(config, expected=4.0)(grad, PARAMS, {}, BATCH, k, micro=1)[0])
  )(jax.random.split(KEY, 200))
  quiet = private_gradient(Config(clip_norm=0.5), expected=4.0)(grad, PARAMS, {}, BATCH, KEY, micro=1)[0]
  seen = []
  for microbatch in (2, 8):
    noisy = draw(Config(noise_multiplier=1.5, clip_norm=0.5, microbatch=microbatch))
    noise = jax.tree.map(lambda a, b: np.asarray((a - b) / 7), noisy, quiet)  # what the step divides by
    flat = np.concatenate([x.reshape(200, -1) for x in jax.tree.leaves(noise)], 1)
    assert flat.std() == pytest.approx(1.5 * 0.5 / 4.0, rel=0.05)
    assert abs(flat.mean()) < 4 * flat.std() / flat.size**0.5
    seen.append(flat)
  np.testing.assert_allclose(*seen, atol=1e-5)
  assert np.abs(np.corrcoef(seen[0].T) - np.eye(seen[0].shape[1])).max() < 0.35  # every entry has noise of its own
  assert abs(np.corrcoef(seen[0][:-1].ravel(), seen[0][1:].ravel())[0, 1]) < 0.1  # and every step


def test_the_step_takes_it():
  """Plain gradient descent by the noisy mean over the expected number of rows; of no rows, by the noise."""
  config = Config(noise_multiplier=0.7, clip_norm=0.5, microbatch=4)
  gradient = private_gradient(config, expected=6.0)
  step = jax.jit(make_train_step(apply, OBJECTIVE, optax.sgd(1.0), gradient=gradient))
  state = create(PARAMS, {}, tx=optax.sgd(1.0), seed=0)
  after, sums = step(state, {}, BATCH)
  key = jax.random.fold_in(state.key, 0)
  wanted = jax.tree.map(np.float32, by_hand(0.5)[0])
  noisy = private.noised({'head': wanted}, key, 0.7 * 0.5)
  for name, x in noisy['head'].items():
    np.testing.assert_allclose(after.trainable['head'][name], PARAMS['head'][name] - x / 6, rtol=1e-4, atol=1e-6)
  assert sums['clipped'][1] == 7
  after, sums = step(state, {}, {**BATCH, 'weights': np.zeros(ROWS, np.float32)})
  noise = private.noised({'head': jax.tree.map(np.zeros_like, wanted)}, key, 0.7 * 0.5)
  for name, x in noise['head'].items():
    np.testing.assert_allclose(after.trainable['head'][name], PARAMS['head'][name] - x / 6, rtol=1e-4, atol=1e-6)
  assert sums['clipped'][1] == 0


def test_batches_have_every_row_with_the_same_probability():
  order = Poisson(np.ones(200), 20, 5, multiple=8)
  drawn = [order.rows(i) for i in range(2000)]
  counts = np.bincount(np.concatenate(drawn), minlength=200)
  np.testing.assert_allclose(counts / 2000, 0.1, atol=5 * (0.09 / 2000) ** 0.5)
  sizes = np.array([len(d) for d in drawn])
  assert sizes.mean() == pytest.approx(20, rel=0.02)
  assert sizes.var() == pytest.approx(200 * 0.1 * 0.9, rel=0.1)
  assert order.most % 8 == 0
  assert sizes.max() <= order.most <= 48
  assert all((np.diff(d) > 0).all() for d in drawn)
  np.testing.assert_array_equal(order.rows(7), drawn[7])
  assert not np.array_equal(Poisson(np.ones(200), 20, 6).rows(7), drawn[7])


def test_of_too_many_rows_a_random_part_is_left_out(monkeypatch):
  monkeypatch.setattr(Poisson, 'most', property(lambda self: 15))
  order = Poisson(np.ones(200), 20, 5)
  drawn = [order.rows(i) for i in range(1000)]
  assert max(map(len, drawn)) == 15
  counts = np.bincount(np.concatenate(drawn), minlength=200)
  assert counts[:100].mean() == pytest.approx(counts[100:].mean(), rel=0.03)


SETTINGS = {'rows': 2000, 'rate': 0.05, 'most': 152, 'steps': 60}


def test_epsilon_is_dp_accountings():
  import dp_accounting
  from dp_accounting import pld, rdp

  config = Config(noise_multiplier=1.1, delta=1e-5)
  got = private.epsilon(config, **SETTINGS)
  theirs = pld.PLDAccountant()
  theirs.compose(dp_accounting.TruncatedSubsampledGaussianDpEvent(2000, 0.05, 152, 1.1), 60)
  assert got == pytest.approx(theirs.get_epsilon(1e-5), rel=1e-9)
  bound = rdp.RdpAccountant()
  bound.compose(dp_accounting.PoissonSampledDpEvent(0.05, dp_accounting.GaussianDpEvent(1.1)), 60)
  assert 0.5 * bound.get_epsilon(1e-5) < got < bound.get_epsilon(1e-5)  # of another accountant, which is not tight
  assert private.epsilon(config, **{**SETTINGS, 'steps': 0}) == 0
  assert private.epsilon(config, **{**SETTINGS, 'most': 2000}) == pytest.approx(got, rel=1e-3)


SMALL = {
  'privacy__noise_multiplier': 0.8,
  'privacy__delta': 1e-3,
  'privacy__microbatch': 4,
  'train__batch_size': 8,
  'train__steps': 2,
}


def test_a_run_is_private(config):
  """Batches drawn at random, in shapes that do not change; adapters that move."""
  r = run.build(config(**SMALL))
  own, frozen = r.load()
  state = r.start(own, frozen)
  before = jax.device_get(trees.flatten(state.trainable))
  for i in range(2):
    rows, batch, _ = r.batch(i)
    np.testing.assert_array_equal(rows, r.order.rows(i))
    assert len(batch['rows']) == r.order.most == 24
    state, sums = r.train_step(state, frozen, batch)
    assert sums['clipped'][1] == len(rows)
  assert len(r.train_step.shapes) <= 1 + (r.batch(0)[1]['tokens'].shape != r.batch(1)[1]['tokens'].shape)
  assert all(np.abs(np.asarray(x) - before[n]).max() > 0 for n, x in trees.flatten(state.trainable).items())


@pytest.mark.slow
def test_epsilon_stands_in_the_summary_and_the_report(config, tmp_path, capsys):
  fine_tune.run(config(**SMALL), str(tmp_path / 'w'))
  told = json.loads((tmp_path / 'w' / 'summary.json').read_text())['privacy']
  wanted = private.epsilon(Config(noise_multiplier=0.8, delta=1e-3), rows=96, rate=8 / 96, most=24, steps=2)
  assert told['epsilon'] == pytest.approx(wanted)
  assert told['steps'] == 2
  assert f'privacy: epsilon {wanted:.3g} at delta 0.001 after 2 steps' in capsys.readouterr().out
  page = (tmp_path / 'w' / 'report.html').read_text()
  assert 'Privacy: epsilon' in page
  assert f'{wanted:.4f}' in page or f'{wanted:.4g}' in page
  assert 'truncated Poisson sampling' in page


@pytest.mark.parametrize(
  ('values', 'words'),
  [
    ({'privacy__noise_multiplier': -1.0}, r'privacy\.noise_multiplier=-1\.0 is out of range'),
    ({'privacy__clip_norm': 0.0}, r'privacy\.clip_norm=0\.0 is out of range; it must be above 0'),
    ({'train__accumulate': 2}, r'with train\.accumulate=2: privacy\.microbatch=4 is how many'),
    ({'objective__class_weights': 'balanced'}, r'with objective\.class_weights=balanced: under privacy'),
    ({'train__packing': True}, r'with train\.packing=true'),
    ({'model__pretrained': '', 'model__family': 'bilstm'}, r'vocabulary would be made of the words of the training'),
    (
      {'train__max_length': 8, 'task__truncate': 'windows', 'task__stride': 2},
      r'rows longer than 8 tokens were made into several documents, each of which would count as a row of its own',
    ),
    ({'privacy__delta': 0.02}, r'privacy\.delta=0\.02: publishing one of the 96 training rows'),
    ({'train__batch_size': 100}, r'train\.batch_size=100 with .* 96 training rows'),
    ({'privacy__microbatch': 3, 'mesh__shape': 'data=2'}, r'a batch of 3 rows does not divide'),
    ({'method': 'sparse'}, None),
  ],
)
def test_what_does_not_go_with_privacy(config, values, words):
  if words is None:  # it looks at gradients before the first step
    r = run.build(config(**SMALL, **values))
    with pytest.raises(InputError, match=r'method\.name=sparse, which chooses by gradients of training rows'):
      r.start(*r.load())
    return
  with pytest.raises(InputError, match=words):
    run.build(config(**{**SMALL, **values}))


def test_a_text_in_windows_is_no_row(config):
  """Of a language model as well, whose windows are rows of their own from then on; texts that fit are."""
  c = config(**SMALL, train__max_length=8, method__also='')
  c.task, c.objective = recipe.component_section('task', 'mask'), recipe.component_section('objective', 'masked')
  with pytest.raises(InputError, match=r'rows longer than 8 tokens .* raise train\.max_length'):
    run.build(c)
  c.train.max_length = 32
  assert len(run.build(c).examples['train']) == 96


def test_an_objective_must_say_that_rows_are_apart(config, monkeypatch):
  monkeypatch.delattr(classification, 'ROWWISE')
  with pytest.raises(InputError, match=r'objective\.name=classification, which may couple the rows .* ROWWISE = True'):
    run.build(config(**SMALL))


@pytest.mark.parametrize(('optim', 'needs'), [('sam', 'grad_fn'), ('sophia', 'obj_fn'), ('lbfgs', 'value, value_fn')])
def test_optimizers_may_not_look_at_the_loss(config, optim, needs):
  with pytest.raises(InputError, match=rf'optim\.name={optim}, which looks at the loss of a batch \({needs}\)'):
    run.build(config(optim=optim, optim__clip_norm=0.0, **SMALL))


def test_without_the_accountant_it_says_what_to_install(config, monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, 'dp_accounting', None)
  with pytest.raises(InputError, match=r"pip install 'ftlib\[privacy\]'"):
    fine_tune.run(config(**SMALL), str(tmp_path / 'w'))
  assert not (tmp_path / 'w').exists()


def test_a_small_split_can_be_evaluated(config):
  """What the rows of training are asked is not asked of the 24 test rows."""
  assert run.build(
    config(**{**SMALL, 'train__batch_size': 64, 'privacy__delta': 0.01}), split='test'
  ).examples.keys() == {'test'}
