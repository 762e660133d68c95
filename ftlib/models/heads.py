"""What a head reads of the hidden states, the same in every family, and what its parameters are called elsewhere.

Shape letters: B batch, L tokens, D embed, S documents of a row, M marks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers

from ftlib.base.types import Batch, Head, Outputs
from ftlib.models.layers import Axis, param

TOKENWISE = ('tag', 'span')  # kinds with logits for every token
_TRANSITIONS = 'crf.transitions'  # a name of ours: transformers has no such layer
_SPAN = 'qa_outputs'  # what transformers calls the layer of a model that answers from a text


def pooled_first(head: Head) -> bool:
  """Whether the head reads one vector of a document, made as in pretraining (BERT's pooler is part of that)."""
  return head.kind in ('none', 'classify') and not head.marks


def pooling(family: Any, config: Any) -> str:
  """What transformers' class head reads of this family, or by this model's config.json."""
  return getattr(config, 'pooling', '') or getattr(family, 'POOLING', 'cls')


def names(hf: Mapping[str, Any], head: Head, *, tag: str) -> dict[str, Any]:
  """The table of Hugging Face names of a model with this head; `tag`: the layer that labels tokens."""
  if head.kind not in TOKENWISE:
    return dict(hf)
  rest = {n: h for n, h in hf.items() if not n.startswith('head/')}
  return {**rest, 'head/out': tag if head.kind == 'tag' else _SPAN, 'head/transitions': _TRANSITIONS}


def transitions(head: Head) -> Any:
  """The table of a head that has one, [C + 1, C + 1] with the beginning and the end of a row last, to be kept by the
  head's module under this name; else None."""
  before, after = (Axis(name, head.classes + 1) for name in ('classes', 'next_classes'))
  return nnx.data(param((before, after), initializers.zeros) if head.transitions else None)


def with_transitions(outputs: Outputs, trunk: Any) -> Outputs:
  """The outputs with the table of the trunk's head, where it has one."""
  table = getattr(getattr(trunk, 'head', None), 'transitions', None)
  return outputs if table is None else dataclasses.replace(outputs, transitions=table[...].astype(jnp.float32))


def pool(h_BLD: jax.Array, inputs: Batch, head: Head) -> jax.Array:
  """The vectors that a head reads, [B, D], or [B, S, D] of rows of several documents (zeros where a row has fewer).

  'cls' is the first token of a document, 'last' the last, 'mean' their mean, 'max' the largest of each feature; with
  `head.marks` it is the tokens at `inputs['marks']` int32 [B, M], one behind another: [B, M * D].
  """
  if head.marks:
    marked_BMD = jnp.take_along_axis(h_BLD, inputs['marks'][..., None], axis=1)
    return marked_BMD.reshape(len(h_BLD), -1)
  segments_BL = inputs['segments']
  if head.documents == 1:
    of_BSL = (segments_BL > 0)[:, None]
  else:
    of_BSL = segments_BL[:, None] == jnp.arange(1, head.documents + 1)[:, None]
  if head.pooling == 'mean':
    wide_BSD = jnp.einsum('bsl,bld->bsd', of_BSL.astype(h_BLD.dtype), h_BLD, precision='highest')
    pooled_BSD = wide_BSD / jnp.maximum(of_BSL.sum(2), 1)[..., None].astype(h_BLD.dtype)
  elif head.pooling == 'max':
    seen_BSLD = jnp.where(of_BSL[..., None], h_BLD[:, None], -jnp.inf)
    pooled_BSD = jnp.where(of_BSL.any(2)[..., None], seen_BSLD.max(2), 0)
  else:
    length = of_BSL.shape[2]
    at_BS = of_BSL.argmax(2) if head.pooling == 'cls' else length - 1 - of_BSL[..., ::-1].argmax(2)
    picked_BSD = jnp.take_along_axis(h_BLD, at_BS[..., None], axis=1)
    pooled_BSD = jnp.where(of_BSL.any(2)[..., None], picked_BSD, 0)
  return pooled_BSD[:, 0] if head.documents == 1 else pooled_BSD
