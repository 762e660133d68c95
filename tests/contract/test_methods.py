"""What every method of ftlib/peft keeps, and one from outside the package: found by listing the folder.

A method added tomorrow is held to all of this by its file alone.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftlib import run
from ftlib.base import lookup, trees
from ftlib.base.errors import InputError
from ftlib.io.checkpoint import Checkpoints
from ftlib.peft.method import added
from ftlib.train.state import restored, storable
from ftlib.train.step import make_train_step
from tests import tiny
from tests.contract import flops, runs
from tests.contract.runs import METHODS, OUTSIDE, STEPS
from tests.tiny import CONFIG

PATTERNS = [
  (method, field.name)
  for method in METHODS
  for field in dataclasses.fields(lookup.component('peft', method, field='method.name').Config)
  if field.name in ('target', 'also')
]


@pytest.fixture(params=METHODS)
def method(request):
  return request.param


@pytest.fixture
def one(short, method):
  """Three steps on one device, layers unrolled, float32: what the others are compared with."""
  return short(method=method)


@pytest.fixture
def eight(short, method):
  """The same on eight devices, layers scanned: two differences for one compile."""
  return short(method=method, model__layers='scan', mesh__shape=runs.MESH)


def only_chooses(r: run.Run) -> bool:
  """Whether the method just chooses among the model's parameters; of these, only `full` is trained in bfloat16."""
  return r.settings.names['method'] != 'full' and not any(added(n) for n in r.info)


@pytest.fixture(scope='module')
def forward():
  """`forward(model, params, batch)`: logits without dropout; one compile a model."""
  jitted = {}

  def logits(model, params, batch):
    if id(model) not in jitted:
      jitted[id(model)] = model, jax.jit(lambda p, b: model.apply(p, b).logits)
    return np.asarray(jitted[id(model)][1](params, batch))

  return logits


@pytest.fixture(scope='module')
def plain(short):
  """The pretrained model with the task's head, and nothing of a method."""
  r = short(method='full').run
  return r.base.family.build(r.method.model.config, head=r.task.head)


def batch_of(r: run.Run):
  return next(r.eval_batches('validation'))[1]


def test_starts_as_the_pretrained_model(one, plain, forward):
  params = trees.flatten(one.params(0))
  base = trees.unflatten({n: params[n] for n in plain.info()})
  batch = batch_of(one.run)
  ours, theirs = forward(one.run.method.model, one.params(0), batch), forward(plain, base, batch)
  assert np.ptp(theirs) > 0.1  # the logits are some
  if one.run.method.identity:
    np.testing.assert_array_equal(ours, theirs)
  else:
    assert 0 < np.abs(ours - theirs).max() < 10  # a method that says so changes them, and not beyond use


def test_parameters_of_the_base_come_from_the_checkpoint(one):
  params, r = trees.flatten(one.params(0)), one.run
  for name, tensor in r.match.pairs.items():
    np.testing.assert_array_equal(params[name], r.method.model.from_hf(name, r.base.weights.read(tensor)), name)


def test_what_trains_changes_and_nothing_else(one):
  r = one.run
  says = {n for n in r.info if r.method.trains(n) or n in r.match.fresh}
  assert set(one.start) == says == set(r.train_info)
  assert {*trees.flatten(one.frozen), *trees.flatten(one.kept)} == set(r.info) - set(one.start)
  changed = {n for n, x in one.trainable[-1].items() if not np.array_equal(x, one.start[n])}
  assert changed == set(one.start)
  assert trees.digest(one.frozen) == trees.digest(one.frozen_after)
  if r.method.adjust is None:
    assert trees.digest(one.kept) == trees.digest(jax.device_get(one.last.kept))


def test_every_trainable_leaf_has_a_gradient_within_two_steps(one):
  """Two, because LoRA's `a` has none while `b` is zero."""
  assert set(one.moments[1]) == set(one.start)
  assert [n for n, m in one.moments[1].items() if not np.abs(m).max() > 0] == []


def test_optimizer_state_is_of_trainable_parameters_alone(one):
  trainable, state = trees.nbytes(one.last.trainable), trees.nbytes(one.last.opt)
  assert 2 * trainable <= state <= 2 * trainable + 64  # two moments and some counters
  assert trees.size(one.last.trainable) == sum(i.size for i in one.run.train_info.values())


