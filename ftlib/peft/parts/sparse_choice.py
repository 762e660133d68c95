"""Which entries of a matrix train: the choices of `sparse.py` as scores, of which the largest are taken.

fisher     largest mean of the squared gradients of single rows, the empirical Fisher information
           (FISH mask, Sung et al. 2021, equation 4)
magnitude  largest |w|
gradient   largest |g|, g the mean gradient over the rows
movement   largest -w g: the entries that a step of gradient descent moves away from zero (Sanh et al. 2020, whose
           sum over steps is here one over the rows, at the pretrained weights)
movers     largest |w' - w|, w' what w became in the finished run `of`: train whole, keep the movers, rewind to w
           (LT-SFT, Ansell et al. 2022, after the lottery tickets of Frankle & Carbin 2019)
random     a uniform sample without repetition, by the run's seed (SHiRA-rand, Bhardwaj et al. 2024)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftlib.base.errors import InputError, listing
from ftlib.base.types import Flat
from ftlib.peft.method import Gradient

CHOICES = ('fisher', 'magnitude', 'gradient', 'movement', 'movers', 'random')


def entries(config: Any, inputs: int, outputs: int) -> int:
  """How many entries of a matrix train. Raises `InputError` for a rank that stands for more than there are."""
  count = config.rank * (inputs + outputs) or max(1, round(config.density * inputs * outputs))
  if count > inputs * outputs:
    raise InputError(
      f'method.rank={config.rank} stands for {count} entries of a matrix of {inputs} x {outputs}, which has '
      f'{inputs * outputs}; lower it, or set it to 0 and give method.density'
    )
  return count


def sample(key: jax.Array, size: int, count: int) -> jax.Array:
  """`count` of the numbers below `size`, ascending: what 'random' chooses."""
  return jnp.sort(jax.random.choice(key, size, (count,), replace=False))


def chosen(config: Any, sites: Sequence[str], flat: Flat, gradient: Gradient) -> Flat:
  """The `indices` of every site. Raises `InputError` for matrices that the run `config.of` did not move."""
  kernels = [f'{site}/kernel' for site in sites]
  if lacking := [n for n in kernels if config.choose == 'movers' and f'moved/{n}' not in flat]:
    raise InputError(
      f'method.of={config.of} did not train {len(lacking)} of the matrices chosen from:\n{listing(lacking)}\n'
      '  give a run of method=full, or a method.target of what it trained'
    )
  grads = {}
  if config.choose == 'movers':
    grads = {n: flat[f'moved/{n}'] for n in kernels}
  elif config.choose != 'magnitude':
    grads = gradient(kernels, rows=config.rows, squared=config.choose == 'fisher')
  indices = {}
  for name in kernels:
    w, g = (np.asarray(tree[name], np.float32) if name in tree else None for tree in (flat, grads))
    values = f'{name.removesuffix("kernel")}adapter/'
    indices[f'{values}indices'] = largest(scores(config.choose, w, g), flat[f'{values}values'].size)
  return indices


def scores(choose: str, w: np.ndarray, g: np.ndarray | None) -> np.ndarray:
  """How much each entry is wanted. `g` is its mean gradient, for 'fisher' of its squares, for 'movers' its change."""
  if choose == 'fisher':
    return g
  return {
    'magnitude': lambda: abs(w),
    'gradient': lambda: abs(g),
    'movers': lambda: abs(g),
    'movement': lambda: -w * g,
  }[choose]()


def largest(score: np.ndarray, count: int) -> np.ndarray:
  """Where the `count` largest are in the flattened array, ascending; of equals the first are taken."""
  return np.sort(np.argsort(-score, axis=None, kind='stable')[:count]).astype(np.int32)
