"""A BiLSTM from nothing: trained, moved, judged, resumed, exported and trained on, by the model in its run folder."""

import itertools
import json
import pathlib
import shutil

import numpy as np
import pytest

from ftlib import attribute, config_file, export, fine_tune, folder, judge, recipe, scratch, show
from ftlib import run as runs
from ftlib.base import trees
from ftlib.base.errors import InputError
from ftlib.io import hf
from tests import tiny

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAIRS = list(zip(tiny.rows(36, 0), tiny.rows(36, 5)))
SMALL = {'model__scratch__hidden': 6, 'model__scratch__embedding': 5, 'train__steps': 4, 'train__eval_every': 4}


def config(data, *, pretrained='', **values):
  c = tiny.config(pretrained, data, **{'method': 'full', **SMALL, **values})
  c.model.family = '' if pretrained else 'bilstm'
  return c


@pytest.fixture(scope='module')
def vectors(tmp_path_factory):
  """Vectors of 5 numbers for three of the words."""
  path = tmp_path_factory.mktemp('vectors') / 'glove.txt'
  path.write_text('good 1 2 3 4 5\nBAD 5 4 3 2 1\nfilm 0 0 1 0 0\nother 1 1 1 1 1\n')
  return path


@pytest.fixture(scope='module')
def trained(toy_data, vectors, tmp_path_factory):
  """The folder of a run whose vectors stay as they are, after it was moved."""
  root = tmp_path_factory.mktemp('scratch')
  c = config(toy_data, method='head', model__scratch__vectors=str(vectors))
  fine_tune.run(c, str(root / 'first'))
  shutil.move(root / 'first', root / 'run')
  return root / 'run', c


def table_of(built):
  own, frozen = built.load()
  return np.asarray(trees.flatten(trees.join(own, frozen))['embed/token/table'])


def test_all_but_the_vectors_is_new_and_trains(toy_data, vectors, capsys):
  c = config(toy_data, method='head', model__scratch__vectors=str(vectors))
  built = runs.build(c)
  words = sorted({w for split in ('train',) for row in built.dataset.splits[split] for w in row['text'].split()})
  assert len(built.tokenizer) == 3 + len(words) == built.method.model.config.vocab
  assert set(built.train_info) == set(built.info) - {'embed/token/table'}
  table, ids = table_of(built), built.tokenizer.convert_tokens_to_ids
  assert table[ids(['good', 'bad'])].tolist() == [[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]]
  assert f'vocabulary: {len(words)} words of the training rows, 3 of them with vectors of {vectors}' in built.notes
  assert any(n.startswith('new, not in the checkpoint: head/out/bias') and 'layers/*' in n for n in built.notes)
  assert 'new (bilstm, 1 layers, width 5)' in show.summary(built, vectors)
  other = runs.build({**c.to_dict(), 'seed': 1})
  assert other.identity == built.identity  # the seed is of what starts at random alone
  np.testing.assert_array_equal(table_of(other), table)
  full = runs.build(config(toy_data))
  assert set(full.train_info) == set(full.info)


def test_a_run_is_judged_resumed_and_exported_by_what_its_folder_holds(trained, vectors, tmp_path, toy_data):
  where, c = trained
  kept, moved = vectors.read_text(), tmp_path / 'run'
  shutil.copytree(where, moved)
  vectors.unlink()  # what a model was made of need not be there any more
  try:
    stored = judge.run(str(moved), split='test', checkpoint='best')
    assert json.loads((moved / 'config.json').read_text())['model']['pretrained'] == ''
    longer = recipe.expanded(c)
    longer.train.steps = 6
    fine_tune.run(longer, str(moved))
    assert judge.run(str(moved), split='test', checkpoint='4')['loss'] == pytest.approx(stored['loss'], abs=1e-6)
    assert export.export(moved, tmp_path / 'out') < 1e-5
  finally:
    vectors.write_text(kept)
  card = (tmp_path / 'out' / 'README.md').read_text()
  assert 'new bilstm' in card
  assert 'library_name: ftlib' in card
  assert 'AutoModel' not in card
  assert set(hf.Weights(tmp_path / 'out').where) >= {'embedding.weight', 'lstm.weight_hh_l0_reverse', 'classifier.bias'}
  target = {'method__target': 'forward/', 'method__rank': 2}
  built = runs.build(config(toy_data, pretrained=str(tmp_path / 'out'), method='lora', **target))
  assert built.match.fresh == []
  assert {n for n in built.train_info if 'adapter' not in n} == {'head/out/kernel', 'head/out/bias'}
  assert built.task.head.pooling == 'max'


def test_other_settings_are_another_run(trained, toy_data):
  where, c = trained
  other = recipe.expanded(c)
  other.model.scratch.hidden = 7
  with pytest.raises(InputError, match=r'model\.scratch\.hidden: 6 -> 7'):
    fine_tune.run(other, str(where))
  built = runs.build(folder.started(recipe.expanded(c).to_dict(), where))
  assert built.base.folder == where / scratch.BASE


