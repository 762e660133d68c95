"""What averages, mixout, adversarial training and privacy hold in memory, as `python -m ftlib.shapes` tells it."""

from __future__ import annotations

import functools
import json

import jax
import pytest

from ftlib import recipe, run, shapes
from ftlib.base import trees
from ftlib.base.errors import InputError
from tests import tiny


@pytest.fixture(scope='module')
def built(tiny_bert, toy_data):
  """The shapes of a run on the tiny model, batches of 16 rows of 32 tokens; each is made once."""
  values = json.loads((tiny_bert / 'config.json').read_text())

  @functools.cache
  def make(**changes):
    config = tiny.config(tiny_bert, toy_data, **{'method': 'lora', 'train__max_length': 32, **changes})
    return shapes.of(recipe.read(config), values)

  return make


@functools.cache
def kept(found: shapes.Shapes) -> int:
  return found.kept_bytes()


@functools.cache
def lines(found: shapes.Shapes) -> dict[str, str]:
  return dict(line.split(maxsplit=1) for line in shapes.report(found).splitlines())


def traced(found: shapes.Shapes) -> None:
  after, _ = jax.eval_shape(found.step, found.state, found.frozen, found.batch)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), found.state)


def test_adversarial_passes_are_held_at_once_where_they_are(built):
  """A second pass as large as the first; of freelb one at a time. R-Drop has two passes of its own."""
  plain = kept(built())
  for name in ('fgm', 'smart'):
    assert kept(built(adversarial__name=name)) == pytest.approx(2 * plain, rel=0.1), name
  assert lines(built(adversarial__name='fgm'))['backward'].endswith('from the forward passes')
  free = built(adversarial__name='freelb')
  assert kept(free) == plain
  assert lines(free)['backward'].endswith('from the forward pass')
  traced(free)
  assert kept(built(objective__r_drop=1.0)) == pytest.approx(2 * plain, rel=0.1)


def test_mixout_keeps_the_pretrained_matrices(built, config):
  """Those that the run itself keeps, twice: as they are, and what they are mixed into."""
  plain, found = built(method='full'), built(method='full', train__mixout=0.3)
  start = run.regularised.anchored(r := run.build(config(method='full', train__mixout=0.3)), None)._start
  assert set(trees.flatten(start)) == set(trees.flatten(found.frozen['pretrained']))
  assert found.mixed_bytes() == trees.nbytes(start) > 0
  assert kept(found) == kept(plain)
  assert r.settings.train.mixout == found.settings.train.mixout
  assert lines(found)['mixout'].startswith(f'{found.mixed_bytes() / 1e3:.1f} kB of pretrained values')
  assert lines(found)['frozen'] == lines(plain)['frozen']
  assert 'mixout' not in lines(plain)
  traced(found)


def test_private_gradients_are_of_every_row_at_once(built):
  """A gradient a row, float32, and what these rows' forward passes leave instead of the whole batch's."""
  plain, found = built(), built(privacy__noise_multiplier=1.0, privacy__microbatch=3)
  assert found.row_bytes() == 3 * 4 * sum(i.size for i in found.train_info.values())
  assert kept(found) == pytest.approx(kept(plain) * 3 / 16, rel=0.05)
  assert lines(found)['privacy'] == f'{found.row_bytes() / 1e3:.1f} kB of gradients of 3 rows'
  assert 'privacy' not in lines(plain)
  assert found.batch['tokens'].shape == (18, 32)
  traced(found)
  with pytest.raises(InputError, match=r'privacy\.noise_multiplier=1\.0 with train\.packing=true'):
    built(privacy__noise_multiplier=1.0, train__packing=True)


def test_averages_are_counted(built):
  found = built(train__ema=0.9, train__swa_start=0.5)
  assert lines(found)['averages'] == f'{2 * trees.nbytes(found.state.trainable) / 1e3:.1f} kB, ema, swa'
  assert 'averages' not in lines(built())
  traced(found)


def test_all_of_it_is_in_the_sum(built):
  """In bytes, so that no rounding hides a part."""
  values = {'privacy__noise_multiplier': 1.0, 'train__ema': 0.9, 'method': 'full', 'train__mixout': 0.3}
  plain, found = built(method='full'), built(**values)
  total = lambda x: float(lines(x)['together'].split()[0]) * {'kB': 1, 'MB': 1e3}[lines(x)['together'].split()[1][:2]]  # noqa: E731
  more = found.row_bytes() + 2 * found.mixed_bytes() + trees.nbytes(found.state.averages)
  assert total(found) - total(plain) == pytest.approx((more + kept(found) - kept(plain)) / 1e3, abs=12)


@pytest.mark.parametrize('name', ['fgm', 'freelb'])
def test_a_model_whose_states_are_wider_than_its_words_trains_adversarially(config, name):
  """A BiLSTM: the run gives the perturbation the width of what the first block reads."""
  small = {'model__pretrained': '', 'model__family': 'bilstm', 'model__scratch__embedding': 5}
  r = run.build(config(method='full', adversarial__name=name, model__scratch__hidden=4, **small))
  batch, noise = r.batch(0)[1], []

  def apply(params, inputs, key):
    noise.append(inputs.get('embedding_noise'))
    return r.method.model.apply(params, inputs, key)

  params = trees.unflatten({n: jax.ShapeDtypeStruct(i.shape, i.dtype) for n, i in r.info.items()})
  loss = lambda p: r.objective(functools.partial(apply, p), batch, jax.random.key(0))['loss'][0]  # noqa: E731
  slope = jax.eval_shape(jax.grad(loss), params)
  assert jax.tree.structure(slope) == jax.tree.structure(params)
  assert {x.shape for x in noise if x is not None} == {(*batch['tokens'].shape, 5)}
