"""ERNIE (Sun et al. 2019, 2021): BERT's computation with, from 3.0 on, a task table added to the embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ftlib.base.types import Head
from ftlib.models import bert, hf_config
from ftlib.models.bert import Config
from ftlib.models.model import Model

MODEL_TYPES = {  # model_type -> what an export is loaded as, by the head
  'ernie': {
    'classify': 'ErnieForSequenceClassification',
    'choice': 'ErnieForMultipleChoice',
    'tag': 'ErnieForTokenClassification',
    'span': 'ErnieForQuestionAnswering',
    'mlm': 'ErnieForMaskedLM',
  },
}
PREFIX = 'ernie.'
TABLE = {
  **{n: PREFIX + h for n, h in bert.PARTS.items()},
  **bert.HEADS,
  'pooler': PREFIX + 'pooler.dense',
  'embed/task': PREFIX + 'embeddings.task_type_embeddings',
}


def from_hf(values: Mapping[str, Any], *, where: str = 'config.json', allow: str = '') -> Config:
  """The Config of an ERNIE `config.json`; the task of every token is 0, as transformers does by default."""
  used = {**bert.USED, 'use_task_id': 'use_task', 'task_type_vocab_size': 'tasks'}
  defaults = {**bert.DEFAULTS, 'use_task': False, 'tasks': 3}
  got = hf_config.read(values, used, Config, defaults=defaults, where=where, allow=allow)
  if not got.pop('use_task'):
    got['tasks'] = 0
  return bert.checked(Config, got, where)


def build(config: Config, *, head: Head, **options: Any) -> Model:
  """The model with a head; `options` are `Model`'s."""
  return bert.build(config, head=head, hf=TABLE, **options)
