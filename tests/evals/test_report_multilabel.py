"""The report of rows with several labels, and of rows that were too long."""

from __future__ import annotations

import json

from ftlib.evals import report


def test_several_labels(tmp_path):
  (tmp_path / 'eval').mkdir()
  one = {'precision': 0.5, 'recall': 0.25, 'f1': 0.333, 'support': 8, 'roc_auc': None, 'threshold': 0.271}
  metrics = {'f1_macro': 0.31, 'subset_accuracy': 0.4, 'hamming_loss': 0.2, 'per_class': {'joy': one, 'fear': one}}
  record = {'metrics': metrics, 'n': 12, 'checkpoint': 3, 'labels': ['joy', 'fear'], 'truncated': 5}
  rows = [{'id': 0, 'label': ['joy'], 'prediction': [], 'probabilities': [0.2, 0.1], 'text': 'a good day'}]
  (tmp_path / 'eval' / 'test.json').write_text(json.dumps(record))
  (tmp_path / 'eval' / 'test_predictions.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
  page = report.write(tmp_path).read_text()
  assert '12 examples, checkpoint of step 3, 5 longer than the model reads at once' in page
  assert 'Subset accuracy' in page
  assert 'Threshold</th>' in page
  assert page.count('<td>0.271</td>') == 2
  assert 'a good day' in page
  del one['threshold'], record['truncated']
  (tmp_path / 'eval' / 'test.json').write_text(json.dumps(record))
  page = report.write(tmp_path).read_text()
  assert 'Threshold</th>' not in page
  assert 'longer than' not in page


def test_mistakes_and_curves_of_labels(tmp_path):
  (tmp_path / 'eval').mkdir()
  said = [  # label, prediction, probabilities of joy and fear
    (['joy'], ['joy'], [0.9, 0.1]),
    ([], ['fear'], [0.2, 0.6]),
    (['joy', 'fear'], ['fear'], [0.1, 0.7]),
    (['unheard'], [], [0.1, 0.1]),
  ]
  rows = [
    {'id': i, 'label': a, 'prediction': b, 'probabilities': p, 'text': f't{i}'} for i, (a, b, p) in enumerate(said)
  ]
  record = {'metrics': {'f1_macro': 0.3, 'label_accuracy': 0.5}, 'n': 4, 'labels': ['joy', 'fear']}
  (tmp_path / 'eval' / 'test.json').write_text(json.dumps(record))
  (tmp_path / 'eval' / 'test_predictions.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
  page = report.write(tmp_path).read_text()
  assert '2 of 3 rows have a label too many or too few' in page
  third, second = page.index('>t2<'), page.index('>t1<')
  assert third < second  # 0.9 off, and 0.6
  row = page[third:second]
  assert '<span class="wrong">joy</span> 0.100, fear' in row
  assert '<span data-name="Predicted">fear</span>' in row
  assert '<span data-name="True">–</span>' in page[second:]
  for title in ('ROC curve', 'Precision-recall curve'):
    assert f'{title}, ' in page  # the description of the plot, of both labels
  assert 'AUC: joy 0.500, fear 1.000' in page
  assert 'Label accuracy' in page
