"""Adversarial objectives against their formulas, step by step, on a model of a few numbers; and on the real ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftlib.base import settings, trees
from ftlib.base.errors import InputError
from ftlib.base.types import Head, Outputs
from ftlib.models import bert, llama
from ftlib.objectives import adversarial, classification, language, preference
from ftlib.objectives.adversarial import Config
from tests import tiny

B, L, D = 3, 4, 2
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
BATCH = {
  'tokens': np.zeros((B, L), np.int32),
  'segments': np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], np.int32),
  'rows': np.arange(B, dtype=np.int32),
  'labels': np.array([0, 1, 0]),
  'weights': np.array([1, 1, 0], np.float32),
  'x': RNG.normal(size=(B, L, D)).astype(np.float32),
}
REAL = BATCH['segments'][..., None] > 0
W = RNG.normal(size=(D, 2)).astype(np.float32)
PLAIN = classification.build(classification.Config(), labels=['a', 'b'], counts=np.array([1, 1]))


def model(w):
  """tanh of every token, the mean over all L of them (padding too: it must not be moved), two logits."""

  def apply(inputs, key):
    h_BLD = inputs['x'] + inputs.get('embedding_noise', 0)
    return Outputs(h_BLD, logits=jnp.tanh(h_BLD).mean(1) * 4 @ w)

  return apply


@jax.jit
def loss(w, d):
  """Of the rows that count, with the perturbation `d`."""
  return PLAIN(model(w), {**BATCH, 'embedding_noise': d}, None)['loss'][0]


@jax.jit
def apart(w, d):
  p, q = (jax.nn.log_softmax(model(w)({**BATCH, 'embedding_noise': x}, None).logits) for x in (0, d))
  return (((jnp.exp(p) - jnp.exp(q)) * (p - q)).sum(-1) / 2 * BATCH['weights']).sum()


def unit(g):
  """By a loop over rows and numpy's norm of the real tokens."""
  out = np.zeros_like(g)
  for i in range(B):
    real = REAL[i, :, 0]
    norm = np.linalg.norm(g[i][real])
    if norm:
      out[i][real] = g[i][real] / norm
  return out


def ascended(of, d, *, config):
  """The perturbations that the steps come by, the first and the last included."""
  seen = [d]
  slope = jax.jit(jax.grad(of))
  for _ in range(config.steps):
    d = seen[-1] + config.step_size * unit(np.asarray(slope(seen[-1])))
    for i in range(B):
      norm = np.linalg.norm(d[i])
      d[i] *= min(1, config.epsilon / norm) if norm else 1
    seen.append(d)
  return seen


def config(name, **values):
  values = {'name': name, 'epsilon': 0.8, 'steps': 3, 'step_size': 0.4, **values}
  return settings.read(Config, values, where='adversarial')


def start(c):
  return np.array(adversarial.start(KEY, BATCH['rows'], REAL.astype(np.float32), D, c.epsilon))


def by_hand(c, w):
  """The value of the loss's sum; the perturbations do not depend on `w`."""
  if c.name == 'fgm':
    d = c.epsilon * unit(np.asarray(jax.grad(lambda d: loss(W, d))(np.zeros((B, L, D), np.float32))))
    return loss(w, 0) + c.weight * loss(w, d)
  if c.name == 'smart':
    return loss(w, 0) + c.weight * apart(w, ascended(lambda d: apart(W, d), start(c), config=c)[-1])
  seen = ascended(lambda d: loss(W, d), start(c), config=c)
  if c.name == 'pgd':
    return loss(w, 0) + c.weight * loss(w, seen[-1])
  return sum(loss(w, d) for d in seen[:-1]) / c.steps


@pytest.mark.parametrize('name', adversarial.NAMES[1:])
@pytest.mark.parametrize('values', [{}, {'weight': 0.3, 'epsilon': 2.0, 'steps': 2}], ids=['in the ball', 'wide'])
def test_value_and_gradient_are_the_formula(name, values):
  c = config(name, **values)
  wrapped = jax.jit(jax.value_and_grad(lambda w: adversarial.wrap(PLAIN, c)(model(w), BATCH, KEY)['loss'][0]))
  got, wanted = wrapped(W), jax.value_and_grad(functools.partial(by_hand, c))(W)
  np.testing.assert_allclose(got[0], wanted[0], rtol=1e-5)
  np.testing.assert_allclose(got[1], wanted[1], rtol=1e-4, atol=1e-6)
  assert abs(float(wanted[0]) - float(loss(W, 0))) > 1e-3


