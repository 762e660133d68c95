"""ELECTRA (Clark et al. 2020): BERT without a pooler, whose embeddings may be smaller than its hidden states.

A pretraining checkpoint brings a head that tells replaced tokens (the discriminator, which is the one to fine-tune) or
one that fills masks (the generator); of these only the latter is of use here, by a head of kind 'mlm'. `Trunk` is
`albert.py`'s too.

Shape letters: B batch, L tokens, E embedding, D hidden state, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx
from jax.nn import initializers

from ftlib.base.rng import Stream
from ftlib.base.types import Batch, Head
from ftlib.models import bert, hf_config
from ftlib.models.layers import Axis, Norm, Proj, normal, param
from ftlib.models.model import Model


@dataclasses.dataclass(frozen=True)
class Config(bert.Config):
  """Of the BERT family; `embedding`: the size of the embeddings, which are projected to `embed`."""

  embedding: int = 128
  project: bool = True  # False: the embeddings are as large as the hidden states, and taken as they are
  mlm_activation: str = 'gelu'


MODEL_TYPES = {  # model_type -> what an export is loaded as, by the head
  'electra': {
    'classify': 'ElectraForSequenceClassification',
    'choice': 'ElectraForMultipleChoice',
    'tag': 'ElectraForTokenClassification',
    'span': 'ElectraForQuestionAnswering',
    'mlm': 'ElectraForMaskedLM',
  },
}
PREFIX = 'electra.'
TABLE = {
  **{n: PREFIX + h for n, h in bert.PARTS.items()},
  'embed/project': PREFIX + 'embeddings_project',
  'head/dense': 'classifier.dense',
  'head/out': 'classifier.out_proj',
  'mlm/dense': 'generator_predictions.dense',
  'mlm/norm': 'generator_predictions.LayerNorm',
  'mlm/bias': 'generator_lm_head.bias',
}
_CHOICE = {**TABLE, 'head/dense': 'sequence_summary.summary', 'head/out': 'classifier'}
CHOICE = {'summary_type': 'first', 'summary_use_proj': True, 'summary_activation': 'gelu'}  # in config.json: that layer
_SUMMARY = r'^(summary_(type|use_proj|activation|last_dropout)|generator_size)$'  # of heads that nothing reads here


def from_hf(values: Mapping[str, Any], *, where: str = 'config.json', allow: str = '') -> Config:
  """The Config of an ELECTRA `config.json`."""
  used = {**bert.USED, 'embedding_size': 'embedding'}
  allow = f'{allow}|{_SUMMARY}' if allow else _SUMMARY
  got = hf_config.read(values, used, Config, defaults={**bert.DEFAULTS, 'embedding': 128}, where=where, allow=allow)
  switches = {'pooler': False, 'head_dense': 'gelu', 'head_drop_first': True}
  return bert.checked(Config, {**got, **switches, 'project': got['embedding'] != got['embed']}, where)


def build(config: Config, *, head: Head, **options: Any) -> Model:
  """The model with a head; `options` are `Model`'s."""
  plain = bert.build(config, head=head, hf=_CHOICE if head.form == 'choice' else TABLE, **options)
  return dataclasses.replace(plain, trunk=Trunk(config, head))


class Embeddings(bert.Embeddings):
  """BERT's embeddings at their own size, projected to that of the hidden states; virtual tokens too."""

  def __init__(self, c: Config):
    super().__init__(dataclasses.replace(c, embed=c.embedding))
    small, embed = Axis('embed', c.embedding), Axis('embed_out', c.embed)
    self.project = nnx.data(Proj((small,), (embed,), init=normal(c.init_std)) if c.project else None)

  def __call__(self, inputs: Batch, stream: Stream | None) -> tuple[jax.Array, Batch, int]:
    """(embedded tokens, inputs, the number of virtual tokens in front of them)."""
    h_BLE, inputs, prompt = super().__call__(inputs, stream)
    return h_BLE if self.project is None else self.project(h_BLE, stream), inputs, prompt


class MlmHead(bert.MlmHead):
  """Logits over the vocabulary, float32 [..., V], by way of vectors of the embeddings' size."""

  def __init__(self, c: Config):
    small = Axis('embed_out', c.embedding)
    self.dense = Proj((Axis('embed', c.embed),), (small,), init=normal(c.init_std))
    self.norm = Norm(small, epsilon=c.epsilon)
    self.bias = param((Axis('vocab', c.vocab),), initializers.zeros)
    self.activation = c.mlm_activation


class Trunk(bert.Trunk):
  """BERT's with embeddings of another size than the hidden states."""

  def __init__(self, c: Config, head: Head):
    super().__init__(c, head)
    self.embed = Embeddings(c)
    self.mlm = nnx.data(MlmHead(c) if head.kind == 'mlm' else None)
