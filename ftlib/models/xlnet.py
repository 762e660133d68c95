"""XLNet (Yang et al. 2019) as it is fine-tuned: its content stream alone, without memory.

BERT's post-norm blocks with the attention of Transformer-XL (Dai et al. 2019, section 3.3): a score is that of contents
plus that of a query with the distance to the key (sinusoids put through a projection `r`), plus one for keys of the
other text of a pair. There are no positions to add, and token types are only compared. The token that stands for a text
is its last; transformers, which reads the last column, pads on the left for that, while here rows end where they end.

The sinusoids are not dropped: the papers' mask on them is one a row, so `r` would have to be computed for every row.

Shape letters: B batch, L tokens, D embed, F mlp, H heads, K head size, M = 2 L distances.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers

from ftlib.base.errors import InputError
from ftlib.base.rng import Stream, dropout
from ftlib.base.types import Batch, Head, Outputs
from ftlib.models import bert, heads, hf_config
from ftlib.models.attention import attention, relative, same_segment
from ftlib.models.layers import ACTIVATIONS, Axis, Embed, Positions, Proj, Prompt, Shared, normal, param
from ftlib.models.model import Model, Stored

LONGEST = 8192  # tokens of a row: distances have no table that would end, so this is what attention can still hold

MODEL_TYPES = {  # model_type -> what an export is loaded as, by the head
  'xlnet': {
    'classify': 'XLNetForSequenceClassification',
    'choice': 'XLNetForMultipleChoice',
    'tag': 'XLNetForTokenClassification',
    'span': 'XLNetForQuestionAnsweringSimple',
    'mlm': 'XLNetLMHeadModel',
  },
}
POOLING = 'last'  # what a class head sees, unless told otherwise
PREFIX = 'transformer.'
USED = {
  'vocab_size': 'vocab',
  'd_model': 'embed',
  'n_layer': 'layers',
  'n_head': 'heads',
  'd_inner': 'mlp',
  'ff_activation': 'activation',
  'layer_norm_eps': 'epsilon',
  'dropout': 'dropout',
  'summary_last_dropout': 'head_dropout',
  'pad_token_id': 'pad_id',
  'initializer_range': 'init_std',
}
DEFAULTS = {
  'vocab': 32000,
  'embed': 1024,
  'layers': 24,
  'heads': 16,
  'mlp': 4096,
  'activation': 'gelu',
  'epsilon': 1e-12,
  'dropout': 0.1,
  'head_dropout': 0.1,
  'pad_id': 5,
  'init_std': 0.02,
}
FIXED = {
  'attn_type': ('bi',),
  'bi_data': (False,),
  'clamp_len': (-1, 0, None),
  'summary_activation': ('tanh',),
  'summary_type': ('last',),
  'summary_use_proj': (True,),
  'untie_r': (True,),
}
HARMLESS = '^(end_n_top|start_n_top|mem_len|reuse_len|same_length|use_mems_eval|use_mems_train)$'  # memory, other heads
_BLOCK, _ATTENTION = 'layer.{i}.', 'layer.{i}.rel_attn.'
PARTS = {  # our module or parameter -> Hugging Face's
  **{f'layers/{{i}}/attn/{x}/kernel': Stored(_ATTENTION + x, straight=True, apart=True) for x in 'qkvr'},
  'layers/{i}/attn/o/kernel': Stored(_ATTENTION + 'o', apart=True),
  **{f'layers/{{i}}/attn/{x}': Stored(_ATTENTION + x) for x in ('r_w_bias', 'r_r_bias', 'r_s_bias', 'seg_embed')},
  'layers/{i}/attn_norm': Stored(_ATTENTION + 'layer_norm'),
  'layers/{i}/mlp/up': Stored(_BLOCK + 'ff.layer_1'),
  'layers/{i}/mlp/down': Stored(_BLOCK + 'ff.layer_2'),
  'layers/{i}/mlp_norm': Stored(_BLOCK + 'ff.layer_norm'),
  'embed/token': Stored('word_embedding'),
  'embed/mask': Stored('mask_emb'),
}
HEADS = {'head/dense': 'sequence_summary.summary', 'head/out': 'logits_proj', 'mlm/bias': 'lm_loss.bias'}
TABLE = {**{n: s._replace(name=PREFIX + s.name) for n, s in PARTS.items()}, **HEADS}


@dataclasses.dataclass(frozen=True)
class Config(bert.Config):
  """Sizes and switches of an XLNet, by the names of BERT's."""


