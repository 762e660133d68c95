"""The nouns that every folder shares.

Shape letters: B batch, L tokens, D embed, F mlp, H heads, K head size, V vocabulary, R rank, C classes, N layers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

Params = dict[str, Any]  # nested dicts of arrays; a leaf is named by its path, 'layers/0/attn/q/kernel'
Flat = dict[str, Any]  # the same tree as {name: leaf}
Batch = dict[str, Any]  # fixed shapes; the only thing that crosses from host to device
Sums = dict[str, tuple[jax.Array, jax.Array]]  # {name: (sum, weight)}; the mean is taken once, at the end


@dataclasses.dataclass(frozen=True)
class ParamInfo:
  """What is known of a parameter before it has a value.

  `axes` names every dimension (`('embed', 'heads', 'head_dim')`); shardings, adapter shapes and optimizer rules come
  from these names. `init(key, shape, dtype)` gives the starting value where no checkpoint does.
  """

  shape: tuple[int, ...]
  dtype: Any
  axes: tuple[str, ...]
  init: Callable[..., jax.Array] | None = None

  @property
  def size(self) -> int:
    return int(np.prod(self.shape, dtype=np.int64))


@dataclasses.dataclass(frozen=True)
class Head:
  """What a task wants on top of a model.

  `kind` 'none' (hidden states), 'classify' (`classes` logits from the hidden states pooled by 'cls', the first token,
  'last', the last of a decoder, 'mean', the average of the real tokens, or 'max', the largest of each feature), 'embed'
  (these pooled states alone), 'tag' (`classes` logits for every token), 'span' (2 logits for every token: that an
  answer starts and ends there), 'mlm' (what gives the logits over the vocabulary of a token) or 'lm' (of the next one).
  `documents`: how many documents a row holds at most, as segments 1, 2, ...; with more than one, what is pooled has an
  axis for them. `marks`: how many tokens of a row, given by `inputs['marks']`, are pooled instead, one behind another.
  `transitions`: whether a 'tag' head brings a table of which tag follows which (`ftlib/objectives/crf.py`).
  """

  kind: str = 'none'
  classes: int = 0
  pooling: str = 'cls'
  documents: int = 1
  marks: int = 0
  transitions: bool = False

  @property
  def form(self) -> str:
    """`kind`, and 'choice' of a classifier of several documents: what exports go by."""
    return 'choice' if self.kind == 'classify' and self.documents > 1 else self.kind


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Outputs:
  """A forward pass: `hidden` [B, L, D] and, where it has them, `pooled` [B, D] and `logits` [B, C] or
  [B, L, C]; of rows of several documents `pooled` [B, S, D] and `logits` [B, S, C]. `transitions` [C + 1, C + 1] is the
  head's table.

  A language model's logits are too many to hold: `unembed` gives those of hidden states [..., D], float32 [..., V]. It
  closes over the parameters of the pass, and is of use inside the function that made it alone.
  """

  hidden: jax.Array
  pooled: jax.Array | None = None
  logits: jax.Array | None = None
  transitions: jax.Array | None = None
  unembed: Callable[[jax.Array], jax.Array] | None = dataclasses.field(default=None, metadata={'static': True})
