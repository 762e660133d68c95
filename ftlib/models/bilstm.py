"""A bidirectional LSTM over word vectors (Graves & Schmidhuber 2005): the baseline that has seen no text before.

Each layer reads a document from both ends and gives both directions' states, [forward | backward]. A document is told
from its neighbours by its segment: a state begins at zero at a document's first token (its last, backwards), and what
follows is as if the document stood alone, so padding and packing change nothing. The cell is that of PyTorch (Gers et
al. 2000, without peepholes), and the tensors in files are named as those of `torch.nn.LSTM`.

  i, f, o = sigmoid(...), g = tanh(...) of W x + b + U h + d;  c' = f c + i g;  h' = o tanh(c')

A document is pooled to the largest of each feature ('max'), their mean, or 'last', where each direction ended.
Dropout acts on what each layer reads, with masks of their own at every token, and before the head.

Shape letters: B batch, L tokens, D what a layer reads, H states of a direction, G = 4 H gates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ftlib.base.errors import InputError
from ftlib.base.rng import Stream, dropout
from ftlib.base.types import Batch, Head, Outputs
from ftlib.models import heads, hf_config
from ftlib.models.bert import Context
from ftlib.models.layers import Axis, Embed, Hidden, Proj, Prompt, Shared, normal, uniform
from ftlib.models.model import Model

_FAR = 1 << 20  # tokens; a recurrent model has no end of positions


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes: `embed` of the word vectors, `hidden` of one direction's states."""

  vocab: int
  embed: int
  hidden: int
  layers: int
  dropout: float = 0.5
  head_dropout: float = 0.5
  pad_id: int = 0
  types: int = 0

  @property
  def max_length(self) -> int:
    """The longest row, in tokens."""
    return _FAR


MODEL_TYPES = {  # model_type -> what an export is called, by the head; transformers has none of them
  'bilstm': {
    'classify': 'BiLstmForSequenceClassification',
    'tag': 'BiLstmForTokenClassification',
    'span': 'BiLstmForQuestionAnswering',
  },
}
LIBRARY = 'ftlib'  # which alone loads an export
POOLING = 'max'  # as a rule the best of the three (Conneau et al. 2017, table 4)
PREFIX = ''
TABLE = {
  'embed/token': 'embedding',
  **{
    f'layers/{{i}}/{ours}/{part}/{leaf}': f'lstm.{name}_{short}_l{{i}}{suffix}'
    for ours, suffix in (('forward', ''), ('backward', '_reverse'))
    for part, short in (('input', 'ih'), ('state', 'hh'))
    for leaf, name in (('kernel', 'weight'), ('bias', 'bias'))
  },
  'head/out': 'classifier',
}
_USED = {
  'vocab_size': 'vocab',
  'embedding_size': 'embed',
  'hidden_size': 'hidden',
  'num_hidden_layers': 'layers',
  'hidden_dropout_prob': 'dropout',
  'classifier_dropout': 'head_dropout',
  'pad_token_id': 'pad_id',
}


def new(*, vocab: int, embed: int, hidden: int, layers: int, dropout: float) -> dict[str, Any]:
  """The `config.json` of a model that is yet to be trained."""
  sizes = {'vocab': vocab, 'embed': embed, 'hidden': hidden, 'layers': layers}
  values = {**sizes, 'dropout': dropout, 'head_dropout': dropout, 'pad_id': 0}
  return {'model_type': 'bilstm', **{theirs: values[ours] for theirs, ours in _USED.items()}}


def from_hf(values: Mapping[str, Any], *, where: str = 'config.json', allow: str = '') -> Config:
  """The Config of a BiLSTM's `config.json`."""
  defaults = {'dropout': 0.5, 'head_dropout': 0.5, 'pad_id': 0}
  c = Config(**hf_config.read(values, _USED, Config, defaults=defaults, where=where, allow=allow))
  if not (c.layers and c.hidden and c.embed):
    raise InputError(f'{where}: num_hidden_layers, hidden_size and embedding_size are at least 1')
  return c


def build(config: Config, *, head: Head, **options: Any) -> Model:
  """The model with a head; `options` are `Model`'s."""
  if head.kind not in ('none', 'classify', 'embed', *heads.TOKENWISE):
    raise InputError(f'a BiLSTM has no head of kind {head.kind!r}, which predicts tokens; take a pretrained model')
  c = config
  reads = [c.embed] + [2 * c.hidden] * (c.layers - 1)
  blocks = tuple(Block(c, Axis('embed', size)) for size in reads)
  return Model(config=c, trunk=Trunk(c, head), blocks=blocks, hf=heads.names(TABLE, head, tag='classifier'), **options)


