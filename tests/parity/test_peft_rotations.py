"""OFT, MiSS, (IA)^3 and AdaLoRA live against PEFT, both ways: `make test-reference`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from pairs import ALL, check_from_here, check_from_there, pair_of
from reference import inputs

from ftlib.base import trees
from ftlib.models import stack
from ftlib.peft import adalora, ia3, miss, oft
from ftlib.peft.method import added

pytestmark = pytest.mark.reference

PLAN = {'init_rank': 6, 'target_rank': 3, 'alpha': 9.0, 'total_steps': 20, 'tinit': 3, 'tfinal': 4, 'interval': 3}
CASES = {
  'oft': (oft, {'block_size': 8, 'target': ALL}),
  'oft_blocks': (oft, {'blocks': 2, 'target': ALL}),
  **{f'oft_{n}_terms': (oft, {'block_size': 16, 'neumann_terms': n}) for n in (2, 3, 4, 5, 7)},
  'miss': (miss, {'rank': 8, 'target': ALL}),
  'miss_remainder': (miss, {'rank': 12, 'target': ALL}),
  'ia3': (ia3, {}),
  'ia3_all': (ia3, {'target': 'attn|mlp/up'}),
  'adalora': (adalora, {**PLAN, 'target': ALL}),
}


@pytest.fixture(params=CASES)
def pair(request, tmp_path):
  return pair_of(*CASES[request.param], tmp_path)


@pytest.fixture
def ranks(tmp_path):
  """AdaLoRA on all kinds of sites."""
  return pair_of(adalora, CASES['adalora'][1], tmp_path)


def test_drawn_here_peft_computes_the_same(pair, tmp_path):
  check_from_here(pair, tmp_path, size=0.2)


def test_drawn_there_it_computes_the_same_here(pair, tmp_path):
  assert check_from_there(pair, tmp_path, size=0.2) == pair.config


def test_it_starts_as_peft_does(pair):
  """Zeros and ones are equal; the factors that AdaLoRA draws have its deviation."""
  theirs = pair.from_peft()
  for name, i in pair.method.model.info().items():
    if not added(name):
      continue
    ours = i.init(jax.random.key(0), i.shape, i.dtype)
    if pair.module is adalora and name[-2:] in ('/a', '/b'):
      assert 0.015 < np.std(ours) < 0.025
      assert 0.015 < np.std(theirs[name]) < 0.025
    else:
      assert_array_equal(ours, theirs[name])


# AdaLoRA in training.


def random_state(pair, rng):
  """(trainable, kept) here, and PEFT's parameters set to the same."""
  import torch

  info, flat = pair.method.model.info(), {}
  for site in pair.names:
    for name, i in ((n, i) for n, i in info.items() if n.startswith(f'{site}/adapter/')):
      start = np.asarray(i.init(jax.random.key(0), i.shape, i.dtype))
      flat[name] = rng.normal(size=i.shape).astype(np.float32) if pair.method.trains(name) else start
    with torch.no_grad():
      for leaf, p in leaves_of(pair, site).items():
        p.copy_(as_there(leaf, flat[f'{site}/adapter/{leaf}']))
  return trees.split(trees.unflatten(flat), pair.method.trains)


def leaves_of(pair, site):
  layer = pair.there.base_model.model.get_submodule(pair.names[site])
  return {'a': layer.lora_A['default'], 'e': layer.lora_E['default'], 'b': layer.lora_B['default']}


def as_there(leaf, x):
  import torch

  rank = PLAN['init_rank']
  flat = {'a': lambda: x.reshape(-1, rank).T, 'e': lambda: x[:, None], 'b': lambda: x.reshape(rank, -1).T}[leaf]()
  return torch.from_numpy(np.array(flat))


