"""DistilBERT (Sanh et al. 2019): half of BERT's layers, no token types, no pooler, a dense relu layer in the head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ftlib.base.types import Head
from ftlib.models import bert, hf_config
from ftlib.models.bert import Config
from ftlib.models.model import Model

MODEL_TYPES = {  # model_type -> what an export is loaded as, by the head
  'distilbert': {
    'classify': 'DistilBertForSequenceClassification',
    'choice': 'DistilBertForMultipleChoice',
    'tag': 'DistilBertForTokenClassification',
    'span': 'DistilBertForQuestionAnswering',
    'mlm': 'DistilBertForMaskedLM',
  },
}
PREFIX = 'distilbert.'
_PARTS = {
  'layers/{i}/attn/q': 'transformer.layer.{i}.attention.q_lin',
  'layers/{i}/attn/k': 'transformer.layer.{i}.attention.k_lin',
  'layers/{i}/attn/v': 'transformer.layer.{i}.attention.v_lin',
  'layers/{i}/attn/o': 'transformer.layer.{i}.attention.out_lin',
  'layers/{i}/attn_norm': 'transformer.layer.{i}.sa_layer_norm',
  'layers/{i}/mlp/up': 'transformer.layer.{i}.ffn.lin1',
  'layers/{i}/mlp/down': 'transformer.layer.{i}.ffn.lin2',
  'layers/{i}/mlp_norm': 'transformer.layer.{i}.output_layer_norm',
  'embed/token': 'embeddings.word_embeddings',
  'embed/position': 'embeddings.position_embeddings',
  'embed/norm': 'embeddings.LayerNorm',
}
TABLE = {
  **{n: PREFIX + h for n, h in _PARTS.items()},
  'head/dense': 'pre_classifier',
  'head/out': 'classifier',
  'mlm/dense': 'vocab_transform',
  'mlm/norm': 'vocab_layer_norm',
  'mlm/bias': 'vocab_projector.bias',
}
_USED = {
  'vocab_size': 'vocab',
  'dim': 'embed',
  'n_layers': 'layers',
  'n_heads': 'heads',
  'hidden_dim': 'mlp',
  'max_position_embeddings': 'positions',
  'activation': 'activation',
  'dropout': 'dropout',
  'attention_dropout': 'attention_dropout',
  'seq_classif_dropout': 'head_dropout',
  'pad_token_id': 'pad_id',
  'initializer_range': 'init_std',
}


def from_hf(values: Mapping[str, Any], *, where: str = 'config.json', allow: str = '') -> Config:
  """The Config of a DistilBERT `config.json`."""
  defaults = {
    **{k: v for k, v in bert.DEFAULTS.items() if k not in ('types', 'epsilon')},
    'head_dropout': 0.2,
  }
  allow = f'{allow}|^qa_dropout$' if allow else '^qa_dropout$'
  got = hf_config.read(values, _USED, Config, defaults=defaults, where=where, allow=allow)
  return bert.checked(Config, {**got, 'types': 0, 'pooler': False, 'head_dense': 'relu'}, where)


def build(config: Config, *, head: Head, **options: Any) -> Model:
  """The model with a head; `options` are `Model`'s."""
  return bert.build(config, head=head, hf=TABLE, **options)
