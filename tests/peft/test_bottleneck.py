"""houlsby, pfeiffer, parallel, compacter and loreft against their papers' formulas, written plainly in NumPy."""

import dataclasses
import functools
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ftlib.base import rng, trees
from ftlib.base.errors import InputError
from ftlib.base.types import Head
from ftlib.models import bert
from ftlib.models.layers import Axis, Hidden, Shared
from ftlib.peft import compacter, houlsby, loreft, parallel, pfeiffer, together
from tests import tiny

WIDTH, SEGMENTS = 12, np.array([[1, 1, 1, 2, 2, 2, 2, 0], [1, 1, 1, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0, 0, 0]])
D, F, N = (tiny.CONFIG[k] for k in ('hidden_size', 'intermediate_size', 'num_hidden_layers'))
HEAD, NORMS = 2 * D + 2, N * 4 * D
close = functools.partial(np.testing.assert_allclose, rtol=0, atol=2e-5)
gelu = np.vectorize(lambda v: v * 0.5 * (1 + math.erf(v / math.sqrt(2))))
gelu_tanh = np.vectorize(lambda v: 0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))))


def relu(v):
  return np.maximum(v, 0)


def random_like(info, seed=0, size=0.5):
  """{name: normal values} of the shapes of `info`."""
  r = np.random.default_rng(seed)
  return {n: r.normal(size=np.shape(i), scale=size).astype(np.float32) for n, i in info.items()}


def filled(adapter, seed=1):
  """(the adapter with random parameters, these by name)."""
  flat = {'/'.join(map(str, p)): v.get_value() for p, v in nnx.to_flat_state(nnx.state(adapter))}
  values = random_like(flat, seed)
  return nnx.merge(nnx.graphdef(adapter), trees.unflatten(values)), values


def called(adapter, *, shared=None, dtype=np.float32, stream=None, seed=2):
  """(x, y, the slot's output) at random x and y [3, 8, WIDTH]."""
  r = np.random.default_rng(seed)
  x, y = (jnp.asarray(r.normal(size=(*SEGMENTS.shape, WIDTH)), dtype) for _ in range(2))
  context = types.SimpleNamespace(segments_BL=jnp.asarray(SEGMENTS), shared=shared)
  return np.asarray(x, np.float32), np.asarray(y, np.float32), adapter(SITE, x, y, context, stream)


SITE = Hidden(Axis('embed', WIDTH))


def two_layers(h, p, f):
  return f(h @ p['down/kernel'] + p['down/bias']) @ p['up/kernel'] + p['up/bias']


@pytest.mark.parametrize(('module', 'f'), [(houlsby, gelu), (pfeiffer, relu)])
def test_a_bottleneck(module, f):
  adapter, p = filled(houlsby.Bottleneck(SITE, 0, module.Config(reduction=3)))
  assert p['down/kernel'].shape == (WIDTH, 4)
  _, y, out = called(adapter)
  close(out, y + two_layers(y, p, f))


@pytest.mark.parametrize('learnt', [False, True])
def test_a_parallel_adapter_reads_what_the_part_reads(learnt):
  adapter, p = filled(parallel.Parallel(SITE, 0, parallel.Config(reduction=3, scale=2.5, learn_scale=learnt)))
  assert ('scale' in p) == learnt
  x, y, out = called(adapter)
  close(out, y + p.get('scale', 2.5) * two_layers(x, p, relu))


def kronecker_sum(a, s, t):
  """W of the paper of Compacter."""
  return sum(np.kron(a[i], s[i] @ t[i]) for i in range(len(a)))


@pytest.mark.parametrize('rank', [1, 2])
def test_compacter(rank):
  config = compacter.Config(reduction=2, n=3, rank=rank)
  adapter, p = filled(compacter.Compact(SITE, 0, config))
  rules, a = filled(compacter.Rules(config.n), seed=5)
  _, y, out = called(adapter, shared=rules(None, None))
  down, up = (kronecker_sum(a['a'], p[f'{part}/s'], p[f'{part}/t']) for part in ('down', 'up'))
  assert (down.shape, up.shape) == ((WIDTH, 6), (6, WIDTH))
  close(out, y + gelu_tanh(y @ down + p['down/bias']) @ up + p['up/bias'])


