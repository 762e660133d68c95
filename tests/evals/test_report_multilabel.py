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
