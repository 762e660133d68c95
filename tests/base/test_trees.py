"""Trees by name: there and back, patterns that must match, sizes and digests."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftlib.base import trees
from ftlib.base.errors import InputError


def tree():
  return {
    'layers': {str(i): {'attn': {'q': {'kernel': np.full((2, 3), i), 'bias': np.zeros(3)}}} for i in (0, 2, 10)},
    'embed': {'table': np.ones((4, 2), np.float32)},
    'empty': {},
  }


def test_flatten_sorts_layers_by_number_and_unflatten_undoes_it():
  flat = trees.flatten(tree())
  layers = [f'layers/{i}/attn/q/{leaf}' for i in (0, 2, 10) for leaf in ('bias', 'kernel')]
  assert list(flat) == ['embed/table', *layers]
  again = trees.unflatten(flat)
  assert 'empty' not in again
  assert trees.digest(again) == trees.digest({k: v for k, v in tree().items() if v})


def test_split_and_join_are_inverse():
  chosen, rest = trees.split(tree(), lambda name: name.endswith('bias'))
  assert set(trees.flatten(chosen)) == {f'layers/{i}/attn/q/bias' for i in (0, 2, 10)}
  assert not set(trees.flatten(rest)) & set(trees.flatten(chosen))
  assert trees.digest(trees.join(chosen, rest)) == trees.digest(trees.unflatten(trees.flatten(tree())))
  with pytest.raises(ValueError, match='embed/table'):
    trees.join(rest, {'embed': {'table': np.ones(1)}})


def test_map_named_sees_names_and_pairs_leaves():
  a, b = {'x': {'y': 1}, 'z': 2}, {'x': {'y': 10}, 'z': 20}
  assert trees.map_named(lambda name, p, q: (name, p + q), a, b) == {'x': {'y': ('x/y', 11)}, 'z': ('z', 22)}


def test_matching_finds_and_refuses():
  names = ['layers/0/attn/q', 'layers/1/attn/q', 'layers/1/mlp/up']
  assert trees.matching('attn/q$', names, field='method.target') == names[:2]
  assert trees.matching('^layers/1/', names, field='method.target') == names[1:]
  with pytest.raises(InputError) as e:
    trees.matching('atn/q', names, field='method.target', what='sites')
  text = str(e.value)
  assert "method.target='atn/q'" in text
  assert '3 sites' in text
  assert text.count('layers/*/attn/q') == 1  # layer numbers folded
  with pytest.raises(InputError, match=r'optim\.no_decay.*regular expression'):
    trees.matching('(bias', names, field='optim.no_decay')


def test_sizes():
  t = {'a': jnp.ones((2, 3), jnp.float32), 'b': {'c': jax.ShapeDtypeStruct((5,), jnp.bfloat16)}, 'k': jax.random.key(0)}
  assert trees.size({k: t[k] for k in 'ab'}) == 11
  assert trees.nbytes(t) == 2 * 3 * 4 + 5 * 2


@pytest.mark.parametrize(
  'change',
  [
    lambda t: t['embed']['table'].__setitem__((0, 0), np.nextafter(np.float32(1), np.float32(2))),
    lambda t: t['embed'].update(table=t['embed']['table'].astype(np.float64)),
    lambda t: t['embed'].update(table=t['embed']['table'].reshape(2, 4)),
    lambda t: t.update(renamed=t.pop('embed')),
  ],
  ids=['one bit', 'dtype', 'shape', 'name'],
)
def test_digest_sees_every_change(change):
  before, changed = tree(), tree()
  assert trees.digest(before) == trees.digest(changed)
  change(changed)
  assert trees.digest(before) != trees.digest(changed)


def test_digest_takes_keys():
  assert trees.digest({'k': jax.random.key(1)}) != trees.digest({'k': jax.random.key(2)})


def test_path_name_is_the_name_of_flatten():
  t = {'layers': {'0': {'q': np.ones(1)}}, 'x': [np.ones(1)]}
  names = [trees.path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(t)]
  assert names == ['layers/0/q', 'x/0']
