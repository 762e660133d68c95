"""What a run prints before and after it, and what it leaves: files, keys and values that scripts rely on."""

import json
import pathlib
import re

import numpy as np
import pytest
import safetensors.numpy

from ftlib import run as runs
from ftlib import show

LABELS = ['bad', 'good']
LORA, HEAD = 2 * 2 * (32 * 8 + 8 * 32), 32 * 2 + 2  # layers * sites * (a and b); a matrix and a bias


def stored(trained, name):
  return json.loads((trained.folder / name).read_text())


def test_the_files(trained):
  files = {str(p.relative_to(trained.folder)) for p in trained.folder.rglob('*') if 'state' not in p.parts}
  wanted = {'config.json', 'run.json', 'env.json', 'summary.json', 'metrics.jsonl'}
  wanted |= {'eval/validation.json', 'eval/validation_predictions.jsonl'}
  wanted |= {f'checkpoints/{step}/{name}' for step in (2, 4) for name in ('manifest.json', 'meta.json')}
  assert wanted <= files
  assert any(re.fullmatch(r'tensorboard/events\.out\.tfevents\..+', f) for f in files)
  assert not [f for f in files if f.endswith(('.tmp', '.saving', '.corrupt'))]


def test_the_summary_of_a_run(trained, tiny_bert):
  found = stored(trained, 'summary.json')
  base = sum(x.size for x in safetensors.numpy.load_file(tiny_bert / 'model.safetensors').values())
  assert found['params_trainable'] == LORA + HEAD
  assert found['params_total'] == base + LORA + HEAD
  assert 0 <= found['opt_state_bytes'] - 2 * 4 * (LORA + HEAD) < 64  # two moments, and a few counts
  assert found['steps'] == 4
  assert found['tokens_per_second'] > 0
  assert found['compile_seconds'] > 0
  rows = [json.loads(line) for line in (trained.folder / 'metrics.jsonl').read_text().splitlines()]
  of = {r['step']: r['accuracy'] for r in rows if r['split'] == 'validation'}
  best = found['best_metric']
  assert list(of) == [2, 4]
  assert best == {'name': 'accuracy', 'value': max(of.values()), 'step': max(of, key=of.get), 'split': 'validation'}


def test_where_it_ran_and_what_with(trained):
  env, config = stored(trained, 'env.json'), stored(trained, 'config.json')
  assert {'jax', 'flax', 'optax', 'ftlib', 'python'} <= env['versions'].keys()
  assert env['devices']['backend'] == 'cpu'
  assert env['source'] is None or re.fullmatch(r'[0-9a-f]{40}', env['source']['commit'])
  asked = json.loads(json.dumps(trained.config().to_dict()))  # each field, also those at their defaults
  assert config == {**asked, 'task': {**asked['task'], 'pooling': 'cls'}}  # which was left open
  assert stored(trained, 'run.json')['labels'] == LABELS


def test_an_evaluation(trained):
  found = stored(trained, 'eval/validation.json')
  best = stored(trained, 'summary.json')['best_metric']
  assert (found['n'], found['checkpoint'], found['labels']) == (32, best['step'], LABELS)
  assert found['metrics']['accuracy'] == best['value']
  of = lambda path: [json.loads(line) for line in path.read_text().splitlines()]  # noqa: E731
  rows = of(trained.folder / 'eval' / 'validation_predictions.jsonl')
  given = of(pathlib.Path(trained.config().data.path) / 'validation.jsonl')
  assert [(r['id'], r['label'], r['text']) for r in rows] == [(i, g['label'], g['text']) for i, g in enumerate(given)]
  for row in rows:
    assert row['prediction'] == LABELS[int(np.argmax(row['probabilities']))]
    assert sum(row['probabilities']) == pytest.approx(1, abs=2e-6)
  assert np.mean([r['prediction'] == r['label'] for r in rows]) == pytest.approx(best['value'])


def test_what_is_told_before_training(trained):
  text = show.summary(runs.build(trained.config()), trained.folder)
  said = {line[:10].strip(): line[12:] for line in text.splitlines()}
  total, trainable = (stored(trained, 'summary.json')[f'params_{n}'] for n in ('total', 'trainable'))
  share = f'{100 * trainable / total:.2f}%'
  assert said['parameters'] == f'{total:,} total, {trainable:,} trainable ({share})'
  assert '(bert, 2 layers, width 32)' in said['model']
  assert said['method'] == 'lora on layers/*/attn/q (2), layers/*/attn/v (2), head/out/bias, head/out/kernel'
  assert 'train 96, validation 32, test 24 rows' in said['data']
  assert re.match(r'16 rows, about \d+ tokens a step, padded to \d+', said['batches'])
  assert said['steps'].startswith('4 (0.67 epochs of 6)')
  assert said['mesh'] == 'data=1, fsdp=1 on 1 cpu device'
  assert said['precision'] == 'float32 compute, float32 frozen, float32 trainable'
  assert said['writes to'] == str(trained.folder)
