"""Decoders from GPT-2 (Radford et al. 2019) to Llama (Touvron et al. 2023) and Gemma (2024), by switches of one block.

Pre-norm blocks over token embeddings, causal attention within a document, an output matrix over the vocabulary or a
class head on the last token. `gpt2.py`, `llama.py`, `qwen.py` and `gemma.py` set the switches and the table of names.

Shape letters: B batch, L tokens (Q queries, T slots of a cache), D embed, F mlp, H heads, G key-value heads, K head
size, V vocabulary, C classes, N layers, M kinds of layers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from ftlib.base.errors import InputError, did_you_mean
from ftlib.base.rng import Stream, dropout
from ftlib.base.types import Batch, Head, Outputs
from ftlib.models import heads, rope
from ftlib.models.attention import attention, causal
from ftlib.models.cache import Cache, Layer
from ftlib.models.layers import (
  ACTIVATIONS,
  Axis,
  Embed,
  Hidden,
  Memory,
  Norm,
  Positions,
  Proj,
  Prompt,
  RmsNorm,
  Shared,
  normal,
)
from ftlib.models.model import Model, Stored
from ftlib.models.rope import Rope

PLAIN = Rope()


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes and switches. `windows[i]`: tokens that layer i sees back, 0 for all; where `local_rope` is set, layers with
  a window turn by it. `positions`: the longest row; with `learned_positions` that of a table."""

  vocab: int
  embed: int
  layers: int
  heads: int
  kv_heads: int
  head_dim: int
  mlp: int
  positions: int
  rope: Rope = PLAIN
  local_rope: Rope | None = None
  windows: tuple[int, ...] = ()
  learned_positions: bool = False
  activation: str = 'silu'
  gated: bool = True  # gate * up instead of up alone
  layer_norm: bool = False  # layer norm with a bias instead of RMS norm
  epsilon: float = 1e-6
  unit_offset: bool = False  # norms scale by 1 + weight (Gemma)
  post_norms: bool = False  # norms after attention and MLP too (Gemma)
  qk_norm: bool = False
  qkv_bias: bool = False
  out_bias: bool = False
  mlp_bias: bool = False
  head_bias: bool = False  # of the class head
  tied: bool = False
  scale_embeddings: bool = False  # by the root of `embed`
  query_scale: float = 0.0  # 0: the root of `head_dim`, inverted
  attention_cap: float = 0.0
  logit_cap: float = 0.0
  dropout: float = 0.0
  embed_dropout: float = 0.0
  attention_dropout: float = 0.0
  init_std: float = 0.02
  pad_id: int = 0
  span_prefix: str = ''  # of Hugging Face's names, where a model with a head for spans has another
  types: int = 0  # a decoder has no token types

  @property
  def max_length(self) -> int:
    """The longest row, in tokens."""
    return self.positions


def checked(config: Config, where: str) -> Config:
  """The Config, or an `InputError` where its numbers do not fit together."""
  c = config
  if c.activation not in ACTIVATIONS:
    raise InputError(
      f'{where}: activation {c.activation!r} is not supported{did_you_mean(c.activation, ACTIVATIONS)}; '
      f'known: {", ".join(ACTIVATIONS)}'
    )
  if not c.heads or not c.kv_heads or c.heads % c.kv_heads:
    raise InputError(f'{where}: num_attention_heads={c.heads} is not a multiple of num_key_value_heads={c.kv_heads}')
  if c.head_dim <= 0 or (not c.learned_positions and c.head_dim % 2):
    raise InputError(f'{where}: a head size of {c.head_dim} cannot be turned in halves')
  if c.windows and len(c.windows) != c.layers:
    raise InputError(f'{where}: layer_types has {len(c.windows)} entries for {c.layers} layers')
  return c


