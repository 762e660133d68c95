"""DeBERTa v2 and v3 (He et al. 2021; He et al. 2023): attention that keeps content and position apart.

BERT's post-norm blocks; beside a query and a key, a query is scored with the distance to the key (c2p) and a key with
the distance to the query (p2c). Distances have a table of vectors, shared by all layers, a row for each up to half the
buckets and one for more and more of those beyond. The rows of a batch's distances are looked up and normalised once; a
layer projects them, and each token's scores are read off by a shift (`attention.relative`), nothing gathered by index.
v2's larger models convolve the embeddings beside the first layer. DeBERTa 1 is another model.

The distances' vectors are not dropped (transformers drops them at hidden_dropout_prob): the mask would be one for all
rows, and masks here are functions of a row.

Shape letters: B batch, L tokens, D embed, H heads, K head size, M = 2 L + 1 distances, W convolution width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ftlib.base.errors import InputError, did_you_mean
from ftlib.base.rng import Stream, dropout
from ftlib.base.types import Batch, Head
from ftlib.models import bert, heads, hf_config
from ftlib.models.attention import attention, relative, same_segment
from ftlib.models.layers import ACTIVATIONS, Axis, Embed, Norm, Positions, Proj, Prompt, Shared, normal
from ftlib.models.model import Model, Stored

LONGEST = 8192  # tokens of a row where no table of positions ends it: what attention can still hold

MODEL_TYPES = {  # model_type -> what an export is loaded as, by the head
  'deberta-v2': {
    'classify': 'DebertaV2ForSequenceClassification',
    'choice': 'DebertaV2ForMultipleChoice',
    'tag': 'DebertaV2ForTokenClassification',
    'span': 'DebertaV2ForQuestionAnswering',
    'mlm': 'DebertaV2ForMaskedLM',
  },
}
USED = {
  **{k: v for k, v in bert.USED.items() if k != 'classifier_dropout'},
  'cls_dropout': 'head_dropout',
  'position_biased_input': 'absolute',
  'share_att_key': 'share_key',
  'pooler_hidden_act': 'head_dense',
  'conv_kernel_size': 'conv',
  'conv_act': 'conv_activation',
  'legacy': 'legacy',
}
DEFAULTS = {
  **bert.DEFAULTS,
  'types': 0,
  'positions': 512,
  'epsilon': 1e-7,
  'absolute': True,
  'share_key': False,
  'head_dense': 'gelu',
  'conv': 0,
  'conv_activation': 'tanh',
  'legacy': True,
}
FIXED = {'conv_groups': (1,), 'pooler_dropout': (0, None), 'relative_attention': (True,)}
BY_HAND = (  # keys that no table reads
  *('pos_att_type', 'position_buckets', 'max_relative_positions', 'norm_rel_ebd'),
  *('attention_head_size', 'pooler_hidden_size'),
)
PREFIX = 'deberta.'
_SELF = 'encoder.layer.{i}.attention.self.'
PARTS = {  # our module -> Hugging Face's
  **bert.PARTS,
  'layers/{i}/attn/q': _SELF + 'query_proj',
  'layers/{i}/attn/k': _SELF + 'key_proj',
  'layers/{i}/attn/v': _SELF + 'value_proj',
  'layers/{i}/attn/far_q': _SELF + 'pos_query_proj',
  'layers/{i}/attn/far_k': _SELF + 'pos_key_proj',
  'layers/{i}/conv/norm': 'encoder.conv.LayerNorm',
  'embed/distance': 'encoder.rel_embeddings',
  'embed/distance_norm': 'encoder.LayerNorm',
}
TABLE = {
  **{n: PREFIX + h for n, h in PARTS.items()},
  'layers/{i}/conv/out': Stored(PREFIX + 'encoder.conv.conv', apart=True),
  'head/dense': 'pooler.dense',
  'head/out': 'classifier',
}
_LEGACY, _LATER = 'cls.predictions.', 'lm_predictions.lm_head.'


@dataclasses.dataclass(frozen=True)
class Config(bert.Config):
  """Sizes and switches of a DeBERTa, most by the names of BERT's. `buckets`: of distances to either side, those above
  `span` in the last; `log`: whether they grow by the logarithm (else a distance is its bucket)."""

  buckets: int = 512
  span: int = 512
  log: bool = False
  c2p: bool = True
  p2c: bool = True
  share_key: bool = False  # distances go through the projections of queries and keys
  norm_distances: bool = False
  absolute: bool = True  # position vectors are added to the embeddings
  conv: int = 0  # tokens that the convolution sees; 0: there is none
  conv_activation: str = 'tanh'
  legacy: bool = True  # the names of the head of masked-language modelling

  @property
  def max_length(self) -> int:
    """The longest row, in tokens: that of the position table, where there is one."""
    return self.positions if self.absolute else max(self.positions, LONGEST)


def from_hf(values: Mapping[str, Any], *, where: str = 'config.json', allow: str = '') -> Config:
  """The Config of a DeBERTa v2 or v3 `config.json`."""
  plain = {k: v for k, v in values.items() if k not in BY_HAND}
  got = hf_config.read(plain, USED, Config, defaults=DEFAULTS, where=where, allow=allow, fixed=FIXED)
  if values.get('relative_attention') is not True:
    raise InputError(f'{where}: relative_attention is not true; without it this is a BERT, which ftlib has as such')
  kinds = values.get('pos_att_type') or []
  kinds = [k.strip() for k in kinds.lower().split('|')] if isinstance(kinds, str) else [*kinds]
  if odd := [k for k in kinds if k not in ('c2p', 'p2c')] or ([] if kinds else [None]):
    raise InputError(f'{where}: pos_att_type has {odd[0]!r}; known: c2p, p2c')
  norm = [x.strip() for x in str(values.get('norm_rel_ebd') or 'none').lower().split('|')]
  if odd := [x for x in norm if x not in ('none', 'layer_norm')]:
    raise InputError(f'{where}: norm_rel_ebd has {odd[0]!r}; known: layer_norm, none')
  span = _whole(values, 'max_relative_positions', where)
  span = span if span > 0 else got['positions']
  buckets = _whole(values, 'position_buckets', where)
  if 0 < buckets < 4 or buckets > 2 * (span - 2):
    raise InputError(f'{where}: position_buckets={buckets} cannot hold {span} distances; wanted 4 to {2 * (span - 2)}')
  got |= {'span': span, 'buckets': buckets if buckets > 0 else span, 'log': buckets > 0}
  got |= {'c2p': 'c2p' in kinds, 'p2c': 'p2c' in kinds, 'norm_distances': 'layer_norm' in norm, 'pooler': False}
  c = bert.checked(Config, got, where)
  sizes = {'attention_head_size': c.embed // c.heads, 'pooler_hidden_size': c.embed}
  wrong = [f'{k}={values[k]!r} (only {v})' for k, v in sizes.items() if values.get(k) not in (None, v)]
  wrong += [
    f'{k}={a!r}{did_you_mean(a, ACTIVATIONS)}'
    for k, a in (('pooler_hidden_act', c.head_dense), ('conv_act', c.conv_activation))
    if a not in ACTIVATIONS
  ]
  wrong += [f'conv_kernel_size={c.conv} (only odd ones)'] if c.conv and c.conv % 2 == 0 else []
  if wrong:
    raise InputError(f'{where}: not supported: {", ".join(wrong)}')
  return c


def _whole(values: Mapping[str, Any], key: str, where: str) -> int:
  """A whole number, where -1 stands for none."""
  value = values.get(key, -1)
  if isinstance(value, bool) or not isinstance(value, int):
    raise InputError(f'{where}: {key}={value!r} is no whole number')
  return value


def build(config: Config, *, head: Head, **options: Any) -> Model:
  """The model with a head; `options` are `Model`'s."""
  bert.check_pooling(head)
  blocks = tuple(Block(config, first=i == 0) for i in range(config.layers))
  names = {'dense': 'transform.dense', 'norm': 'transform.LayerNorm', 'bias': 'bias'}
  later = {'dense': 'dense', 'norm': 'LayerNorm', 'bias': 'bias'}
  start, names = (_LEGACY, names) if config.legacy else (_LATER, later)
  table = heads.names({**TABLE, **{f'mlm/{n}': start + h for n, h in names.items()}}, head, tag='classifier')
  tied = bert.tied_output(table) if head.kind == 'mlm' else {}
  return Model(config=config, trunk=Trunk(config, head), blocks=blocks, hf=table, tied=tied, **options)


