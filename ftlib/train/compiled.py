"""A jitted function that knows how often, for which shapes and for how long it was compiled."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax


class Compiled:
  """Calls `fn` jitted, compiled ahead of time once a batch shape; the batch is the last argument.

  `seconds` is the time spent compiling so far, `shapes` the batch shapes in the order they came.
  """

  def __init__(self, fn: Callable, **jit_options: Any):
    self._fn = jax.jit(fn, **jit_options)
    self._by_shape: dict[Any, Callable] = {}
    self.seconds = 0.0

  @property
  def shapes(self) -> list[tuple[int, ...]]:
    return list(self._by_shape)

  def __call__(self, *args: Any) -> Any:
    shape = args[-1]['tokens'].shape
    if shape not in self._by_shape:
      start = time.perf_counter()
      self._by_shape[shape] = self._fn.lower(*args).compile()
      self.seconds += time.perf_counter() - start
    return self._by_shape[shape](*args)
