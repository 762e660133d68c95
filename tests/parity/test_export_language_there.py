"""Exported language models in transformers and PEFT: every key there, and the same tokens as here.

Preference losses and their gradients on a model of transformers, by formulas written out in PyTorch.
"""

import dataclasses
import json

import jax
import numpy as np
import pytest

from ftlib import export, fine_tune, judge, recipe
from ftlib import run as runs
from ftlib.base import trees
from ftlib.data import batches
from ftlib.generation.generator import Generator
from ftlib.generation.settings import Settings
from ftlib.models import stack
from ftlib.objectives import preference
from tests import tiny

pytestmark = pytest.mark.reference

PROMPTS = ['good great fine', 'awful', 'the story of a film is very']


@pytest.fixture(scope='module')
def llama(tmp_path_factory):
  return tiny.llama_folder(tmp_path_factory.mktemp('llama'), eos_token_id=0)


@pytest.fixture(scope='module')
def sft(llama, tmp_path_factory):
  """(run folder, the run): four steps of LoRA on answers."""
  place = tmp_path_factory.mktemp('sft')
  rng = np.random.default_rng(0)
  for name, count in (('train', 32), ('validation', 16)):
    pick = lambda i: ' '.join(rng.choice((tiny.GOOD, tiny.BAD)[i % 2], 3))  # noqa: E731
    rows = [{'prompt': pick(i), 'completion': ('warm', 'cold')[i % 2]} for i in range(count)]
    (place / f'{name}.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
  config = tiny.config(llama, place, train__steps=4, train__eval_every=4, optim__learning_rate=1e-2)
  config.task = recipe.component_section('task', 'sft')
  config.objective = recipe.component_section('objective', 'language')
  config.task.form, config.task.template, config.method.also, config.train.max_length = 'prompt', 'chat', '', 64
  fine_tune.run(config, str(place / 'run'))
  return place / 'run', runs.build(config)


def ours(sft, count):
  """What our generator makes of the prompts, greedily, with the run's own parameters."""
  where, built = sft
  own, frozen, _ = judge.restored(built, where, 'best')
  settings = Settings(max_new_tokens=count)
  generator = Generator(
    built.method.model, trees.join(own, frozen), built.tokenizer, settings, configs=[built.base.values]
  )
  prompts = [asked(built.tokenizer, p) for p in PROMPTS]
  return prompts, [list(map(int, g[0].tokens)) for g in generator.generate(prompts)]


def asked(tokenizer, text):
  turns = [{'role': 'user', 'content': text}]
  return tokenizer(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))['input_ids']


def theirs(model, prompts, count):
  import torch

  out = []
  for prompt in prompts:
    ids = torch.tensor([prompt])
    got = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False)
    out.append(got[0, len(prompt) :].tolist())
  return out


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_transformers_loads_and_generates_the_same(sft, tmp_path, dtype):
  import torch
  import transformers

  torch.set_num_threads(1)
  export.export(sft[0], tmp_path / 'out', dtype=dtype)
  auto = transformers.AutoModelForCausalLM
  model, info = auto.from_pretrained(tmp_path / 'out', output_loading_info=True)
  assert not {k: v for k, v in info.items() if v}
  assert str(model.dtype) == f'torch.{dtype}'
  assert model.generation_config.eos_token_id == [0, 2]
  assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'out')
  prompts, want = ours(sft, 24)
  assert [asked(tokenizer, p) for p in PROMPTS] == prompts
  assert len({*map(tuple, want)}) > 1
  if dtype == 'float32':
    assert theirs(model.eval(), prompts, 24) == want
  else:
    theirs(model.eval(), prompts, 4)


