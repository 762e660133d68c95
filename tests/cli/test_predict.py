"""python -m ftlib.predict: the answers of a run to files of any kind, a piece at a time."""

import csv
import dataclasses
import gc
import json
import types
import weakref

import numpy as np
import pytest

from ftlib import folder, judge, predict, stream
from ftlib.analysis import Options
from ftlib.base.errors import InputError
from ftlib.data.incoming import Incoming
from ftlib.data.sources import Rows
from ftlib.evals import calibration
from tests import tiny

ROWS = tiny.rows(9, seed=4)


@pytest.fixture(scope='module')
def source(trained):
  """The trained run as a Stream, compiled once for this file."""
  return stream.of_run(str(trained.folder), checkpoint='last')[0]


@pytest.fixture
def answers(source, tmp_path):
  """`answers(name, data)`: the rows that are written for a file."""

  def call(name, data, own=source, **options):
    path = tmp_path / name
    path.write_text(data)
    found = []
    predict.predict(own, Incoming(str(path), own.columns.texts), found.append, **options)
    return [json.loads(folder.line(record)) for record in found]

  return call


@pytest.fixture
def evaluated(trained, source):
  """What eval.py says of the test split: (rows, predictions)."""
  built, own, frozen, _ = judge.opened(str(trained.folder), 'test', 'last')
  return built.dataset.splits['test'], built.evaluate(own, frozen, 'test')[1]


def test_every_kind_of_file_gives_the_same(answers, evaluated):
  rows, predictions = evaluated
  want = [{'good': p[1], 'bad': p[0]} for p in predictions['probabilities'].astype(float)]
  plain = '\n'.join(r['text'] for r in rows)
  files = {
    'a.txt': plain,
    'a.jsonl': ''.join(json.dumps({'text': r['text']}) + '\n' for r in rows),
    'a.csv': 'text\n' + plain,
    'a.json': json.dumps([*rows]),  # with labels, which are not looked at
    'b.jsonl': ''.join(json.dumps({**r, 'label': 'unheard of'}) + '\n' for r in rows),
  }
  for name, data in files.items():
    got = answers(name, data)
    assert [g['id'] for g in got] == list(range(len(rows))), name
    assert [g['text'] for g in got] == [r['text'] for r in rows]
    assert all('label' not in g for g in got)
    for one, p in zip(got, want, strict=True):
      assert one['probabilities'] == pytest.approx(p, abs=2e-6)
      assert one['prediction'] == max(p, key=p.get)


def test_pieces_do_not_change_an_answer(answers, monkeypatch, source):
  data = '\n'.join(r['text'] for r in ROWS)
  whole = answers('a.txt', data)
  monkeypatch.setattr(stream, 'PIECE', 2)
  parts = answers('a.txt', data)
  assert [p['id'] for p in parts] == [w['id'] for w in whole]
  for p, w in zip(parts, whole, strict=True):
    assert p['probabilities'] == pytest.approx(w['probabilities'], abs=2e-5)
  assert len(source.edges) <= 4  # lengths that were padded to, each compiled


def test_rows_are_let_go(source, tmp_path, monkeypatch):
  """Of ten pieces no more than three are there at any time."""
  monkeypatch.setattr(stream, 'PIECE', 2)
  path = tmp_path / 'a.txt'
  path.write_text('a good film\n' * 20)
  alive, most, pieces = [], 0, 0
  checked = stream.Stream.checked

  def counted(self, rows: Rows, unusable):
    nonlocal most, pieces
    gc.collect()
    alive[:] = [r for r in alive if r() is not None] + [weakref.ref(rows)]
    most, pieces = max(most, len(alive)), pieces + 1
    return checked(self, rows, unusable)

  monkeypatch.setattr(stream.Stream, 'checked', counted)
  assert predict.predict(source, Incoming(str(path), ['text']), lambda record: None) == 20
  assert pieces == 10
  assert most <= 3


