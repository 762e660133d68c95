"""A jitted function that knows how often, for which shapes and for how long it was compiled; and one for each stage."""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Sequence
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


class Staged:
  """Calls the one of `parts` whose stage the state, the first argument and the first result, is in.

  Stage k begins at step `starts[k]`; a stage that begins where the next does is skipped. The state's step is read from
  the device only where it is not that of the call before, which would wait for that call.
  """

  def __init__(self, parts: Sequence[Compiled], starts: Sequence[int]):
    self.parts, self._starts = list(parts), list(starts)
    self._last: tuple[Any, int] = (None, 0)

  @property
  def seconds(self) -> float:
    return sum(p.seconds for p in self.parts)

  @property
  def shapes(self) -> list[tuple[int, ...]]:
    """The batch shapes of each stage, stage by stage."""
    return [s for p in self.parts for s in p.shapes]

  def __call__(self, state: Any, *args: Any) -> Any:
    known, step = self._last
    if state.step is not known:
      step = int(state.step)
    stage = bisect.bisect_right(self._starts, step) - 1
    out = self.parts[min(stage, len(self.parts) - 1)](state, *args)
    self._last = out[0].step, step + 1
    return out
