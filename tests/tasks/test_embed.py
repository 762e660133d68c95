"""Vectors of texts: two documents of a row are as each alone, ranks and duplicates, exports, and what is refused."""

from __future__ import annotations

import json
import re

import jax
import numpy as np
import pytest
from scipy.stats import spearmanr

from ftlib import export, fine_tune, judge, language_files, recipe, run, stream
from ftlib.base import trees
from ftlib.base.errors import InputError
from ftlib.data import batches
from ftlib.data.incoming import Incoming
from ftlib.tasks import embed, retrieve
from tests import tiny
from tests.refusal import refused


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  folder = tmp_path_factory.mktemp('pairs')
  for seed, (split, count) in enumerate((('train', 24), ('validation', 12))):
    rows = zip(tiny.rows(count, seed), tiny.rows(count, seed + 5))
    lines = [{'text_a': a['text'], 'text_b': b['text'], 'score': i % 6} for i, (a, b) in enumerate(rows)]
    (folder / f'{split}.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in lines))
  return folder


@pytest.fixture(scope='module')
def config(tiny_bert, data):
  def make(task='embed', method='lora', **values):
    c = recipe.recipe(task=task, method=method, optim='adamw')
    small = tiny.config(tiny_bert, data, train__steps=2, train__eval_every=2)
    for section in ('model', 'data', 'train', 'mesh', 'checkpoint'):
      c[section] = small[section]
    for name, value in values.items():
      section, field = name.split('__')
      c[section][field] = value
    return c

  return make


@pytest.mark.parametrize('method', ['lora', 'prefix', 'p_tuning_v2'])
def test_each_text_is_as_by_itself(config, method):
  built = run.build(config(method=method))
  own, frozen = built.load()
  assert not [n for n in built.info if n.startswith(('head/', 'pooler/'))]
  there, apply = built.examples['validation'], jax.jit(built.method.model.apply)
  packed = batches.collate(there, range(12), size=12, edges=built.edges, pad_id=0)
  together = apply(trees.join(own, frozen), packed).pooled
  alone = batches.collate(
    batches.Examples(there.tokens, {}), range(24), size=24, edges=(int(there.tokens.lengths.max()),), pad_id=0
  )
  hidden = np.asarray(apply(trees.join(own, frozen), alone).hidden)
  for i, (x, real) in enumerate(zip(hidden, alone['segments'] > 0)):
    np.testing.assert_allclose(together[i // 2, i % 2], x[real].mean(0), atol=2e-5)


@pytest.mark.parametrize('method', ['prompt', 'bitfit+prompt'])
def test_a_prompt_that_the_first_text_alone_would_have_is_refused(config, method):
  with pytest.raises(InputError, match=rf'20 virtual tokens of method\.name={re.escape(method)} .* first alone'):
    run.build(config(method=method))


def test_scores_and_cosines(config):
  built = run.build(config(task__opposites=True, task__highest=10.0))
  found = built.examples['validation'].extra
  np.testing.assert_allclose(found['cosines'], found['labels'] / 5 - 1, atol=1e-6)
  got = built.task.metrics(built.examples['validation'], {'cosine': found['cosines']})
  assert got['mae'] == pytest.approx(0, abs=1e-6)
  assert 'cosines from -1 to 1 for scores from 0 to 10' in built.task.about
  records = [*built.task.records(built.dataset.splits['validation'], {'cosine': found['cosines']})]
  assert {'cosine', 'prediction', 'label', 'text', 'pair'} <= set(records[0])
  with pytest.raises(InputError, match=r'lowest=5 and task\.highest=5'):
    embed.build(embed.Config(lowest=5.0), train=[{'score': 5.0}], known=None)


@pytest.mark.parametrize('change', [{}, {'task__lowest': 3.0, 'data__keep': 'score=4|5'}])
def test_a_run_without_its_data_says_the_same(config, data, tmp_path, change):
  """The scale of scores, and whether they are judged as classes, stand with the run."""
  values = {'task__opposites': True, **change}
  fine_tune.run(config(**values), str(tmp_path / 'run'))
  built, own, frozen, _ = judge.opened(str(tmp_path / 'run'), 'validation', 'last')
  want = built.evaluate(own, frozen, 'validation')
  source, _ = stream.of_run(str(tmp_path / 'run'), checkpoint='last', labelled=True)
  assert not len(source.run.dataset.splits['train'])
  rows = [r for r in map(json.loads, (data / 'validation.jsonl').open()) if not change or r['score'] > 3]
  (tmp_path / 'a.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
  [(read, examples, found)] = source.over(Incoming(str(tmp_path / 'a.jsonl'), source.columns.texts))
  metrics = source.run.task.metrics(examples, found)
  assert (source.run.task.metric, {*source.run.task.metric_names}) == (built.task.metric, {*metrics})
  assert metrics == pytest.approx({n: want[0][n] for n in metrics}, abs=1e-5)
  assert ('roc_auc' in metrics) == bool(change)
  records = built.task.records(built.dataset.splits['validation'], want[1])
  for got, said in zip(source.run.task.records(read, found), records, strict=True):
    assert got['prediction'] == pytest.approx(said['prediction'], abs=1e-4)
  stored = tmp_path / 'run' / 'run.json'
  stored.write_text(json.dumps({k: v for k, v in json.loads(stored.read_text()).items() if k != 'learnt'}))
  refused(lambda: stream.of_run(str(tmp_path / 'run')), 'run.json lacks', 'between, metric, span', 'train.py --config=')


def test_long_texts_are_counted_by_rows(config, tmp_path):
  rows = [{'text_a': 'good ' * 60, 'text_b': 'bad ' * (60 if i % 2 else 1), 'score': i % 6} for i in range(5)]
  rows += [{'text_a': 'good', 'text_b': 'bad', 'score': 1}] * 6
  for split in ('train', 'validation'):
    (tmp_path / f'{split}.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
  for task in ('embed', 'retrieve'):
    built = run.build(config(task, data__path=str(tmp_path), train__max_length=0), split='train')
    assert any('train: 5 of 11 rows (45.5%) were cut to 40 tokens' in note for note in built.notes)


def test_two_scores_are_judged_as_classes_too():
  """Paraphrases or not: the higher of two scores is the class that is looked for, whatever the numbers are."""
  rows = [{'score': s} for s in (3.0, 1.0, 3.0)]
  task = embed.build(embed.Config(), train=rows, known=None)
  there = batches.Examples(None, {'labels': np.array([3, 1, 3, 1], np.float32)})
  got = task.metrics(there, {'cosine': np.array([0.9, 0.5, 0.4, 0.2], np.float32)})
  assert set(got) == set(task.metric_names)
  assert task.metric == 'average_precision'
  assert got['roc_auc'] == pytest.approx(3 / 4)  # 3 of 4 pairs in order
  assert got['average_precision'] == pytest.approx((1 + 2 / 3) / 2)
  found = task.resampled(there, {'cosine': np.array([0.9, 0.5, 0.4, 0.2], np.float32)})(np.array([1, 0, 1, 1]))
  assert found['roc_auc'] == 1.0
  assert found.keys() == got.keys()
  wide = embed.build(embed.Config(lowest=-9.0, highest=90.0), train=rows, known=None)
  assert wide.metrics(there, {'cosine': np.array([0.9, 0.5, 0.4, 0.2], np.float32)})['roc_auc'] == got['roc_auc']
  one_sided = task.metrics(batches.Examples(None, {'labels': np.full(2, 3.0)}), {'cosine': np.array([0.1, 0.2])})
  assert one_sided['roc_auc'] is None
  graded = embed.build(embed.Config(), train=[*rows, {'score': 2.0}], known=None)
  assert graded.metric == 'spearman'
  assert 'roc_auc' not in graded.metric_names


def test_ranks_by_hand():
  """Texts 0 and 1 have the same answer; text 2 stands there twice, with two answers."""
  asked = np.array([[1.0, 0], [0.9, 0.1], [0, 1], [0, 1], [0.6, 0.8]])
  answer = np.array([[1.0, 0], [1, 0], [0.1, 0.9], [0, 1], [0.8, 0.5]])
  texts = np.array([[0, 10], [1, 10], [2, 11], [2, 12], [3, 13]])
  places, first = retrieve.ranked(asked, answer, texts)
  assert places.tolist() == [1, 1, 1, 1, 1]
  assert first.tolist() == [0, 0, 3, 3, 4]
  places, first = retrieve.ranked(asked, answer[[0, 0, 3, 2, 2]], texts)
  assert places.tolist() == [1, 1, 1, 2, 3]  # 12 and 13 have the same vector: neither is ahead of the other
  assert first.tolist() == [0, 0, 2, 2, 2]
  texts[3, 0] = 4  # another text of the same vector: now the other answer is wrong for it
  assert retrieve.ranked(asked, answer[[0, 0, 3, 2, 2]], texts)[0].tolist()[:4] == [1, 1, 1, 3]


@pytest.mark.parametrize('value', [1.0, np.nan])
def test_vectors_that_are_all_alike_find_nothing(value):
  texts = np.arange(12).reshape(6, 2)
  same = np.full((6, 3), value)
  assert retrieve.ranked(same, same, texts)[0].min() >= 6


def test_the_same_text_has_the_same_number(config):
  task = retrieve.build(retrieve.Config(negative='c'), train=None, known=None)
  rows = [{'text_a': 'x', 'text_b': 'y', 'c': 'z'}, {'text_a': 'y', 'text_b': 'z', 'c': 'x'}]
  assert task._numbers(rows, ['text_a', 'text_b', 'c']).tolist() == [[0, 1, 2], [1, 2, 0]]
  assert task.head.documents == 3


def test_micro_batches_are_refused_where_rows_are_compared(config):
  with pytest.raises(InputError, match=r'train\.accumulate=2 with objective\.name=contrastive.*compares the rows'):
    run.build(config('retrieve', train__accumulate=2))
  assert run.build(config(train__accumulate=2)).settings.train.accumulate == 2


def test_exports(config, tmp_path):
  fine_tune.run(config(), str(tmp_path / 'run'))
  assert export.export(tmp_path / 'run', tmp_path / 'adapter', format='peft') < 1e-5
  peft = json.loads((tmp_path / 'adapter' / 'adapter_config.json').read_text())
  assert peft['task_type'] == 'FEATURE_EXTRACTION'
  assert peft['modules_to_save'] is None
  assert peft['target_modules'][0] == 'encoder.layer.0.attention.self.query'  # of AutoModel, without 'bert.'
  assert run.build(config(model__adapter=str(tmp_path / 'adapter'))).load()

  assert export.export(tmp_path / 'run', tmp_path / 'out') < 1e-4
  read = lambda name: json.loads((tmp_path / 'out' / name).read_text())  # noqa: E731
  assert read('config.json')['architectures'] == ['BertModel']
  assert [m['type'].rpartition('.')[2] for m in read('modules.json')] == ['Transformer', 'Pooling', 'Normalize']
  pooling = read('1_Pooling/config.json')
  assert pooling['word_embedding_dimension'] == 32
  assert [k for k, v in pooling.items() if v is True] == ['pooling_mode_mean_tokens']


@pytest.mark.parametrize(
  ('pooling', 'mode'), [('cls', 'cls_token'), ('mean', 'mean_tokens'), ('max', 'max_tokens'), ('last', 'lasttoken')]
)
def test_every_pooling_is_one_of_sentence_transformers(pooling, mode):
  embed.Config(pooling=pooling)
  modes = language_files.sentence_transformer(pooling, 8, 16)['1_Pooling/config.json']
  assert [k for k, v in modes.items() if v is True] == [f'pooling_mode_{mode}']


def test_a_run_of_retrieve_is_judged_by_scores(config, tmp_path):
  """As docs/tasks.md says: the recipe of embed, with the run as `model.adapter`."""
  fine_tune.run(config('retrieve', optim__learning_rate=0.05), str(tmp_path / 'run'))
  [asked] = (tmp_path / 'run' / 'eval').glob('validation_predictions.jsonl')
  cosines = [json.loads(line)['cosine'] for line in asked.read_text().splitlines()]
  c = config()
  before = judge.untrained(c, split='validation', output=None)
  c.model.adapter = str(tmp_path / 'run')
  found = judge.untrained(c, split='validation', output=None)
  assert found['spearman'] == pytest.approx(spearmanr(cosines, [i % 6 for i in range(12)]).statistic, abs=1e-6)
  assert found['pearson'] != pytest.approx(before['pearson'], abs=1e-4)