def test_bad_rows(answers, source, trained):
  rows = ''.join(json.dumps({'text': r['text'] if i != 4 else ' '}) + '\n' for i, r in enumerate(tiny.rows(40, 1)))
  with pytest.raises(InputError, match=r'a\.jsonl:5: "text" is empty[^?]*--on_bad_row=skip'):
    answers('a.jsonl', rows)
  skipping = stream.Stream(source.run, source.own, source.frozen, skip=True, edges=source.edges)
  got = answers('a.jsonl', rows, own=skipping)
  assert [g['id'] for g in got] == [i for i in range(40) if i != 4]
  assert '1 of 40 rows skipped' in skipping.notes[-1]
  with pytest.raises(InputError, match=r'has no column "text".*did you mean "texts"'):
    answers('a.jsonl', '{"texts": "a"}\n')
  with pytest.raises(InputError, match=r'a\.jsonl:1: "text" is the int 3'):
    answers('a.jsonl', '{"text": 3}\n')


def test_bad_rows_are_counted_over_the_whole_file(answers, source, monkeypatch):
  monkeypatch.setattr(stream, 'PIECE', 20)
  texts = [r['text'] for r in tiny.rows(41, 1)]
  lines = lambda bad: ''.join(json.dumps({'text': '' if i in bad else t}) + '\n' for i, t in enumerate(texts))  # noqa: E731
  skipping = lambda: dataclasses.replace(source, skip=True, notes=[])  # noqa: E731
  own = skipping()
  assert len(answers('a.jsonl', lines([3, 40]), own=own)) == 39  # the last is a piece of its own
  assert any('2 of 41 rows skipped, the first' in note and 'a.jsonl:4' in note for note in own.notes)
  with pytest.raises(InputError, match=r'3 of 41 rows cannot be used, more than the 5% that --on_bad_row=skip'):
    answers('a.jsonl', lines([3, 5, 40]), own=skipping())
  with pytest.raises(InputError, match=r'1 of 41 rows cannot be used:[^?]*a\.jsonl:41[^?]*with --on_bad_row=skip'):
    answers('a.jsonl', lines([40]))


def test_a_piece_whose_rows_all_lack_a_column_is_bad_rows(answers, source, monkeypatch):
  monkeypatch.setattr(stream, 'PIECE', 20)
  rows = [json.dumps({'text': r['text']} if i < 40 else {'texts': r['text']}) for i, r in enumerate(tiny.rows(41, 1))]
  own = dataclasses.replace(source, skip=True, notes=[], seen=set())
  assert len(answers('a.jsonl', '\n'.join(rows), own=own)) == 40
  assert any('1 of 41 rows skipped' in note for note in own.notes)
  with pytest.raises(InputError, match=r'a\.jsonl:41: "text" is missing'):
    answers('a.jsonl', '\n'.join(rows))


def test_rows_that_are_cut_are_counted_over_the_whole_file(answers, source, monkeypatch):
  monkeypatch.setattr(stream, 'PIECE', 2)
  own = dataclasses.replace(source, notes=[])
  answers('a.txt', '\n'.join(['good film ' * n for n in (1, 30, 2, 30, 3)]), own=own)
  assert own.notes == ['a: 2 of 5 rows (40.0%) were cut to 40 tokens']


def test_the_program(trained, tmp_path, monkeypatch, capsys):
  flags = given(workdir=str(trained.folder), input=str(tmp_path / 'in.txt'), output=str(tmp_path / 'out.jsonl'))
  monkeypatch.setattr('absl.flags.FLAGS', flags)
  with pytest.raises(InputError, match='there is no such file'):
    predict.main()
  (tmp_path / 'in.txt').write_text('a good film\n\na bad film\n')
  flags.calibrated = True
  with pytest.raises(InputError, match=r'temperature\.json is not there; [^?]*eval\.py .*--calibrate=validation'):
    predict.main()
  assert sorted(p.name for p in tmp_path.iterdir()) == ['in.txt']
  flags.calibrated = False
  predict.main()
  said = capsys.readouterr()
  assert said.out == ''  # no terminal
  assert 'note  empty lines passed over: 1, the first ' in said.err
  assert [json.loads(line)['id'] for line in (tmp_path / 'out.jsonl').read_text().splitlines()] == [0, 2]
  with pytest.raises(InputError, match=r'--output=.*: it exists'):
    predict.main()
  flags.output = '-'
  predict.main()
  assert len(capsys.readouterr().out.splitlines()) == 2
  flags.batch_size = 0
  with pytest.raises(InputError, match='--batch_size=0'):
    predict.main()