def make(config: Config, *, head: Head, hf: Mapping[str, str | Stored], tag: str = 'score', **options: Any) -> Model:
  """The model with a head; `tag`: Hugging Face's name of the layer that labels tokens; `options` are `Model`'s."""
  if head.kind == 'mlm':
    raise InputError('a decoder has no masked-language-model head; take an encoder, or the task lm')
  if head.marks:
    raise InputError("a decoder's tokens in front of an entity have not read it; set task.pooling to last or mean")
  if head.kind in ('classify', 'embed') and head.pooling == 'cls':
    raise InputError("the first token of a decoder's row has seen nothing of it; set task.pooling to last or mean")
  blocks = tuple(Block(config) for _ in range(config.layers))
  tied = {'lm_head.weight': 'embed/token/table'} if head.kind == 'lm' and config.tied else {}
  table = heads.names(hf, head, tag=tag)
  return Model(config=config, trunk=Trunk(config, head), blocks=blocks, hf=table, tied=tied, **options)


class Context(NamedTuple):
  """What the blocks and the head read besides the hidden state: `prompt` virtual tokens lead the rows of `inputs`.

  Masks and rotations are stacked by kind of layer (one kind, or all-seeing and windowed); `kinds` has each layer's.
  """

  masks_MB1QT: jax.Array
  cos_MBQ1J: jax.Array | None
  sin_MBQ1J: jax.Array | None
  kinds_N: jax.Array | None
  segments_BL: jax.Array
  inputs: Batch
  prompt: int = 0
  shared: Any = None
  cache: Cache | None = None

  def layer(self, i: Any) -> Context:
    """The context of layer i (an int, or traced): its mask [B, 1, Q, T] and rotation [B, Q, 1, J]."""
    k = 0 if self.kinds_N is None else self.kinds_N[i]
    pick = lambda x: None if x is None else x[k]  # noqa: E731
    return self._replace(
      masks_MB1QT=pick(self.masks_MB1QT), cos_MBQ1J=pick(self.cos_MBQ1J), sin_MBQ1J=pick(self.sin_MBQ1J)
    )


def _norm(c: Config, axis: Axis) -> nnx.Module:
  if c.layer_norm:
    return Norm(axis, epsilon=c.epsilon)
  return RmsNorm(axis, epsilon=c.epsilon, unit_offset=c.unit_offset)


class Attention(nnx.Module):
  """Causal self-attention with grouped keys and values."""

  def __init__(self, c: Config):
    embed, size = Axis('embed', c.embed), Axis('head_dim', c.head_dim)
    heads, groups, init = Axis('heads', c.heads), Axis('kv_heads', c.kv_heads), normal(c.init_std)
    self.q = Proj((embed,), (heads, size), init=init, bias=c.qkv_bias)
    self.k = Proj((embed,), (groups, size), init=init, bias=c.qkv_bias)
    self.v = Proj((embed,), (groups, size), init=init, bias=c.qkv_bias)
    self.o = Proj((heads, size), (embed,), init=init, bias=c.out_bias)
    self.q_norm = nnx.data(_norm(c, size) if c.qk_norm else None)
    self.k_norm = nnx.data(_norm(c, size) if c.qk_norm else None)
    self.memory, self.out = Memory(groups, size), Hidden(embed)
    self.rate, self.cap, self.scale = c.attention_dropout, c.attention_cap, c.query_scale

  def __call__(
    self, x_BQD: jax.Array, context: Context, stream: Stream | None, past: Layer | None
  ) -> tuple[jax.Array, Layer | None]:
    q_BQHK, k_BQGK, v_BQGK = (p(x_BQD, stream) for p in (self.q, self.k, self.v))
    if self.q_norm is not None:
      q_BQHK, k_BQGK = self.q_norm(q_BQHK), self.k_norm(k_BQGK)
    if context.cos_MBQ1J is not None:
      q_BQHK, k_BQGK = (rope.rotate(x, context.cos_MBQ1J, context.sin_MBQ1J) for x in (q_BQHK, k_BQGK))
    if past is not None:
      past = past.extended(k_BQGK, v_BQGK)
      k_BQGK, v_BQGK = past.seen()
    keys, values, mask = self.memory(k_BQGK, v_BQGK, context.masks_MB1QT, context, stream)
    noise = None if stream is None else stream.at('attn/probabilities')
    y_BQHK = attention(q_BQHK, keys, values, mask, scale=self.scale or None, cap=self.cap, rate=self.rate, stream=noise)
    return self.out(x_BQD, self.o(y_BQHK, stream), context, stream), past


