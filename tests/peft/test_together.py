"""`method=lora+bitfit`: several methods as one, and those that exclude each other."""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.nn import initializers

from ftlib import config_file, fine_tune, judge, recipe, run
from ftlib.base import trees
from ftlib.base.errors import InputError
from ftlib.base.types import Head
from ftlib.models import bert
from ftlib.models.layers import Axis, Hidden, Proj, Prompt, param
from ftlib.peft import bitfit, head, lora, together
from ftlib.peft.method import Adapter, Method, Stages, adapt, added, subset
from tests import tiny
from tests.cli.conftest import ROOT
from tests.contract import runs

D, F, N = (tiny.CONFIG[k] for k in ('hidden_size', 'intermediate_size', 'num_hidden_layers'))
HEAD = 2 * D + 2
BIASES = D + N * (4 * D + F + D + 2 * D) + D  # embeddings' norm, layers, pooler
OUTSIDE = 'tests.outside.odd_lora'
CLASSIFY = str(ROOT / 'configs' / 'classify.py')


@pytest.fixture
def model():
  return bert.build(bert.from_hf(tiny.CONFIG), head=Head('classify', 2))


class Bias(Adapter):
  """A bias of its own, for any slot of one axis."""

  KEPT = ('sign',)

  def __init__(self, axis: Axis):
    self.b, self.sign = param((axis,), initializers.zeros), param((axis,), initializers.ones)

  def __call__(self, site, *args):
    return args[1] + self.b[...] * self.sign[...]

  def merged(self, kernel, bias):
    return kernel, bias + self.b[...] * self.sign[...]


def biased(model, pattern, **options) -> Method:
  return adapt(model, pattern, lambda site, name, salt: Bias(site.outs[0]), **options)


# --- the config


def test_a_section_for_each(model):
  c = recipe.recipe(task='classify', method=f'lora+{OUTSIDE}+bitfit', optim='adamw')
  assert set(c.method) == {'name', 'lora', 'odd_lora', 'bitfit'}
  c.method.lora.rank = 3
  s = recipe.read(c)
  assert s.method.lora == lora.Config(rank=3)
  assert s.method.bitfit == bitfit.Config()
  again = recipe.expanded(json.loads(json.dumps(c.to_dict())))
  assert again.to_dict() == recipe.expanded(c).to_dict() == c.to_dict()
  c.method.lora.rank = 0
  with pytest.raises(InputError, match=r'method\.lora\.rank=0 is out of range'):
    recipe.read(c)


def load(*changes: tuple[str, str], method: str = 'lora+bitfit'):
  return config_file.load(f'{CLASSIFY}:method={method}', changes)


def test_flags():
  c = load(('method.lora.rank', '16'), ('method.bitfit.target', 'attn/q/bias$'))
  assert (c.method.lora.rank, c.method.bitfit.target, c.method.name) == (16, 'attn/q/bias$', 'lora+bitfit')
  assert load(('method.odd_lora.also', ''), method=f'{OUTSIDE}+bitfit').method.odd_lora.also == ''
  c = config_file.load(CLASSIFY, [('method.name', 'lora+bitfit'), ('method.lora.alpha', '4')])
  assert c.method.lora.alpha == 4.0


@pytest.mark.parametrize(
  ('field', 'text', 'words'),
  [
    ('method.lora.rnak', '1', ['unknown config key method.lora.rnak', 'did you mean "rank"?']),
    ('method.rank', '1', ['unknown config key method.rank', 'did you mean "lora.rank"?']),
    ('method.lroa.rank', '1', ['unknown config key method.lroa.rank', 'did you mean "lora.rank"?']),
    ('method.lora.rank.x', '1', ['unknown config key method.lora.rank.x']),
    ('method.lora', '1', ['--config.method.lora is a section; its fields: target, also, rank']),
    ('method.lora.rank', 'x', ['--config.method.lora.rank=x', 'a whole number']),
  ],
)
def test_flags_that_are_wrong(field, text, words):
  with pytest.raises(InputError) as e:
    load((field, text))
  assert all(w in str(e.value) for w in words), str(e.value)


