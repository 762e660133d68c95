"""Every family that has a head of tags has its transitions too, under one name."""

from __future__ import annotations

import json

import jax
import pytest
from reference import DECODERS, TINY

from ftlib.base import lookup
from ftlib.base.types import Head

FAMILIES = {
  kind: (module, case)
  for module in (lookup.component('models', n, field='') for n in lookup.names('models'))
  for kind in module.MODEL_TYPES
  for case in [next((c for c in {**TINY, **DECODERS}.values() if c['model_type'] == kind), None)]
  if case is not None
}


def test_most_families_are_here():
  assert {'bert', 'roberta', 'distilbert', 'ernie', 'gpt2', 'llama', 'qwen2', 'gemma'} <= set(FAMILIES)


@pytest.mark.parametrize('kind', FAMILIES)
def test_a_tag_head_has_its_table(kind):
  module, case = FAMILIES[kind]
  config = module.from_hf(json.loads(json.dumps(case)))
  plain, own = (module.build(config, head=Head('tag', 3, transitions=t)) for t in (False, True))
  info = own.info()
  assert set(info) - set(plain.info()) == {'head/transitions'}
  assert info['head/transitions'].shape == (4, 4)
  assert own.hf_names()['head/transitions'] == 'crf.transitions'
  assert not own.initial(jax.random.key(0), ['head/transitions'])['head']['transitions'].any()
