"""Logs: one row a step after any resume, a readable display, and no fault of a writer that stops the training."""

import errno
import io
import logging
import re
import struct
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import tqdm
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter

from ftlib.io import logs
from ftlib.io.logs import Log
from ftlib.io.workdir import read_jsonl

pytestmark = pytest.mark.filterwarnings('error')


def events(workdir):
  """{tag: {step: value}} as TensorBoard shows it: files in order, later sessions purge what they wrote again."""
  shown = {}
  for file in sorted((workdir / 'tensorboard').iterdir(), key=lambda p: p.name.rsplit('.', 1)[1]):
    data = file.read_bytes()
    while data:
      (length,) = struct.unpack('Q', data[:8])
      event = Event.FromString(data[12 : 12 + length])
      data = data[16 + length :]
      if event.HasField('session_log'):
        shown = {tag: {s: v for s, v in steps.items() if s < event.step} for tag, steps in shown.items()}
      for value in event.summary.value:
        steps = shown.setdefault(value.tag, {})
        assert event.step not in steps, f'{value.tag} has two values at step {event.step}'
        steps[event.step] = value.simple_value
  return shown


def test_a_row_goes_to_both_files(tmp_path):
  with Log(tmp_path) as log:
    log.row(1, 'train', {'loss': jnp.bfloat16(0.5), 'tokens': np.int64(7), 'note': 'x', 'bad': float('nan')})
    log.row(1, 'eval', {'accuracy': 0.25})
  assert read_jsonl(tmp_path / 'metrics.jsonl') == [
    {'step': 1, 'split': 'train', 'loss': 0.5, 'tokens': 7, 'note': 'x', 'bad': None},
    {'step': 1, 'split': 'eval', 'accuracy': 0.25},
  ]
  shown = events(tmp_path)
  assert np.isnan(shown.pop('train/bad')[1])
  assert shown == {'train/loss': {1: 0.5}, 'train/tokens': {1: 7.0}, 'eval/accuracy': {1: 0.25}}
  with Log(tmp_path) as log, pytest.raises(ValueError, match='may not be called split'):
    log.row(1, 'train', {'split': 1})


def test_rows_after_a_resume_are_there_once(tmp_path):
  for start, end in ((-1, 6), (4, 9), (2, 5)):  # each killed, and resumed from an earlier checkpoint
    log = Log(tmp_path)
    log.resume(start)
    for step in range(start + 1, end):
      log.row(step, 'train', {'loss': 10.0 * start + step})
    log.close()
    with open(tmp_path / 'metrics.jsonl', 'a') as f:
      f.write('{"step": 99, "sp')
  want = {0: -10, 1: -9, 2: -8, 3: 23, 4: 24}
  Log(tmp_path).resume(50)
  assert {r['step']: r['loss'] for r in read_jsonl(tmp_path / 'metrics.jsonl')} == want
  assert len(read_jsonl(tmp_path / 'metrics.jsonl')) == len(want)
  assert events(tmp_path) == {'train/loss': want}


def test_a_start_from_nothing_drops_what_an_unsaved_run_left(tmp_path):
  with Log(tmp_path) as log:
    log.row(0, 'eval', {'loss': 1.0})
  with Log(tmp_path) as log:
    log.resume(-1)
    log.row(0, 'eval', {'loss': 2.0})
  assert [r['loss'] for r in read_jsonl(tmp_path / 'metrics.jsonl')] == [2.0]
  assert events(tmp_path) == {'eval/loss': {0: 2.0}}


@pytest.mark.parametrize('method', ['write', 'flush', 'close', '__init__'])
def test_a_full_disk_for_tensorboard_costs_one_warning(tmp_path, monkeypatch, caplog, method):
  real_close = RecordWriter.close

  def full(self, *args):
    if method == 'close':
      real_close(self)
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(RecordWriter, method, full)
  with Log(tmp_path) as log:
    for step in range(50):  # a queue in between would block at the eleventh
      log.row(step, 'train', {'loss': 1.0})
  assert len(read_jsonl(tmp_path / 'metrics.jsonl')) == 50
  assert len(list(tmp_path.glob('tensorboard/*'))) <= 1  # not a new file for every row on a disk that is full
  assert len(caplog.records) == 1
  assert 'TensorBoard events in' in caplog.text
  assert 'No space left' in caplog.text


def test_a_full_disk_for_the_rows_costs_one_warning_and_those_rows(tmp_path, monkeypatch, caplog):
  with Log(tmp_path) as log:
    append = logs.append_jsonl
    for step in range(6):
      with monkeypatch.context() as m:
        if step in (2, 3):
          m.setattr(logs, 'append_jsonl', lambda path, row: append(path.parent / 'no/such', row))
        log.row(step, 'train', {'loss': 1.0})
  assert [r['step'] for r in read_jsonl(tmp_path / 'metrics.jsonl')] == [0, 1, 4, 5]
  assert len(caplog.records) == 1