@pytest.mark.parametrize(
  ('name', 'words'),
  [
    ('lora+lora', 'names a method twice'),
    ('lora+lroa', r"method\.name='lroa'.*did you mean"),
    ('lora+', r'method\.name is empty'),
    (f'{OUTSIDE}+odd.odd_lora', r"method\.name='odd\.odd_lora' cannot be imported"),
  ],
)
def test_names_that_are_wrong(name, words):
  with pytest.raises(InputError, match=words):
    load(method=name)


def test_two_of_one_last_word():
  with pytest.raises(InputError, match='two methods of one name'):
    together.component({'lora': lora, 'my_lab.lora': lora})


# --- a run


@pytest.fixture(scope='module')
def both(tiny_bert, toy_data):
  return runs.take(tiny_bert, toy_data, method='lora+bitfit')


def test_it_trains_what_any_of_them_trains(both):
  r = both.run
  assert sum(i.size for i in r.train_info.values()) == N * 2 * 8 * (D + D) + BIASES + HEAD
  changed = {n for n, x in both.trainable[-1].items() if not np.array_equal(x, both.start[n])}
  assert changed == set(both.start)
  assert {n for n in both.start if n.endswith('/bias')} | {n for n in both.start if '/adapter/' in n} == set(
    both.start
  ) - {'head/out/kernel'}
  assert trees.digest(both.frozen) == trees.digest(both.frozen_after)


