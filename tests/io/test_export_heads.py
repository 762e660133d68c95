"""Which heads have a form in transformers and PEFT to export to, and what is said of those that have none."""

from __future__ import annotations

import types

import pytest

from ftlib import export, peft_config
from ftlib.base.types import Head
from ftlib.models import bert, llama, roberta
from ftlib.run import Base
from tests.refusal import refused


def architecture(family, kind, head):
  """What a run of that kind of model with that head is exported as."""
  settings, task = types.SimpleNamespace(names={'task': 'relation'}), types.SimpleNamespace(head=head)
  base = Base(None, {'model_type': kind}, family, None, '')
  return export._architecture(types.SimpleNamespace(base=base, task=task, settings=settings))


def test_heads_that_there_are():
  assert architecture(bert, 'bert', Head('tag', 3)) == 'BertForTokenClassification'
  assert architecture(bert, 'bert', Head('tag', 3, transitions=True)) == 'BertForTokenClassification'
  assert architecture(bert, 'bert', Head('span', 2)) == 'BertForQuestionAnswering'
  assert architecture(llama, 'llama', Head('tag', 3)) == 'LlamaForTokenClassification'
  assert architecture(bert, 'bert', Head('embed')) == 'BertModel'
  assert architecture(bert, 'bert', Head('classify', 1, documents=4)) == 'BertForMultipleChoice'


def test_heads_that_there_are_not():
  marked = Head('classify', 3, 'mean', marks=2)
  says = 'task.name=relation', 'no form of bert with a head that reads marked tokens', 'task.pooling=cls or mean'
  refused(lambda: architecture(bert, 'bert', marked), *says)
  refused(lambda: architecture(llama, 'llama', Head('span', 2)), "no form of llama with a head of the kind 'span'")
  several = Head('classify', 1, documents=4)
  refused(lambda: architecture(roberta, 'roberta', several), "no form of roberta with a head of the kind 'choice'")


@pytest.mark.parametrize(
  ('task', 'heads'),
  [
    ('SEQ_CLS', ('classifier', 'score')),
    ('TOKEN_CLS', ('classifier', 'score')),
    ('QUESTION_ANS', ('qa_outputs',)),
    ('CAUSAL_LM', ()),
    (None, ()),
  ],
)
def test_what_peft_saves_of_a_task(task, heads):
  assert peft_config.heads_of({'task_type': task}) == heads