class Direction(nnx.Module):
  """An LSTM (Hochreiter & Schmidhuber 1997) that reads documents from their first token on, or from their last."""

  def __init__(self, hidden: int, reads: Axis, *, reverse: bool):
    gates = Axis('gates', 4 * hidden)
    self.input = Proj((reads,), (gates,), init=uniform(hidden))
    self.state = Proj((Axis('state', hidden),), (gates,), init=uniform(hidden))
    self.size, self.reverse = hidden, reverse

  def __call__(self, x_BLD: jax.Array, segments_BL: jax.Array, stream: Stream | None) -> jax.Array:
    """The states [B, L, H], zero at padding."""
    x_BLG = self.input(x_BLD, stream)
    within_BL = segments_BL[:, 1:] == segments_BL[:, :-1]
    goes_on_BL = jnp.pad(within_BL, ((0, 0), (0, 1) if self.reverse else (1, 0)))

    def step(carry: tuple[jax.Array, jax.Array], now: tuple[jax.Array, jax.Array]) -> Any:
      (x_BG, goes_on_B), (h_BH, c_BH) = now, carry
      h_BH, c_BH = (jnp.where(goes_on_B[:, None], s, 0) for s in (h_BH, c_BH))
      gates = (x_BG + self.state(h_BH, stream)).astype(jnp.float32)
      i_BH, f_BH, g_BH, o_BH = jnp.split(gates, 4, axis=1)
      c_BH = jax.nn.sigmoid(f_BH) * c_BH + jax.nn.sigmoid(i_BH) * jnp.tanh(g_BH)
      h_BH = (jax.nn.sigmoid(o_BH) * jnp.tanh(c_BH)).astype(x_BG.dtype)
      return (h_BH, c_BH), h_BH

    rows = len(x_BLD)
    start = jnp.zeros((rows, self.size), x_BLG.dtype), jnp.zeros((rows, self.size), jnp.float32)
    along = jnp.swapaxes(x_BLG, 0, 1), goes_on_BL.T
    _, h_LBH = jax.lax.scan(step, start, along, reverse=self.reverse)
    return jnp.where((segments_BL > 0)[..., None], jnp.swapaxes(h_LBH, 0, 1), 0)


class Block(nnx.Module):
  """A layer: both directions over the same inputs."""

  def __init__(self, c: Config, reads: Axis):
    self.forward, self.backward = (Direction(c.hidden, reads, reverse=back) for back in (False, True))
    self.out = Hidden(Axis('embed', 2 * c.hidden))
    self.rate = c.dropout

  def __call__(self, x_BLD: jax.Array, context: Context, stream: Stream | None) -> jax.Array:
    x_BLD = dropout(x_BLD, self.rate, None if stream is None else stream.at('in'))
    both = [d(x_BLD, context.segments_BL, stream) for d in (self.forward, self.backward)]
    return self.out(x_BLD, jnp.concatenate(both, -1), context, stream)


class Embeddings(nnx.Module):
  """A vector for each word of the vocabulary."""

  def __init__(self, c: Config):
    embed = Axis('embed', c.embed)
    self.token = Embed(Axis('vocab', c.vocab), embed, init=normal(0.1))
    self.prompt = Prompt(embed)


class ClassHead(nnx.Module):
  """Logits [..., C] of vectors [..., D]."""

  def __init__(self, c: Config, head: Head):
    width = 2 * c.hidden * max(1, head.marks)
    self.out = Proj((Axis('embed', width),), (Axis('classes', head.classes),), init=uniform(width))
    self.transitions = heads.transitions(head)
    self.rate = c.head_dropout

  def __call__(self, x_D: jax.Array, stream: Stream | None) -> jax.Array:
    return self.out(dropout(x_D, self.rate, None if stream is None else stream.at('head/out')), stream)


class Trunk(nnx.Module):
  """Everything but the layers: word vectors and head."""

  def __init__(self, c: Config, head: Head):
    self.embed, self.shared = Embeddings(c), Shared()
    self.head = nnx.data(ClassHead(c, head) if head.classes else None)
    self.wanted, self.size = head, c.hidden

  def start(self, inputs: Batch, stream: Stream | None) -> tuple[jax.Array, Context]:
    """The embedded tokens [B, L, D], and what tells documents apart."""
    h_BLD, all_, prompt = self.embed.prompt(self.embed.token(inputs['tokens'], stream), inputs, stream)
    return h_BLD, Context(None, all_['segments'], inputs, prompt, self.shared(stream))

  def finish(self, h_BLD: jax.Array, context: Context, stream: Stream | None) -> Outputs:
    """Pooled vector and logits, in float32."""
    h_BLD = h_BLD.astype(jnp.float32)[:, context.prompt :]
    if self.wanted.kind in heads.TOKENWISE:
      return Outputs(h_BLD, None, self.head(h_BLD, stream))
    pooled_BD = self._pooled(h_BLD, context.inputs)
    return Outputs(h_BLD, pooled_BD, None if self.head is None else self.head(pooled_BD, stream))

  def _pooled(self, h_BLD: jax.Array, inputs: Batch) -> jax.Array:
    if self.wanted.pooling != 'last' or self.wanted.marks:
      return heads.pool(h_BLD, inputs, self.wanted)
    ends = ((h_BLD[..., : self.size], 'last'), (h_BLD[..., self.size :], 'cls'))
    return jnp.concatenate(
      [heads.pool(half, inputs, dataclasses.replace(self.wanted, pooling=where)) for half, where in ends], -1
    )