def test_merged_it_is_a_plain_model(both):
  r, params = both.run, both.params(runs.STEPS)
  plain = r.base.family.build(r.method.model.config, head=r.task.head)
  merged = r.method.merge(params)
  assert set(trees.flatten(merged)) == set(plain.info())
  batch = next(r.eval_batches('validation'))[1]
  logits = [np.asarray(m.apply(p, batch).logits) for m, p in ((r.method.model, params), (plain, merged))]
  np.testing.assert_allclose(*logits, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_it_is_trained_resumed_and_evaluated(tiny_bert, toy_data, tmp_path):
  c = runs.config(tiny_bert, toy_data, method=f'{OUTSIDE}+norm', train__steps=2, train__eval_every=2)
  c.model.layers = 'scan'
  fine_tune.run(c, str(tmp_path / 'run'))
  c.train.steps = 3
  fine_tune.run(c, str(tmp_path / 'run'))
  assert judge.run(str(tmp_path / 'run'), split='test', checkpoint='last')['loss'] > 0
  c.method.odd_lora.target = 'attn/q$'
  with pytest.raises(InputError, match=r'method\.odd_lora\.target: attn/\(q\|v\)\$ -> attn/q\$'):
    fine_tune.run(c, str(tmp_path / 'run'))


# --- what is composed


def test_every_field_of_a_method_is_composed():
  """One that is added must be thought of in `together`."""
  fields = 'model trains shown merge prepare penalty adjust project tokens packs identity source text stages rates'
  assert {f.name for f in dataclasses.fields(Method)} == set(fields.split())


def test_subsets_leave_the_others_adapters_alone(model):
  made = together.together(
    {
      'lora': functools.partial(lora.build, lora.Config(also='')),
      'bias': lambda m: biased(m, 'mlp/up$'),
      'biases': lambda m: dataclasses.replace(subset(m, '/bias$', field='x'), trains=lambda n: 'b' in n),
    },
    model,
  )
  names = list(made.model.info())
  for name in names:
    if added(name):
      assert made.trains(name) == (not name.endswith('/sign')), name
    else:
      assert made.trains(name) == ('b' in name), name


def test_merging_goes_from_the_last_to_the_first(model):
  """And is there only where all have it."""
  order = []

  def part(name, pattern):
    def build(m):
      made = biased(m, pattern)
      return dataclasses.replace(made, merge=lambda p: (order.append(name), made.merge(p))[1])

    return build

  made = together.together({'a': part('a', '0/mlp/up$'), 'b': part('b', '1/mlp/up$')}, model)
  r = np.random.default_rng(0)
  params = trees.unflatten({n: np.float32(r.normal(size=i.shape)) for n, i in made.model.info().items()})
  merged = trees.flatten(made.merge(params))
  assert order == ['b', 'a']
  assert set(merged) == set(model.info())
  flat = trees.flatten(params)
  for site in ('layers/0/mlp/up', 'layers/1/mlp/up'):
    wanted = flat[f'{site}/bias'] + flat[f'{site}/adapter/b'] * flat[f'{site}/adapter/sign']
    np.testing.assert_allclose(merged[f'{site}/bias'], wanted, rtol=1e-6)
  none = together.together(
    {'a': part('a', 'mlp/up$'), 'h': lambda m: dataclasses.replace(subset(m, '^head/', field='x'), merge=None)}, model
  )
  assert none.merge is None


def test_functions_see_their_own_parameters(model):
  """`prepare`, `penalty`, `adjust` and `project` of two methods, and one that has none."""
  seen = {}

  def part(name, pattern, scale):
    def adjust(trainable, kept, grads, step):
      seen[name] = set(trees.flatten(trainable)), set(trees.flatten(kept)), set(trees.flatten(grads))
      return jax.tree.map(lambda x: scale * x, trainable), jax.tree.map(lambda x: x + scale, kept)

    options = {
      'prepare': lambda flat, gradient: {n: flat[n] + scale for n in flat if n.endswith(f'{name}/adapter/b')},
      'penalty': lambda trainable: scale * sum(x.sum() for x in jax.tree.leaves(trainable)),
      'adjust': lambda steps: adjust,
      'project': lambda trainable, kept: adjust(trainable, kept, {}, 0)[0],
      'tokens': int(scale),
      'rates': lambda n: scale,
    }
    return lambda m: biased(m, pattern, **options)

  parts = {'up': part('up', 'mlp/up$', 2.0), 'bitfit': lambda m: bitfit.build(bitfit.Config(), m)}
  parts['out'] = part('out', 'pooler$', 5.0)
  made = together.together(parts, model)
  info = made.model.info()
  trainable = trees.unflatten({n: jnp.ones(i.shape) for n, i in info.items() if made.trains(n)})
  kept = trees.unflatten({n: jnp.ones(i.shape) for n, i in info.items() if added(n) and not made.trains(n)})
  new, new_kept = made.adjust(3)(trainable, kept, trainable, 0)
  assert seen['up'] == (
    {f'layers/{i}/mlp/up/adapter/b' for i in range(N)},
    {f'layers/{i}/mlp/up/adapter/sign' for i in range(N)},
    {f'layers/{i}/mlp/up/adapter/b' for i in range(N)},
  )
  flat, flat_kept = trees.flatten(new), trees.flatten(new_kept)
  assert set(flat) == set(trees.flatten(trainable))
  assert flat['layers/0/mlp/up/adapter/b'][0] == 2
  assert flat['pooler/adapter/b'][0] == 5
  assert flat['layers/0/mlp/up/bias'][0] == 1
  assert (flat_kept['layers/1/mlp/up/adapter/sign'][0], flat_kept['pooler/adapter/sign'][0]) == (3, 6)
  seen.clear()
  assert trees.digest(made.project(trainable, kept)) == trees.digest(new)
  assert seen['out'] == ({'pooler/adapter/b'}, {'pooler/adapter/sign'}, set())
  assert made.penalty(trainable) == 2 * N * F + 5 * D
  whole = {**trees.flatten(trainable), **trees.flatten(kept)}
  got = made.prepare(whole, None)
  assert {n: x[0] for n, x in got.items()} == {f'layers/{i}/mlp/up/adapter/b': 3 for i in range(N)}
  assert made.tokens == 7
  rates = [made.rates(n) for n in ('layers/0/mlp/up/adapter/b', 'layers/0/mlp/up/bias', 'pooler/adapter/b')]
  assert rates == [2, 1, 5]


def test_what_none_has_is_none(model):
  made = together.together(
    {'lora': lambda m: lora.build(lora.Config(), m), 'head': lambda m: head.build(head.Config(), m)}, model
  )
  assert (made.prepare, made.penalty, made.adjust, made.project, made.stages) == (None,) * 5
  assert made.tokens == 0


def test_the_model_it_is_given_stays_as_it_was(model):
  before = set(model.info())
  parts = together.component({'lora': lora, 'bitfit': bitfit})
  made = parts.build(parts.Config(), model)
  assert set(model.info()) == before < set(made.model.info())


# --- methods that exclude each other


@pytest.mark.parametrize('order', [('lora', OUTSIDE), (OUTSIDE, 'lora')])
def test_one_slot_takes_one(tiny_bert, toy_data, order):
  with pytest.raises(InputError) as e:
    run.build(runs.config(tiny_bert, toy_data, method='+'.join(order)))
  names = [n.rpartition('.')[2] for n in order]
  words = [f'{names[0]} and {names[1]} exclude each other', 'layers/0/attn/q', f'method.{names[1]}.target']
  assert all(w in str(e.value) for w in words), str(e.value)
  c = runs.config(tiny_bert, toy_data, method='+'.join(order))
  c.method.odd_lora.target = 'attn/k$'
  assert run.build(c).train_info


def test_slots_of_other_kinds(model):
  class Vectors(Adapter):
    def __init__(self, axis):
      self.p = param((Axis('prompt', 3), axis), initializers.zeros)

  prompt = lambda m: adapt(m, '', lambda site, n, s: Vectors(site.axis), kind=Prompt, tokens=3)  # noqa: E731
  hidden = lambda m: adapt(m, '', lambda site, n, s: Bias(site.axis), kind=Hidden)  # noqa: E731
  made = together.together({'prompt': prompt, 'hidden': hidden}, model)
  assert (made.tokens, made.merge) == (3, None)
  with pytest.raises(InputError, match='prompt and other exclude each other: both want the slot embed/prompt'):
    together.together({'prompt': prompt, 'other': prompt}, model)


@pytest.mark.parametrize('name', ['full+lora', 'lora+full', 'full+bitfit', 'lora+gradual'])
def test_a_method_of_the_whole_model_stands_alone(tiny_bert, toy_data, name):
  whole = next(n for n in name.split('+') if n in ('full', 'gradual'))
  with pytest.raises(
    InputError, match=rf"method\.name='{name.replace('+', '.')}': {whole} trains .*leave the others out"
  ):
    run.build(runs.config(tiny_bert, toy_data, method=name))


def test_stages_stand_alone(model):
  staged = lambda m: dataclasses.replace(subset(m, '^head/', field='x'), stages=Stages((0, 2), lambda n: 0))  # noqa: E731
  with pytest.raises(InputError, match='b trains in stages'):
    together.together({'a': lambda m: lora.build(lora.Config(), m), 'b': staged}, model)


def test_errors_of_a_part_name_its_section(tiny_bert, toy_data):
  c = runs.config(tiny_bert, toy_data, method='lora+bitfit')
  c.method.lora.rank = 33
  with pytest.raises(InputError, match=r'method\.lora\.rank=33 is larger'):
    run.build(c)
  c = runs.config(tiny_bert, toy_data, method='lora+bitfit')
  c.method.bitfit.target = 'no/such'
  with pytest.raises(InputError, match=r"method\.bitfit\.target='no/such' matches none"):
    run.build(c)


def test_proj_is_the_kind_by_default(model):
  assert all(isinstance(s, Proj) for s in model.sites().values())
