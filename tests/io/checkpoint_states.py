"""What the checkpoint tests save: a small state with every kind of leaf that a real one has."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ftlib.base import trees


def make_state(seed):
  """A few KB with what a TrainState holds: adapters, optimizer tuples, counters, key data, odd dtypes, empty leaves."""
  rng = np.random.default_rng(seed)
  params = {'layers': {'0': {'q': jnp.asarray(rng.normal(size=(16, 8)), jnp.float32)}}, 'head': jnp.ones((3,)) * seed}
  return {
    'trainable': params,
    'opt': optax.adam(1e-3).init(params),
    'step': jnp.int32(seed),
    'key': jax.random.key_data(jax.random.key(seed)),
    'odd': (
      jnp.asarray(rng.normal(size=(5, 3)), jnp.bfloat16),
      jnp.asarray(rng.integers(0, 255, 7), jnp.uint8),
      jnp.asarray([True, False]),
      jnp.zeros((0, 4)),
      np.asarray(rng.normal(size=4)).astype(np.float16),
      jnp.asarray([-0.0, np.nan, np.inf]),
    ),
  }


def abstract(state, sharding=None):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding if x.ndim == 2 and x.size == 128 else None),
    state,
  )


TARGET = abstract(make_state(0))


def assert_same(restored, state):
  assert jax.tree.structure(restored) == jax.tree.structure(state)
  assert trees.digest(restored) == trees.digest(state)


class Instant:
  """Stands in for Orbax where only the names of files matter."""

  def __init__(self, data='x'):
    self._data = data

  def save(self, path, args):
    path.mkdir()
    (path / 'data').write_text(self._data)

  def close(self):
    pass
