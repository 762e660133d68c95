"""BERT (Devlin et al. 2019) and, by its switches, the encoders that descend from it.

Post-layer-norm blocks over summed token, position and type embeddings. `roberta.py`, `ernie.py` and `distilbert.py`
set the switches and the table of names.

Shape letters: B batch, L tokens, D embed, F mlp, H heads, K head size, V vocabulary, C classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers

from ftlib.base.errors import InputError, did_you_mean
from ftlib.base.rng import Stream, dropout
from ftlib.base.types import Batch, Head, Outputs
from ftlib.models import heads, hf_config
from ftlib.models.attention import attention, same_segment
from ftlib.models.layers import ACTIVATIONS, Axis, Embed, Hidden, Memory, Norm, Proj, Prompt, Shared, normal, param
from ftlib.models.model import Model


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes and switches of an encoder of the BERT family."""

  vocab: int
  embed: int
  layers: int
  heads: int
  mlp: int
  positions: int  # rows of the position table; usable length is `positions - position_offset`
  types: int  # token types; 0: the family has none
  activation: str = 'gelu'
  epsilon: float = 1e-12
  dropout: float = 0.1
  attention_dropout: float = 0.1
  head_dropout: float = 0.1
  pad_id: int = 0
  init_std: float = 0.02
  position_offset: int = 0  # RoBERTa counts positions from pad_id + 1
  tasks: int = 0  # rows of ERNIE's task table; 0: none
  pooler: bool = True  # BERT's tanh layer on the first token, part of the base model; other pooling goes past it
  head_dense: str = ''  # activation of a dense layer inside the classification head; '': none
  head_drop_first: bool = False  # dropout before that layer (RoBERTa)

  @property
  def max_length(self) -> int:
    """The longest row that the position table can hold, in tokens."""
    return self.positions - self.position_offset


MODEL_TYPES = {  # model_type -> what an export is loaded as, by the head
  'bert': {
    'classify': 'BertForSequenceClassification',
    'choice': 'BertForMultipleChoice',
    'tag': 'BertForTokenClassification',
    'span': 'BertForQuestionAnswering',
    'mlm': 'BertForMaskedLM',
  },
}
USED = {  # Hugging Face key -> field
  'vocab_size': 'vocab',
  'hidden_size': 'embed',
  'num_hidden_layers': 'layers',
  'num_attention_heads': 'heads',
  'intermediate_size': 'mlp',
  'max_position_embeddings': 'positions',
  'type_vocab_size': 'types',
  'hidden_act': 'activation',
  'layer_norm_eps': 'epsilon',
  'hidden_dropout_prob': 'dropout',
  'attention_probs_dropout_prob': 'attention_dropout',
  'classifier_dropout': 'head_dropout',
  'pad_token_id': 'pad_id',
  'initializer_range': 'init_std',
}
DEFAULTS = {
  'types': 2,
  'activation': 'gelu',
  'epsilon': 1e-12,
  'dropout': 0.1,
  'attention_dropout': 0.1,
  'head_dropout': None,
  'pad_id': 0,
  'init_std': 0.02,
}
PARTS = {  # our module -> Hugging Face's, inside a block
  'layers/{i}/attn/q': 'encoder.layer.{i}.attention.self.query',
  'layers/{i}/attn/k': 'encoder.layer.{i}.attention.self.key',
  'layers/{i}/attn/v': 'encoder.layer.{i}.attention.self.value',
  'layers/{i}/attn/o': 'encoder.layer.{i}.attention.output.dense',
  'layers/{i}/attn_norm': 'encoder.layer.{i}.attention.output.LayerNorm',
  'layers/{i}/mlp/up': 'encoder.layer.{i}.intermediate.dense',
  'layers/{i}/mlp/down': 'encoder.layer.{i}.output.dense',
  'layers/{i}/mlp_norm': 'encoder.layer.{i}.output.LayerNorm',
  'embed/token': 'embeddings.word_embeddings',
  'embed/position': 'embeddings.position_embeddings',
  'embed/type': 'embeddings.token_type_embeddings',
  'embed/norm': 'embeddings.LayerNorm',
}
HEADS = {
  'pooler': 'pooler.dense',
  'head/out': 'classifier',
  'mlm/dense': 'cls.predictions.transform.dense',
  'mlm/norm': 'cls.predictions.transform.LayerNorm',
  'mlm/bias': 'cls.predictions.bias',
}
PREFIX = 'bert.'
TABLE = {n: (PREFIX + h if not n.startswith(('head', 'mlm')) else h) for n, h in {**PARTS, **HEADS}.items()}