@pytest.mark.parametrize('stacked', [False, True])
def test_masks_are_those_of_the_rank_allocator(ranks, stacked):
  """The same steps and gradients for 20 steps: the same budget, singular values and masks after each."""
  import torch

  there, names = ranks.there, ranks.names
  rng = np.random.default_rng(5)
  trainable, kept = random_state(ranks, rng)
  pack = (lambda t: stack.stack(t, [(0, 2)])) if stacked else (lambda t: t)
  unpack = lambda t: {n: np.asarray(x) for n, x in trees.flatten(stack.unstack(t)).items()}  # noqa: E731
  adjust = jax.jit(ranks.method.adjust(PLAN['total_steps']))
  state = pack(trainable), pack(kept)
  left, masked = [], 0
  for step in range(PLAN['total_steps']):
    values = unpack(state[0])
    moves, grads = ({n: rng.normal(size=x.shape).astype(np.float32) for n, x in values.items()} for _ in range(2))
    values = {n: x + np.float32(0.1) * moves[n] for n, x in values.items()}
    for site in names:
      for leaf, p in leaves_of(ranks, site).items():
        with torch.no_grad():
          p.copy_(as_there(leaf, values[f'{site}/adapter/{leaf}']))
        p.grad = as_there(leaf, grads[f'{site}/adapter/{leaf}'])
    there.base_model.update_and_allocate(step)
    packed = pack(trees.unflatten(values))
    state = adjust(packed, state[1], pack(trees.unflatten(grads)), jnp.int32(step))
    after, saved = unpack(state[0]), unpack(state[1])
    pattern = there.peft_config['default'].rank_pattern
    for site, name in names.items():
      e = leaves_of(ranks, site)['e'].detach().numpy()[:, 0]
      assert_allclose(after[f'{site}/adapter/e'], e, rtol=0, atol=1e-6, err_msg=f'{site} after step {step}')
      assert_array_equal(after[f'{site}/adapter/e'] == 0, e == 0)
      mask = saved[f'{site}/adapter/mask']
      if pattern:
        theirs = next(v for n, v in pattern.items() if f'{name}.lora_E' in n)
        assert_array_equal(mask, np.array(theirs, np.float32), err_msg=f'{site} after step {step}')
      masked += (e == 0).sum()
    left.append(int(sum(x.sum() for n, x in saved.items() if n.endswith('/mask'))))
  assert left[0] == 60
  assert left[-1] == 30
  assert sorted(set(left), reverse=True) == list(dict.fromkeys(left))
  assert len(set(left)) >= 4
  assert masked > 100
  counts = [sum(pattern[n]) for n in pattern]
  assert len(set(counts)) > 1  # ranks moved between sites


def test_what_is_left_of_the_ranks_computes_the_same_here(ranks, tmp_path):
  """PEFT saves the rows that its mask left, of another number at every site."""
  import peft
  import torch
  import transformers

  random_state(ranks, np.random.default_rng(0))
  for step in range(PLAN['total_steps']):
    for p in ranks.there.parameters():
      p.grad = torch.randn_like(p) if p.requires_grad else None
    ranks.there.base_model.update_and_allocate(step)
  ranks.there.save_pretrained(tmp_path / 'out')
  left = [len(ranks.tensors(site)['lora_E']) for site in ranks.names]
  assert sum(left) == 30
  assert len(set(left)) > 1
  base = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / 'base')
  again = peft.PeftModel.from_pretrained(base, tmp_path / 'out').eval()
  assert ranks.read(tmp_path / 'out') == ranks.config
  ranks.same(ranks.from_peft(), there=again)


def test_the_penalty_is_that_of_peft(ranks):
  import torch

  trainable, _ = random_state(ranks, np.random.default_rng(0))
  values = {n: torch.from_numpy(np.asarray(v, np.int64)) for n, v in inputs('bert').items()}
  losses = []
  for weight in (ranks.config.orthogonal, 0.0):
    ranks.there.peft_config['default'].orth_reg_weight = weight
    losses.append(float(ranks.there.base_model(**values, labels=torch.tensor([0, 1, 2])).loss.detach()))
  assert losses[0] > losses[1] + 1
  assert_allclose(ranks.method.penalty(trainable), losses[0] - losses[1], rtol=1e-5)
