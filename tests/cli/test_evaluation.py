"""eval.py beyond the metrics: intervals, slices, a temperature, another run, any file; stored and printed."""

import csv
import json
import shutil

import numpy as np
import pytest

from ftlib import analysis, fine_tune, judge, judge_file, run, show_evaluation, stream
from ftlib.analysis import Answers, Options
from ftlib.base.errors import InputError
from ftlib.evals import bootstrap, calibration, report_data
from tests import tiny


@pytest.fixture(scope='module')
def told(trained, tmp_path_factory):
  """`trained` with a column `genre` in its data: a run folder of this file's own."""
  place = tmp_path_factory.mktemp('told')
  for seed, (name, count) in enumerate((('train', 96), ('validation', 32), ('test', 24))):
    rows = [{**r, 'genre': 'drama' if i % 3 else 'news'} for i, r in enumerate(tiny.rows(count, seed))]
    (place / f'{name}.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
  values = {'data__path': str(place), 'train__steps': 6, 'train__eval_every': 3, 'optim__learning_rate': 2e-2}
  fine_tune.run(trained.config(**values), str(place / 'run'))
  return place / 'run'


def stored(folder, name='test'):
  return json.loads((folder / 'eval' / f'{name}.json').read_text())


def test_intervals_slices_and_a_temperature(told, capsys):
  options = Options(bootstrap=60, slices=('length', 'genre'), calibrate='validation')
  metrics = judge.run(str(told), split='test', checkpoint='last', options=options)
  said, found = capsys.readouterr().out, stored(told)
  low, high = found['intervals']['accuracy']
  assert low <= metrics['accuracy'] <= high
  assert found['bootstrap'] == {'samples': 60, 'level': 0.95}
  assert set(found['intervals']) <= set(metrics) - {'loss'}
  assert f'[{low:.4f}, {high:.4f}]' in said
  (low, high), f1 = (of['per_class']['bad']['f1'] for of in (found['intervals'], metrics))
  assert low <= f1 <= high
  assert f'{f1:.4f}  [{low:.4f}, {high:.4f}]' in said
  assert '95% intervals of 60 bootstrap samples' in said
  by = {one['slice']: one for one in found['slices']['genre']}
  assert {n: one['n'] for n, one in by.items()} == {'news': 8, 'drama': 16}
  records = [json.loads(line) for line in (told / 'eval' / 'test_predictions.jsonl').read_text().splitlines()]
  right, news = np.array([r['label'] == r['prediction'] for r in records]), np.arange(24) % 3 == 0
  assert by['news']['metrics']['accuracy'] == pytest.approx(right[news].mean())
  share = lambda counts: {'accuracy': counts @ right / counts.sum()}  # noqa: E731
  want = bootstrap.intervals(share, 24, samples=60, within=news).bounds.get('accuracy')
  assert by['news']['intervals'].get('accuracy') == (want and pytest.approx(want))
  assert not any('per_class' in by['drama'][key] for key in ('metrics', 'intervals'))
  assert 'by genre: accuracy' in said
  lengths = found['slices']['length']
  assert [one['slice'] for one in lengths] == ['1-16 tokens']  # of so short rows
  assert lengths[0]['metrics']['accuracy'] == pytest.approx(metrics['accuracy'])
  fitted = stored(told, 'temperature')
  assert (fitted['split'], fitted['n']) == ('validation', 32)
  assert fitted['after']['nll'] <= fitted['before']['nll']
  assert found['calibrated']['temperature'] == fitted['temperature']
  p, label = (np.array([r[k] for r in records]) for k in ('probabilities', 'label'))
  want = calibration.measures((label == 'good').astype(int), calibration.scaled(p, fitted['temperature']))
  assert {k: found['calibrated'][k] for k in want} == pytest.approx(want, abs=1e-4)
  assert found['calibration']['nll'] == pytest.approx(metrics['log_loss'], abs=1e-5)
  assert [s.name for s in report_data.read(told).splits] == ['test', 'validation']  # and no split called temperature


def test_a_temperature_that_shows_little_is_said_so(told, monkeypatch, capsys):
  options = Options(bootstrap=0, calibrate='validation')
  judge.run(str(told), split='validation', checkpoint='last', options=options)
  assert 'note  the temperature was fitted on these validation rows' in capsys.readouterr().out
  assert len(stored(told, 'validation')['calibrated']['notes']) == 1
  monkeypatch.setattr(calibration, 'temperature', lambda *_: 99.9999)
  judge.run(str(told), split='test', checkpoint='last', options=options)
  assert 'note  the temperature stands at a bound of its range' in capsys.readouterr().out
  assert len(stored(told)['calibrated']['notes']) == 1


def test_nothing_of_it_where_it_is_not_wanted(told, capsys):
  judge.run(str(told), split='test', checkpoint='last', options=Options(bootstrap=0))
  found = stored(told)
  assert not {'intervals', 'slices', 'calibrated', 'against'} & found.keys()
  assert 'bootstrap' not in capsys.readouterr().out
  with pytest.raises(
    InputError, match=r'--slices=genra: .*did you mean "genre".*[^?]*there are length, text, label, genre'
  ):
    judge.run(str(told), split='test', checkpoint='last', options=Options(bootstrap=0, slices=('genra',)))
  with pytest.raises(InputError, match='--split=vlidation: the data has train, validation, test'):
    judge.run(str(told), split='test', checkpoint='last', options=Options(calibrate='vlidation'))


def test_another_run(told, trained, tmp_path, capsys):
  other = tmp_path / 'other'
  shutil.copytree(told, other)
  (other / 'checkpoints' / '6').rename(tmp_path / 'gone')  # its best is then an earlier one
  options = Options(bootstrap=40, against=str(other))
  metrics = judge.run(str(told), split='test', checkpoint='last', options=options)
  found, said = stored(told)['against'], capsys.readouterr().out
  one = found['metrics']['accuracy']
  assert (found['run'], found['samples']) == (str(other), 40)
  assert one['here'] == pytest.approx(metrics['accuracy'])
  before = judge.run(str(other), split='test', checkpoint='last', options=Options(bootstrap=0))
  assert one['there'] == pytest.approx(before['accuracy'])
  assert one['difference'] == pytest.approx(one['here'] - one['there'])
  test = found['mcnemar']
  assert test['only_here'] - test['only_there'] == round(24 * one['difference'])
  assert f'against {other}, on the same rows' in said
  assert 'McNemar (exact)' in said
  built = judge.opened(str(told), 'test', 'last')[0]
  splits = [built.dataset.splits[name] for name in ('test', 'validation')]
  pair = [Answers(built, None, {}, rows, analysis.keys(built, rows), rows.where, None) for rows in splits]
  with pytest.raises(InputError, match=r'its rows are not those of this run \(32 and 24\)[^?]*validation\.jsonl:1'):
    analysis.compared(*pair, options)
  with pytest.raises(InputError, match='--against=nowhere: there is no such folder'):
    judge.run(str(told), split='test', checkpoint='last', options=Options(against='nowhere'))


def test_a_file_is_judged_as_the_split_is(told, tmp_path, monkeypatch, capsys):
  want = judge.run(str(told), split='test', checkpoint='last', options=Options(bootstrap=30, slices=('genre',)))
  intervals, slices = stored(told)['intervals'], stored(told)['slices']
  path = tmp_path / 'fresh.csv'
  rows = [json.loads(line) for line in (told.parent / 'test.jsonl').read_text().splitlines()]
  with path.open('w', newline='') as f:
    table = csv.DictWriter(f, ['text', 'label', 'genre'])
    table.writeheader()
    table.writerows(rows)
  monkeypatch.setattr(stream, 'PIECE', 5)
  options = Options(bootstrap=30, slices=('genre',))
  got = judge_file.run(str(told), file=str(path), checkpoint='last', skip=False, options=options)
  assert {n: got[n] for n in want if isinstance(want[n], float) and n in got} == pytest.approx(
    {n: want[n] for n in want if isinstance(want[n], float) and n != 'loss'}, abs=1e-5
  )
  found = stored(told, 'fresh')
  assert (found['n'], found['file']) == (24, str(path))
  assert found['intervals']['accuracy'] == pytest.approx(intervals['accuracy'], abs=1e-5)
  assert [(s['slice'], s['n']) for s in found['slices']['genre']] == [(s['slice'], s['n']) for s in slices['genre']]
  lines = (told / 'eval' / 'fresh_predictions.jsonl').read_text().splitlines()
  assert [json.loads(line)['id'] for line in lines] == list(range(24))
  assert 'fresh, checkpoint 6, 24 rows' in capsys.readouterr().out


def test_a_file_with_a_temperature_and_another_run(told, tmp_path, monkeypatch, capsys):
  other = tmp_path / 'other'
  shutil.copytree(told, other)
  (other / 'checkpoints' / '6').rename(tmp_path / 'gone')
  path = tmp_path / 'fresh.jsonl'
  path.write_bytes((told.parent / 'test.jsonl').read_bytes())
  options = Options(bootstrap=20, calibrate='validation', against=str(other))
  judge.run(str(told), split='test', checkpoint='last', options=options)
  want = stored(told)
  monkeypatch.setattr(stream, 'PIECE', 7)
  judged = lambda **more: judge_file.run(  # noqa: E731
    **{'workdir': str(told), 'file': str(path), 'checkpoint': 'last', 'skip': False, 'options': options, **more}
  )
  judged()
  found = stored(told, 'fresh')
  assert found['calibrated'] == pytest.approx(want['calibrated'], abs=1e-5)
  assert found['against']['mcnemar'] == want['against']['mcnemar']
  for name in ('accuracy', 'f1_macro'):
    got, wanted = (one['against']['metrics'][name] for one in (found, want))
    assert got.pop('interval') == pytest.approx(wanted.pop('interval'), abs=1e-5)
    assert got == pytest.approx(wanted, abs=1e-5)
  assert f'against {other}, on the same rows' in capsys.readouterr().out
  with pytest.raises(InputError, match='was fitted on validation; say --calibrate=validation'):
    judged(options=Options(calibrate='test'))
  with pytest.raises(InputError, match='is of checkpoint 6, and the answers are of 3'):
    judged(checkpoint='3', options=Options(calibrate='validation'))
  with pytest.raises(InputError, match='--against with --file=-: each run reads'):
    judged(file='-')
  with pytest.raises(InputError, match='--against=nowhere: there is no such folder'):
    judged(options=Options(against='nowhere'))


def test_long_rows_of_a_file_are_counted(told, tmp_path, capsys):
  rows = [{'text': 'good film ' * n, 'label': 'good'} for n in (1, 30, 2, 30)]
  (tmp_path / 'long.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
  judge_file.run(str(told), file=str(tmp_path / 'long.jsonl'), checkpoint='last', skip=False, options=Options(0))
  assert stored(told, 'long')['truncated'] == 2
  assert 'note  long: 2 of 4 rows (50.0%) were cut to 40 tokens' in capsys.readouterr().out


def test_files_that_cannot_be_judged(told, tmp_path):
  def judged(data, name='a.jsonl', **options):
    (tmp_path / name).write_text(data)
    judge_file.run(str(told), file=str(tmp_path / name), checkpoint='last', skip=False, options=Options(**options))

  before = sorted((told / 'eval').iterdir())
  with pytest.raises(InputError, match=r"a\.jsonl:2: label 'godo' is not in the run's label list; did you mean \"good"):
    judged('{"text": "a", "label": "good"}\n{"text": "b", "label": "godo"}\n')
  with pytest.raises(InputError, match='has no column "label"'):
    judged('{"text": "a"}\n')
  with pytest.raises(InputError, match=r'a\.jsonl:1: "label" is null[^?]*--on_bad_row=skip'):
    judged('{"text": "a", "label": null}\n')
  with pytest.raises(InputError, match=r'--file=.*there is no such file'):
    judge_file.run(str(told), file='gone.csv', checkpoint='last', skip=False, options=Options())
  assert sorted((told / 'eval').iterdir()) == before  # nothing is left half written
  judged('{"text": "a", "label": "good"}\n{"text": "a", "label": "bad"}\n', 'test.jsonl', bootstrap=0)
  assert (told / 'eval' / f'{tmp_path.name}_test.json').exists()  # the split's own result stays


def test_it_is_said_what_has_no_interval():
  said = show_evaluation.lines({'bootstrap': {'samples': 100, 'level': 0.95, 'without': ['f1_macro', 'mcc']}}, 'mcc')
  assert said[1] == '  no interval, for the samples do not say how far it may be off: f1_macro, mcc'
  assert len(show_evaluation.lines({'bootstrap': {'samples': 100, 'level': 0.95}}, 'mcc')) == 1


def test_groups_of_rows():
  rows = [{'n': i, 'kind': None if i == 3 else 'ab'[i % 2], 'flag': i > 3, 'length': 'x'} for i in range(30)]
  lengths = np.array([5, 16, 17, 40] + [1] * 26)
  got = analysis.grouped(['kind', 'n', 'flag'], rows, lengths)
  assert [(n, int(w.sum())) for n, w in got['kind']] == [('a', 15), ('b', 14), ('(none)', 1)]
  assert [int(w.sum()) for _, w in got['n']] == [8, 7, 7, 8]
  assert got['n'][0][0] == '0 to 7.25'
  assert [(n, int(w.sum())) for n, w in got['flag']] == [('True', 26), ('False', 4)]
  large = analysis.grouped(['t'], [{'t': 1_000_000 + i} for i in range(30)], lengths)['t']
  assert [n for n, _ in large][:2] == ['1000000.0 to 1000007.25', '1000007.25 to 1000014.5']
  many = analysis.grouped(['w'], [{'w': f'w{i % 25:02d}'} for i in range(50)], np.ones(50))['w']
  assert [int(w.sum()) for _, w in many] == [2] * 20 + [10]
  assert many[-1][0] == '(other): 5 values'
  assert np.sum([w for _, w in many], 0).tolist() == [1] * 50
  assert analysis.grouped(['length'], rows, lengths)['length'][0][0] == 'x'  # a column comes before the tokens
  named = analysis.grouped(['length'], [{}] * 30, lengths)['length']
  assert [(n, int(w.sum())) for n, w in named] == [('1-16 tokens', 28), ('17-32 tokens', 1), ('33-64 tokens', 1)]


@pytest.mark.parametrize('what', ['model', 'adapters'])
def test_thresholds_that_nothing_tuned_are_said_before_weights_are_read(what, tiny_bert, toy_data, copied, monkeypatch):
  """`--config=` and `--adapters=` have no run of their own that tuned any."""
  monkeypatch.setattr(run.Run, 'load', lambda self: pytest.fail('weights were read'))
  config = tiny.config(tiny_bert, toy_data, task__threshold='tuned')
  stored = json.loads((copied / 'config.json').read_text())
  stored['task']['threshold'] = 'tuned'
  (copied / 'config.json').write_text(json.dumps(stored))
  judged = {
    'model': lambda: judge.untrained(config, split='test', output=None),
    'adapters': lambda: judge.compare(str(copied), split='test', adapters=f'a={copied}'),
  }[what]
  with pytest.raises(InputError, match=r'task\.threshold=tuned: thresholds are tuned on the validation split'):
    judged()
