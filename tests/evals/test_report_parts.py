"""The report's parts one by one: reading, number formats, HTML pieces, charts."""

import json
import re
import tracemalloc
import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pytest

from ftlib.evals import plots, plots_classes, report_data, report_multilabel, report_page, report_spans, report_tags
from ftlib.evals import report_format as fmt
from ftlib.evals.report_data import Judged

pytestmark = pytest.mark.filterwarnings('error')
S = '\N{NARROW NO-BREAK SPACE}'


# Reading


def test_history_is_sorted_and_keeps_the_row_written_last(tmp_path):
  rows = [(10, 1.0), (30, 3.0), (20, 2.0), (20, 2.5), (30, 3.5)]  # resumed after step 10
  lines = [json.dumps({'step': step, 'split': 'train', 'loss': loss}) for step, loss in rows]
  (tmp_path / 'metrics.jsonl').write_text('\n'.join(lines) + '\n{"step": 40, "los')
  run = report_data.read(tmp_path)
  steps, values = report_data.series(run.history['train'], 'loss')
  assert steps.tolist() == [10, 20, 30]
  assert values.tolist() == [1.0, 2.5, 3.5]
  assert run.notes == []  # what a kill leaves is no fault


def test_broken_line_inside_is_noted(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1, "loss": 2}\n{"st\n[1]\n{"step": 2, "loss": 1}\n')
  run = report_data.read(tmp_path)
  assert len(run.history['train']) == 2
  assert run.notes == ['metrics.jsonl: 2 unreadable lines left out.']


def test_line_separators_inside_a_text_are_no_line_ends(tmp_path):
  (tmp_path / 'eval').mkdir()
  row = {'text': 'one\u2028two\x85three\x0c', 'label': 'a'}
  (tmp_path / 'eval' / 'test_predictions.jsonl').write_text(
    json.dumps(row, ensure_ascii=False) + '\n', encoding='utf-8'
  )
  assert [*report_data.read(tmp_path).splits[0].rows] == [row]


@pytest.mark.parametrize('kind', ['class', 'tags', 'labels', 'spans', 'scores'])
def test_texts_are_not_held(tmp_path, kind):
  own = {
    'class': {'label': 'a', 'prediction': 'b', 'probabilities': [0.2, 0.8]},
    'tags': {'tokens': ['x'], 'label': ['B-A'], 'prediction': ['O'], 'entities': []},
    'labels': {'label': ['a'], 'prediction': ['b'], 'probabilities': [0.2, 0.8]},
    'spans': {'label': 'w', 'prediction': 'v', 'n_best': [], 'context': 'v w', 'exact_match': 0, 'probability': 0.5},
    'scores': {'label': 1.0, 'prediction': 2.0},
  }[kind]
  (tmp_path / 'eval').mkdir()
  record = {'metrics': {}, 'labels': [] if kind in ('spans', 'scores') else ['a', 'b']}
  (tmp_path / 'eval' / 'test.json').write_text(json.dumps(record))
  with (tmp_path / 'eval' / 'test_predictions.jsonl').open('w') as f:
    f.writelines(json.dumps({'id': i, **own, 'text': f'{i} ' + 'word ' * 2000}) + '\n' for i in range(300))
  tracemalloc.start()
  [split] = report_data.read(tmp_path).splits
  found = [module.examples(split) for module in (report_spans, report_tags, report_multilabel)]
  most = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert len(split.rows) == 300
  assert (split.judged is not None, split.scored is not None) == (kind == 'class', kind == 'scores')
  assert [bool(x) for x in found] == [kind == 'spans', kind == 'tags', kind == 'labels']
  assert most < 1e6  # of 3 MB


def test_splits_come_with_test_first(tmp_path):
  (tmp_path / 'eval').mkdir()
  for name in ('validation', 'a', 'test', 'train'):
    (tmp_path / 'eval' / f'{name}.json').write_text('{}')
  assert [split.name for split in report_data.read(tmp_path).splits] == ['test', 'validation', 'a', 'train']


def test_classes_by_name_or_index(tmp_path):
  (tmp_path / 'eval').mkdir()
  (tmp_path / 'eval' / 'test.json').write_text('{"labels": [2, 0, "x"]}')
  rows = [
    {'label': 0, 'prediction': 'x', 'probabilities': [0.1, 0.2, 0.7]},  # 0 is the name of class 1
    {'label': 1, 'probabilities': [0.6, 0.2, 0.2]},  # 1 is no name, so it is an index; no prediction: the likeliest
    {'label': 'y', 'prediction': 0, 'probabilities': [1, 0, 0]},
    {'label': 0, 'prediction': 0, 'probabilities': [1, 0]},
    {'label': 0, 'prediction': 0, 'probabilities': [1, float('nan'), 0]},
    {'label': True, 'prediction': 0, 'probabilities': [1, 0, 0]},
  ]
  (tmp_path / 'eval' / 'test_predictions.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  judged = report_data.read(tmp_path).splits[0].judged
  assert judged.labels_N.tolist() == [1, 1]
  assert judged.predictions_N.tolist() == [2, 0]
  assert judged.confidence_N.tolist() == [0.7, 0.6]


def test_number_and_first():
  assert report_data.number(3) == 3.0
  for value in (True, None, '3', float('nan'), float('inf'), 10**400):
    assert report_data.number(value) is None
  tree = {'a': {'b': 1}, 'c': '', 'd': [0]}
  assert report_data.first(tree, 'x', 'a', 'c', 'a.b.c', 'a.b') == 1
  assert report_data.first(tree, 'd') == [0]
  assert report_data.first(tree, 'a') is None


# Formats


@pytest.mark.parametrize(
  ('got', 'want'),
  [
    (fmt.decimal(0.81234), '0.8123'),
    (fmt.decimal(-1.0), '-1.0000'),
    (fmt.decimal(12.3456), '12.35'),
    (fmt.decimal(3.0), '3'),
    (fmt.decimal(2.5e9), f'2.5{S}B'),
    (fmt.integer(1066), f'1{S}066'),
    (fmt.percent(0.0044), f'0.44{S}%'),
    (fmt.percent(1), f'100{S}%'),
    (fmt.percent(0), f'0{S}%'),
    (fmt.scaled(66_955_010), f'67.0{S}M'),
    (fmt.scaled(296_450), f'296{S}450'),
    (fmt.size(2_371_600), f'2.4{S}MB'),
    (fmt.size(12), f'12{S}B'),
    (fmt.duration(7.41), f'7.4{S}s'),
    (fmt.duration(249), f'4{S}min 09{S}s'),
    (fmt.duration(7265), f'2{S}h 01{S}min'),
    (fmt.interval(0.5, None), ''),
    (fmt.interval(1.5, 10), ''),
    (fmt.plain([1, 'é']), '[1, "é"]'),
    (fmt.leaves({'a': {'b': 1, 'c': {}}, 'd': 2}), {'a.b': 1, 'a.c': {}, 'd': 2}),
  ],
)
def test_formats(got, want):
  assert got == want


def test_wilson_interval():
  low, high = fmt.wilson(0.5, 100)
  assert (low, high) == pytest.approx((0.4038, 0.5962), abs=1e-4)
  assert fmt.wilson(1.0, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
  assert fmt.wilson(0.0, 10)[0] == 0


# HTML


def test_text_is_escaped_and_legal():
  assert report_page.text('<a href="x">&\'') == '&lt;a href=&quot;x&quot;&gt;&amp;&#x27;'
  assert report_page.text('a\x00b\ud800c\td') == 'a\ufffdb\ufffdc\td'
  assert report_page.word('top_up/limit <b>') == 'top_<wbr>up/<wbr>limit &lt;b&gt;'


def test_empty_parts_leave_nothing():
  assert report_page.section('x', '', '', anchor='x') == ''
  assert report_page.table(('a', 'b'), []) == ''
  assert report_page.figure(None) == report_page.grid('', '') == ''
  assert report_page.details('x', '') == report_page.block('x', '') == report_page.tiles([]) == ''


# Charts


def judged(C, N=300, seed=0):
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, C, size=N)
  logits = rng.normal(size=(N, C)) + 2 * np.eye(C)[labels]
  probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  return Judged([{}] * N, labels, probabilities.argmax(1), probabilities)


def texts(chart):
  """The texts of a chart, which must be well-formed XML by itself."""
  root = ET.fromstring(chart.svg.replace('<svg ', '<svg xmlns:xlink="x" ', 1))
  assert root.get('viewBox')
  assert root.get('width') is None
  return [''.join(node.itertext()).strip() for node in root.iter('text')]


def test_thin_and_smooth():
  assert plots.thin(5, 10).tolist() == [0, 1, 2, 3, 4]
  keep = plots.thin(100_000, 500)
  assert (len(keep), keep[0], keep[-1]) == (500, 0, 99_999)
  assert plots.smooth(np.full(50, 3.0)) == pytest.approx(3.0)
  noisy = 1 + 0.1 * np.random.default_rng(0).normal(size=400)
  assert plots.smooth(noisy)[100:].std() < 0.03


@pytest.mark.parametrize('count', [1, 2, 9, 10, 5000])
def test_loss_of_any_length(count):
  rows = [{'step': i, 'loss': 1 / (i + 1)} for i in range(count)]
  chart = plots.loss({'train': rows, 'validation': rows[-1:]})
  assert {'step', 'loss', 'train', 'validation'} <= set(texts(chart))
  assert len(chart.svg) < 100_000
  assert 'train from 1 at step 0' in chart.alt


@pytest.mark.parametrize('draw', [plots.loss, lambda history: plots.metric(history, {})])
def test_the_legend_hides_no_point(monkeypatch, draw):
  from matplotlib.figure import Figure

  figure = Figure(layout='constrained')
  monkeypatch.setattr(plots, 'render', lambda slug, paint, **_: paint(figure))
  train = [{'step': s, 'loss': 3 - s / 20} for s in (10, 20, 24)]
  draw({'train': train, 'validation': [{'step': 24, 'loss': 2.5, 'accuracy': 0.5}]})
  (axes,) = figure.axes
  figure.draw_without_rendering()
  legend = axes.get_legend().get_window_extent()
  for line in axes.lines:
    for place in axes.transData.transform(line.get_xydata()):
      assert not legend.contains(*place) or not axes.bbox.contains(*place)
  assert legend.y0 >= axes.bbox.y1 - 1


def test_loss_with_a_spike_and_without_finite_values():
  rows = [{'step': i, 'loss': 1.0 if i != 50 else 1e6} for i in range(100)]
  assert plots.loss({'train': rows}) is not None
  assert plots.loss({'train': [{'step': 1, 'loss': float('nan')}]}) is None
  assert plots.loss({}) is None


def test_metric_marks_the_best_step():
  rows = [
    {'step': s, 'split': 'validation', 'accuracy': a, 'log_loss': 1 - a} for s, a in ((1, 0.5), (2, 0.75), (3, 0.7))
  ]
  given = plots.metric({'validation': rows}, {'name': 'accuracy', 'value': 0.75, 'step': 2})
  assert given.note.endswith('Accuracy 0.75 at step 2.')
  assert plots.metric({'validation': rows}, {}).note == given.note
  lowest = plots.metric({'validation': rows}, {'name': 'validation/log_loss'})
  assert lowest.note.endswith('Log loss 0.25 at step 2.')
  assert plots.metric({'train': rows}, {}) is None
  assert plots.metric({'validation': [{'step': 1, 'loss': 2.0}]}, {}) is None


def test_learning_rate_ticks_are_short():
  rows = [{'step': i, 'learning_rate': 3e-4 * i / 50} for i in range(51)]
  chart = plots.trace({'train': rows}, 'learning_rate', title='Learning rate', smoothed=False)
  ticks = [text for text in texts(chart) if 'e-' in text]
  assert '3e-4' in ticks
  assert all(len(tick) <= 6 for tick in ticks)


@pytest.mark.parametrize(
  ('values', 'wanted'),
  [
    (np.linspace(0.98, 1.02, 9), {'0.98', '0.99', '1', '1.01', '1.02'}),
    (np.linspace(90, 160, 9), {'100', '120', '140', '160'}),
    (np.linspace(-120, -90, 9), {'-120', '-110', '-100', '-90'}),
    (np.linspace(1e-5, 1.1e-5, 9), {'1e-5', '1.02e-5', '1.04e-5'}),
  ],
)
def test_ticks_are_told_apart(values, wanted):
  rows = [{'step': i, 'grad_norm': v} for i, v in enumerate(values)]
  said = texts(plots.trace({'train': rows}, 'grad_norm', title='Norm', smoothed=True))
  assert wanted <= set(said)
  numbers = [text for text in said if re.match(r'[-\N{MINUS SIGN}]?\d', text)]
  assert not any('e+' in text for text in numbers)


@pytest.mark.parametrize('C', [2, 6, 7, 25, 50, 70])
def test_confusion_of_any_size(C):
  counts = np.diag(np.arange(C)) + 3 * np.eye(C, k=1, dtype=int)  # class 0: no hit; no NaN from the empty last row
  counts[-1] = 0
  chart = plots_classes.confusion(counts, [f'class {i}' for i in range(C)], slug='s')
  said = texts(chart)
  assert {'true', 'predicted'} <= set(said)
  assert ('class 0' in said) == (C <= 60)
  assert ('3' in said) == (C <= 25)
  assert ('100.0 %' in said) == (C <= 6)
  assert len(chart.svg) < 120_000
  assert f'of {int(counts.sum())}'.replace(' ', '') in chart.alt.replace(S, '').replace(' ', '')


@pytest.mark.parametrize('draw', [plots_classes.roc, plots_classes.precision_recall])
def test_curves(draw):
  two = draw(judged(2, N=5000), ['no', 'yes'], slug='s')
  assert any(text.startswith('yes, A') for text in texts(two))
  assert not any(text.startswith('no, A') for text in texts(two))
  four = draw(judged(4), ['$a$', '_b', 'c<d', 'e'], slug='s')
  assert len([text for text in texts(four) if re.search(r', (AUC|AP) 0\.\d', text)]) == 4
  many = draw(judged(30, N=2000), [f'c{i}' for i in range(30)], slug='s')
  assert any(text.startswith('mean, ') for text in texts(many))
  assert max(len(chart.svg) for chart in (two, four, many)) < 120_000


def test_curves_of_what_is_missing():
  one_class = Judged([{}] * 3, np.zeros(3, int), np.zeros(3, int), np.tile([0.9, 0.1], (3, 1)))
  assert plots_classes.roc(one_class, ['a', 'b'], slug='s') is None
  absent = judged(3)
  absent = Judged(
    absent.rows, np.where(absent.labels_N == 2, 0, absent.labels_N), absent.predictions_N, absent.probabilities_NC
  )
  said = texts(plots_classes.roc(absent, ['a', 'b', 'c'], slug='s'))
  assert not any(text.startswith('c, ') for text in said)


def test_calibration_error_by_hand():
  probabilities = np.array([[0.92, 0.08]] * 10 + [[0.62, 0.38]] * 10)
  labels = np.array([0] * 9 + [1] + [0] * 5 + [1] * 5)  # 0.9 right at 0.92, 0.5 right at 0.62
  one = Judged([{}] * 20, labels, np.zeros(20, int), probabilities)
  assert 'Expected calibration error 0.070' in plots_classes.calibration(one, slug='s').note
  confidence = plots_classes.confidence(one, slug='s')
  assert confidence.note == '10 of 20 predictions have a confidence of at least 0.9; 1 of these are wrong.'
  assert {'right', 'wrong', 'examples'} <= set(texts(confidence))


def test_confidence_that_a_threshold_leaves_below_one_half():
  probabilities = np.array([[0.69, 0.31], [0.66, 0.34], [0.08, 0.92]])
  labels, said = np.array([1, 0, 1]), np.array([1, 1, 1])  # two classes, decided at 0.25
  edges, count, right = plots_classes._bins(Judged([{}] * 3, labels, said, probabilities))
  assert edges[0] == 0
  assert (count[3], right[3], count[-1]) == (2, 1, 1)
  edges, count, _ = plots_classes._bins(Judged([{}] * 3, labels, np.array([0, 0, 1]), probabilities))
  assert edges[0] == 0.5
  assert count.tolist() == [0, 0, 0, 2, 0, 0, 0, 0, 1, 0]


def test_svg_is_for_inline_use():
  chart = plots_classes.roc(judged(2), ['a', 'b'], slug='slug')
  assert chart.svg.startswith('<svg ')
  assert not re.search(r'<\?xml|<!DOCTYPE|<style|metadata|xmlns|font-family|DejaVu|<!--', chart.svg)
  ids = re.findall(r' id="([^"]+)"', chart.svg)
  assert ids
  assert all(name.startswith('slug-') for name in ids)
  assert chart.svg == plots_classes.roc(judged(2), ['a', 'b'], slug='slug').svg


def test_settings_of_the_user_change_nothing_and_are_left_alone():
  chart = plots.loss({'train': [{'step': 1, 'loss': 1.0}]})
  with matplotlib.rc_context({'axes.facecolor': 'red', 'svg.fonttype': 'path', 'font.size': 30}):
    assert plots.loss({'train': [{'step': 1, 'loss': 1.0}]}).svg == chart.svg
    assert matplotlib.rcParams['font.size'] == 30


def test_calibration_is_of_the_likeliest_class_whatever_a_threshold_predicts():
  p_NC = np.array([[0.9, 0.1], [0.7, 0.3], [0.4, 0.6], [0.8, 0.2]])
  labels_N = np.array([0, 0, 1, 1])
  low = Judged([{}] * 4, labels_N, np.array([1, 1, 1, 1]), p_NC)  # from 0.05 on all are predicted to be the second
  said = 'mean confidence 0.750, accuracy 0.750'
  chart = plots_classes.calibration(low, slug='a')
  assert said in chart.alt
  assert 'confidence (largest probability)' in texts(chart)