@pytest.mark.parametrize(('ending', 'separator'), [('.csv', ','), ('.TSV', '\t')])
def test_a_table_says_what_lines_of_json_say(trained, answers, tmp_path, monkeypatch, ending, separator):
  rows = [{'id': 'x', 'text': 'a "good" film,\twarm'}, {'text': 'a bad film'}]
  data = ''.join(json.dumps(r) + '\n' for r in rows)
  want = answers('in.jsonl', data)
  flags = given(workdir=str(trained.folder), input=str(tmp_path / 'in.jsonl'), output=str(tmp_path / f'out{ending}'))
  monkeypatch.setattr('absl.flags.FLAGS', flags)
  predict.main()
  with (tmp_path / f'out{ending}').open(newline='') as f:
    got = [*csv.DictReader(f, delimiter=separator)]
  assert [g['text'] for g in got] == [r['text'] for r in rows]
  assert [(g['id'], g['prediction']) for g in got] == [(str(w['id']), w['prediction']) for w in want]
  for g, w in zip(got, want, strict=True):
    assert {n: float(g[f'probabilities.{n}']) for n in ('good', 'bad')} == w['probabilities']


def test_a_table_has_the_same_columns_in_every_row(tmp_path):
  first, odd = {'id': 0, 'a': [1, 'x'], 'b': None}, {'id': 1, 'a': [], 'c': 3}

  def written(*records):
    with predict._output(str(tmp_path / 'out.csv')) as write:
      for record in records:
        write(record)

  with pytest.raises(InputError, match=r'out\.csv: row 1 has other columns than the first \(b, c\)'):
    written(first, odd)
  assert not [*tmp_path.iterdir()]
  written(first)
  assert (tmp_path / 'out.csv').read_text() == 'id,a,b\n0,"[1, ""x""]",\n'


@pytest.mark.parametrize('name', ['out.json', 'out.parquet'])
def test_files_that_are_not_written(trained, tmp_path, monkeypatch, name):
  flags = given(workdir=str(trained.folder), input='in.txt', output=str(tmp_path / name))
  monkeypatch.setattr('absl.flags.FLAGS', flags)
  with pytest.raises(InputError, match=r'--output=.*: what is written is JSON lines \(\.jsonl\), or a table'):
    predict.main()


def test_a_temperature(answers, source):
  plain, cooled = (answers('a.txt', 'a good film\na film', temperature=t) for t in (None, 4.0))
  for p, c in zip(plain, cooled, strict=True):
    want = calibration.scaled(np.array([[*p['probabilities'].values()]]), 4.0)[0]
    assert [*c['probabilities'].values()] == pytest.approx(want, abs=1e-5)
    assert c['prediction'] == p['prediction']


def test_a_temperature_is_of_one_checkpoint_and_of_the_most_probable_class(source, copied):
  place = str(copied)
  judge.run(place, split='validation', checkpoint='2', options=Options(bootstrap=0, calibrate='validation'))
  fitted = json.loads((copied / 'eval' / 'temperature.json').read_text())
  assert predict.stored_temperature(source, place, 2) == fitted['temperature']
  with pytest.raises(InputError, match=r'is of checkpoint 2, and the answers are of 4\nTake --checkpoint=2, or fit'):
    predict.stored_temperature(source, place, 4)
  task = source.run.task
  strict = dataclasses.replace(task, config=dataclasses.replace(task.config, threshold='0.7'))
  own = dataclasses.replace(source, run=dataclasses.replace(source.run, task=strict))
  with pytest.raises(InputError, match=r'--calibrated: .*\(task\.threshold=0\.7\).* would contradict its predictions'):
    predict.stored_temperature(own, place, 2)


def test_answers_that_are_texts(source):
  class Asked:
    def question(self, row):
      return row

  with pytest.raises(InputError, match=r'ftlib\.generate'):
    predict.check(Asked(), 'sft')
  predict.check(source.run.task, 'classify')


def given(**flags):
  """The flags of the program, as attributes."""
  values = {'workdir': None, 'checkpoint': 'last', 'input': None, 'output': None, 'format': '', 'encoding': 'utf-8'}
  values |= {'batch_size': None, 'calibrated': False, 'on_bad_row': 'error'}
  return types.SimpleNamespace(**values | flags)