def distances(length: int, config: Config) -> np.ndarray:
  """The rows int32 [2 L + 1] of the table of distances that L, L - 1, ..., -L have (He et al. 2021, equation 3; with
  buckets that grow by the logarithm He et al. 2023, in float32 as PyTorch computes them)."""
  far_M = np.arange(length, -length - 1, -1)
  bucket_M = far_M
  if config.log:
    middle = config.buckets // 2
    ratio = np.maximum(np.abs(far_M), middle).astype(np.float32) / np.float32(middle)
    whole = np.log(np.float32((config.span - 1) / middle))
    log_M = np.ceil(np.log(ratio) / whole * np.float32(middle - 1)) + middle
    bucket_M = np.where(np.abs(far_M) <= middle, far_M, np.sign(far_M) * log_M)
  return np.clip(bucket_M + config.buckets, 0, 2 * config.buckets - 1).astype(np.int32)


class Context(NamedTuple):
  """What the blocks and the head read besides the hidden state: `prompt` virtual tokens lead the rows of `inputs`;
  `distances_MD` are the vectors of L, ..., -L."""

  mask_B1LL: jax.Array
  distances_MD: jax.Array
  segments_BL: jax.Array
  inputs: Batch
  prompt: int = 0
  shared: Any = None

  def layer(self, i: Any) -> Context:
    """The context of layer i: the same for all."""
    return self