def test_other_processes_are_silent(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(logs.jax, 'process_index', lambda: 1)
  with Log(tmp_path / 'run', total=1, every=1) as log:
    log.resume(0)
    log.row(1, 'train', {'loss': 1.0})
    log.progress(1, loss=1.0)
    log.say('hello')
  assert not (tmp_path / 'run').exists()
  assert capsys.readouterr() == ('', '')


def test_plain_lines_come_each_so_many_steps_and_at_the_end(tmp_path, capsys):
  with Log(tmp_path, total=25, every=10) as log:
    for step in range(1, 26):
      left = 0.5 * (25 - step)
      log.progress(step, loss=0.43214, learning_rate=9.1e-4, tokens_per_second=4210.0, seconds_left=left)
      if step == 12:
        log.say('eval 12')
  out, err = capsys.readouterr()
  assert out.splitlines() == [
    'step 10/25  loss 0.4321  lr 9.1e-04  4.2k tokens/s  left 0:08',
    'eval 12',
    'step 20/25  loss 0.4321  lr 9.1e-04  4.2k tokens/s  left 0:02',
    'step 25/25  loss 0.4321  lr 9.1e-04  4.2k tokens/s',
  ]
  assert err == ''


def test_plain_lines_without_a_total_or_numbers(tmp_path, capsys):
  with Log(tmp_path, every=5) as log:
    for step in range(1, 11):
      log.progress(step)
  assert capsys.readouterr().out == 'step 5\nstep 10\n'


class Terminal(io.StringIO):
  """A terminal of one screen; `rows()` is what stands on it."""

  def __init__(self, columns):
    super().__init__()
    self.columns = columns

  def isatty(self):
    return True

  def rows(self):
    screen, row, column = [''], 0, 0
    for c in re.findall(r'\x1b\[A|[^\x1b]', self.getvalue()):
      if c == '\x1b[A':
        row -= 1
      elif c == '\r':
        column = 0
      elif c == '\n':
        row, column = row + 1, 0
        screen += [''] * (row == len(screen))
      else:
        assert column < self.columns, f'a line is longer than the terminal: {screen[row]}'
        screen[row] = screen[row].ljust(column)[:column] + c + screen[row][column + 1 :]
        column += 1
    return [line.rstrip() for line in screen]


def on_terminal(monkeypatch, workdir, columns, total=20, first=5, told=True):
  """What a terminal shows at the end of a resumed run, with a line and a warning in between."""
  screen = Terminal(columns)
  monkeypatch.setattr(sys, 'stdout', screen)
  monkeypatch.setattr(sys, 'stderr', screen)
  monkeypatch.setattr(tqdm.std, '_screen_shape_wrapper', lambda: lambda fp: (columns, 24) if told else (0, 0))
  before = list(logging.root.handlers)
  with Log(workdir, total=total, every=1) as log:
    log.resume(first)
    for step in range(first + 1, total + 1):
      left = 61.0 * (total - step)
      log.progress(step, loss=0.25, learning_rate=1e-3, tokens_per_second=950.0, seconds_left=left)
      if step == first + 1:
        begun = screen.rows()
      if step == first + 3:
        log.say('eval accuracy 0.9')
      if step == first + 5:
        logs._log.warning('a disk is full')
  assert list(logging.root.handlers) == before
  return begun, screen.rows()


def test_a_terminal_gets_a_bar_and_whole_lines_above_it(tmp_path, monkeypatch):
  begun, rows = on_terminal(monkeypatch, tmp_path, 100)
  assert len(begun) == 1
  assert re.fullmatch(r' 30%\|#+.? *\| 6/20  loss 0\.2500  lr 1\.0e-03  950 tokens/s  left 14:14', begun[0])
  assert rows[:2] == ['eval accuracy 0.9', 'a disk is full']
  assert re.fullmatch(r'100%\|#+\| 20/20  loss 0\.2500  lr 1\.0e-03  950 tokens/s', rows[2])
  assert rows[3:] == ['']


def test_a_terminal_of_unknown_width_has_eighty_columns(tmp_path, monkeypatch):
  begun, rows = on_terminal(monkeypatch, tmp_path / 'a', 80, told=False)
  assert (begun, rows) == on_terminal(monkeypatch, tmp_path / 'b', 80)
  assert '6/20  loss 0.2500' in begun[0]


@pytest.mark.parametrize(
  ('columns', 'total', 'wanted'),
  [
    (60, 20, '6/20  loss 0.2500  lr 1.0e-03  950 tokens/s  left 14:14'),
    (60, 20000, '6/20000 loss 0.2500 lr 1.0e-03 950 tokens/s left 338:47:14'),
    (50, 20, '6/20 loss 0.2500 950 tokens/s left 14:14'),
    (30, 20, '6/20 loss 0.2500 left 14:14'),
    (20, 20, '6/20 loss 0.2500'),
    (9, 20, '6/20'),
  ],
)
def test_a_narrow_terminal_gets_numbers_in_one_line(columns, total, wanted):
  parts = ['loss 0.2500', 'lr 1.0e-03', '950 tokens/s', f'left {logs.clock(61.0 * (total - 6))}']
  assert logs._fitted(6, total, parts, columns) == wanted


def test_a_narrow_terminal_is_not_wrapped(tmp_path, monkeypatch):
  _, rows = on_terminal(monkeypatch, tmp_path, 60)
  assert rows == ['eval accuracy 0.9', 'a disk is full', '20/20  loss 0.2500  lr 1.0e-03  950 tokens/s', '']


def test_numbers_for_people():
  assert [logs.count(x) for x in (0, 950.4, 999.6, 4210, 1.26e6, 3e9)] == ['0', '950', '1.0k', '4.2k', '1.3M', '3.0G']
  assert [logs.clock(s) for s in (0, 8.4, 92, 3600 * 2 + 300)] == ['0:00', '0:08', '1:32', '2:05:00']