def from_hf(values: Mapping[str, Any], *, where: str = 'config.json', allow: str = '') -> Config:
  """The Config of a BERT `config.json`."""
  got = hf_config.read(values, USED, Config, defaults=DEFAULTS, where=where, allow=allow)
  return checked(Config, got, where)


def checked(config: type[Config], got: dict[str, Any], where: str) -> Config:
  """A Config whose numbers fit together, or an `InputError`. The head's dropout is by default that of the layers."""
  rate = got['dropout'] if got['head_dropout'] is None else got['head_dropout']
  c = config(**{**got, 'head_dropout': rate})
  if c.activation not in ACTIVATIONS:
    raise InputError(
      f'{where}: hidden_act={c.activation!r} is not supported{did_you_mean(c.activation, ACTIVATIONS)}; '
      f'known: {", ".join(ACTIVATIONS)}'
    )
  if c.heads == 0 or c.embed % c.heads:
    raise InputError(f'{where}: hidden_size={c.embed} is not a multiple of num_attention_heads={c.heads}')
  return c


def build(config: Config, *, head: Head, hf: Mapping[str, str] = TABLE, **options: Any) -> Model:
  """The model with a head; `options` are `Model`'s (`compute`, `remat`, `dropout_bits`)."""
  check_pooling(head)
  blocks = tuple(Block(config) for _ in range(config.layers))
  table = heads.names(hf, head, tag='classifier')
  tied = tied_output(table) if head.kind == 'mlm' else {}
  return Model(config=config, trunk=Trunk(config, head), blocks=blocks, hf=table, tied=tied, **options)


def tied_output(table: Mapping[str, Any]) -> dict[str, str]:
  """{matrix of the output layer over the vocabulary: ours that it has to equal}, by the name of that layer's bias."""
  layer = table['mlm/bias'].removesuffix('.bias')
  return dict.fromkeys((f'{layer}.weight', f'{layer}.decoder.weight'), 'embed/token/table')


def check_pooling(head: Head) -> None:
  """Raises `InputError` for a head on what no encoder here is trained to say anything by."""
  if head.pooling == 'last':
    raise InputError(
      "the last token of an encoder's row stands for nothing but its end; set task.pooling to cls or mean"
    )


class Context(NamedTuple):
  """What the blocks and the head read besides the hidden state: `prompt` virtual tokens lead the rows of `inputs`."""

  mask_B1LL: jax.Array
  segments_BL: jax.Array
  inputs: Batch
  prompt: int = 0
  shared: Any = None

  def layer(self, i: Any) -> Context:
    """The context of layer i: the same for all."""
    return self