def perturbation(c):
  """What a model is given as `embedding_noise` last."""
  seen = []

  def apply(inputs, key):
    if 'embedding_noise' in inputs:
      jax.debug.callback(seen.append, inputs['embedding_noise'])
    return model(W)(inputs, key)

  adversarial.wrap(PLAIN, c)(apply, BATCH, KEY)
  jax.effects_barrier()
  return max((np.asarray(d) for d in seen), key=np.linalg.norm)


@pytest.mark.parametrize('name', adversarial.NAMES[1:])
def test_padding_gets_nothing_and_rows_their_norm(name):
  d = perturbation(config(name, steps=8))
  np.testing.assert_array_equal(d[~REAL[..., 0]], 0)
  norms = np.linalg.norm(d.reshape(B, -1), axis=1)
  np.testing.assert_allclose(norms[:2], 0.8, rtol=1e-5)  # enough steps to reach the edge of the ball
  assert norms[2] == 0


def test_the_start_is_within_the_ball_and_follows_the_rows():
  ones = np.ones((64, L, 1), np.float32)
  d = np.asarray(adversarial.start(KEY, np.arange(64), ones, 32, 0.5))
  norms = np.linalg.norm(d.reshape(64, -1), axis=1)
  assert norms.max() <= 0.5
  np.testing.assert_allclose(norms.mean(), 0.5 / 3**0.5, rtol=0.02)  # the root mean square of uniform numbers
  assert abs(d.mean()) < 1e-3
  np.testing.assert_array_equal(adversarial.start(KEY, np.arange(8, 16), ones[:8], 32, 0.5), d[8:16])


@pytest.mark.parametrize('name', adversarial.NAMES[1:])
def test_halves_of_a_batch_add_up(name):
  wrapped = jax.jit(lambda batch: adversarial.wrap(PLAIN, config(name))(model(W), batch, KEY))
  parts = [wrapped({n: x[s] for n, x in BATCH.items()}) for s in (slice(0, 1), slice(1, 3))]
  for got, *halves in zip(*(jax.tree.leaves(x) for x in (wrapped(BATCH), *parts)), strict=True):
    np.testing.assert_allclose(got, sum(halves), rtol=1e-5)


@pytest.mark.parametrize('name', ['fgm', 'freelb', 'smart'])
def test_rows_one_by_one_under_vmap(name):
  """As per-example gradients take them."""

  wrapped = adversarial.wrap(PLAIN, config(name))
  total = jax.value_and_grad(lambda w, batch: wrapped(model(w), batch, KEY)['loss'][0])
  one = lambda w, row: total(w, jax.tree.map(lambda x: x[None], row))  # noqa: E731
  values, slopes = jax.jit(jax.vmap(one, (None, 0)))(W, BATCH)
  value, slope = jax.jit(total)(W, BATCH)
  np.testing.assert_allclose(values.sum(), value, rtol=1e-5)
  np.testing.assert_allclose(slopes.sum(0), slope, rtol=1e-4, atol=1e-6)


def test_evaluation_and_none_are_as_they_were():
  assert adversarial.wrap(PLAIN, Config()) is PLAIN
  for name in adversarial.NAMES[1:]:
    got = adversarial.wrap(PLAIN, config(name))(model(W), BATCH, None)
    assert got == PLAIN(model(W), BATCH, None)


def real(kind):
  """(apply(params, batch, key), trainable parameters, the rest, batch, objective) of a tiny BERT or Llama."""
  if kind == 'bert':
    m = bert.build(bert.from_hf(tiny.CONFIG), head=Head('classify', 2))
    more = {'labels': np.array([0, 1]), 'weights': np.ones(2, np.float32)}
    objective, picked = PLAIN, '^head/'
  else:
    m = llama.build(llama.from_hf({**tiny.LLAMA, 'num_hidden_layers': 1}), head=Head('lm'))
    more = {'targets': np.full((2, 8), 5), 'weights': np.ones((2, 8), np.float32)}
    objective, picked = language.build(language.Config(chunk=4), labels=[], counts=np.zeros(0)), 'norm'
  params = m.initial(jax.random.key(1))
  segments = np.array([[1] * 8, [1] * 5 + [0] * 3], np.int32)
  batch = {
    'tokens': RNG.integers(5, 60, (2, 8)).astype(np.int32),
    'types': np.zeros((2, 8), np.int32),
    'positions': np.tile(np.arange(8, dtype=np.int32), (2, 1)),
    'segments': segments,
    'rows': np.arange(2, dtype=np.int32),
    **more,
  }
  chosen = set(trees.matching(picked, trees.flatten(params), field='test'))
  own, rest = trees.split(params, chosen.__contains__)
  return m, own, rest, batch, objective