def from_hf(values: Mapping[str, Any], *, where: str = 'config.json', allow: str = '') -> Config:
  """The Config of an XLNet `config.json`."""
  allow = f'{allow}|{HARMLESS}' if allow else HARMLESS
  plain = {k: v for k, v in values.items() if k != 'd_head'}
  got = hf_config.read(plain, USED, Config, defaults=DEFAULTS, where=where, allow=allow, fixed=FIXED)
  got |= {'attention_dropout': got['dropout'], 'positions': LONGEST, 'types': 0, 'pooler': False, 'head_dense': 'tanh'}
  c = bert.checked(Config, got, where)
  if values.get('d_head') not in (None, c.embed // c.heads):
    raise InputError(f'{where}: d_head={values["d_head"]!r} is not d_model / n_head = {c.embed // c.heads}')
  if c.embed % 2:
    raise InputError(f'{where}: d_model={c.embed} is odd, and sinusoids come in pairs')
  return c


def build(config: Config, *, head: Head, **options: Any) -> Model:
  """The model with a head; `options` are `Model`'s."""
  if head.kind in ('classify', 'embed') and not head.marks and head.pooling == 'cls':
    raise InputError("the token that stands for a text is XLNet's last; set task.pooling to last or mean")
  blocks = tuple(Block(config) for _ in range(config.layers))
  tied = {'lm_loss.weight': 'embed/token/table'} if head.kind == 'mlm' else {}
  table = heads.names(TABLE, head, tag='classifier')
  return Model(config=config, trunk=Trunk(config, head), blocks=blocks, hf=table, tied=tied, **options)


class Context(NamedTuple):
  """What the blocks and the head read besides the hidden state: `prompt` virtual tokens lead the rows of `inputs`;
  `distances_MD` are the sinusoids of L, ..., 1 - L, `apart_B1LL` says which tokens are of different types."""

  mask_B1LL: jax.Array
  apart_B1LL: jax.Array
  distances_MD: jax.Array
  segments_BL: jax.Array
  inputs: Batch
  prompt: int = 0
  shared: Any = None

  def layer(self, i: Any) -> Context:
    """The context of layer i: the same for all."""
    return self


class Attention(bert.Attention):
  """Attention by content, distance and text, (Dai et al. 2019, section 3.3; Yang et al. 2019, section 2.5).

  Scores that are the same for all keys of a query leave its softmax as it is, so only keys of another type get one, the
  difference of the two that the paper has. The keys of a memory are scored by content alone.
  """

  def __init__(self, c: Config):
    super().__init__(c)
    embed, heads, size = Axis('embed', c.embed), Axis('heads', c.heads), Axis('head_dim', c.embed // c.heads)
    init = normal(c.init_std)
    self.q, self.k, self.v, self.r = (Proj((embed,), (heads, size), init=init, bias=False) for _ in 'qkvr')
    self.o = Proj((heads, size), (embed,), init=init, bias=False)
    self.r_w_bias, self.r_r_bias, self.r_s_bias = (param((heads, size), init) for _ in 'wrs')
    self.seg_embed = param((Axis('types', 2), heads, size), init)

  def __call__(self, x_BLD: jax.Array, context: Context, stream: Stream | None) -> jax.Array:
    q_BLHK, k_BLHK, v_BLHK = (p(x_BLD, stream) for p in (self.q, self.k, self.v))
    plus = lambda bias: q_BLHK + bias[...].astype(q_BLHK.dtype)  # noqa: E731
    far_BHLL = relative(plus(self.r_r_bias), self.r(context.distances_MD.astype(x_BLD.dtype)))
    other_HK = (self.seg_embed[1] - self.seg_embed[0]).astype(x_BLD.dtype)
    other_BHL = jnp.einsum('blhk,hk->bhl', plus(self.r_s_bias), other_HK, preferred_element_type=jnp.float32)
    bias_BHLL = (far_BHLL + jnp.where(context.apart_B1LL, other_BHL[..., None], 0)) * q_BLHK.shape[-1] ** -0.5
    k_BLHK, v_BLHK, mask = self.memory(k_BLHK, v_BLHK, context.mask_B1LL, context, stream)
    noise = None if stream is None else stream.at('attn/probabilities')
    y_BLHK = attention(plus(self.r_w_bias), k_BLHK, v_BLHK, mask, bias_BHQT=bias_BHLL, rate=self.rate, stream=noise)
    return self.out(x_BLD, self.o(y_BLHK, stream), context, stream)


class Mlp(bert.Mlp):
  """BERT's, with dropout after the activation too."""

  def __init__(self, c: Config):
    super().__init__(c)
    self.rate = c.dropout

  def __call__(self, x_BLD: jax.Array, context: Context, stream: Stream | None) -> jax.Array:
    y_BLF = ACTIVATIONS[self.activation](self.up(x_BLD, stream))
    y_BLF = dropout(y_BLF, self.rate, None if stream is None else stream.at('mlp/hidden'))
    return self.out(x_BLD, self.down(y_BLF, stream), context, stream)


class Block(bert.Block):
  """BERT's block around these."""

  def __init__(self, c: Config):
    super().__init__(c)
    self.attn, self.mlp = Attention(c), Mlp(c)


class Embeddings(nnx.Module):
  """Token vectors. `mask` stands for a token that pretraining's other stream predicts: it is kept, and not used."""

  def __init__(self, c: Config):
    embed, init = Axis('embed', c.embed), normal(c.init_std)
    self.token = Embed(Axis('vocab', c.vocab), embed, init=init)
    self.mask = param((Axis('one', 1), Axis('one', 1), embed), init)
    self.prompt, self.turn, self.rate = Prompt(embed), Positions(), c.dropout

  def __call__(self, inputs: Batch, stream: Stream | None) -> tuple[jax.Array, Batch, int]:
    """(embedded tokens, inputs, the number of virtual tokens in front of them)."""
    h_BLD, inputs, prompt = self.prompt(self.token(inputs['tokens'], stream), inputs, stream)
    return dropout(h_BLD, self.rate, None if stream is None else stream.at('embed')), inputs, prompt


class MlmHead(nnx.Module):
  """Logits over the vocabulary, float32 [..., V], of hidden states [..., D]; tied to the token table."""

  def __init__(self, c: Config):
    self.bias = param((Axis('vocab', c.vocab),), initializers.zeros)

  def __call__(self, h_D: jax.Array, table: Embed) -> jax.Array:
    return table.attend(h_D) + self.bias[...]


class Trunk(bert.Trunk):
  """Everything but the blocks; what becomes of the hidden states is as in BERT."""

  def __init__(self, c: Config, head: Head):
    self.kind, self.wanted, self.rate = head.kind, head, c.dropout
    self.embed, self.shared, self.pooler = Embeddings(c), Shared(), nnx.data(None)
    self.head = nnx.data(ClassHead(c, head) if head.classes else None)
    self.mlm = nnx.data(MlmHead(c) if head.kind == 'mlm' else None)

  def start(self, inputs: Batch, stream: Stream | None) -> tuple[jax.Array, Context]:
    """The embedded tokens [B, L, D], and what attention goes by."""
    h_BLD, all_, prompt = self.embed(inputs, stream)
    segments_BL, types_BL = all_['segments'], all_['types']
    distances_MD = sinusoids(*h_BLD.shape[1:])
    apart_B1LL = ~same_segment(types_BL)
    mask_B1LL = same_segment(segments_BL)
    return h_BLD, Context(mask_B1LL, apart_B1LL, distances_MD, segments_BL, inputs, prompt, self.shared(stream))

  def finish(self, h_BLD: jax.Array, context: Context, stream: Stream | None) -> Outputs:
    """Pooled vector and logits, in float32, of the hidden states with a last dropout."""
    return super().finish(dropout(h_BLD, self.rate, None if stream is None else stream.at('out')), context, stream)


class ClassHead(bert.ClassHead):
  """Logits [..., C] of vectors [..., D]: of pooled ones by way of the summary layer, of tokens at once."""

  def __init__(self, c: Config, head: Head):
    super().__init__(c, head)
    self.rate = c.head_dropout if heads.pooled_first(head) else 0.0


def sinusoids(length: int, size: int) -> jax.Array:
  """Sines and cosines float32 [2 L, D] of the distances L, L - 1, ..., 1 - L (Vaswani et al. 2017, section 3.5, but
  all sines first)."""
  far_M = jnp.arange(length, -length, -1, dtype=jnp.float32)
  angles = far_M[:, None] / 10000.0 ** (jnp.arange(0, size, 2, dtype=jnp.float32) / size)
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)
