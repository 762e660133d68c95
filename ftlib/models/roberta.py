"""RoBERTa (Liu et al. 2019) and XLM-RoBERTa (Conneau et al. 2020).

BERT without a pooler; positions count from `pad_id + 1`, so a table of 514 rows holds 512 tokens; one token type; the
classification head has a dense tanh layer of its own. Options of a question go through a pooler and BERT's head, as in
transformers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ftlib.base.types import Head
from ftlib.models import bert, hf_config
from ftlib.models.bert import Config
from ftlib.models.model import Model

MODEL_TYPES = {  # model_type -> what an export is loaded as, by the head
  'roberta': {
    'classify': 'RobertaForSequenceClassification',
    'choice': 'RobertaForMultipleChoice',
    'tag': 'RobertaForTokenClassification',
    'span': 'RobertaForQuestionAnswering',
    'mlm': 'RobertaForMaskedLM',
  },
  'xlm-roberta': {
    'classify': 'XLMRobertaForSequenceClassification',
    'choice': 'XLMRobertaForMultipleChoice',
    'tag': 'XLMRobertaForTokenClassification',
    'span': 'XLMRobertaForQuestionAnswering',
    'mlm': 'XLMRobertaForMaskedLM',
  },
}
PREFIX = 'roberta.'
TABLE = {
  **{n: PREFIX + h for n, h in bert.PARTS.items()},
  'head/dense': 'classifier.dense',
  'head/out': 'classifier.out_proj',
  'mlm/dense': 'lm_head.dense',
  'mlm/norm': 'lm_head.layer_norm',
  'mlm/bias': 'lm_head.bias',
}
_CHOICE = {**TABLE, 'pooler': PREFIX + 'pooler.dense', 'head/out': 'classifier'}


def from_hf(values: Mapping[str, Any], *, where: str = 'config.json', allow: str = '') -> Config:
  """The Config of a RoBERTa or XLM-R `config.json`."""
  defaults = {**bert.DEFAULTS, 'pad_id': 1}
  got = hf_config.read(values, bert.USED, Config, defaults=defaults, where=where, allow=allow)
  switches = {'position_offset': got['pad_id'] + 1, 'pooler': False, 'head_dense': 'tanh', 'head_drop_first': True}
  return bert.checked(Config, {**got, **switches}, where)


def build(config: Config, *, head: Head, **options: Any) -> Model:
  """The model with a head; `options` are `Model`'s."""
  if head.form == 'choice':
    config = dataclasses.replace(config, pooler=True, head_dense='', head_drop_first=False)
    return bert.build(config, head=head, hf=_CHOICE, **options)
  return bert.build(config, head=head, hf=TABLE, **options)