def test_merged_it_is_a_plain_model(one, plain, forward):
  if one.run.method.merge is None:
    assert any(added(n) for n in one.run.info)  # where nothing is added there is nothing to prevent it
    return
  params, batch = one.params(STEPS), batch_of(one.run)
  merged = one.run.method.merge(params)
  assert set(trees.flatten(merged)) == set(plain.info())
  adapted = forward(one.run.method.model, params, batch)
  np.testing.assert_allclose(forward(plain, merged, batch), adapted, atol=1e-5, rtol=0)
  assert np.abs(adapted - forward(one.run.method.model, one.params(0), batch)).max() > 1e-2  # it has learnt some


@pytest.mark.parametrize(
  'method', [m if m in ('sparse', 'gradual') else pytest.param(m, marks=pytest.mark.slow) for m in METHODS]
)
def test_saved_and_loaded_it_goes_on_as_it_would_have(one, tiny_bert, toy_data, method, tmp_path):
  """The next step of a run that is built anew and restored has the same bits."""
  r, again = one.run, run.build(runs.config(tiny_bert, toy_data, method=method))
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(STEPS, storable(one.last), {})
    checkpoints.wait()
    found = restored(checkpoints.restore(storable(again.abstract_state)).state)
  frozen = again.load()[1]
  assert trees.digest(found) == trees.digest(one.last)
  assert trees.digest(frozen) == trees.digest(one.frozen)
  went_on, _ = r.train_step(jax.tree.map(jnp.copy, one.last), frozen, r.batch(STEPS)[1])  # which is donated
  resumed, _ = again.train_step(found, frozen, again.batch(STEPS)[1])
  assert trees.digest(resumed) == trees.digest(went_on)
  assert trees.digest(resumed.trainable) != trees.digest(one.last.trainable)


def test_evaluation_is_deterministic(one, forward):
  params, batch = one.params(STEPS), batch_of(one.run)
  other = {**batch, 'rows': batch['rows'] + 1000}  # the number of a row is of use to dropout alone
  logits = forward(one.run.method.model, params, batch)
  np.testing.assert_array_equal(logits, forward(one.run.method.model, params, batch))
  np.testing.assert_array_equal(logits, forward(one.run.method.model, params, other))


def test_scanned_layers_are_the_unrolled_ones(one, eight):
  assert 'layers/0:2/attn/q/kernel' in eight.run.info  # it is stacked indeed
  assert len(eight.run.info) < len(one.run.info)
  np.testing.assert_allclose(eight.losses, one.losses, rtol=1e-6)
  ours = runs.unstacked(eight.trainable[1])
  assert set(ours) == set(one.start)
  for name, x in one.trainable[1].items():
    np.testing.assert_allclose(ours[name], x, atol=1e-6, rtol=0, err_msg=name)


def test_a_step_in_bfloat16_keeps_float32(tiny_bert, toy_data, method):
  r = run.build(runs.config(tiny_bert, toy_data, method=method, precision__compute='bfloat16', model__layers='scan'))
  assert r.method.model.compute == jnp.bfloat16
  step = make_train_step(r.method.model.apply, r.objective, r.optimizer.tx)
  traced, (after, sums) = jax.make_jaxpr(step, return_shape=True)(*runs.shapes(r), r.batch(0)[1])
  same = jax.tree.map(lambda x, y: (x.shape, x.dtype) == (y.shape, y.dtype), r.abstract_state, after)
  assert all(jax.tree.leaves(same))
  counts = {'skipped': sums.pop('skipped'), 'streak': sums.pop('streak')}
  assert {x.dtype for x in counts.values()} == {np.dtype(np.int32)}
  assert {x.dtype for x in jax.tree.leaves((after.trainable, sums))} == {np.dtype(np.float32)}
  # all but the head's, and OFT's inverses
  assert flops.of_jaxpr(traced.jaxpr, jnp.bfloat16) > 0.94 * flops.of_jaxpr(traced.jaxpr)


@pytest.mark.slow
def test_bfloat16_trains_nearly_alike(one, short, method):
  if only_chooses(one.run):
    return  # the step of `full`, which is tried
  half = short(method=method, precision__compute='bfloat16', model__layers='scan')
  leaves = [x for x in jax.tree.leaves((half.last.trainable, half.last.opt)) if jnp.issubdtype(x.dtype, jnp.floating)]
  assert {x.dtype for x in leaves} == {np.dtype(np.float32)}
  assert all(np.isfinite(x).all() for x in leaves)
  np.testing.assert_allclose(half.losses, one.losses, rtol=0.05)
  assert half.losses != one.losses


