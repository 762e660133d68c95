"""Every method on a tiny Llama and a tiny GPT-2: it starts as the base, and decodes with a cache as without."""

import functools

import jax
import numpy as np
import pytest

from ftlib.base import lookup, settings, trees
from ftlib.base.errors import InputError
from ftlib.base.types import Head
from ftlib.models import gpt2, llama
from ftlib.peft.method import added
from tests import tiny

GPT2 = {'model_type': 'gpt2', 'vocab_size': 64, 'n_embd': 32, 'n_layer': 2, 'n_head': 4, 'n_positions': 64}
FAMILIES = {
  'llama': (llama, {**tiny.LLAMA, 'vocab_size': 64}),
  'gpt2': (gpt2, {**GPT2, 'initializer_range': 0.2}),
}
SETTINGS = {
  'adalora': {'init_rank': 4, 'target_rank': 2},
  'hira': {'rank': 4},
  'loreft': {'rank': 4},
  'gradual': {'layers': 1},
  'last_n': {'layers': 1},
  'p_tuning': {'length': 4},
  'p_tuning_v2': {'length': 4},
  'prefix': {'length': 4, 'hidden': 16},
  'prompt': {'length': 4},
}
BARE = {'llama': {'bitfit': 'no biases'}, 'gpt2': {}}  # methods for what a family lacks
HEADS = ('head', 'full', 'together')  # methods of a head alone, of everything, or of others: see their own tests
METHODS = [n for n in lookup.names('peft') if n not in HEADS]


@functools.cache
def base(family):
  module, values = FAMILIES[family]
  model = module.build(module.from_hf(values), head=Head('lm'))
  return model, trees.flatten(model.initial(jax.random.key(0)))


def made(family, name, **changes):
  """The method on a model, and all its parameters as at step 0."""
  plain, flat = base(family)
  module = lookup.component('peft', name, field='')
  values = {k: v for k, v in {'also': '', **SETTINGS.get(name, {})}.items() if k in fields(module)}
  config = settings.read(module.Config, {**values, **changes}, where='method')
  method = module.build(config, plain)
  params = {**trees.flatten(method.model.initial(jax.random.key(1))), **flat}
  if method.prepare is not None:
    rng = np.random.default_rng(0)
    gradient = lambda names, rows=0, squared=False: {n: rng.random(flat[n].shape, np.float32) for n in names}  # noqa: E731
    params |= method.prepare(params, gradient)
  return method, params


def fields(module):
  return module.Config.__dataclass_fields__


def batch(ids, start=0):
  positions = np.broadcast_to(np.arange(start, start + ids.shape[1], dtype=np.int32), ids.shape)
  return {'tokens': ids, 'positions': positions, 'segments': np.ones_like(ids), 'rows': np.arange(len(ids))}


def logits(model, params, inputs):
  out = model.apply(trees.unflatten(params), inputs)
  return np.asarray(out.unembed(out.hidden))


IDS = np.random.default_rng(0).integers(0, 64, (2, 12)).astype(np.int32)


@functools.cache
def plain_logits(family):
  model, flat = base(family)
  return logits(model, flat, batch(IDS))


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('name', METHODS)
def test_a_method_starts_as_the_base(family, name):
  if name in BARE[family]:
    with pytest.raises(InputError, match='matches'):
      made(family, name)
    return
  method, params = made(family, name)
  assert any(method.trains(n) for n in method.model.info())
  got = logits(method.model, params, batch(IDS))
  apart = np.abs(got - plain_logits(family)).max()
  assert apart < 2e-5 if method.identity else apart > 1e-4


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('name', ['lora', 'ia3', 'houlsby', 'prefix', 'p_tuning_v2', 'prompt', 'p_tuning'])
def test_cached_decoding_with_an_adapter_equals_the_whole_row(family, name):
  method, params = made(family, name)
  rng, model = np.random.default_rng(0), method.model
  params = {n: np.asarray(x + 0.3 * rng.normal(size=x.shape), np.float32) if added(n) else x for n, x in params.items()}
  want = logits(model, params, batch(IDS))
  assert np.abs(want - plain_logits(family)).max() > 0.05
  tree = trees.unflatten(params)
  cache = model.cache(tree, rows=2, slots=12 + method.tokens)
  for start, stop in ((0, 9), (9, 10), (10, 12)):
    out, cache = model.decode(tree, batch(IDS[:, start:stop], start), cache, first=start == 0)
    np.testing.assert_allclose(out.unembed(out.hidden), want[:, start:stop], rtol=0, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize('family', FAMILIES)
def test_a_prefix_takes_the_first_positions(family):
  """As in PEFT: the row's tokens begin at position P, which a key that nothing turned can tell."""
  method, params = made(family, 'prefix', reparametrise=False)
  rng = np.random.default_rng(0)
  params = {n: np.asarray(rng.normal(size=x.shape), np.float32) if added(n) else x for n, x in params.items()}
  one = logits(method.model, params, batch(IDS))
  other = logits(method.model, params, batch(IDS, start=3))
  assert np.abs(one - other).max() > 0.01
  site = 'embed/position' if family == 'gpt2' else 'embed/turn'
  assert method.model.modules()[site].adapter.length == 4
