"""Which heads have a form in transformers and PEFT to export to, and what is said of those that have none."""

from __future__ import annotations

import types

import jax
import numpy as np
import pytest

from ftlib import export, peft_config
from ftlib.base import trees
from ftlib.base.types import Head
from ftlib.io import hf
from ftlib.models import albert, bert, deberta, electra, gemma, llama, modernbert, roberta, xlnet
from ftlib.run import Base
from tests import tiny
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
  assert architecture(llama, 'llama', Head('span', 2)) == 'LlamaForQuestionAnswering'
  assert architecture(bert, 'bert', Head('embed')) == 'BertModel'
  assert architecture(bert, 'bert', Head('classify', 1, documents=4)) == 'BertForMultipleChoice'


@pytest.mark.parametrize(
  ('family', 'name', 'more'),
  [
    (albert, 'AlbertForMultipleChoice', {}),
    (deberta, 'DebertaV2ForMultipleChoice', {}),
    (electra, 'ElectraForMultipleChoice', electra.CHOICE),
    (modernbert, 'ModernBertForMultipleChoice', {'classifier_pooling': 'mean'}),
    (roberta, 'RobertaForMultipleChoice', {}),
    (xlnet, 'XLNetForMultipleChoice', {}),
  ],
)
def test_what_an_export_of_multiple_choice_says_of_its_head(family, name, more):
  """As much as transformers' class goes by."""
  task = types.SimpleNamespace(head=Head('classify', 1, 'mean', documents=4))
  base = Base(None, {'model_type': next(iter(family.MODEL_TYPES))}, family, None, '')
  assert export._head_config(types.SimpleNamespace(base=base, task=task)) == {'architectures': [name], **more}


def test_heads_that_there_are_not():
  marked = Head('classify', 3, 'mean', marks=2)
  says = 'task.name=relation', 'no form of bert with a head that reads marked tokens', 'task.pooling=cls or mean'
  refused(lambda: architecture(bert, 'bert', marked), *says)
  refused(lambda: architecture(gemma, 'gemma2', Head('span', 2)), "no form of gemma2 with a head of the kind 'span'")
  several = Head('classify', 1, documents=4)
  refused(lambda: architecture(llama, 'llama', several), "no form of llama with a head of the kind 'choice'")


@pytest.mark.parametrize('kind', ['lm', 'span'])
def test_a_llama_for_spans_has_its_base_under_another_name(tmp_path, kind):
  """As transformers has it; its folders and all others are read with either head."""
  folder = tiny.llama_folder(tmp_path)
  config = llama.from_hf(hf.read_config(folder))
  weights = hf.Weights(folder)
  of_lm, of_span = (llama.build(config, head=Head(k, 2 if k == 'span' else 0)) for k in ('lm', 'span'))
  assert set(of_span.hf_names().values()) == {
    *(n.replace('model.', 'transformer.', 1) for n in of_lm.hf_names().values()),
    *('qa_outputs.weight', 'qa_outputs.bias'),
  }
  match = lambda model, w: hf.match(w, model.hf_names(), model.hf_shapes(), prefix='model.', tied=model.tied)  # noqa: E731
  found = match(of_span, weights)
  assert sorted(found.fresh) == ['head/out/bias', 'head/out/kernel']
  flat = {n: np.asarray(of_span.from_hf(n, weights.read(k))) for n, k in found.pairs.items()}
  head = {n: np.asarray(x) for n, x in trees.flatten(of_span.initial(jax.random.key(0), found.fresh)).items()}
  hf.save(tmp_path / 'span', of_span.tensors({**flat, **head}), hf.read_config(folder))
  there = hf.Weights(tmp_path / 'span')
  assert 'transformer.layers.1.mlp.up_proj.weight' in there.where
  again = match({'lm': of_lm, 'span': of_span}[kind], there)
  assert again.fresh == []
  assert again.unused == (['qa_outputs.bias', 'qa_outputs.weight'] if kind == 'lm' else [])
  bare = {k.removeprefix('transformer.'): there.read(k) for k in there.where if 'qa_' not in k}
  hf.save(tmp_path / 'bare', bare, hf.read_config(folder))
  assert match(of_span, hf.Weights(tmp_path / 'bare')).pairs.keys() == flat.keys()
  mistral = llama.from_hf({**hf.read_config(folder), 'model_type': 'mistral'})
  assert llama.build(mistral, head=Head('span', 2)).hf_names()['norm/scale'] == 'model.norm.weight'


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
