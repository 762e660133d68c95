"""VeRA, LoHa, LoKr and HiRA live against PEFT, both ways: `make test-reference`."""

import collections
import dataclasses

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from pairs import ALL, check_from_here, check_from_there, pair_of

from ftlib.base import trees
from ftlib.peft import hira, loha, lokr, vera
from ftlib.peft.method import added

pytestmark = pytest.mark.reference

CASES = {
  'vera': (vera, {'rank': 12, 'seed': 5, 'd_initial': 0.2}),
  'vera_sizes': (vera, {'rank': 12, 'seed': 5, 'target': ALL}),
  'loha': (loha, {'rank': 3, 'alpha': 4.0, 'target': ALL}),
  'lokr': (lokr, {'rank': 2, 'alpha': 3.0, 'target': ALL}),
  'lokr_both': (lokr, {'rank': 1, 'alpha': 2.0, 'decompose_both': True, 'target': ALL}),
  'lokr_whole': (lokr, {'rank': 16, 'alpha': 8.0}),
  'lokr_factor': (lokr, {'rank': 2, 'alpha': 2.0, 'factor': 16, 'target': ALL}),
  'hira': (hira, {'rank': 4, 'target': ALL}),
}


@pytest.fixture(params=CASES)
def pair(request, tmp_path):
  return pair_of(*CASES[request.param], tmp_path)


def test_drawn_here_peft_computes_the_same(pair, tmp_path):
  check_from_here(pair, tmp_path)


def test_drawn_there_it_is_the_same_here(pair, tmp_path):
  read = check_from_there(pair, tmp_path)
  assert dataclasses.asdict(read) == dataclasses.asdict(pair.config)


def test_the_start_has_the_spread_of_pefts(pair):
  """Constants are equal; uniform numbers have bounds alike, over all sites of a shape together."""
  model = pair.method.model
  flat = trees.flatten(model.initial(jax.random.key(0), [n for n in model.info() if added(n)]))
  drawn = collections.defaultdict(lambda: ([], []))
  for site, ours in pair.to_peft(flat).items():
    theirs = pair.tensors(site)
    for suffix in theirs:
      for side, values in zip(drawn[suffix, theirs[suffix].shape], (ours, theirs)):
        side.append(values[suffix])
  for (suffix, shape), sides in drawn.items():
    ours, theirs = map(np.stack, sides)
    if np.ptp(theirs) == 0:
      assert_array_equal(ours, theirs, suffix)
    elif theirs.size >= 16:
      assert_allclose(np.abs(ours).max(), np.abs(theirs).max(), rtol=0.2, err_msg=f'{suffix} {shape}')


def test_veras_matrices_are_those_of_pefts_generator(pair):
  if pair.module is vera:
    state = pair.there.state_dict()
    for name, ours in vera.shared_to_peft(pair.config, pair.slots[next(iter(pair.names))]).items():
      assert_array_equal(ours, state[f'{name}.default'].numpy(), name)
