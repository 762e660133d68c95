"""The random matrices that all sites of VeRA share, drawn here and read from PEFT's files."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ftlib.base.errors import InputError
from ftlib.models.layers import Proj


@functools.lru_cache(maxsize=4)
def projections(seed: int, rank: int, inputs: int, outputs: int) -> tuple[np.ndarray, np.ndarray]:
  """`A` [inputs, R] and `B` [R, outputs], uniform within sqrt(6 / the inputs of each) (He et al. 2015).

  The numbers are those of PyTorch's generator on a CPU, a Mersenne twister of 24 bits a number, filling the transposes.
  """
  twister = np.random.RandomState(seed)

  def uniform(shape: tuple[int, int]) -> np.ndarray:
    bound = np.float64(np.float32(math.sqrt(6 / shape[1])))
    words = twister.randint(0, 2**32, size=shape, dtype=np.uint32) & np.uint32(2**24 - 1)
    return (words * 2.0**-24 * (2 * bound) - bound).astype(np.float32).T

  return uniform((rank, inputs)), uniform((outputs, rank))


def shared_to_peft(config: Any, site: Proj) -> dict[str, np.ndarray]:
  """Tensors of a PEFT file that belong to no site, by their whole names; any adapted site gives the same."""
  a, b = projections(*site.adapter.drawn)
  return {'base_model.vera_A': a.T, 'base_model.vera_B': b.T}


def shared_from_peft(config: Any, tensors: Mapping[str, np.ndarray], site: Proj) -> None:
  """Refuses a file whose matrices are not those that its key gives; rounding to a half precision passes."""
  for name, ours in shared_to_peft(config, site).items():
    theirs = tensors.get(name)
    if theirs is None:
      continue  # save_projection=False: PEFT itself draws them from the key
    if theirs.shape != ours.shape or np.abs(theirs.astype(np.float32) - ours).max() > 2**-8 * np.abs(ours).max():
      raise InputError(
        f'{name} {list(theirs.shape)} is not what projection_prng_key={config.seed} gives ({list(ours.shape)}); '
        'ftlib does not store these matrices: merge the adapter with PEFT, or train it anew'
      )