def test_the_bottleneck_of_compacter_is_a_multiple_of_n():
  sizes = [houlsby.bottleneck(SITE, r, multiple=4).size for r in (1, 2, 3, 12)]
  assert sizes == [12, 8, 4, 4]


@pytest.mark.parametrize(('first', 'last'), [(0, 1), (1, 0), (2, 1), (3, 3), (20, 0), (0, 20)])
def test_loreft(first, last):
  adapter, p = filled(loreft.Edit(SITE, loreft.Config(rank=2, first=first, last=last)))
  r, w, b = p['rotation'], p['source'], p['bias']
  _, y, out = called(adapter)
  expected = y.copy()
  for row, segments in enumerate(SEGMENTS):
    for text in {*segments} - {0}:
      places = np.flatnonzero(segments == text)
      for i in {*places[:first], *places[len(places) - min(last, len(places)) :]}:
        h = y[row, i]
        expected[row, i] = h + r.T @ (w @ h + b - r @ h)
  close(out, expected)


def test_loreft_at_the_start_is_no_edit():
  """W = R and b = 0 give exactly what came, in bfloat16 too."""
  adapter, _ = filled(loreft.Edit(SITE, loreft.Config()))
  adapter.source[...], adapter.bias[...] = adapter.rotation[...], jnp.zeros(4)
  for dtype in (jnp.float32, jnp.bfloat16):
    _, y, out = called(adapter, dtype=dtype)
    np.testing.assert_array_equal(np.asarray(out, np.float32), y)


def test_rows_are_made_orthonormal_and_stay_near():
  r = random_like({'r': np.zeros((5, 3, WIDTH))})['r']
  u, _, v = np.linalg.svd(r, full_matrices=False)
  close(loreft.orthonormal(r), u @ v)  # the polar factor: no other is nearer


ADAPTERS = {
  'houlsby': lambda: houlsby.Bottleneck(SITE, 7, houlsby.Config(reduction=3, dropout=0.4)),
  'parallel': lambda: parallel.Parallel(SITE, 7, parallel.Config(reduction=3, dropout=0.4)),
  'compacter': lambda: compacter.Compact(SITE, 7, compacter.Config(reduction=2, n=3, dropout=0.4)),
  'loreft': lambda: loreft.Edit(SITE, loreft.Config()),
}


@pytest.mark.parametrize('name', ADAPTERS)
def test_bfloat16_stays(name):
  adapter, _ = filled(ADAPTERS[name]())
  out = called(adapter, dtype=jnp.bfloat16, shared=jnp.ones((3, 3, 3)))[2]
  assert out.dtype == jnp.bfloat16


@pytest.mark.parametrize('name', [n for n in ADAPTERS if n != 'loreft'])
def test_dropout_is_in_the_bottleneck(name):
  """The same mask, drawn here from the stream of the site's number."""
  adapter, p = filled(ADAPTERS[name]())
  stream = rng.Stream.start(jax.random.key(3), jnp.arange(3))
  shared = jnp.asarray(random_like({'a': np.zeros((3, 3, 3))})['a'])
  x, y, quiet = called(adapter, shared=shared)
  _, _, out = called(adapter, shared=shared, stream=stream)
  h, scale = (x, 4.0) if name == 'parallel' else (y, 1.0)
  if name == 'compacter':
    hidden = gelu_tanh(h @ np.asarray(adapter.down.kernel(shared)) + p['down/bias'])
    up = np.asarray(adapter.up.kernel(shared))
  else:
    hidden, up = (relu if name == 'parallel' else gelu)(h @ p['down/kernel'] + p['down/bias']), p['up/kernel']
  site = 'compacter/7' if name == 'compacter' else 'bottleneck/7'
  kept = np.asarray(stream.at(site).keep(hidden.shape, 0.4))
  assert 0 < kept.mean() < 1
  close(out, y + scale * ((hidden * kept / 0.6) @ up + p['up/bias']))
  assert np.abs(out - quiet).max() > 0.1


# On a model


@pytest.fixture(scope='module')
def model():
  return bert.build(bert.from_hf(tiny.CONFIG), head=Head('classify', 2))