def test_peft_loads_the_adapter(sft, llama, tmp_path):
  import peft
  import torch
  import transformers

  torch.set_num_threads(1)
  assert export.export(sft[0], tmp_path / 'adapter', format='peft') < 1e-4
  values = json.loads((tmp_path / 'adapter' / 'adapter_config.json').read_text())
  assert values['task_type'] == 'CAUSAL_LM'
  base = transformers.AutoModelForCausalLM.from_pretrained(llama)
  base.generation_config.eos_token_id = [0, 2]
  model = peft.PeftModel.from_pretrained(base, tmp_path / 'adapter').eval()
  prompts, want = ours(sft, 16)
  assert [asked(transformers.AutoTokenizer.from_pretrained(tmp_path / 'adapter'), p) for p in PROMPTS] == prompts
  assert theirs(model, prompts, 16) == want


# --- preferences


def pairs(rng, count=4):
  documents = []
  for _ in range(count):
    prompt = rng.integers(3, 300, rng.integers(2, 7)).tolist()
    for _ in range(2):
      answer = rng.integers(3, 300, rng.integers(1, 9)).tolist()
      documents.append((prompt, answer))
  return documents


def torch_loss(model, documents, loss, beta, reference):
  """The mean loss of pairs, each answer by itself, as the papers have it."""
  import torch
  import torch.nn.functional as f

  logps, means, nlls = [], [], []
  for prompt, answer in documents:
    logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    own = torch.log_softmax(logits.float(), -1)[range(len(answer)), answer]
    logps.append(own.sum())
    means.append(own.mean())
    nlls.append(f.cross_entropy(logits, torch.tensor(answer)))
  c, r, lc, lr = (torch.stack(x) for x in (logps[::2], logps[1::2], means[::2], means[1::2]))
  if loss == 'orpo':
    odds = (lc - lr) - (torch.log1p(-torch.exp(lc)) - torch.log1p(-torch.exp(lr)))
    return (torch.stack(nlls[::2]) - beta * f.logsigmoid(odds)).mean()
  ref = torch.tensor(reference)
  ratios = (c - r) - (ref[:, 0] - ref[:, 1])
  if loss == 'sigmoid':
    return -f.logsigmoid(beta * ratios).mean()
  return torch.relu(1 - beta * ratios).mean() if loss == 'hinge' else ((ratios - 1 / (2 * beta)) ** 2).mean()


@pytest.mark.parametrize('loss', preference.LOSSES)
def test_preference_losses_are_those_of_pytorch(llama, sft, loss):
  import torch
  import transformers

  torch.set_num_threads(1)
  rng = np.random.default_rng(7)
  documents, beta = pairs(rng), 0.3
  reference = rng.normal(-40, 5, (4, 2)).astype(np.float32)
  there = transformers.AutoModelForCausalLM.from_pretrained(llama)
  want = torch_loss(there, documents, loss, beta, reference)
  want.backward()

  _, built = sft
  plain = built.base.family.build(built.method.model.config, head=built.task.head)
  flat = {
    n: np.asarray(plain.from_hf(n, built.base.weights.read(k)))
    for n, k in built.match.pairs.items()
    if n in plain.hf_names()
  }
  made = batches.language([p + a for p, a in documents], [[False] * len(p) + [True] * len(a) for p, a in documents])
  made.extra.update(pairs=np.ones(4, np.float32), reference=reference)
  made = dataclasses.replace(made, packs=[np.array([i, i + 1]) for i in range(0, 8, 2)])
  batch = batches.collate(made, range(4), size=6, edges=(32,), pad_id=0)
  objective = preference.build(preference.Config(loss=loss, beta=beta), labels=[], counts=np.zeros(0))

  def mean(params):
    total, weight = objective(lambda b, _: plain.apply(params, b), batch, None)['loss']
    return total / weight

  value, grads = jax.value_and_grad(mean)(stack.unstack(trees.unflatten(flat)))
  assert float(value) == pytest.approx(float(want.detach()), rel=1e-5)
  own = plain.tensors(trees.flatten(grads))
  for name, p in there.named_parameters():
    np.testing.assert_allclose(own[name], p.grad.numpy(), atol=2e-5 * float(p.grad.abs().max()) + 1e-7, err_msg=name)
