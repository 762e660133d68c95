"""ALBERT (Lan et al. 2020): small embeddings, and layers that share their parameters.

Layers come in groups, each of `inner` blocks, and a group's blocks are applied again and again: layer i belongs to
group int(i / (layers / groups)). As a rule there is one group of one block: then a model of 12 layers has one
`layers/0`, and an adapter on it acts in all of them, as in PEFT on transformers. `Model.order` says which block comes
when. There is no dropout behind the MLP, as in transformers (in the layers of the published v2 models there is none at
all).

Shape letters: B batch, L tokens, D embed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from ftlib.base.errors import InputError
from ftlib.base.rng import Stream
from ftlib.base.types import Head
from ftlib.models import bert, electra, hf_config
from ftlib.models.model import Model


@dataclasses.dataclass(frozen=True)
class Config(electra.Config):
  """`groups` of layers, each of `inner` blocks; `layers` are those that share."""

  groups: int = 1
  inner: int = 1


MODEL_TYPES = {  # model_type -> what an export is loaded as, by the head
  'albert': {
    'classify': 'AlbertForSequenceClassification',
    'choice': 'AlbertForMultipleChoice',
    'tag': 'AlbertForTokenClassification',
    'span': 'AlbertForQuestionAnswering',
    'mlm': 'AlbertForMaskedLM',
  },
}
PREFIX = 'albert.'
_BLOCK = {  # our module -> Hugging Face's, inside a block
  'attn/q': 'attention.query',
  'attn/k': 'attention.key',
  'attn/v': 'attention.value',
  'attn/o': 'attention.dense',
  'attn_norm': 'attention.LayerNorm',
  'mlp/up': 'ffn',
  'mlp/down': 'ffn_output',
  'mlp_norm': 'full_layer_layer_norm',
}
TABLE = {
  **{n: PREFIX + h for n, h in bert.PARTS.items() if n.startswith('embed/')},
  'embed/project': PREFIX + 'encoder.embedding_hidden_mapping_in',
  'pooler': PREFIX + 'pooler',
  'head/out': 'classifier',
  'mlm/dense': 'predictions.dense',
  'mlm/norm': 'predictions.LayerNorm',
  'mlm/bias': 'predictions.bias',
}
_USED = {k: v for k, v in bert.USED.items() if k != 'classifier_dropout'} | {
  'classifier_dropout_prob': 'head_dropout',
  'embedding_size': 'embedding',
  'num_hidden_groups': 'groups',
  'inner_group_num': 'inner',
}
_DEFAULTS = {**bert.DEFAULTS, 'activation': 'gelu_new', 'dropout': 0.0, 'attention_dropout': 0.0, 'head_dropout': 0.1}
_FIXED = {  # in published files, of Google's own code; these are the values at which they do nothing
  'down_scale_factor': (1,),
  'gap_size': (0,),
  'layers_to_keep': ([], None),
  'net_structure_type': (0,),
  'num_memory_blocks': (0,),
}


def from_hf(values: Mapping[str, Any], *, where: str = 'config.json', allow: str = '') -> Config:
  """The Config of an ALBERT `config.json`."""
  defaults = {**_DEFAULTS, 'embedding': 128, 'groups': 1, 'inner': 1}
  got = hf_config.read(values, _USED, Config, defaults=defaults, where=where, allow=allow, fixed=_FIXED)
  c = bert.checked(Config, {**got, 'mlm_activation': got['activation']}, where)
  if not 1 <= c.groups <= c.layers or c.inner < 1:
    raise InputError(
      f'{where}: num_hidden_groups={c.groups} of num_hidden_layers={c.layers}, each of inner_group_num={c.inner} '
      'blocks: wanted at least one group and one block in each, and no more groups than layers'
    )
  return c


def build(config: Config, *, head: Head, **options: Any) -> Model:
  """The model with a head; `options` are `Model`'s."""
  c = config
  there = 'encoder.albert_layer_groups.{}.albert_layers.{}.'
  blocks = [(g, j) for g in range(c.groups) for j in range(c.inner)]
  hf = {f'layers/{k}/{n}': PREFIX + there.format(*b) + h for k, b in enumerate(blocks) for n, h in _BLOCK.items()}
  plain = bert.build(c, head=head, hf={**TABLE, **hf}, **options)
  return dataclasses.replace(
    plain,
    trunk=electra.Trunk(c, head),
    blocks=tuple(Block(c) for _ in blocks),
    order=tuple(int(i / (c.layers / c.groups)) * c.inner + j for i in range(c.layers) for j in range(c.inner)),
  )


class Block(bert.Block):
  """BERT's without dropout behind the MLP."""

  def __call__(self, x_BLD: jax.Array, context: bert.Context, stream: Stream | None) -> jax.Array:
    h_BLD = self.attn_norm(x_BLD + self._drop(self.attn(x_BLD, context, stream), stream, 'attn/out'))
    h_BLD = self.mlp_norm(h_BLD + self.mlp(h_BLD, context, stream))
    return self.out(x_BLD, h_BLD, context, stream)