class Mlp(nnx.Module):
  """Two projections, or three with a gate (Shazeer 2020)."""

  def __init__(self, c: Config):
    embed, mlp, init = Axis('embed', c.embed), Axis('mlp', c.mlp), normal(c.init_std)
    self.gate = nnx.data(Proj((embed,), (mlp,), init=init, bias=c.mlp_bias) if c.gated else None)
    self.up = Proj((embed,), (mlp,), init=init, bias=c.mlp_bias)
    self.down = Proj((mlp,), (embed,), init=init, bias=c.mlp_bias)
    self.out, self.activation = Hidden(embed), c.activation

  def __call__(self, x_BLD: jax.Array, context: Context, stream: Stream | None) -> jax.Array:
    act, y_BLF = ACTIVATIONS[self.activation], self.up(x_BLD, stream)
    y_BLF = act(y_BLF) if self.gate is None else act(self.gate(x_BLD, stream)) * y_BLF
    return self.out(x_BLD, self.down(y_BLF, stream), context, stream)


class Block(nnx.Module):
  """Norm, attention, residual; norm, MLP, residual."""

  def __init__(self, c: Config):
    embed = Axis('embed', c.embed)
    self.attn_norm, self.attn = _norm(c, embed), Attention(c)
    self.mlp_norm, self.mlp = _norm(c, embed), Mlp(c)
    self.attn_post_norm = nnx.data(_norm(c, embed) if c.post_norms else None)
    self.mlp_post_norm = nnx.data(_norm(c, embed) if c.post_norms else None)
    self.out, self.rate = Hidden(embed), c.dropout

  def __call__(self, x_BLD: jax.Array, context: Context, stream: Stream | None) -> jax.Array:
    return self.cached(x_BLD, context, stream, None)[0]

  def cached(
    self, x_BLD: jax.Array, context: Context, stream: Stream | None, past: Layer | None
  ) -> tuple[jax.Array, Layer | None]:
    """The block's output, and its keys and values with these tokens' added."""
    y_BLD, past = self.attn(self.attn_norm(x_BLD), context, stream, past)
    h_BLD = x_BLD + self._drop(y_BLD if self.attn_post_norm is None else self.attn_post_norm(y_BLD), stream, 'attn/out')
    y_BLD = self.mlp(self.mlp_norm(h_BLD), context, stream)
    h_BLD += self._drop(y_BLD if self.mlp_post_norm is None else self.mlp_post_norm(y_BLD), stream, 'mlp/out')
    return self.out(x_BLD, h_BLD, context, stream), past

  def _drop(self, x: jax.Array, stream: Stream | None, name: str) -> jax.Array:
    return dropout(x, self.rate, None if stream is None else stream.at(name))


class Embeddings(nnx.Module):
  """Token vectors, scaled or with learned positions where the family does so."""

  def __init__(self, c: Config):
    embed, init = Axis('embed', c.embed), normal(c.init_std)
    self.token = Embed(Axis('vocab', c.vocab), embed, init=init)
    self.position = nnx.data(Embed(Axis('positions', c.positions), embed, init=init) if c.learned_positions else None)
    self.prompt, self.rate = Prompt(embed), c.embed_dropout
    self.turn = nnx.data(None if c.learned_positions else Positions())
    self.scale = c.embed**0.5 if c.scale_embeddings else 1.0

  def __call__(self, inputs: Batch, stream: Stream | None, *, first: bool = True) -> tuple[jax.Array, Batch, int]:
    """(embedded tokens, inputs, the number of virtual tokens in front of them); with `first`, they begin their rows."""
    h_BLD = self.token(inputs['tokens'], stream)
    h_BLD = h_BLD * self.scale if self.scale != 1.0 else h_BLD
    if first:
      h_BLD, inputs, prompt = self.prompt(h_BLD, inputs, stream)
    else:
      inputs, prompt = self.prompt.behind(inputs), 0
    if self.position is None:
      inputs = {**inputs, 'positions': self.turn(inputs['positions'])}
    else:
      h_BLD += self.position(inputs['positions'], stream)
    return dropout(h_BLD, self.rate, None if stream is None else stream.at('embed')), inputs, prompt