@pytest.mark.parametrize('kind', ['bert', 'llama'])
def test_the_models_take_a_perturbation(kind):
  """It moves its row alone; and one of padding moves nothing that is real."""
  m, own, rest, batch, _ = real(kind)
  hidden = jax.jit(lambda d: m.apply(trees.join(own, rest), {**batch, 'embedding_noise': d}, None).hidden)
  zero = np.zeros((2, 8, m.config.embed), np.float32)
  plain = m.apply(trees.join(own, rest), batch, None).hidden
  np.testing.assert_allclose(hidden(zero), plain, atol=1e-5)
  one, pad = zero.copy(), zero.copy()
  one[0, 2], pad[1, 6] = 1.0, 1.0
  np.testing.assert_allclose(hidden(one)[1], plain[1], atol=1e-5)
  assert np.abs(hidden(one)[0, 2:] - plain[0, 2:]).max() > 1e-2
  np.testing.assert_allclose(hidden(pad)[1, :5], plain[1, :5], atol=1e-5)


@pytest.mark.parametrize(('kind', 'name'), [('bert', 'fgm'), ('llama', 'freelb'), ('llama', 'smart')])
def test_a_step_of_ascent_raises_the_loss_of_a_model(kind, name):
  """With dropout, and parameters that do not train."""
  m, own, rest, batch, objective = real(kind)
  c = config(name, epsilon=3.0, step_size=3.0, steps=2)

  def total(own):
    sums = adversarial.wrap(objective, c)(lambda *a: m.apply(trees.join(own, rest), *a), batch, KEY)
    return sums['loss'][0], sums

  (got, sums), slope = jax.jit(jax.value_and_grad(total, has_aux=True))(own)
  plain = objective(lambda *a: m.apply(trees.join(own, rest), *a), batch, KEY)['loss'][0]
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(slope))
  assert any(np.abs(x).max() > 0 for x in jax.tree.leaves(slope))
  hard = {'fgm': lambda: sums['adversarial_loss'][0], 'freelb': lambda: got, 'smart': lambda: got}[name]()
  assert hard > plain + 1e-3


@pytest.mark.parametrize(
  ('name', 'values', 'words'),
  [
    ('fgsm', {}, r"adversarial\.name='fgsm' is not one of none, fgm.*did you mean \"fgm\""),
    ('fgm', {'epsilon': 0.0}, r'adversarial\.epsilon=0\.0 is out of range; it must be above 0'),
    ('pgd', {'steps': 0}, r'adversarial\.steps=0 is out of range; it must be at least 1'),
    ('pgd', {'step_size': -1.0}, r'adversarial\.step_size=-1\.0 is out of range'),
    ('fgm', {'weight': 0.0}, r'adversarial\.weight=0\.0 is out of range'),
  ],
)
def test_bad_input(name, values, words):
  with pytest.raises(InputError, match=words):
    config(name, **values)


def test_what_needs_outputs_that_can_be_compared():
  """Of pairs of answers neither SMART nor R-Drop is defined here."""
  pairs = preference.build(preference.Config(), labels=[], counts=np.zeros(0))
  for objective in (lambda apply, batch, key: {}, pairs):
    with pytest.raises(InputError, match=r'adversarial\.name=smart compares the outputs'):
      adversarial.wrap(objective, config('smart'))
  with pytest.raises(InputError, match=r'unknown config key objective\.r_drop'):
    settings.read(preference.Config, {'r_drop': 1.0}, where='objective')


@pytest.mark.parametrize('name', adversarial.NAMES[1:])
def test_a_model_may_be_wider_at_its_end(name):
  """As a BiLSTM, whose states are of two directions: the perturbation is of what the first block reads. By shapes."""

  def apply(inputs, key):
    h_BLD = inputs['x'] + inputs.get('embedding_noise', 0)
    return Outputs(jnp.concatenate([h_BLD] * 3, -1), logits=jnp.tanh(h_BLD).mean(1) @ W)

  wrapped = adversarial.wrap(PLAIN, config(name), width=D)
  assert jax.eval_shape(lambda: wrapped(apply, BATCH, KEY))['loss'][0].shape == ()