@pytest.fixture(scope='module')
def inputs():
  length = SEGMENTS.shape[1]
  r = np.random.default_rng(0)
  return {
    'tokens': jnp.asarray(r.integers(5, 60, SEGMENTS.shape)),
    'positions': jnp.broadcast_to(jnp.arange(length), SEGMENTS.shape),
    'segments': jnp.asarray(SEGMENTS),
    'types': jnp.zeros(SEGMENTS.shape, int),
    'rows': jnp.arange(len(SEGMENTS)),
  }


def hidden(method_or_model, flat, inputs):
  model = getattr(method_or_model, 'model', method_or_model)
  return np.asarray(model.apply(trees.unflatten(flat), inputs).hidden)


def values_of(model, seed=0):
  return trees.flatten(model.initial(jax.random.key(seed)))


def adapters(names):
  return [n for n in names if 'adapter' in n.split('/')]


@pytest.mark.parametrize(
  ('module', 'parts'), [(houlsby, ('attn/o', 'mlp/down')), (pfeiffer, ('mlp/down',)), (parallel, ('mlp/down',))]
)
def test_it_acts_on_the_output_before_the_residual(model, inputs, module, parts):
  """A bias of `up` is one of the projection that ends the part."""
  method = module.build(module.Config(), model)
  flat = values_of(method.model)
  plain = {n: flat[n] for n in model.info()}
  np.testing.assert_array_equal(hidden(method, flat, inputs), hidden(model, plain, inputs))
  scale = getattr(module.Config(), 'scale', 1.0)
  for layer in range(N):
    for part in parts:
      bias = random_like({'b': np.zeros(D)}, seed=layer)['b']
      name = f'layers/{layer}/{part.split("/")[0]}/out/adapter/up/bias'
      assert name in flat
      flat[name], plain[f'layers/{layer}/{part}/bias'] = bias, plain[f'layers/{layer}/{part}/bias'] + scale * bias
  close(hidden(method, flat, inputs), hidden(model, plain, inputs))


def test_compacter_is_houlsby_of_kronecker_products_shared_by_all_layers(model, inputs):
  config = compacter.Config(reduction=4)
  ours = compacter.build(config, model)
  flat = values_of(ours.model)
  plain = {n: flat[n] for n in model.info()}
  np.testing.assert_array_equal(hidden(ours, flat, inputs), hidden(model, plain, inputs))
  flat |= random_like({n: flat[n] for n in adapters(flat)})
  assert flat['shared/adapter/a'].shape == (4, 4, 4)
  theirs = houlsby.build(houlsby.Config(reduction=4, activation='gelu_new'), model)
  dense = dict(plain)
  for name in adapters(theirs.model.info()):
    part, _, leaf = name.rpartition('/')
    rule = flat['shared/adapter/a']
    dense[name] = flat[name] if leaf == 'bias' else kronecker_sum(rule, flat[f'{part}/s'], flat[f'{part}/t'])
  close(hidden(ours, flat, inputs), hidden(theirs, dense, inputs), atol=2e-4)


def test_loreft_acts_after_the_block(model, inputs):
  """With W = R an edit of every token adds R^T b: a bias of the layer's last norm."""
  method = loreft.build(loreft.Config(first=8), model)
  flat = values_of(method.model)
  flat |= method.prepare(flat, None)
  plain = {n: flat[n] for n in model.info()}
  real = SEGMENTS > 0
  np.testing.assert_array_equal(hidden(method, flat, inputs), hidden(model, plain, inputs))
  for i in range(N):
    rotation = flat[f'layers/{i}/out/adapter/rotation']
    close(rotation @ rotation.T, np.eye(4), atol=1e-6)
    bias = random_like({'b': np.zeros(4)}, seed=i)['b']
    flat[f'layers/{i}/out/adapter/bias'] = bias
    plain[f'layers/{i}/mlp_norm/bias'] = plain[f'layers/{i}/mlp_norm/bias'] + rotation.T @ bias
  close(hidden(method, flat, inputs)[real], hidden(model, plain, inputs)[real])


