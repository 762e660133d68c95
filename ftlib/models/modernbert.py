"""ModernBERT (Warner et al. 2024): an encoder of pre-norm blocks with rotary positions and without biases.

Every third layer sees the whole document, the others half a window to each side and turn by a rotation of their own.
The first layer's attention reads the embeddings, which are normed already. In the files gate and values of the MLP are
one matrix, and so are query, key and value. A head is a dense layer, an activation and a norm, for classes as for the
vocabulary: pretraining's is what classification starts from, as in transformers.

Shape letters: B batch, L tokens, D embed, M kinds of layers, V vocabulary, C classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers

from ftlib.base.errors import InputError, did_you_mean
from ftlib.base.rng import Stream, dropout
from ftlib.base.types import Batch, Head, Outputs
from ftlib.models import bert, decoder, heads, hf_config, llama, rope
from ftlib.models.attention import same_segment
from ftlib.models.decoder import Context
from ftlib.models.layers import (
  ACTIVATIONS,
  Axis,
  Embed,
  Hidden,
  Norm,
  Positions,
  Proj,
  Prompt,
  Shared,
  normal,
  param,
  standardise,
)
from ftlib.models.model import Model, Stored
from ftlib.models.rope import Rope

FAR, NEAR = Rope(160000.0), Rope(10000.0)

MODEL_TYPES = {  # model_type -> what an export is loaded as, by the head
  'modernbert': {
    'classify': 'ModernBertForSequenceClassification',
    'choice': 'ModernBertForMultipleChoice',
    'tag': 'ModernBertForTokenClassification',
    'span': 'ModernBertForQuestionAnswering',
    'mlm': 'ModernBertForMaskedLM',
  },
}
POOLING_KEY = 'classifier_pooling'  # of config.json: what transformers' class head reads
PREFIX = 'model.'
USED = {
  'vocab_size': 'vocab',
  'hidden_size': 'embed',
  'num_hidden_layers': 'layers',
  'num_attention_heads': 'heads',
  'intermediate_size': 'mlp',
  'max_position_embeddings': 'positions',
  'hidden_activation': 'activation',
  'norm_eps': 'epsilon',
  'norm_bias': 'norm_bias',
  'attention_bias': 'attention_bias',
  'attention_dropout': 'attention_dropout',
  'embedding_dropout': 'embed_dropout',
  'mlp_bias': 'mlp_bias',
  'mlp_dropout': 'dropout',
  'decoder_bias': 'decoder_bias',
  'classifier_activation': 'head_dense',
  'classifier_bias': 'head_bias',
  'classifier_dropout': 'head_dropout',
  'classifier_pooling': 'pooling',
  'local_attention': 'window',
  'pad_token_id': 'pad_id',
  'initializer_range': 'init_std',
}
DEFAULTS = {
  'vocab': 50368,
  'embed': 768,
  'layers': 22,
  'heads': 12,
  'mlp': 1152,
  'positions': 8192,
  'activation': 'gelu',
  'epsilon': 1e-5,
  'norm_bias': False,
  'attention_bias': False,
  'attention_dropout': 0.0,
  'embed_dropout': 0.0,
  'mlp_bias': False,
  'dropout': 0.0,
  'decoder_bias': True,
  'head_dense': 'gelu',
  'head_bias': False,
  'head_dropout': 0.0,
  'pooling': 'cls',
  'window': 128,
  'pad_id': 50283,
  'init_std': 0.02,
}
HARMLESS = (  # how transformers computes or starts it, and an older name beside norm_eps
  '^(deterministic_flash_attn|initializer_cutoff_factor|layer_norm_eps|reference_compile|repad_logits_with_grad|'
  'sparse_pred_ignore_index|sparse_prediction)$'
)
FIXED = {'position_embedding_type': ('absolute', 'sans_pos', None)}  # which nothing reads: all of them are turned
BY_HAND = (
  *('layer_types', 'global_attn_every_n_layers'),
  *('global_rope_theta', 'local_rope_theta', 'rope_parameters', 'rope_scaling'),
)
_LAYER = PREFIX + 'layers.{i}.'
TABLE = {  # our module -> Hugging Face's
  **{f'layers/{{i}}/attn/{x}': Stored(_LAYER + 'attn.Wqkv', k, 3) for k, x in enumerate('qkv')},
  'layers/{i}/attn/o': _LAYER + 'attn.Wo',
  'layers/{i}/attn_norm': _LAYER + 'attn_norm',
  'layers/{i}/mlp/gate': Stored(_LAYER + 'mlp.Wi', 0, 2),
  'layers/{i}/mlp/up': Stored(_LAYER + 'mlp.Wi', 1, 2),
  'layers/{i}/mlp/down': _LAYER + 'mlp.Wo',
  'layers/{i}/mlp_norm': _LAYER + 'mlp_norm',
  'embed/token': PREFIX + 'embeddings.tok_embeddings',
  'embed/norm': PREFIX + 'embeddings.norm',
  'norm': PREFIX + 'final_norm',
  'head/dense': 'head.dense',
  'head/norm': 'head.norm',
  'head/out': 'classifier',
  'mlm/dense': 'head.dense',
  'mlm/norm': 'head.norm',
  'mlm/bias': 'decoder.bias',
}


@dataclasses.dataclass(frozen=True)
class Config(bert.Config):
  """Sizes and switches of a ModernBERT, most by the names of BERT's. `windows[i]`: tokens that layer i sees around one,
  0 for all; `pooling`: what transformers' class head reads."""

  windows: tuple[int, ...] = ()
  rope: Rope = FAR
  local_rope: Rope = NEAR
  window: int = 128
  embed_dropout: float = 0.0
  attention_bias: bool = False
  mlp_bias: bool = False
  norm_bias: bool = False
  head_bias: bool = False
  decoder_bias: bool = True
  pooling: str = 'cls'

  @property
  def block(self) -> decoder.Config:
    """What attention and MLP go by, which are those of decoders under another mask."""
    names = ('vocab', 'embed', 'layers', 'heads', 'mlp', 'positions', 'activation', 'mlp_bias', 'attention_dropout')
    same = {n: getattr(self, n) for n in (*names, 'init_std')}
    bias = {'qkv_bias': self.attention_bias, 'out_bias': self.attention_bias}
    return decoder.Config(**same, **bias, kv_heads=self.heads, head_dim=self.embed // self.heads)


def from_hf(values: Mapping[str, Any], *, where: str = 'config.json', allow: str = '') -> Config:
  """The Config of a ModernBERT `config.json`."""
  allow = f'{allow}|{HARMLESS}' if allow else HARMLESS
  plain = {k: v for k, v in values.items() if k not in BY_HAND}
  got = hf_config.read(plain, USED, Config, defaults=DEFAULTS, where=where, allow=allow, fixed=FIXED)
  if got['pooling'] not in ('cls', 'mean'):
    near = did_you_mean(got['pooling'], ('cls', 'mean'))
    raise InputError(f'{where}: classifier_pooling={got["pooling"]!r} is not cls or mean{near}')
  if got['head_dense'] not in ACTIVATIONS:
    near = did_you_mean(got['head_dense'], ACTIVATIONS)
    raise InputError(f'{where}: classifier_activation={got["head_dense"]!r} is not supported{near}')
  every = values.get('global_attn_every_n_layers') or 3
  if isinstance(every, bool) or not isinstance(every, int) or every < 1:
    raise InputError(f'{where}: global_attn_every_n_layers={every!r} is not a whole number above 0')
  kinds = ['sliding_attention' if i % every else 'full_attention' for i in range(got['layers'])]
  kinds = values.get('layer_types') or kinds
  if len(kinds) != got['layers']:
    raise InputError(f'{where}: layer_types has {len(kinds)} entries for {got["layers"]} layers')
  if got['window'] < 2 and 'sliding_attention' in kinds:
    raise InputError(f'{where}: local_attention={got["window"]} leaves a token no other to see; wanted 2 or more')
  got['windows'] = llama.windows(kinds, got['window'], where=where)
  got |= {'rope': _rope(values, True, got['positions'], where), 'types': 0, 'pooler': False}
  got['local_rope'] = _rope(values, False, got['positions'], where)
  c = bert.checked(Config, got, where)
  decoder.checked(c.block, where)
  return c


def _rope(values: Mapping[str, Any], far: bool, positions: int, where: str) -> Rope:
  """The rotation of layers that see all (`far`) or have a window, by transformers' older keys or newer ones."""
  key, kind = ('global_rope_theta', 'full_attention') if far else ('local_rope_theta', 'sliding_attention')
  theta = values.get(key) or (FAR if far else NEAR).theta
  given = values.get('rope_parameters') or {}
  if not isinstance(given, Mapping) or not all(isinstance(v, Mapping | None) for v in given.values()):
    raise InputError(f'{where}: rope_parameters={given!r}; wanted one object for each of the layer_types')
  numbers = {**(values.get('rope_scaling') or {}), **(given.get(kind) or {})}
  return rope.read(numbers, theta=float(theta), positions=positions, where=where)


def build(config: Config, *, head: Head, **options: Any) -> Model:
  """The model with a head; `options` are `Model`'s."""
  bert.check_pooling(head)
  blocks = tuple(Block(config, first=i == 0) for i in range(config.layers))
  tied = {'decoder.weight': 'embed/token/table'} if head.kind == 'mlm' else {}
  table = {**heads.names(TABLE, head, tag='classifier'), **TABLE}  # heads have the same names whatever they read
  return Model(config=config, trunk=Trunk(config, head), blocks=blocks, hf=table, tied=tied, **options)


class Scaled(nnx.Module):
  """Layer normalisation without a bias."""

  def __init__(self, axis: Axis, *, epsilon: float):
    self.epsilon, self.scale = epsilon, param((axis,), initializers.ones)

  def __call__(self, x: jax.Array) -> jax.Array:
    hat = standardise(x.astype(jnp.float32), self.epsilon)
    return (hat * self.scale[...].astype(jnp.float32)).astype(x.dtype)


def _norm(c: Config) -> nnx.Module:
  return (Norm if c.norm_bias else Scaled)(Axis('embed', c.embed), epsilon=c.epsilon)


class Mlp(decoder.Mlp):
  """A decoder's gated MLP, with dropout before the last projection."""

  def __init__(self, c: Config):
    super().__init__(c.block)
    self.rate = c.dropout

  def __call__(self, x_BLD: jax.Array, context: Context, stream: Stream | None) -> jax.Array:
    y_BLF = ACTIVATIONS[self.activation](self.gate(x_BLD, stream)) * self.up(x_BLD, stream)
    y_BLF = dropout(y_BLF, self.rate, None if stream is None else stream.at('mlp/hidden'))
    return self.out(x_BLD, self.down(y_BLF, stream), context, stream)


class Block(nnx.Module):
  """Norm (not in the first layer), attention, residual; norm, MLP, residual."""

  def __init__(self, c: Config, *, first: bool):
    self.attn_norm = nnx.data(None if first else _norm(c))
    self.attn, self.mlp_norm, self.mlp = decoder.Attention(c.block), _norm(c), Mlp(c)
    self.out, self.rate = Hidden(Axis('embed', c.embed)), c.attention_dropout

  def __call__(self, x_BLD: jax.Array, context: Context, stream: Stream | None) -> jax.Array:
    read_BLD = x_BLD if self.attn_norm is None else self.attn_norm(x_BLD)
    y_BLD, _ = self.attn(read_BLD, context, stream, None)
    h_BLD = x_BLD + dropout(y_BLD, self.rate, None if stream is None else stream.at('attn/out'))
    return self.out(x_BLD, h_BLD + self.mlp(self.mlp_norm(h_BLD), context, stream), context, stream)


class Embeddings(nnx.Module):
  """Token vectors, normed."""

  def __init__(self, c: Config):
    embed = Axis('embed', c.embed)
    self.token = Embed(Axis('vocab', c.vocab), embed, init=normal(c.init_std))
    self.norm, self.prompt, self.turn, self.rate = _norm(c), Prompt(embed), Positions(), c.embed_dropout

  def __call__(self, inputs: Batch, stream: Stream | None) -> tuple[jax.Array, Batch, int]:
    """(embedded tokens, inputs, the number of virtual tokens in front of them)."""
    h_BLD, inputs, prompt = self.prompt(self.token(inputs['tokens'], stream), inputs, stream)
    inputs = {**inputs, 'positions': self.turn(inputs['positions'])}
    return dropout(self.norm(h_BLD), self.rate, None if stream is None else stream.at('embed')), inputs, prompt


class Dense(nnx.Module):
  """What all heads have in front: a dense layer, an activation, a norm."""

  def __init__(self, c: Config):
    embed, out = Axis('embed', c.embed), Axis('embed_out', c.embed)
    self.dense, self.norm = Proj((embed,), (out,), init=normal(c.init_std), bias=c.head_bias), _norm(c)
    self.activation = c.head_dense

  def through(self, x_D: jax.Array, stream: Stream | None = None) -> jax.Array:
    return self.norm(ACTIVATIONS[self.activation](self.dense(x_D, stream)))


class ClassHead(Dense):
  """Logits [..., C] of vectors [..., D]."""

  def __init__(self, c: Config, head: Head):
    super().__init__(c)
    self.out = Proj((Axis('embed', c.embed),), (Axis('classes', head.classes),), init=normal(c.init_std))
    self.transitions, self.rate = heads.transitions(head), c.head_dropout

  def __call__(self, x_D: jax.Array, stream: Stream | None) -> jax.Array:
    noise = None if stream is None else stream.at('head/out')
    return self.out(dropout(self.through(x_D, stream), self.rate, noise), stream)


class MlmHead(Dense):
  """Logits over the vocabulary, float32 [..., V], of hidden states [..., D]; tied to the token table."""

  def __init__(self, c: Config):
    super().__init__(c)
    self.bias = nnx.data(param((Axis('vocab', c.vocab),), initializers.zeros) if c.decoder_bias else None)

  def __call__(self, h_D: jax.Array, table: Embed) -> jax.Array:
    y_V = table.attend(self.through(h_D))
    return y_V if self.bias is None else y_V + self.bias[...]


class Trunk(bert.Trunk):
  """Everything but the blocks; what becomes of the hidden states, after a last norm, is as in BERT."""

  def __init__(self, c: Config, head: Head):
    self.kind, self.wanted = head.kind, head
    self.embed, self.shared, self.norm, self.pooler = Embeddings(c), Shared(), _norm(c), nnx.data(None)
    marked = bert.ClassHead(c, head) if head.classes and head.marks else None  # of several tokens, one layer
    self.head = nnx.data(marked or (ClassHead(c, head) if head.classes else None))
    self.mlm = nnx.data(MlmHead(c) if head.kind == 'mlm' else None)
    self.kinds = tuple(sorted({*c.windows})) if c.windows else (0,)  # windows, 0 (all) first
    self.ropes = tuple(c.local_rope if w else c.rope for w in self.kinds)
    self.of_layer = tuple(self.kinds.index(w) for w in c.windows) if len(self.kinds) > 1 else ()
    self.size = c.embed // c.heads

  def start(self, inputs: Batch, stream: Stream | None) -> tuple[jax.Array, Context]:
    """The embedded tokens [B, L, D], and what each may see, half a window to either side."""
    h_BLD, all_, prompt = self.embed(inputs, stream)
    segments_BL, positions_BL = all_['segments'], all_['positions']
    same_B1LL = same_segment(segments_BL)
    far_B1LL = jnp.abs(positions_BL[:, None, :, None] - positions_BL[:, None, None, :])
    masks = jnp.stack([same_B1LL & (far_B1LL <= w // 2) if w else same_B1LL for w in self.kinds])
    turns = [rope.tables(r, self.size, positions_BL) for r in self.ropes]
    cos, sin = (jnp.stack([t[i] for t in turns]) for i in (0, 1))
    kinds = jnp.asarray(self.of_layer) if self.of_layer else None
    return h_BLD, Context(masks, cos, sin, kinds, segments_BL, inputs, prompt, self.shared(stream))

  def finish(self, h_BLD: jax.Array, context: Context, stream: Stream | None) -> Outputs:
    """Pooled vector and logits, in float32."""
    return super().finish(self.norm(h_BLD.astype(jnp.float32)), context, stream)