class ClassHead(nnx.Module):
  """Logits [..., C] of vectors [..., D]. What reads every token has a bias in all families."""

  def __init__(self, c: Config, head: Head):
    embed, classes = Axis('embed', c.embed), Axis('classes', head.classes)
    self.out = Proj((embed,), (classes,), init=normal(c.init_std), bias=c.head_bias or head.kind in heads.TOKENWISE)
    self.transitions = heads.transitions(head)

  def __call__(self, x_D: jax.Array, stream: Stream | None) -> jax.Array:
    return self.out(x_D, stream)


class Trunk(nnx.Module):
  """Everything but the blocks: embeddings, last norm, head."""

  def __init__(self, c: Config, head: Head):
    embed = Axis('embed', c.embed)
    self.kind, self.wanted, self.cap = head.kind, head, c.logit_cap
    self.embed, self.shared, self.norm = Embeddings(c), Shared(), _norm(c, embed)
    self.head = nnx.data(ClassHead(c, head) if head.classes else None)
    own = head.kind == 'lm' and not c.tied
    self.unembed = nnx.data(
      Proj((embed,), (Axis('vocab', c.vocab),), init=normal(c.init_std), bias=False) if own else None
    )
    self.kinds = tuple(sorted({*c.windows})) if c.windows else (0,)  # windows, 0 (all) first
    turns = [c.local_rope if w and c.local_rope is not None else c.rope for w in self.kinds]
    self.ropes, self.size = () if c.learned_positions else tuple(turns), c.head_dim
    self.of_layer = tuple(self.kinds.index(w) for w in c.windows) if len(self.kinds) > 1 else ()

  def start(
    self, inputs: Batch, stream: Stream | None, cache: Cache | None = None, *, first: bool = True
  ) -> tuple[jax.Array, Context]:
    """The embedded tokens [B, Q, D], and what each may see: of the row, or of a cache that takes them in."""
    h_BQD, all_, prompt = self.embed(inputs, stream, first=first)
    segments, positions = all_['segments'], all_['positions']
    if cache is not None:
      cache = cache.with_tokens(positions, segments)
    keys = (positions, segments) if cache is None else (cache.positions, cache.segments)
    masks = jnp.stack([causal(positions, segments, *keys, window=w) for w in self.kinds])
    turns = [rope.tables(r, self.size, positions) for r in self.ropes]
    cos, sin = (jnp.stack([t[i] for t in turns]) if turns else None for i in (0, 1))
    kinds = jnp.asarray(self.of_layer) if self.of_layer else None
    return h_BQD, Context(masks, cos, sin, kinds, segments, inputs, prompt, self.shared(stream), cache)

  def finish(self, h_BLD: jax.Array, context: Context, stream: Stream | None) -> Outputs:
    """The normed hidden state, and the logits of classes or what gives those of the vocabulary."""
    h_BLD = self.norm(h_BLD)[:, context.prompt :]
    if self.kind == 'lm':
      return Outputs(h_BLD, unembed=self._logits)
    if self.kind == 'none':
      return Outputs(h_BLD)
    h_BLD = h_BLD.astype(jnp.float32)
    if self.kind in heads.TOKENWISE:
      return Outputs(h_BLD, None, self.head(h_BLD, stream))
    pooled_BD = heads.pool(h_BLD, context.inputs, self.wanted)
    return Outputs(h_BLD, pooled_BD, None if self.head is None else self.head(pooled_BD, stream))

  def _logits(self, h: jax.Array) -> jax.Array:
    """Logits over the vocabulary, float32 [..., V], of hidden states [..., D]."""
    y = self.embed.token.attend(h) if self.unembed is None else self.unembed(h)
    y = y.astype(jnp.float32)
    return self.cap * jnp.tanh(y / self.cap) if self.cap else y
