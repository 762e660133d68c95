"""Heads that label tokens, live against transformers: `make test-reference`.

Both ways for families of each kind, and trained runs that go out, whole or as adapters, and are loaded there.
"""

import functools
import json
import types
import zlib

import numpy as np
import pytest
from folders import batch_of, load
from numpy.testing import assert_allclose
from reference import AUTO, CLASSES, DECODERS, TINY, inputs

from ftlib import export, fine_tune, judge, recipe, run
from ftlib.base import trees
from ftlib.base.types import Head
from ftlib.io import hf
from ftlib.models import stack
from ftlib.run import Base
from tests import tiny
from tests.contract import gold_extract, gold_tag

pytestmark = pytest.mark.reference

CASES = {'bert': TINY, 'roberta': TINY, 'distilbert': TINY, 'ernie': TINY, 'gpt2': DECODERS, 'llama': DECODERS}
KINDS = {'tag': 'tag', 'extract': 'span'}
close = functools.partial(assert_allclose, rtol=0, atol=1e-4)


def fresh(case, kind):
  """A transformers model whose every parameter is random."""
  import torch
  import transformers

  torch.set_num_threads(1)
  torch.manual_seed(zlib.crc32(f'{case}-{kind}'.encode()))
  given = json.loads(json.dumps({k: v for k, v in CASES[case][case].items() if k != 'model_type'}))
  labels = {'num_labels': CLASSES} if kind == 'tag' else {}
  config = transformers.AutoConfig.for_model(CASES[case][case]['model_type'], **given, **labels)
  model = getattr(transformers, AUTO[kind]).from_config(config).eval()
  with torch.no_grad():
    for p in model.parameters():
      p.add_(0.2 * torch.randn_like(p))
  return model


def logits_there(model, values):
  """[B, L, C], or of a span's two logits [B, L, 2]."""
  import torch

  with torch.no_grad():
    out = model(**{n: torch.from_numpy(np.asarray(v, np.int64)) for n, v in values.items()})
  both = [out.logits] if 'logits' in out else [out.start_logits[..., None], out.end_logits[..., None]]
  return torch.cat(both, -1).numpy()


@pytest.mark.parametrize('kind', ['tag', 'span'])
@pytest.mark.parametrize('case', CASES)
def test_folders_compute_the_same_here_and_go_back(tmp_path, case, kind):
  import transformers

  model = fresh(case, kind)
  model.save_pretrained(tmp_path / 'there')
  head = Head(kind, CLASSES if kind == 'tag' else 2)
  here = load(tmp_path / 'there', head)
  assert here.match.fresh == []
  values = inputs(case)
  real = np.asarray(values['attention_mask']) > 0
  ours, theirs = here.run(batch_of(values)).logits, logits_there(model, values)
  assert np.abs(theirs).max() > 0.3
  close(ours[real], theirs[real])
  task = types.SimpleNamespace(labels=['O', 'B-X', 'I-X'] if kind == 'tag' else [], head=head)
  base = Base(tmp_path / 'there', here.values, here.family, None, '')
  export.write(here.model, here.params, types.SimpleNamespace(base=base, task=task), tmp_path / 'out')
  back, info = getattr(transformers, AUTO[kind]).from_pretrained(tmp_path / 'out', output_loading_info=True)
  assert not {k: v for k, v in info.items() if v}
  assert type(back).__name__ == here.family.MODEL_TYPES[here.values['model_type']][kind]
  close(logits_there(back.eval(), values)[real], theirs[real])
  if kind == 'tag':
    assert back.config.id2label == {0: 'O', 1: 'B-X', 2: 'I-X'}


@pytest.fixture(scope='module')
def trained(tiny_bert, tmp_path_factory):
  """`trained(task, crf=True)`: the folder of a short run, whose task has these settings."""

  @functools.cache
  def make(task, **values):
    folder, out = tmp_path_factory.mktemp('data'), tmp_path_factory.mktemp('run') / 'run'
    for seed, (split, count) in enumerate((('train', 32), ('validation', 8))):
      rows = {'tag': gold_tag, 'extract': gold_extract}[task].rows(count, seed)
      (folder / f'{split}.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
    c = tiny.config(tiny_bert, folder, train__steps=4)
    c.task = recipe.component_section('task', task, **values)
    c.objective = recipe.component_section('objective', {'tag': 'tagging', 'extract': 'span'}[task])
    fine_tune.run(c, str(out))
    return out

  return make


@pytest.mark.parametrize(('task', 'values'), [('tag', {}), ('tag', {'crf': True}), ('extract', {})])
def test_a_run_is_loaded_there(trained, tmp_path, task, values, capsys):
  import transformers

  folder, auto = trained(task, **values), getattr(transformers, AUTO[KINDS[task]])
  assert export.export(folder, tmp_path / 'out') < 1e-4
  assert ('transformers has no CRF' in capsys.readouterr().out) == bool(values)
  model, info = auto.from_pretrained(tmp_path / 'out', output_loading_info=True)
  assert not info['missing_keys']
  assert set(info['unexpected_keys']) == ({'crf.transitions'} if values else set())
  built = run.build(json.loads((folder / 'config.json').read_text()))
  _, batch = next(iter(built.eval_batches('validation')))
  own, frozen, _ = judge.restored(built, folder, 'best')
  params = stack.unstack(trees.join(own, frozen))
  ours = np.asarray(built.method.model.apply(params, batch).logits)
  real = np.asarray(batch['segments']) > 0
  names = {'input_ids': 'tokens', 'attention_mask': 'segments', 'token_type_ids': 'types'}
  theirs = logits_there(model.eval(), {n: np.asarray(batch[b]) for n, b in names.items()})
  close(ours[real], theirs[real])
  card = (tmp_path / 'out' / 'README.md').read_text()
  assert {'tag': 'token-classification', 'extract': 'question-answering'}[task] in card
  assert f"{AUTO[KINDS[task]]}.from_pretrained('out')" in card


@pytest.mark.parametrize('task', ['tag', 'extract'])
def test_peft_loads_an_adapter_with_its_head(trained, tiny_bert, tmp_path, task):
  import peft
  import transformers

  assert export.export(trained(task), tmp_path / 'out', format='peft') < 1e-4
  auto, labels = getattr(transformers, AUTO[KINDS[task]]), {'num_labels': 5} if task == 'tag' else {}
  model = peft.PeftModel.from_pretrained(auto.from_pretrained(tiny_bert, **labels), tmp_path / 'out').eval()
  assert model.peft_config['default'].task_type == {'tag': 'TOKEN_CLS', 'extract': 'QUESTION_ANS'}[task]
  assert export.export(trained(task), tmp_path / 'merged') < 1e-4
  merged = auto.from_pretrained(tmp_path / 'merged').eval()
  ids = np.random.default_rng(0).integers(5, hf.read_config(tiny_bert)['vocab_size'], (3, 9))
  given = {'input_ids': ids, 'attention_mask': np.ones((3, 9), int)}
  close(logits_there(model, given), logits_there(merged, given))