class Attention(nnx.Module):
  """Multi-head self-attention."""

  def __init__(self, c: Config):
    embed, heads, size = Axis('embed', c.embed), Axis('heads', c.heads), Axis('head_dim', c.embed // c.heads)
    init = normal(c.init_std)
    self.q = Proj((embed,), (heads, size), init=init)
    self.k = Proj((embed,), (heads, size), init=init)
    self.v = Proj((embed,), (heads, size), init=init)
    self.o = Proj((heads, size), (embed,), init=init)
    self.memory, self.out = Memory(heads, size), Hidden(embed)
    self.rate = c.attention_dropout

  def __call__(self, x_BLD: jax.Array, context: Context, stream: Stream | None) -> jax.Array:
    q_BLHK, k_BLHK, v_BLHK = (p(x_BLD, stream) for p in (self.q, self.k, self.v))
    k_BLHK, v_BLHK, mask = self.memory(k_BLHK, v_BLHK, context.mask_B1LL, context, stream)
    noise = None if stream is None else stream.at('attn/probabilities')
    y_BLHK = attention(q_BLHK, k_BLHK, v_BLHK, mask, rate=self.rate, stream=noise)
    return self.out(x_BLD, self.o(y_BLHK, stream), context, stream)


class Mlp(nnx.Module):
  """Two projections with an activation between."""

  def __init__(self, c: Config):
    embed, mlp = Axis('embed', c.embed), Axis('mlp', c.mlp)
    self.up = Proj((embed,), (mlp,), init=normal(c.init_std))
    self.down = Proj((mlp,), (embed,), init=normal(c.init_std))
    self.out = Hidden(embed)
    self.activation = c.activation

  def __call__(self, x_BLD: jax.Array, context: Context, stream: Stream | None) -> jax.Array:
    y_BLD = self.down(ACTIVATIONS[self.activation](self.up(x_BLD, stream)), stream)
    return self.out(x_BLD, y_BLD, context, stream)


class Block(nnx.Module):
  """Attention and MLP, each followed by dropout, the residual and layer norm."""

  def __init__(self, c: Config):
    self.attn = Attention(c)
    self.attn_norm = Norm(Axis('embed', c.embed), epsilon=c.epsilon)
    self.mlp = Mlp(c)
    self.mlp_norm = Norm(Axis('embed', c.embed), epsilon=c.epsilon)
    self.out = Hidden(Axis('embed', c.embed))
    self.rate = c.dropout

  def __call__(self, x_BLD: jax.Array, context: Context, stream: Stream | None) -> jax.Array:
    h_BLD = self.attn_norm(x_BLD + self._drop(self.attn(x_BLD, context, stream), stream, 'attn/out'))
    h_BLD = self.mlp_norm(h_BLD + self._drop(self.mlp(h_BLD, context, stream), stream, 'mlp/out'))
    return self.out(x_BLD, h_BLD, context, stream)

  def _drop(self, x: jax.Array, stream: Stream | None, name: str) -> jax.Array:
    return dropout(x, self.rate, None if stream is None else stream.at(name))


class Embeddings(nnx.Module):
  """Sum of token, position, type (and ERNIE's task) vectors, normalised."""

  def __init__(self, c: Config):
    embed, init = Axis('embed', c.embed), normal(c.init_std)
    self.token = Embed(Axis('vocab', c.vocab), embed, init=init)
    self.position = Embed(Axis('positions', c.positions), embed, init=init)
    self.type = nnx.data(Embed(Axis('types', c.types), embed, init=init) if c.types else None)
    self.task = nnx.data(Embed(Axis('types', c.tasks), embed, init=init) if c.tasks else None)
    self.norm = Norm(embed, epsilon=c.epsilon)
    self.prompt = Prompt(embed)
    self.offset, self.rate = c.position_offset, c.dropout

  def __call__(self, inputs: Batch, stream: Stream | None) -> tuple[jax.Array, Batch, int]:
    """(embedded tokens, inputs, the number of virtual tokens in front of them)."""
    h_BLD, inputs, prompt = self.prompt(self.token(inputs['tokens'], stream), inputs, stream)
    h_BLD += self.position(inputs['positions'] + self.offset, stream)
    if self.type is not None:
      h_BLD += self.type(inputs['types'], stream)
    if self.task is not None:
      h_BLD += self.task(jnp.zeros((), jnp.int32), stream)
    return dropout(self.norm(h_BLD), self.rate, None if stream is None else stream.at('embed')), inputs, prompt


class ClassHead(nnx.Module):
  """Logits [..., C] of vectors [..., D], by way of a dense layer where the family has one for pooled ones."""

  def __init__(self, c: Config, head: Head):
    embed, out = Axis('embed', c.embed * max(1, head.marks)), Axis('embed_out', c.embed)
    dense = c.head_dense and heads.pooled_first(head)
    self.dense = nnx.data(Proj((embed,), (out,), init=normal(c.init_std)) if dense else None)
    self.out = Proj((embed,), (Axis('classes', head.classes),), init=normal(c.init_std))
    self.activation, self.first = c.head_dense, c.head_drop_first
    self.rate = 0.0 if head.kind == 'span' else c.head_dropout
    self.transitions = heads.transitions(head)

  def __call__(self, x_D: jax.Array, stream: Stream | None) -> jax.Array:
    noise = (lambda name: None) if stream is None else stream.at
    if self.dense is not None:
      x_D = dropout(x_D, self.rate, noise('head/in')) if self.first else x_D
      x_D = ACTIVATIONS[self.activation](self.dense(x_D, stream))
    return self.out(dropout(x_D, self.rate, noise('head/out')), stream)


class MlmHead(nnx.Module):
  """Logits over the vocabulary, float32 [..., V], of hidden states [..., D]; tied to the token table."""

  def __init__(self, c: Config):
    embed, out = Axis('embed', c.embed), Axis('embed_out', c.embed)
    self.dense = Proj((embed,), (out,), init=normal(c.init_std))
    self.norm = Norm(embed, epsilon=c.epsilon)
    self.bias = param((Axis('vocab', c.vocab),), initializers.zeros)
    self.activation = c.activation

  def __call__(self, h_D: jax.Array, table: Embed) -> jax.Array:
    h_D = self.norm(ACTIVATIONS[self.activation](self.dense(h_D)))
    return table.attend(h_D) + self.bias[...]


class Trunk(nnx.Module):
  """Everything but the blocks: embeddings, pooler, head."""

  def __init__(self, c: Config, head: Head):
    embed, out = Axis('embed', c.embed), Axis('embed_out', c.embed)
    self.kind, self.wanted = head.kind, head
    pooler = c.pooler and heads.pooled_first(head)
    self.embed, self.shared = Embeddings(c), Shared()
    self.pooler = nnx.data(Proj((embed,), (out,), init=normal(c.init_std)) if pooler else None)
    self.head = nnx.data(ClassHead(c, head) if head.classes else None)
    self.mlm = nnx.data(MlmHead(c) if head.kind == 'mlm' else None)

  def start(self, inputs: Batch, stream: Stream | None) -> tuple[jax.Array, Context]:
    """The embedded tokens [B, L, D] and the attention mask."""
    h_BLD, all_, prompt = self.embed(inputs, stream)
    segments_BL = all_['segments']
    return h_BLD, Context(same_segment(segments_BL), segments_BL, inputs, prompt, self.shared(stream))

  def finish(self, h_BLD: jax.Array, context: Context, stream: Stream | None) -> Outputs:
    """Pooled vector and logits, in float32."""
    wide_BLD = h_BLD.astype(jnp.float32)
    h_BLD, head = wide_BLD[:, context.prompt :], self.wanted
    if self.mlm is not None:
      return Outputs(h_BLD, unembed=lambda h_D: self.mlm(h_D, self.embed.token))
    if head.kind in heads.TOKENWISE:
      return Outputs(h_BLD, None, self.head(h_BLD, stream))
    # 'cls' is the first vector whatever it is: with a prompt, that of its first virtual token, as in PEFT
    led = context.prompt and head.pooling == 'cls' and not head.marks
    pooled_BD = wide_BLD[:, 0] if led else heads.pool(h_BLD, context.inputs, head)
    if self.pooler is not None and head.pooling == 'cls':  # which it was pretrained on; else it is there for exports
      pooled_BD = jnp.tanh(self.pooler(pooled_BD, stream))
    logits = None if self.head is None else self.head(pooled_BD, stream)
    return Outputs(h_BLD, pooled_BD, logits)