@pytest.mark.parametrize('stacked', [False, True])
def test_a_step_of_loreft_ends_on_orthonormal_rows(model, stacked):
  method = loreft.build(loreft.Config(), model)
  flat = random_like({n: i for n, i in values_of(method.model).items() if method.trains(n)})
  if stacked:
    layers = {n.removeprefix('layers/0/') for n in flat if n.startswith('layers/0/')}
    both = {f'layers/0:2/{n}': np.stack([flat[f'layers/{i}/{n}'] for i in range(2)]) for n in layers}
    flat = {n: x for n, x in flat.items() if not n.startswith('layers/')} | both
  after, kept = jax.jit(method.adjust(3))(trees.unflatten(flat), {}, {}, jnp.int32(0))
  after = trees.flatten(after)
  assert (set(after), kept) == (set(flat), {})
  for name, x in flat.items():
    if name.endswith('/rotation'):
      close(after[name] @ np.swapaxes(after[name], -1, -2), np.broadcast_to(np.eye(4), (*x.shape[:-2], 4, 4)))
    else:
      np.testing.assert_array_equal(after[name], x)


def adapter_size(m):
  return 2 * D * m + m + D


@pytest.mark.parametrize(
  ('module', 'values', 'count'),
  [
    (houlsby, {}, N * 2 * adapter_size(D // 16) + NORMS),
    (houlsby, {'reduction': 2, 'norms': ''}, N * 2 * adapter_size(D // 2)),
    (pfeiffer, {}, N * adapter_size(D // 16)),
    (parallel, {}, N * adapter_size(D // 16)),
    (parallel, {'reduction': 4, 'learn_scale': True}, N * (adapter_size(D // 4) + 1)),
    (compacter, {}, N * 2 * (2 * (D + 4) + 4 + D) + 4**3 + NORMS),  # m = 1, rounded up to n
    (compacter, {'reduction': 2, 'n': 2, 'rank': 3, 'norms': ''}, N * 2 * (6 * (D + 16) + 16 + D) + 2**3),
    (compacter, {'target': r'mlp/out$'}, N * (2 * (D + 4) + 4 + D) + 4**3 + NORMS),
    (loreft, {}, N * (2 * 4 * D + 4)),
    (loreft, {'rank': 1, 'target': '^layers/1/out$'}, 2 * D + 1),
  ],
)
def test_trainable_counts(model, module, values, count):
  method = module.build(module.Config(**values), model)
  assert sum(i.size for n, i in method.model.info().items() if method.trains(n)) == count + HEAD
  assert method.merge is None


def test_the_norms_are_those_of_the_layers(model):
  method = houlsby.build(houlsby.Config(), model)
  base = [n for n in method.model.info() if method.trains(n) and 'adapter' not in n.split('/')]
  norms = [f'layers/{i}/{part}_norm/{leaf}' for i in range(N) for part in ('attn', 'mlp') for leaf in ('bias', 'scale')]
  assert base == sorted(['head/out/bias', 'head/out/kernel', *norms])


@pytest.mark.parametrize('module', [houlsby, compacter])
@pytest.mark.parametrize('field', ['norms', 'also', 'target'])
def test_each_pattern_must_match_by_itself(model, module, field):
  with pytest.raises(InputError, match=f"method.{field}='no/such' matches none"):
    module.build(dataclasses.replace(module.Config(), **{field: 'no/such'}), model)


@pytest.mark.parametrize(
  ('module', 'values', 'words'),
  [
    (houlsby, {'reduction': 33}, 'method.reduction=33 leaves nothing of the 32'),
    (compacter, {'n': 5}, 'method.n=5 does not divide the 32'),
    (compacter, {'rank': 2}, 'method.rank=2 is larger than a block of 8 x 1'),
    (loreft, {'rank': 33}, 'method.rank=33 is larger than the 32'),
    (loreft, {'first': 0, 'last': 0}, 'leave no token to edit'),
  ],
)
def test_numbers_that_do_not_fit(model, module, values, words):
  with pytest.raises(InputError, match=words):
    module.build(module.Config(**values), model)


def test_together_with_another(model):
  builds = {
    'compacter': functools.partial(compacter.build, compacter.Config()),
    'loreft': functools.partial(loreft.build, loreft.Config()),
  }
  method = together.together(builds, model)
  assert len(method.model.sites(Shared)) == 1
  own = {n for n in method.model.info() if method.trains(n)}
  assert {'shared/adapter/a', 'layers/0/out/adapter/rotation', 'layers/0/mlp_norm/scale'} <= own
  pair = {k: functools.partial(m.build, m.Config()) for k, m in (('houlsby', houlsby), ('pfeiffer', pfeiffer))}
  with pytest.raises(InputError, match='houlsby and pfeiffer exclude each other'):
    together.together(pair, model)