def test_eight_devices_are_one(one, eight):
  assert len(eight.last.step.sharding.device_set) == 8
  np.testing.assert_allclose(eight.losses, one.losses, rtol=1e-5)
  ours = runs.unstacked(eight.trainable[-1])
  for name, x in one.trainable[-1].items():
    np.testing.assert_allclose(ours[name], x, atol=1e-5, rtol=0, err_msg=name)
  own = trees.flatten(eight.last.trainable)
  for name, info in eight.run.train_info.items():
    assert own[name].sharding.is_equivalent_to(eight.run.layout.param(info), own[name].ndim), name
  for path, leaf in jax.tree_util.tree_leaves_with_path(eight.last.opt):
    name = next((n for n in own if trees.path_name(path).endswith(f'/{n}')), None)
    if name is not None:
      assert leaf.sharding.is_equivalent_to(own[name].sharding, leaf.ndim), trees.path_name(path)


def test_full_fine_tuning_is_really_sharded(short):
  eight = short(method='full', model__layers='scan', mesh__shape=runs.MESH)
  for tree in (eight.last.trainable, eight.last.opt):
    whole = sum(x.nbytes for x in jax.tree.leaves(tree))
    here = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))
    assert here < 0.6 * whole  # a half, and biases


def test_the_model_it_is_given_stays_as_it_was(one, plain, method):
  before = set(plain.info())
  made = lookup.component('peft', method, field='method.name').build(one.run.settings.method, plain)
  assert set(plain.info()) == before
  assert set(made.model.info()) == {trees.canonical(n) for n in one.run.info}


@pytest.mark.parametrize(('method', 'field'), PATTERNS)
def test_a_pattern_that_matches_nothing_is_an_error(plain, method, field):
  module = lookup.component('peft', method, field='method.name')
  with pytest.raises(InputError, match=rf"method\.{field}='no/such/name' matches none"):
    module.build(dataclasses.replace(module.Config(), **{field: 'no/such/name'}), plain)
  with pytest.raises(InputError, match='no regular expression'):
    module.build(dataclasses.replace(module.Config(), **{field: '(q'}), plain)


@pytest.mark.parametrize(
  ('method', 'values', 'words'),
  [
    ('last_n', {'method__layers': 3}, 'the model has 2 layers'),
    ('lora', {'method__rank': 33}, 'method.rank=33 is larger than a matrix of 32 x 32'),
  ],
)
def test_numbers_that_do_not_fit_the_model(tiny_bert, toy_data, method, values, words):
  with pytest.raises(InputError, match=words):
    run.build(runs.config(tiny_bert, toy_data, method=method, **values))