class Attention(bert.Attention):
  """Disentangled attention (He et al. 2021, equation 4). The keys of a memory are scored by content alone."""

  def __init__(self, c: Config):
    super().__init__(c)
    embed, heads, size = Axis('embed', c.embed), Axis('heads', c.heads), Axis('head_dim', c.embed // c.heads)
    far = lambda wanted: Proj((embed,), (heads, size), init=normal(c.init_std)) if wanted else None  # noqa: E731
    self.far_k = nnx.data(far(c.c2p and not c.share_key))
    self.far_q = nnx.data(far(c.p2c and not c.share_key))
    self.c2p, self.p2c = c.c2p, c.p2c
    self.scale = (size.size * (1 + c.c2p + c.p2c)) ** -0.5

  def __call__(self, x_BLD: jax.Array, context: Context, stream: Stream | None) -> jax.Array:
    q_BLHK, k_BLHK, v_BLHK = (p(x_BLD, stream) for p in (self.q, self.k, self.v))
    far_MD = context.distances_MD.astype(x_BLD.dtype)
    scores = []
    if self.c2p:
      scores.append(relative(q_BLHK, (self.far_k or self.k)(far_MD)[:-1]))
    if self.p2c:  # of key j and query i, which the key sees at j - i: the table the other way round
      scores.append(relative(k_BLHK, (self.far_q or self.q)(far_MD)[:0:-1]).swapaxes(2, 3))
    keys, values, mask = self.memory(k_BLHK, v_BLHK, context.mask_B1LL, context, stream)
    noise = None if stream is None else stream.at('attn/probabilities')
    options = {'scale': self.scale, 'bias_BHQT': sum(scores) * self.scale, 'rate': self.rate, 'stream': noise}
    y_BLHK = attention(q_BLHK, keys, values, mask, **options)
    return self.out(x_BLD, self.o(y_BLHK, stream), context, stream)


class Convolution(nnx.Module):
  """What a layer gives, and beside it a convolution of what it reads, normalised; within a document."""

  def __init__(self, c: Config):
    embed, out = Axis('embed', c.embed), Axis('embed_out', c.embed)
    self.out = Proj((embed, Axis('window', c.conv)), (out,), init=normal(c.init_std))
    self.norm = Norm(embed, epsilon=c.epsilon)
    self.width, self.activation, self.rate = c.conv, c.conv_activation, c.dropout

  def __call__(self, x_BLD: jax.Array, y_BLD: jax.Array, context: Context, stream: Stream | None) -> jax.Array:
    segments_BL, side = context.segments_BL, self.width // 2
    length = segments_BL.shape[1]
    x = jnp.pad(x_BLD, ((0, 0), (side, side), (0, 0)))
    of = jnp.pad(segments_BL, ((0, 0), (side, side)))
    near = [
      jnp.where((of[:, i : i + length] == segments_BL)[..., None], x[:, i : i + length], 0) for i in range(self.width)
    ]
    c_BLD = self.out(jnp.stack(near, -1), stream)
    noise = None if stream is None else stream.at('conv')
    return self.norm(y_BLD + ACTIVATIONS[self.activation](dropout(c_BLD, self.rate, noise)))


class Block(bert.Block):
  """BERT's block around that attention; in some models the first has a convolution."""

  def __init__(self, c: Config, *, first: bool):
    super().__init__(c)
    self.attn = Attention(c)
    self.conv = nnx.data(Convolution(c) if first and c.conv else None)

  def __call__(self, x_BLD: jax.Array, context: Context, stream: Stream | None) -> jax.Array:
    y_BLD = super().__call__(x_BLD, context, stream)
    return y_BLD if self.conv is None else self.conv(x_BLD, y_BLD, context, stream)


class Embeddings(nnx.Module):
  """Token vectors, with those of positions and types where the model has them, normalised; and those of distances."""

  def __init__(self, c: Config):
    embed, init = Axis('embed', c.embed), normal(c.init_std)
    table = lambda name, size: Embed(Axis(name, size), embed, init=init)  # noqa: E731
    self.token, self.distance = table('vocab', c.vocab), table('positions', 2 * c.buckets)
    self.position = nnx.data(table('positions', c.positions) if c.absolute else None)
    self.type = nnx.data(table('types', c.types) if c.types else None)
    self.norm = Norm(embed, epsilon=c.epsilon)
    self.distance_norm = nnx.data(Norm(embed, epsilon=c.epsilon) if c.norm_distances else None)
    self.prompt, self.rate = Prompt(embed), c.dropout
    self.turn = nnx.data(None if c.absolute else Positions())  # a prefix moves no distance

  def __call__(self, inputs: Batch, stream: Stream | None) -> tuple[jax.Array, Batch, int]:
    """(embedded tokens, inputs, the number of virtual tokens in front of them)."""
    h_BLD, inputs, prompt = self.prompt(self.token(inputs['tokens'], stream), inputs, stream)
    if self.position is not None:
      h_BLD += self.position(inputs['positions'], stream)
    if self.type is not None:
      h_BLD += self.type(inputs['types'], stream)
    return dropout(self.norm(h_BLD), self.rate, None if stream is None else stream.at('embed')), inputs, prompt

  def far(self, rows_M: np.ndarray) -> jax.Array:
    """The vectors of distances [M, D]."""
    far_MD = self.distance(rows_M)
    return far_MD if self.distance_norm is None else self.distance_norm(far_MD)


class Trunk(bert.Trunk):
  """Everything but the blocks; what becomes of the hidden states is as in BERT."""

  def __init__(self, c: Config, head: Head):
    self.kind, self.wanted, self.config = head.kind, head, c
    self.embed, self.shared, self.pooler = Embeddings(c), Shared(), nnx.data(None)
    self.head = nnx.data(bert.ClassHead(c, head) if head.classes else None)
    self.mlm = nnx.data(bert.MlmHead(c) if head.kind == 'mlm' else None)

  def start(self, inputs: Batch, stream: Stream | None) -> tuple[jax.Array, Context]:
    """The embedded tokens [B, L, D], and what attention goes by."""
    h_BLD, all_, prompt = self.embed(inputs, stream)
    far_MD = self.embed.far(distances(h_BLD.shape[1], self.config))
    segments_BL = all_['segments']
    return h_BLD, Context(same_segment(segments_BL), far_MD, segments_BL, inputs, prompt, self.shared(stream))