@pytest.mark.parametrize(
  ('values', 'said'),
  [
    ({'model__family': 'bert'}, 'model.family=bert is none that starts from nothing'),
    ({'model__family': ''}, 'model.pretrained is empty'),
    ({'model__scratch__min_count': 1000}, 'no word stands 1000 times'),
    ({'model__scratch__vectors': '/nowhere/x.txt'}, r'model\.scratch\.vectors=/nowhere/x\.txt: there is no such file'),
    ({'model__scratch__tokens': 'word'}, r'model\.scratch\.tokens.*did you mean "words"'),
    ({'model__scratch__embedding': 9}, 'model.scratch.embedding=9, but the vectors of .* have 5 numbers'),
    ({'method': 'prefix'}, 'matches none'),
    ({'data__path': '/nowhere'}, '/nowhere'),
  ],
)
def test_what_cannot_be_made_is_an_error(toy_data, vectors, values, said):
  c = config(toy_data, method=values.get('method', 'full'), model__scratch__vectors=str(vectors))
  for name, value in values.items():
    if name != 'method':
      tree = c
      *path, last = name.split('__')
      for key in path:
        tree = tree[key]
      tree[last] = value
  with pytest.raises(InputError, match=said):
    runs.build(c)


def test_an_adapter_of_it_does_not_leave_as_one_of_peft(toy_data, tmp_path):
  target = {'method__target': 'state$', 'method__rank': 2}
  fine_tune.run(config(toy_data, method='lora', train__steps=1, train__eval_every=1, **target), str(tmp_path / 'run'))
  with pytest.raises(InputError, match='transformers, which has no bilstm; --format=hf merges it'):
    export.export(tmp_path / 'run', tmp_path / 'out', format='peft')


def test_its_vectors_leave_without_files_of_sentence_transformers(tmp_path):
  """Which has no BiLSTM to load."""
  rows = [{'text_a': r['text'], 'text_b': s['text'], 'score': i % 6} for i, (r, s) in enumerate(PAIRS)]
  for split, some in (('train', rows[:24]), ('validation', rows[24:])):
    (tmp_path / f'{split}.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in some))
  c = config(tmp_path, train__steps=1, train__eval_every=1)
  c.task, c.objective = (recipe.component_section(s, n) for s, n in (('task', 'embed'), ('objective', 'cosine')))
  c.task.pooling = 'max'
  fine_tune.run(c, str(tmp_path / 'run'))
  assert export.export(tmp_path / 'run', tmp_path / 'out') < 1e-5
  there = {p.name for p in (tmp_path / 'out').iterdir()}
  assert 'model.safetensors' in there
  assert not there & {'modules.json', 'sentence_bert_config.json', '1_Pooling'}


def test_it_has_no_attention_to_follow(toy_data):
  built = runs.build(config(toy_data), split='test')
  with pytest.raises(InputError, match=r'0 of the 1 layers tell their attention.* take --method=integrated_gradients'):
    attribute.attributed(built, *built.load(), 'test', [0], method='rollout', steps=1)


def test_characters_of_chinese_are_tagged(tmp_path):
  """As the recipe's docstring says, from nothing: every character is a word of the vocabulary and has a tag."""
  people, places = ('张三', '王小明'), ('北京', '上海市')
  rows = []
  for who, where in itertools.product(people, places):
    tags = ['B-PER', *['I-PER'] * (len(who) - 1), 'O', 'B-LOC', *['I-LOC'] * (len(where) - 1)]
    rows.append({'tokens': f'{who}在{where}', 'tags': tags})
  for split in ('train', 'validation'):
    (tmp_path / f'{split}.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
  flags = {'train.steps': '3', 'train.eval_every': '3', 'train.batch_size': '4', 'mesh.shape': 'data=1'}
  sizes = {'model.scratch.hidden': '6', 'model.scratch.embedding': '5'}
  c = config_file.load(f'{ROOT}/configs/bilstm.py:data={tmp_path},task=tag', [*flags.items(), *sizes.items()])
  fine_tune.run(c, str(tmp_path / 'run'))
  words = json.loads((tmp_path / 'run' / 'base' / 'tokenizer.json').read_text())['model']['vocab']
  assert {*''.join(row['tokens'] for row in rows)} <= {*words}
  log = [json.loads(line) for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()]
  assert np.isfinite([row['loss'] for row in log if row['split'] == 'train']).all()
  judge.run(str(tmp_path / 'run'), split='validation', checkpoint='last')
  lines = (tmp_path / 'run' / 'eval' / 'validation_predictions.jsonl').read_text().splitlines()
  for row, record in zip(rows, map(json.loads, lines), strict=True):
    assert record['tokens'] == [*row['tokens']]
    assert len(record['prediction']) == len(row['tags'])