D, F, N, V, P, T = (
  CONFIG[k]
  for k in ('hidden_size', 'intermediate_size', 'num_hidden_layers', 'vocab_size', 'max_position_embeddings')
  + ('type_vocab_size',)
)
HEAD, POOLER = D * 2 + 2, D * D + D
LAYER = 4 * (D * D + D) + (D * F + F) + (F * D + D) + 2 * 2 * D
COUNTS = {
  'full': (V + P + T) * D + 2 * D + N * LAYER + POOLER + HEAD,
  'head': HEAD,
  'last_n': 2 * LAYER + POOLER + HEAD,
  'bitfit': D + N * (4 * D + F + D + 2 * D) + D + HEAD,  # embeddings' norm, layers, pooler
  'norm': 2 * D + N * 4 * D + HEAD,
  'lora': N * 2 * 8 * (D + D) + HEAD,
  'lora_fa': N * 2 * 8 * D + HEAD,
  'dora': N * 2 * (8 * (D + D) + D) + HEAD,
  'vera': N * 2 * (256 + D) + HEAD,
  'adalora': N * 2 * 12 * (2 * D + 1) + HEAD,
  'loha': N * 2 * 2 * 8 * (D + D) + HEAD,
  'lokr': N * 2 * (4 * 4 + 8 * 8) + HEAD,  # 32 = 4 * 8, and 8 is no low rank of an 8 x 8 matrix
  'hira': N * 2 * 32 * (D + D) + HEAD,
  'oft': N * 2 * (D * 31 // 2) + HEAD,
  'miss': N * 2 * 16 * D + HEAD,
  'ia3': N * (2 * D + F) + HEAD,
  'houlsby': N * 2 * (2 * D * (D // 16) + D // 16 + D) + N * 4 * D + HEAD,
  'pfeiffer': N * (2 * D * (D // 16) + D // 16 + D) + HEAD,
  'parallel': N * (2 * D * (D // 16) + D // 16 + D) + HEAD,
  'compacter': N * 2 * (2 * (D + 4) + 4 + D) + 4**3 + N * 4 * D + HEAD,
  'loreft': N * (2 * 4 * D + 4) + HEAD,
  'prefix': 10 * D + (D + 1) * 512 + N * (512 + 1) * 2 * D + HEAD,
  'p_tuning_v2': N * 20 * 2 * D + HEAD,
  'prompt': 20 * D + HEAD,
  'p_tuning': 20 * D + 3 * (D + 1) * D + HEAD,
  'sparse': N * (4 * round(0.005 * D * D) + 2 * round(0.005 * D * F)) + HEAD,
  OUTSIDE: N * 2 * D + HEAD,
}
COUNTS['gradual'] = COUNTS['full']
KEPT = {  # what is saved besides
  'lora_fa': N * 2 * 8 * D,  # A
  'adalora': N * 2 * (2 * 12 * (2 * D + 1) + 12),  # two running means of what trains, and the mask
  'sparse': N * (4 * round(0.005 * D * D) + 2 * round(0.005 * D * F)),  # where the values go
}


@pytest.mark.parametrize('method', METHODS)
def test_trainable_counts(short, method):
  r = short(method=method).run
  info = r.info.items()
  assert sum(i.size for i in r.train_info.values()) == COUNTS[method]
  of_adapters = sum(i.size for n, i in info if added(n) and r.trains(n))
  assert sum(i.size for _, i in info) == COUNTS['full'] + of_adapters + KEPT.get(method, 0)


def test_what_trains_by_pattern(tiny_bert, toy_data):
  r = run.build(runs.config(tiny_bert, toy_data, method='full', method__target=r'^layers/1/attn/(q|k)/kernel$'))
  trained = {'layers/1/attn/q/kernel', 'layers/1/attn/k/kernel', 'head/out/kernel', 'head/out/bias'}
  assert {trees.canonical(n) for n in r.train_info} == trained
  assert sum(i.size for i in r.train_info.values()) == 2 * D * D + HEAD


@pytest.fixture(scope='module')
def step_flops(tmp_path_factory, toy_data):
  """`step_flops(method='full')`: operations of the matrix products in a step of 4 layers."""
  model = tiny.bert_folder(tmp_path_factory.mktemp('four_layers'), num_hidden_layers=4)

  return lambda **values: flops.of_step(run.build(runs.config(model, toy_data, **values)))


@pytest.mark.parametrize('layers', ['unroll', 'scan'])
def test_the_backward_pass_ends_at_the_lowest_trainable_layer(step_flops, layers):
  """Forward 1, and 2 for each layer trained: (4 + 2) / (4 + 8) of full fine-tuning, less what its own inputs save."""
  full = step_flops(method='full', model__layers=layers)
  last = step_flops(method='last_n', method__layers=1, model__layers=layers)
  head = step_flops(method='head', model__layers=layers)
  assert 0.4 < last / full < 0.52
  assert 0.3 < head / full < 0.35
  top = step_flops(method='lora', method__target='^layers/3/attn/(q|v)$', model__layers=layers)
  assert head < top < last  # an adapter on the last layer alone: no gradient of a kernel either


def test_xla_counts_alike(short, tiny_bert, toy_data):
  """(2 + 2) / (2 + 4), of two layers; and for the head 2 / (2 + 4)."""
  full, head = (flops.as_compiled(short(method=m).run.train_step) for m in ('full', 'head'))
  last = run.build(runs.config(tiny_bert, toy_data, method='last_n', method__layers=1))
  last.train_step(last.start(*last.load()), last.load()[1], last.batch(0)[1])
  assert flops.as_compiled(last.train_step) < 0.75 * full
  assert head < 0.5 * full


def test_stacks_end_where_what_trains_does(tmp_path, toy_data):
  """Frozen layers below the lowest trainable one are a scan of their own."""
  model = tiny.bert_folder(tmp_path, num_hidden_layers=4)
  r = run.build(runs.config(model, toy_data, method='last_n', method__layers=1, model__layers='scan'))
  assert r.runs == [(0, 3), (3, 4)]
  assert {trees.canonical(n) for n in r.info} >= {'layers/0/attn/q/kernel', 'layers/3/attn/q/kernel'}
